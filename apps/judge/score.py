"""Verdicts beside labels: precision, recall and F1 per question, with the misjudged files named."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any

from apps.judge.labels import Cuts, Label
from apps.judge.measure import Verdict
from medgen.canonical import rounded
from models.metrics.statistics import share_interval

CUT_TOLERANCE_S = 0.2  # labels are read off a player: a few frames


@dataclass(frozen=True)
class Mistake:
    """A verdict that differs from its label: the file, when in it (seconds), and what both say."""

    file: str
    labelled: str
    judged: str
    time_s: float | None = None


@dataclass(frozen=True)
class Answer:
    """How one question was answered over a folder. Counts are of files, for shots of boundaries.

    `precision`, `recall`, `f1` and `balanced_accuracy` lie in 0..1 and are None where nothing was to be counted.
    """

    question: str
    unit: str
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int | None
    mistakes: tuple[Mistake, ...]
    note: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def precision(self) -> float | None:
        """Share of the finds that are right."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """Share of what was there that was found."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall."""
        return _share(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the shares of positives and of negatives judged rightly."""
        if self.true_negatives is None:
            return None
        negatives = _share(self.true_negatives, self.true_negatives + self.false_positives)
        return None if self.recall is None or negatives is None else rounded((self.recall + negatives) / 2)

    def facts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        figures = {name: getattr(self, name) for name in ("precision", "recall", "f1", "balanced_accuracy")}
        return asdict(self) | figures | {"recall_interval": interval(self.true_positives, self.false_negatives)}


def score(labels: Sequence[Label], verdicts: Mapping[str, Verdict]) -> list[Answer]:
    """Answers to every question that the labels ask of at least one file."""
    pairs = [(label, verdicts[label.file]) for label in labels if label.file in verdicts]
    readable = [(label, verdict) for label, verdict in pairs if not verdict.problem]
    answers = [
        _yes_no("unreadable file", pairs, attrgetter("unreadable"), lambda v: bool(v.problem), _problem),
        _hard_cuts(readable),
        _gradual(readable),
        _yes_no("medical", readable, attrgetter("medical"), lambda v: v.is_medical, _medical),
        _yes_no("border", readable, attrgetter("border"), lambda v: v.border != "none", lambda v: v.border),
        _yes_no("overlay text", readable, attrgetter("overlay_text"), lambda v: v.has_overlay_text, _words),
        _yes_no("still picture", readable, attrgetter("still"), lambda v: "still_picture" in v.reasons, _reasons),
        _yes_no("degraded picture", readable, attrgetter("degraded"), lambda v: v.is_degraded, _reasons),
    ]
    return [answer for answer in answers if answer is not None]


@dataclass(frozen=True)
class Agreement:
    """Share of a step's sampled verdicts that people called right, with a Wilson interval (95 %)."""

    step: str
    verdict: str
    right: int
    judged: int
    low: float
    high: float
    wrong: tuple[str, ...]


def agreement(labels: Iterable[Label]) -> list[Agreement]:
    """Per step and verdict, from the column `correct` of a folder made by `medgen sample`."""
    groups: dict[tuple[str, str], list[Label]] = {}
    for label in labels:
        if label.correct is not None and label.sampled.get("step"):
            groups.setdefault((label.sampled["step"], label.sampled.get("verdict", "")), []).append(label)
    agreements = []
    for (step, verdict), group in sorted(groups.items()):
        right = sum(bool(label.correct) for label in group)
        low, high = interval(right, len(group) - right) or (0.0, 1.0)
        wrong = tuple(label.file for label in group if not label.correct)
        agreements.append(Agreement(step, verdict, right, len(group), low, high, wrong))
    return agreements


def interval(successes: int, failures: int) -> tuple[float, float] | None:
    """Wilson score interval (95 %) of a share (Wilson 1927); None without observations."""
    n = successes + failures
    if not n:
        return None
    share = share_interval(successes, n)
    return rounded(share.low or 0.0), rounded(share.high or 0.0)


def _yes_no(
    question: str,
    pairs: Sequence[tuple[Label, Verdict]],
    truth: Callable[[Label], bool | None],
    predicted: Callable[[Verdict], bool],
    wording: Callable[[Verdict], str],
) -> Answer | None:
    asked = [(label, verdict) for label, verdict in pairs if truth(label) is not None]
    if not any(truth(label) for label, _ in asked):
        return None
    counts = dict.fromkeys(((a, b) for a in (True, False) for b in (True, False)), 0)
    mistakes = []
    for label, verdict in asked:
        labelled, judged = bool(truth(label)), predicted(verdict)
        counts[labelled, judged] += 1
        if labelled != judged:
            mistakes.append(Mistake(label.file, "yes" if labelled else "no", wording(verdict)))
    return Answer(
        question, "files", counts[True, True], counts[False, True], counts[True, False], counts[False, False],
        tuple(mistakes),
    )  # fmt: skip


def _hard_cuts(pairs: Sequence[tuple[Label, Verdict]]) -> Answer | None:
    """Every found boundary is held against the labels; finds that a vague label may cover are not counted."""
    right = wrong = missed = 0
    mistakes = []
    asked = [(label, verdict) for label, verdict in pairs if label.cuts is not None]
    for label, verdict in asked:
        cuts = label.cuts or Cuts()
        free = {time: kind for time, kind in verdict.boundaries}
        for start, end in (*((time, time) for time in cuts.moments), *cuts.spans):
            middle = (start + end) / 2
            near = [t for t in free if start - CUT_TOLERANCE_S <= t <= end + CUT_TOLERANCE_S]
            if near:
                del free[min(near, key=lambda t: abs(t - middle))]
                right += 1
            else:
                missed += 1
                mistakes.append(Mistake(label.file, f"cut at {start:.1f} s", "none", middle))
        for time, kind in free.items():
            within = any(start - 0.5 <= time <= end + 0.5 for start, end in cuts.gradual)
            if cuts.complete and not within:
                wrong += 1
                mistakes.append(Mistake(label.file, "none", f"{kind} at {time:.2f} s", time))
    if not asked:
        return None
    vague = [label.file for label, _ in asked if label.cuts and not label.cuts.complete]
    note = f"finds beyond the labelled ones not judged in: {', '.join(vague)}" if vague else ""
    return Answer("shot boundary", "boundaries", right, wrong, missed, None, tuple(mistakes), note)


def _gradual(pairs: Sequence[tuple[Label, Verdict]]) -> Answer | None:
    right = missed = 0
    mistakes = []
    for label, verdict in pairs:
        for start, end in label.cuts.gradual if label.cuts else ():
            if any(start - CUT_TOLERANCE_S <= time <= end + CUT_TOLERANCE_S for time, _ in verdict.boundaries):
                right += 1
            else:
                missed += 1
                mistakes.append(Mistake(label.file, f"dissolve {start:.1f} to {end:.1f} s", "none", (start + end) / 2))
    if not right + missed:
        return None
    return Answer("dissolve", "boundaries", right, 0, missed, None, tuple(mistakes), "recall only")


def _share(count: int, total: int) -> float | None:
    return rounded(count / total) if total else None


def _problem(verdict: Verdict) -> str:
    return f"{verdict.problem}: {verdict.message}" if verdict.problem else "readable"


def _medical(verdict: Verdict) -> str:
    return f"p = {verdict.medical:.2f}, {verdict.category}"


def _words(verdict: Verdict) -> str:
    return f"{verdict.overlay_words} overlay words, {verdict.words} in all"


def _reasons(verdict: Verdict) -> str:
    return ", ".join(verdict.reasons) or "good"
