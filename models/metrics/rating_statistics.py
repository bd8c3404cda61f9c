"""Statistics of side-by-side ratings: win rates, Bradley–Terry strengths, agreement of raters.

Counts are arrays; nothing here knows where they come from. Intervals are those of `models.metrics.statistics`: they
draw whole clusters, so that several ratings of one prompt never count as independent.
"""

import numpy as np

from models.metrics.statistics import percentile_interval

DRAWS = 2000  # bootstrap samples; percentiles of 95 % rest on 50 of them at each end
PRIOR_WINS = 0.5  # see `bradley_terry`
MM_STEPS = 10_000
MM_TOLERANCE = 1e-9


def fleiss_kappa(counts: np.ndarray) -> float:
    """Fleiss' κ (Fleiss 1971): agreement of raters beyond chance, 1 when they all agree, 0 at chance.

    Items may have been rated by unequal numbers of raters; those with fewer than two say nothing and are left out.
    Then agreement is the mean over items, and chance comes from the categories' shares of all ratings that count.

    Args:
        counts: (items, categories), how many raters chose the category.

    Returns:
        κ, at most 1; NaN when no item has two ratings, or when all ratings are of one category, where κ is not
        defined.
    """
    return float(_fleiss(np.asarray(counts, float), np.ones((1, len(counts))))[0])


def _fleiss(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """κ for each row of `weights` (draws, items)."""
    raters = counts.sum(1)
    use = raters >= 2
    counts, raters, weights = counts[use], raters[use], weights[:, use]
    if not len(counts):
        return np.full(len(weights), np.nan)
    agreement = ((counts**2).sum(1) - raters) / (raters * (raters - 1))
    ratings = weights @ counts
    shares = ratings / np.maximum(ratings.sum(1, keepdims=True), 1e-300)
    chance = (shares**2).sum(1)
    observed = (weights @ agreement) / np.maximum(weights.sum(1), 1e-300)
    one_category = (ratings > 0).sum(1) < 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(one_category, np.nan, (observed - chance) / (1 - chance))


def cohen_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's κ (Cohen 1960) of two raters over the same items.

    Args:
        first, second: (items,) categories of any one kind.

    Returns:
        κ between -1 and 1; NaN without items, or when both chose one category throughout.
    """
    first, second = np.asarray(first), np.asarray(second)
    if not len(first):
        return float("nan")
    categories, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    if len(categories) < 2:
        return float("nan")
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(codes[: len(first)], codes[len(first) :]))


def bradley_terry(wins: np.ndarray, prior: float = PRIOR_WINS) -> np.ndarray:
    """Strengths of systems from pairwise wins: log p, where system i beats j with chance p_i / (p_i + p_j).

    By the MM algorithm of Hunter (2004, "MM algorithms for generalized Bradley–Terry models", Annals of Statistics
    32, equation 3): p_i ← W_i / Σ_j n_ij / (p_i + p_j), with W_i the wins of i and n_ij the comparisons of i and j.
    Neither is decided: count a comparison without a winner as half a win for each side, as is usual.

    Args:
        wins: (systems, systems) or (draws, systems, systems), how often i beat j; halves are allowed.
        prior: wins that each side of every pair that was compared gets beforehand. Without them a system that never
            lost would be infinitely strong, which in bootstrap samples of small studies is common.

    Returns:
        (systems,) or (draws, systems): natural logarithms with mean 0. NaN where comparisons do not link all
        systems, because then there is no common scale.
    """
    wins = np.asarray(wins, float)
    single = wins.ndim == 2
    wins = wins[None] if single else wins
    systems = wins.shape[-1]
    off = ~np.eye(systems, dtype=bool)
    games = (wins + wins.transpose(0, 2, 1)) * off
    wins = np.where(games > 0, wins + prior, 0.0) * off
    games = wins + wins.transpose(0, 2, 1)
    linked = _linked(games)
    won = wins.sum(2)
    strength = np.ones((len(wins), systems))
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(MM_STEPS):
            new = won / (games / (strength[:, :, None] + strength[:, None, :])).sum(2)
            new /= np.exp(np.log(new).mean(1, keepdims=True))
            moved = np.abs(np.log(new) - np.log(strength))[linked]
            strength = new
            if not np.isfinite(moved).all() or moved.max(initial=0.0) < MM_TOLERANCE:
                break
        log = np.log(strength)
    log[~linked] = np.nan
    return log[0] if single else log


def _linked(games: np.ndarray) -> np.ndarray:
    """(draws,) whether comparisons link all systems, directly or through others."""
    reach = (games > 0) | np.eye(games.shape[-1], dtype=bool)
    for _ in range(int(np.ceil(np.log2(max(2, games.shape[-1]))))):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    return np.asarray(reach.all((1, 2)))


def ratio_interval(hits: np.ndarray, of: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Interval of Σ hits / Σ of, both (clusters,), under bootstrap `weights` (draws, clusters)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return percentile_interval((weights @ hits) / (weights @ of))


def fleiss_interval(counts: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Interval of Fleiss' κ of items (items, categories) under bootstrap `weights` (draws, items)."""
    return percentile_interval(_fleiss(np.asarray(counts, float), weights))


def bradley_terry_samples(wins: np.ndarray, weights: np.ndarray, prior: float = PRIOR_WINS) -> np.ndarray:
    """Strengths of each bootstrap sample.

    Args:
        wins: (clusters, systems, systems) as `bradley_terry`, of each cluster.
        weights: (draws, clusters).

    Returns:
        (draws, systems) log strengths.
    """
    return bradley_terry(np.einsum("dc,cij->dij", weights, wins), prior)


def per_cluster(clusters: np.ndarray, values: np.ndarray, number: int) -> np.ndarray:
    """Sums of `values` (items, ...) over the items of each of `number` clusters → (number, ...)."""
    out = np.zeros((number, *values.shape[1:]))
    np.add.at(out, clusters, values)
    return out
