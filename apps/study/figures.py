"""Shares, differences and agreement of raters with their intervals, as JSON."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medgen.catalog import StudyAnswer
from models.metrics import rating_statistics


def cohen(answers: Sequence[StudyAnswer], a: int, b: int, axis: str) -> dict[str, Any]:
    """Cohen's κ of two raters on one question, over what both answered."""
    of = {rater: {x.pair: getattr(x, axis) for x in answers if x.rater == rater} for rater in (a, b)}
    both = sorted(of[a].keys() & of[b].keys())
    value = rating_statistics.cohen_kappa(np.array([of[a][p] for p in both]), np.array([of[b][p] for p in both]))
    return {"pairs": len(both), **number(value)}


def share(hits: np.ndarray, of: np.ndarray, cluster: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Σ hits / Σ of, both (items,), with its interval: clusters (items,) are drawn by weights (draws, clusters)."""
    total = of.sum()
    return difference(hits, of, cluster, weights) if total else {"value": None, "low": None, "high": None}


def difference(hits: np.ndarray, of: np.ndarray, cluster: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """As `share`; hits may be negative."""
    clusters = weights.shape[1]
    low_high = rating_statistics.ratio_interval(
        rating_statistics.per_cluster(cluster, hits, clusters),
        rating_statistics.per_cluster(cluster, of, clusters),
        weights,
    )
    return number(float(hits.sum() / of.sum()) if of.sum() else math.nan) | interval(low_high)


def number(value: float) -> dict[str, Any]:
    """The number as JSON; null when it is not defined."""
    return {"value": value if math.isfinite(value) else None}


def interval(low_high: tuple[float, float]) -> dict[str, Any]:
    """The interval as JSON; null where it is not defined."""
    return {
        name: value if math.isfinite(value) else None for name, value in zip(("low", "high"), low_high, strict=True)
    }
