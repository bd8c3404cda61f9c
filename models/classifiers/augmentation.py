"""Does synthetic data help a classifier? The design of the experiment, its figures and their verdict.

Real videos are split into folds by source, so that no source is both trained on and tested; each fold is tested once
for each seed. Arms differ only in what is added to the training fold: nothing, synthetic videos, real videos once
more (oversampling), or real videos by standard augmentation, the last three in the same numbers per class. Synthetic
videos are never tested.

Intervals are percentile bootstrap intervals over seeds and test sources, both drawn with replacement (a source's
videos stay together, because they are alike). Arms are compared on the same draws: differences are paired.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medgen.canonical import rounded
from models.metrics.statistics import bootstrap_weights, percentile_interval

Kind = Literal["real", "synthetic", "oversampled", "standard"]
NAMES: dict[Kind, str] = {
    "real": "real only",
    "synthetic": "real + synthetic",
    "oversampled": "real + oversampling",
    "standard": "real + standard augmentation",
}
ADDING: tuple[Kind, ...] = ("synthetic", "oversampled", "standard")
FEW_SOURCES = 10  # with fewer test sources a bootstrap's intervals are known to be too narrow
SPLIT_ATTEMPTS = 25
METRICS = ("accuracy", "macro_f1")


class CannotCompare(ValueError):
    """The data do not allow the experiment. The message says what is missing."""


@dataclass(frozen=True, order=True)
class Arm:
    """What is added to the real training videos: `ratio` times their number."""

    kind: Kind
    ratio: float = 0.0

    @property
    def name(self) -> str:
        """As people read it."""
        return NAMES[self.kind] if self.kind == "real" else f"{NAMES[self.kind]} ×{self.ratio:g}"


REAL = Arm("real")


@dataclass(frozen=True)
class Sample:
    """A labelled video. `source` counts for real videos only."""

    label: str
    source: str
    synthetic: bool = False


@dataclass(frozen=True)
class Fold:
    """Indices of the real samples to train on and to test."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def all_arms(ratios: Sequence[float]) -> list[Arm]:
    """Real only, then every way of adding at every ratio."""
    return [REAL, *(Arm(kind, ratio) for ratio in sorted(set(ratios)) for kind in ADDING)]


def split(samples: Sequence[Sample], folds: int, seed: int, never_test: frozenset[str] = frozenset()) -> list[Fold]:
    """Folds over the real samples: by source, and of like classes where that can be.

    Args:
        folds: at most; fewer when there are fewer sources.
        never_test: sources whose samples are in every training fold and in no test.

    Raises:
        CannotCompare: fewer than 2 sources or 2 classes can be tested.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    real = [number for number, sample in enumerate(samples) if not sample.synthetic]
    always = [number for number in real if samples[number].source in never_test]
    tested = np.array([number for number in real if samples[number].source not in never_test], int)
    labels = np.array([samples[number].label for number in tested])
    sources = np.array([samples[number].source for number in tested])
    if len(set(sources)) < 2 or len(set(labels)) < 2:
        raise CannotCompare(
            f"{len(set(sources))} sources of {len(set(labels))} classes can be tested: at least 2 of each are needed"
        )
    everything = {samples[number].label for number in real}
    number_of_folds = min(folds, len(set(sources)))
    best: tuple[int, list[Fold]] | None = None
    rng = np.random.default_rng(seed)
    for _ in range(SPLIT_ATTEMPTS):
        splitter = StratifiedGroupKFold(number_of_folds, shuffle=True, random_state=int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes with fewer samples than folds: the report has notes of its own
            try:
                index_pairs = list(splitter.split(tested, labels, sources))
            except ValueError as error:
                raise CannotCompare(
                    f"{number_of_folds} folds need at least so many videos of one class; the largest has "
                    f"{max(Counter(labels.tolist()).values())}: ask for fewer folds"
                ) from error
        candidate = [
            Fold(tuple(sorted([*always, *tested[train].tolist()])), tuple(sorted(tested[test].tolist())))
            for train, test in index_pairs
            if len(test)
        ]
        gaps = sum(len(everything - {samples[number].label for number in fold.train}) for fold in candidate)
        if best is None or gaps < best[0]:
            best = gaps, candidate
        if not gaps:
            break
    assert best
    return best[1]


def quotas(samples: Sequence[Sample], fold: Fold, ratio: float) -> dict[str, int]:
    """Class → how many videos an arm adds: `ratio` times the class's training videos, and no more than there are
    synthetic ones. The same for every way of adding, so that arms of one ratio are of one size."""
    real = Counter(samples[number].label for number in fold.train)
    there = Counter(sample.label for sample in samples if sample.synthetic)
    return {label: min(max(1, round(ratio * count)), there[label]) for label, count in sorted(real.items())}


def training_set(samples: Sequence[Sample], fold: Fold, arm: Arm, seed: int, variants: int) -> list[tuple[int, int]]:
    """(number of a sample, number of its variant; 0 is the plain one) of all videos that an arm trains on.

    What a smaller ratio adds is part of what a larger one adds.
    """
    chosen = [(number, 0) for number in fold.train]
    if arm.kind == "real":
        return chosen
    for position, (label, wanted) in enumerate(quotas(samples, fold, arm.ratio).items()):
        rng = np.random.default_rng([seed, position, ADDING.index(arm.kind)])
        if arm.kind == "synthetic":
            pool = [number for number, sample in enumerate(samples) if sample.synthetic and sample.label == label]
            chosen += [(int(number), 0) for number in rng.permutation(pool)[:wanted]]
            continue
        pool = [number for number in fold.train if samples[number].label == label]
        rounds = [rng.permutation(pool) for _ in range(-(-wanted // len(pool)))]
        first = int(rng.integers(variants)) if variants else 0
        again = [
            (int(number), 1 + (first + turn) % variants if arm.kind == "standard" else 0)
            for turn, numbers in enumerate(rounds)
            for number in numbers
        ]
        chosen += again[:wanted]
    return chosen


def figures(
    predicted: np.ndarray,
    truth: Sequence[int],
    sources: Sequence[str],
    arms: Sequence[Arm],
    classes: Sequence[str],
    *,
    draws: int,
    seed: int = 0,
) -> dict[str, Any]:
    """What the arms reached, and how they differ, with intervals.

    Args:
        predicted: int (arms, seeds, videos): predicted class; -1 where a video was not tested.
        truth, sources: of the videos.
        draws: of the bootstrap.

    Returns:
        JSON facts: ``arms`` (accuracy, macro_f1, recall by class, each with value, low, high; confusion summed over
        seeds, rows are the truth; difference to real only and a verdict) and ``comparisons`` of synthetic arms with
        the other ways of adding as much. Accuracy and macro-F1 are means over seeds; macro-F1 is over the classes
        that were tested or found (as scikit-learn's).
    """
    counts = _confusions(predicted, truth, sources, len(classes))
    groups = counts.shape[2]
    rng = np.random.default_rng(seed)
    of_seeds = bootstrap_weights(counts.shape[1], rng, draws)
    of_sources = bootstrap_weights(groups, rng, draws)
    point = [_measured(c, np.ones((1, groups)), np.ones((1, c.shape[0]))) for c in counts]
    drawn = [_measured(c, of_sources, of_seeds) for c in counts]
    rows = []
    for index, arm in enumerate(arms):
        own: dict[str, Any] = {"arm": arm.name, "kind": arm.kind, "ratio": arm.ratio}
        own |= {metric: _interval(point[index][metric][0], drawn[index][metric]) for metric in METRICS}
        own["recall"] = {
            name: _recall(point[index]["recall"][0, c], drawn[index]["recall"][:, c]) for c, name in enumerate(classes)
        }
        own["confusion"] = counts[index].sum(axis=(0, 1)).astype(int).tolist()
        if index:
            own["difference"] = _differences(point, drawn, index, 0)
            own["verdict"] = verdict(own["difference"]["accuracy"])
        rows.append(own)
    comparisons = []
    for index, arm in enumerate(arms):
        for other, against in enumerate(arms):
            if arm.kind == "synthetic" and against.kind in ADDING[1:] and against.ratio == arm.ratio:
                difference = _differences(point, drawn, index, other)
                comparisons.append(
                    {"arm": arm.name, "against": against.name, "ratio": arm.ratio, "difference": difference}
                    | {"verdict": verdict(difference["accuracy"])}
                )
    return {"arms": rows, "comparisons": comparisons}


def verdict(difference: Mapping[str, float]) -> str:
    """One sentence on a difference with its interval."""
    text = f"difference {_signed(difference)}"
    if difference["low"] > 0:
        return f"measurable gain: {text}"
    return f"measurable loss: {text}" if difference["high"] < 0 else f"no measurable gain: {text}"


def headline(result: Mapping[str, Any], leaked: int, tested: int) -> str:
    """What the experiment says in the end, of the synthetic arm whose ratio is nearest to 1: chosen beforehand, so
    that the best of several arms is not taken for the rule.

    Args:
        result: as `figures` gives it.
        leaked: how many of the `tested` sources the generator was trained on.
    """
    rows = {(row["kind"], row["ratio"]): row for row in result["arms"]}
    ratio = min((r for kind, r in rows if kind == "synthetic"), key=lambda r: (abs(r - 1), r))
    own, real = rows["synthetic", ratio], rows["real", 0.0]
    against = [c for c in result["comparisons"] if c["ratio"] == ratio]
    accuracies = f"accuracy {own['accuracy']['value']:.2f} against {real['accuracy']['value']:.2f}"
    sentence = f"{own['arm']}: {own['verdict']} to real only ({accuracies})."
    if own["difference"]["accuracy"]["low"] > 0:
        beaten = [c for c in against if c["difference"]["accuracy"]["low"] > 0]
        if len(beaten) == len(against):
            sentence += " It also beats oversampling and standard augmentation by the same number of videos."
        else:
            rest = "; ".join(
                f"{c['against']} {_signed(c['difference']['accuracy'])}" for c in against if c not in beaten
            )
            sentence += f" But it does not measurably beat what costs nothing: difference to {rest}."
    elif real["accuracy"]["value"] >= 1.0:
        sentence += " Real only makes no mistake, so there was nothing to gain."
    if leaked:
        sentence += (
            f" Mind the leak: the generator was trained on {leaked} of the {tested} tested sources, so the synthetic"
            " arms say nothing of new sources."
        )
    return sentence


def _signed(difference: Mapping[str, float]) -> str:
    return "{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**difference)


def _confusions(predicted: np.ndarray, truth: Sequence[int], sources: Sequence[str], classes: int) -> np.ndarray:
    """float64 (arms, seeds, sources, classes, classes): videos of a true class (row) by predicted class (column)."""
    tested = np.any(predicted >= 0, axis=(0, 1)).tolist()
    names = sorted({source for source, was_tested in zip(sources, tested, strict=True) if was_tested})
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((*predicted.shape[:2], len(names), classes, classes))
    for video, (true, source) in enumerate(zip(truth, sources, strict=True)):
        for arm, seed in zip(*np.nonzero(predicted[:, :, video] >= 0), strict=True):
            counts[arm, seed, place[source], true, predicted[arm, seed, video]] += 1
    return counts


def _measured(counts: np.ndarray, of_sources: np.ndarray, of_seeds: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of one arm for each draw: accuracy and macro_f1 (draws,), recall (draws, classes); NaN: no such class.

    Args:
        counts: (seeds, sources, classes, classes).
        of_sources, of_seeds: how often each was drawn, (draws, sources) and (draws, seeds).
    """
    seeds, groups, classes, _ = counts.shape
    table = of_sources @ counts.transpose(1, 0, 2, 3).reshape(groups, -1)
    table = table.reshape(len(of_sources), seeds, classes, classes)
    right = np.diagonal(table, axis1=2, axis2=3)
    true, predicted = table.sum(axis=3), table.sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy = right.sum(axis=2) / true.sum(axis=2)
        f1 = 2 * right / (true + predicted)  # 0/0 where a class is neither there nor found
        recall = right / true
    there = np.isfinite(f1)
    macro = np.where(there, f1, 0).sum(axis=2) / np.maximum(1, there.sum(axis=2))
    return {
        "accuracy": _mean(accuracy, of_seeds),
        "macro_f1": _mean(macro, of_seeds),
        "recall": np.stack([_mean(recall[:, :, c], of_seeds) for c in range(classes)], axis=1),
    }


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means over the second axis without NaNs; NaN where nothing is left."""
    good = np.isfinite(values)
    total = (weights * good).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, (np.where(good, values, 0) * weights).sum(axis=1) / total, np.nan)


def _differences(
    point: Sequence[Mapping[str, np.ndarray]], drawn: Sequence[Mapping[str, np.ndarray]], arm: int, other: int
) -> dict[str, dict[str, float]]:
    return {
        metric: _interval(point[arm][metric][0] - point[other][metric][0], drawn[arm][metric] - drawn[other][metric])
        for metric in METRICS
    }


def _recall(value: float, draws: np.ndarray) -> dict[str, float] | None:
    """None for a class that was never tested."""
    return _interval(value, draws) if np.isfinite(value) else None


def _interval(value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = percentile_interval(draws) if np.isfinite(draws).any() else (value, value)
    return {"value": rounded(float(value)), "low": rounded(float(low)), "high": rounded(float(high))}
