"""How sure is a mean, a difference, a share? Bootstrap, sign flips, and Wilson's interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

RESAMPLES = 10_000
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
    drawn = np.random.default_rng(seed).integers(0, len(filled), (RESAMPLES, len(filled)))
    edge = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), (edge, 100 - edge))
    return Estimate(mean, float(low), float(high), n)


def paired(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Paired:
    """Values against a baseline's for the same prompts, in the same order. Raises ValueError for none."""
    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    return Paired(mean_interval(differences.tolist(), seed), sign_flip_p(differences, seed))


def sign_flip_p(differences: Sequence[float] | np.ndarray, seed: int = 0) -> float | None:
    """Two-sided p of the sign-flip permutation test of a mean of 0; all patterns are tried where they are few."""
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
    z = 1.959963984540054  # of 95 %
    share = right / asked
    middle = (share + z * z / (2 * asked)) / (1 + z * z / asked)
    half = z / (1 + z * z / asked) * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked**2))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), asked)
