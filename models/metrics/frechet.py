"""Fréchet distances between sets of features, whichever they are: FID (Heusel et al. 2017, arXiv 1706.08500) and FVD
(Unterthiner et al. 2018, arXiv 1812.01717).
"""

import numpy as np


def frechet_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) of the normal distributions fitted to two sets of features.

    Fréchet distances are biased: small sets give large values. Compare only values of sets of the same size.

    Args:
        ours, theirs: float (N, D) and (M, D), N and M two at least. Covariances are the unbiased ones.

    Returns:
        0 for equal distributions, else more. Not bounded.

    Raises:
        ValueError: fewer than two features, or of different length.
    """
    if min(len(ours), len(theirs)) < 2 or ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(f"no distance between features of shapes {ours.shape} and {theirs.shape}")
    a, b = (np.asarray(rows, np.float64) for rows in (ours, theirs))
    mean = float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum())
    a, b = (_root(rows) for rows in (a, b))
    # The eigenvalues of Σ₁ Σ₂ = AᵀA BᵀB are the squared singular values of A Bᵀ: no root of a nearly singular matrix.
    both = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    return max(0.0, mean + float((a**2).sum()) + float((b**2).sum()) - 2 * both)


def _root(rows: np.ndarray) -> np.ndarray:
    """A matrix A of at most D rows with AᵀA = the covariance of `rows` (N, D)."""
    centred = (rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1)
    return centred if centred.shape[0] <= centred.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))
