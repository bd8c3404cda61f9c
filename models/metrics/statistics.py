"""How sure is a mean, a difference, a share? Bootstraps, permutation tests, and Wilson's interval.

Bootstraps are percentile bootstraps (Efron and Tibshirani 1993, chapter 13) that draw whole clusters, so that several
values of one prompt or source never count as independent. SciPy is imported where it is needed: it takes a second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

RESAMPLES = 10_000
SHUFFLES = 9_999
EXACT_UP_TO = 13  # pairs: 2^13 sign patterns are all tried
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval (percentile method); the interval is None for a single value."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """A mean difference between pairs, its bootstrap interval, and the p-value of a sign-flip permutation test.

    `p` is two-sided: how often random signs give a mean difference at least as far from 0; None with fewer than 2
    pairs. `adjusted_p` is Holm's, over the tests that were made together.
    """

    difference: Estimate
    p: float | None
    adjusted_p: float | None = None


def mean_interval(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of independent values, with its interval. Raises ValueError for none."""
    return grouped_interval([[value] for value in values], seed)


def grouped_interval(groups: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The mean over all values, with an interval that resamples whole groups.

    Several videos of one prompt are no independent evidence, so that they are drawn together. Raises ValueError for
    no values.
    """
    filled = [np.asarray(group, np.float64) for group in groups if len(group)]
    if not filled:
        raise ValueError("no values")
    sums, counts = np.array([group.sum() for group in filled]), np.array([group.size for group in filled])
    mean, n = float(sums.sum() / counts.sum()), int(counts.sum())
    if len(filled) == 1:
        return Estimate(mean, None, None, n)
    from scipy.stats import bootstrap

    interval = bootstrap(
        (sums, counts),
        _ratio_of_sums,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), n)


def _ratio_of_sums(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(sums.sum(axis=axis) / counts.sum(axis=axis))


def bootstrap_weights(clusters: int, seed: int | np.random.Generator, draws: int) -> np.ndarray:
    """(draws, clusters) how often each cluster is in a bootstrap sample of as many clusters.

    Drawn here and not by `scipy.stats.bootstrap`, because several statistics are computed on the same draws (which
    pairs them), and over two factors at once; and because other draws would change the intervals of results on record.
    """
    return np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=draws)


def percentile_interval(samples: np.ndarray) -> tuple[float, float]:
    """The middle CONFIDENCE of bootstrap values; those that are not defined are left out. NaN when none is."""
    defined = np.asarray(samples)[np.isfinite(samples)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def paired(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Paired:
    """Values against a baseline's for the same prompts, in the same order. Raises ValueError for none."""
    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    return Paired(mean_interval(differences.tolist(), seed), sign_flip_p(differences, seed))


def sign_flip_p(differences: Sequence[float] | np.ndarray, seed: int = 0) -> float | None:
    """Two-sided p of the sign-flip permutation test of a mean of 0; all patterns are tried where they are few.

    `scipy.stats.permutation_test(permutation_type="samples")` agrees, but draws other patterns for the same seed, which
    would change p-values on record, and tells equal sums apart by rounding errors.
    """
    data = np.asarray(differences, np.float64)
    if data.size < 2:
        return None
    seen = abs(data.sum())
    slack = 1e-9 * max(1.0, np.abs(data).sum())  # equal sums may differ in the last bit
    if data.size <= EXACT_UP_TO:
        signs = np.array(list(product((-1.0, 1.0), repeat=data.size)))
        return float((np.abs(signs @ data) >= seen - slack).mean())
    signs = np.random.default_rng(seed).integers(0, 2, (RESAMPLES - 1, data.size)) * 2.0 - 1.0
    return float(((np.abs(signs @ data) >= seen - slack).sum() + 1) / RESAMPLES)


def shuffled_p(values: np.ndarray, others: np.ndarray, seed: int = 0, shuffles: int = SHUFFLES) -> float:
    """p of a permutation test: how often shuffled `values` (n,) equal `others` (n,) in at least as many places.

    The values as they are count as one of the shuffles. `scipy.stats.permutation_test` draws other shuffles for the
    same seed, which would change p-values on record.
    """
    equal = int((values == others).sum())
    rng = np.random.default_rng(seed)
    as_good = sum(int((rng.permutation(values) == others).sum()) >= equal for _ in range(shuffles))
    return (as_good + 1) / (shuffles + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Name → p-value adjusted for the number of tests (Holm 1979)."""
    adjusted, greatest = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: (pair[1], pair[0]))):
        greatest = max(greatest, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = greatest
    return adjusted


def share_interval(right: int, asked: int) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927). Raises ValueError unless 0 <= right <= asked, asked >= 1."""
    if not 0 <= right <= asked or asked < 1:
        raise ValueError(f"no share: {right} of {asked}")
    from scipy.stats import binomtest

    interval = binomtest(right, asked).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(right / asked, float(interval.low), float(interval.high), asked)
