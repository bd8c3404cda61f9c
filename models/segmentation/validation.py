"""What leaving out sources showed: how often a frame head is right, by category, and where it is unsure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medgen.canonical import rounded
from models.calibration import expected_calibration_error

# Where a head is sure, at most this share of each side may be misjudged: between the two bounds it is unsure.
DOUBT_SHARE = 0.05
RESAMPLED = 1000
FAR = 0.05  # P(medical) below which a medical item would be lost whatever its title says


@dataclass(frozen=True)
class Judged:
    """An item judged by a head that saw none of its sources.

    Args:
        probability: mean P(medical) of its frames; `frames` has each.
        kind: as labelled; None where nobody knows. `kinds`: mean probability of each medical kind.
    """

    file: str
    sha256: str
    medical: bool
    probability: float
    frames: tuple[float, ...]
    kind: str | None
    kinds: Mapping[str, float]
    sources: frozenset[str]

    @property
    def kind_found(self) -> str:
        """The likeliest medical kind."""
        return max(self.kinds, key=lambda name: self.kinds[name])

    def row(self) -> dict[str, Any]:
        """As it stands in a head's scores."""
        facts = {name: value for name, value in vars(self).items() if name not in ("frames", "sources")}
        return facts | {"kinds": dict(self.kinds)}


def bounds_of_doubt(judged: Sequence[Judged], weights: np.ndarray) -> tuple[float, float]:
    """(low, high): below `low` lie at most `DOUBT_SHARE` of the medical frames, above `high` as many of the others.

    Args:
        weights: float64 (items,), of each item.
    """
    medical = np.array([item.medical for item in judged])
    probability = [np.array(item.frames) for item in judged]

    def quantile(side: np.ndarray, share: float) -> float:
        values = np.concatenate([probability[k] for k in np.flatnonzero(side)])
        weight = np.concatenate(
            [np.full(len(probability[k]), weights[k] / len(probability[k])) for k in np.flatnonzero(side)]
        )
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(weight[order]) / weight.sum()
        return float(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)])

    low, high = quantile(medical, DOUBT_SHARE), quantile(~medical, 1 - DOUBT_SHARE)
    # A head that tells all apart is never unsure.
    return (rounded(low), rounded(high)) if low < high else (0.5, 0.5)


def validation_scores(judged: Sequence[Judged]) -> dict[str, Any]:
    """Figures by item and by frame, every item weighing the same; recall by category; intervals by source."""
    truth = np.array([item.medical for item in judged])
    right = np.array([(item.probability >= 0.5) == item.medical for item in judged])
    by_frame = np.array([float(((np.array(j.frames) >= 0.5) == j.medical).mean()) for j in judged])
    kinds = [j.kind_found == j.kind for j in judged if j.medical and j.kind]
    # P(the truth) of every frame
    true = [np.array(j.frames) if j.medical else 1 - np.array(j.frames) for j in judged]
    low, high = interval_by_source(judged, right)
    probabilities = [np.array(j.frames) for j in judged]
    return {
        "videos": len(judged),
        "medical_videos": int(truth.sum()),
        "sources": len({source for j in judged for source in j.sources}),
        "balanced_accuracy_by_video": rounded(balanced(right, truth)),
        "balanced_accuracy_interval_by_source": [rounded(low), rounded(high)],
        "balanced_accuracy_by_frame": rounded(balanced(by_frame, truth)),
        "area_under_curve": rounded(area_under_curve([j.probability for j in judged], truth)),
        "recall_by_category": recall_by_category(judged, right),
        "specificity": rounded(float(right[~truth].mean())),
        "category_accuracy_of_medical_videos": rounded(float(np.mean(kinds))) if kinds else None,
        "medical_below_0.05": rounded(float(np.mean([j.probability < FAR for j in judged if j.medical]))),
        "log_loss": rounded(float(np.mean([-np.log(np.clip(p, 1e-6, 1)).mean() for p in true]))),
        "calibration_error": rounded(calibration_error(probabilities, truth)),
        "misjudged": {j.file: j.probability for j, good in zip(judged, right, strict=True) if not good},
    }


def balanced(right: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the shares judged rightly on both sides, 0 to 1."""
    return float((right[truth].mean() + right[~truth].mean()) / 2)


def recall_by_category(judged: Sequence[Judged], right: np.ndarray) -> dict[str, dict[str, Any]]:
    """Category → items, sources, recall and its 95 % interval by source."""
    found = {}
    for name in sorted({j.kind for j in judged if j.medical and j.kind}):
        places = [place for place, j in enumerate(judged) if j.kind == name]
        own = [judged[place] for place in places]
        low, high = interval_by_source(own, right[places])
        found[name] = {
            "videos": len(own),
            "sources": len({source for j in own for source in j.sources}),
            "recall": rounded(float(right[places].mean())),
            "interval_by_source": [rounded(low), rounded(high)],
        }
    return found


def interval_by_source(judged: Sequence[Judged], right: np.ndarray) -> tuple[float, float]:
    """95 % interval of balanced accuracy (of the share judged rightly, where there is one side only) when sources are
    drawn anew with replacement (bootstrap by cluster; Davison and Hinkley 1997, section 3.8)."""
    groups: dict[frozenset[str], list[int]] = defaultdict(list)
    for place, item in enumerate(judged):
        groups[item.sources].append(place)
    truth = np.array([item.medical for item in judged])
    counts = np.array([[truth[g].sum(), (~truth[g]).sum()] for g in groups.values()], float)
    hits = np.array([[(right * truth)[g].sum(), (right * ~truth)[g].sum()] for g in groups.values()], float)
    random = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLED):
        drawn = np.bincount(random.integers(len(counts), size=len(counts)), minlength=len(counts))
        total = drawn @ counts
        if (total[counts.any(axis=0)] > 0).all():
            found.append(float((drawn @ hits)[total > 0] @ (1 / total[total > 0]) / (total > 0).sum()))
    return (float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))) if found else (0.0, 1.0)


def area_under_curve(probability: Sequence[float], truth: np.ndarray) -> float:
    """Area under the receiver operating characteristic, 0 to 1."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, probability))


def calibration_error(probabilities: Sequence[np.ndarray], truth: np.ndarray) -> float:
    """Expected calibration error of P(medical) by frame, every item weighing the same: 0 to 1."""
    counts = [len(frames) for frames in probabilities]
    weight = np.repeat(1 / (len(counts) * np.array(counts)), counts)
    return expected_calibration_error(np.concatenate(probabilities), np.repeat(truth, counts), weight)
