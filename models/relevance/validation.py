"""Cross-validation of text heads, grouped and stratified: it chooses penalties, weighings and threshold, and gives
figures that this choice could not make better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.optimize import minimize

from medgen.canonical import rounded
from models.calibration import expected_calibration_error
from models.metrics.statistics import bootstrap_weights, percentile_interval
from models.relevance.classifier import Weighing, in_doubt
from models.relevance.dictionary import THRESHOLD, load_medical_dictionary
from models.relevance.fit import Instances, fit_titles, fit_words, score_titles, score_words
from models.relevance.labels import FOLDS, LabelledText

STRENGTHS = (3.0, 10.0)  # inverse L2 penalties that validation chooses from
MAX_BACKGROUND_RATE = 0.01
# Quick probabilities between which an embedding is asked for. In cross-validation bounds of 0.1 and 0.9 asked for ten
# times as many of everyday titles and found fewer medical ones at as few false alarms.
DOUBT = (0.5, 0.9)
# With a description or tags, and without a strong medical term, the words alone go further.
DOUBT_WITH_CONTEXT = (0.6, 0.9)
MOST_CONTEXT = 0.4
RESAMPLES = 1000  # of groups, for intervals
WAYS = ("two speeds", "words alone", "every title by its embedding")


@dataclass(frozen=True)
class Scores:
    """Scores of all rows, by scorers that saw none of their group: float64 (N,), context 0 where there is none."""

    title: np.ndarray
    context: np.ndarray


@dataclass(frozen=True)
class Choice:
    """Penalties, weighings and threshold that are best for some rows."""

    words_strength: float
    titles_strength: float
    quick: Weighing
    careful: Weighing
    threshold: float


def validate(
    texts: Sequence[LabelledText],
    instances: Instances,
    background: str,
    max_background_rate: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Choice, dict[str, Any]]:
    """Grouped, stratified cross-validation with `FOLDS` folds: what is best for the final head, and figures of each of
    `WAYS` that this choice could not make better: each fold is judged with what is best for the others.

    Args:
        progress: called with (folds done, folds in all).
    """
    rows = _Rows(texts, background)
    passed = passes_dictionary(texts)
    fold = _folds(rows)
    empty = np.zeros(len(texts))
    words = {strength: Scores(empty.copy(), empty.copy()) for strength in STRENGTHS}
    titles = {strength: empty.copy() for strength in STRENGTHS}
    for number in range(FOLDS):
        progress(number, FOLDS)
        own = np.flatnonzero(fold == number)
        with_context = own[rows.has_context[own]]
        for strength, by_words in fit_words(instances, fold != number, STRENGTHS).items():
            words[strength].title[own] = score_words(instances, own, by_words)
            words[strength].context[with_context] = score_words(instances, instances.count + with_context, by_words)
        for strength, by_title in fit_titles(instances, fold != number, STRENGTHS).items():
            titles[strength][own] = score_titles(instances, own, by_title)
    progress(FOLDS, FOLDS)
    every = np.ones(len(texts), bool)
    figures = {}
    for way in WAYS:
        probability = {with_context: empty.copy() for with_context in (True, False)}
        called = {with_context: empty.astype(bool) for with_context in (True, False)}
        for number in range(FOLDS):
            own = fold == number
            chosen = _choose(rows, words, titles, ~own, max_background_rate, way)
            for with_context in (True, False):
                p = _probability(chosen, words, titles, rows.has_context & with_context, way)
                probability[with_context][own] = p[own]
                called[with_context][own] = p[own] >= chosen.threshold
        figures[way] = _figures(rows, probability, called, passed)
    return _choose(rows, words, titles, every, max_background_rate, WAYS[0]), figures


class _Rows:
    """Labels and facts of the rows as arrays."""

    def __init__(self, texts: Sequence[LabelledText], background: str) -> None:
        self.medical = np.array([text.medical for text in texts])
        self.has_context = np.array([bool(text.context) for text in texts])
        self.source = np.array([text.source for text in texts])
        self.language = np.array([text.language for text in texts])
        self.background = self.source == background
        self.group = np.unique([text.group for text in texts], return_inverse=True)[1]
        # Both classes weigh the same, as where half of the listings are medical.
        self.weight = np.where(self.medical, 0.5 / self.medical.sum(), 0.5 / (~self.medical).sum())


def _folds(rows: _Rows) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold

    fold = np.zeros(len(rows.medical), int)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for number, (_, held_out) in enumerate(splitter.split(fold, rows.medical, rows.group)):
        fold[held_out] = number
    return fold


def _choose(
    rows: _Rows,
    words: dict[float, Scores],
    titles: dict[float, np.ndarray],
    among: np.ndarray,
    max_background_rate: float,
    way: str,
) -> Choice:
    """What is best for the rows `among`."""
    sign = np.where(rows.medical, 1.0, -1.0)

    def loss(scores: np.ndarray) -> float:
        return float((rows.weight * np.logaddexp(0, -sign * scores))[among].sum())

    by_words = min(words, key=lambda strength: loss(words[strength].title))
    by_titles = min(titles, key=lambda strength: loss(titles[strength]))
    quick = weigh(words[by_words], rows.has_context, rows.medical, among)
    with_embedding = Scores(titles[by_titles], words[by_words].context)
    careful = weigh(with_embedding, rows.has_context, rows.medical, among)
    choice = Choice(by_words, by_titles, quick, careful, 0.5)
    p = _probability(choice, words, titles, rows.has_context, way)
    alone = _probability(choice, words, titles, np.zeros_like(rows.has_context), way)
    bound = among & rows.background & ~rows.medical
    judged = among & ~rows.background
    threshold = operating_point(p[judged], rows.medical[judged], [p[bound], alone[bound]], max_background_rate)
    return replace(choice, threshold=threshold)


def _probability(
    choice: Choice, words: dict[float, Scores], titles: dict[float, np.ndarray], has_context: np.ndarray, way: str
) -> np.ndarray:
    every = np.ones(len(has_context), bool)
    own = words[choice.words_strength]
    quick = choice.quick.probability(own.title, every, own.context, has_context)
    careful = choice.careful.probability(titles[choice.titles_strength], every, own.context, has_context)
    if way == "words alone":
        return quick
    if way == "every title by its embedding":
        return careful
    return np.where(in_doubt(quick, (DOUBT, DOUBT_WITH_CONTEXT), has_context.astype(int)), careful, quick)


def weigh(scores: Scores, has_context: np.ndarray, medical: np.ndarray, among: np.ndarray) -> Weighing:
    """The weights of title and context, and Platt scaling, by logistic regression on the rows `among`.

    Both classes weigh the same. The weights stay near the half-and-half that they start from when few rows have a
    context, and are never below 0; so is the slope. A context never weighs more than MOST_CONTEXT: descriptions
    advertise and thank, and few label files have medical rows with typical ones.
    """

    def logistic(inputs: np.ndarray, of: np.ndarray, prior: Sequence[float], trust: float) -> np.ndarray:
        """argmin of the balanced log loss + trust * |x - prior|², each but the last at least 0."""
        truth = medical[of]
        weight = np.where(truth, 0.5 / max(1, truth.sum()), 0.5 / max(1, (~truth).sum()))
        sign = np.where(truth, 1.0, -1.0)

        def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
            margin = sign * (inputs @ x)
            slope = -sign * weight / (1 + np.exp(np.clip(margin, -50, 50)))
            total = weight @ np.logaddexp(0, -margin) + trust * ((x - prior) ** 2).sum()
            return float(total), inputs.T @ slope + 2 * trust * (x - prior)

        bounds = [(0.0, None), *[(0.0, MOST_CONTEXT)] * (len(prior) - 2), (None, None)]
        return minimize(loss, np.array(prior), jac=True, method="L-BFGS-B", bounds=bounds).x

    with_context = among & has_context
    inputs = np.stack([scores.title, scores.context, np.ones(len(medical))], axis=1)
    rows = min((with_context & medical).sum(), (with_context & ~medical).sum())
    title, context, both = logistic(inputs[with_context], with_context, (0.6, 0.6, 0.0), 1 / max(1, rows))
    joint = np.where(has_context, title * scores.title + context * scores.context + both, scores.title)
    slope, offset = logistic(np.stack([joint, np.ones(len(joint))], axis=1)[among], among, (1.0, 0.0), 1e-6)
    return Weighing(*(rounded(float(x), 6) for x in (title, context, both, slope, offset)))


def operating_point(
    probability: np.ndarray, medical: np.ndarray, background: Sequence[np.ndarray], max_background_rate: float
) -> float:
    """The threshold, to 4 places, with the highest F1 on labelled rows among those that call at most
    `max_background_rate` of each set of background probabilities medical; of equals the highest."""
    candidates = np.unique(np.round(np.concatenate([probability, [0.5, 1.0]]), 4))
    candidates = candidates[candidates > 0]
    order = np.sort(probability)
    of_medical = np.sort(probability[medical])
    called = len(order) - np.searchsorted(order, candidates)
    right = len(of_medical) - np.searchsorted(of_medical, candidates)
    f1 = 2 * right / np.maximum(called + len(of_medical), 1)
    for negatives in background:
        rate = np.array([(negatives >= threshold).mean() if len(negatives) else 0.0 for threshold in candidates])
        f1 = np.where(rate <= max_background_rate, f1, -1.0)
    return float(candidates[len(f1) - 1 - int(f1[::-1].argmax())])


def passes_dictionary(texts: Sequence[LabelledText]) -> np.ndarray:
    """bool (N,): whether stage 1 of discovery lets a text through."""
    titles, contexts, none = (
        pa.array(column) for column in zip(*((text.title, text.context, "") for text in texts), strict=True)
    )
    passed: np.ndarray = load_medical_dictionary().judge(titles, contexts, none).score >= THRESHOLD
    return passed


def _figures(
    rows: _Rows, probability: dict[bool, np.ndarray], called: dict[bool, np.ndarray], passed: np.ndarray
) -> dict[str, Any]:
    """Cross-validated figures: over all rows, by label file, by language and by both; as given and, where it differs,
    by title alone; by language also as discovery judges, by the dictionary first."""
    full, alone = called[True], called[False]

    def by_language(among: np.ndarray) -> dict[str, Any]:
        found = {}
        for name in filter(None, dict.fromkeys(rows.language[among])):
            own = among & (rows.language == name)
            found[str(name)] = with_intervals(full[own], rows.medical[own], rows.group[own])
            found[str(name)]["discovered"] = with_intervals((full & passed)[own], rows.medical[own], rows.group[own])
        return found

    by_file: dict[str, dict[str, Any]] = {}
    for source in dict.fromkeys(rows.source):
        own = rows.source == source
        by_file[str(source)] = figures_of(full[own], rows.medical[own])
        if rows.has_context[own].any():
            by_file[str(source)]["by_title_alone"] = figures_of(alone[own], rows.medical[own])
        if languages := by_language(own):
            by_file[str(source)]["by_language"] = languages
    return {
        **figures_of(full[~rows.background], rows.medical[~rows.background]),
        "calibration_error": rounded(expected_calibration_error(probability[True], rows.medical, rows.weight)),
        "by_file": by_file,
        "by_language": by_language(np.ones(len(full), bool)),
    }


def with_intervals(called: np.ndarray, medical: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """As `figures_of`, with 95 % intervals of recall and false alarms by resampling groups; None where all rows of a
    class are of one group."""
    figures = figures_of(called, medical)
    names, of = np.unique(group, return_inverse=True)
    draws = bootstrap_weights(len(names), 0, RESAMPLES)
    for key, side in (("recall", medical), ("false_alarm_rate", ~medical)):
        rows = np.bincount(of, weights=side, minlength=len(names))
        right = np.bincount(of, weights=side & called, minlength=len(names))
        with np.errstate(invalid="ignore"):  # draws without any row of the class are left out
            shares = (draws @ right) / (draws @ rows)
        interval = percentile_interval(shares) if (rows > 0).sum() > 1 else None
        figures[f"{key}_interval"] = [rounded(float(end)) for end in interval] if interval else None
    return figures


def figures_of(called: np.ndarray, medical: np.ndarray) -> dict[str, Any]:
    """rows, medical, f1, recall and false_alarm_rate (share of non-medical rows called medical); None where the rows
    do not say."""
    right = int((called & medical).sum())
    positives, negatives = int(medical.sum()), int((~medical).sum())
    return {
        "rows": len(medical),
        "medical": positives,
        "f1": rounded(2 * right / (int(called.sum()) + positives)) if positives and negatives else None,
        "recall": rounded(right / positives) if positives else None,
        "false_alarm_rate": rounded(float(called[~medical].mean())) if negatives else None,
    }
