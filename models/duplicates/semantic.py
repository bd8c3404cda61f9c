"""Semantic duplicates: clips that show the same kind of thing, by the cosine of their embeddings.

As SemDeDup (Abbas et al. 2023, arXiv 2303.09540): of clips closer than a threshold one stays. There k-means first cuts
the clips into groups, and pairs across groups are missed; here none is. Clips are searched by their coordinates on the
few directions in which they differ most: a projection only brings vectors closer, so that who is near is near there
too. Whatever the directions, the outcome is the same.
"""

import numpy as np

DIRECTIONS = 12  # of the search; more prune better and make the tree slower
SAMPLE = 20_000  # vectors that the directions are found by
SLACK = 1e-3  # of distances, for half precision


def semantic_duplicates(vectors: np.ndarray, threshold: float) -> dict[int, tuple[int, float]]:
    """Row → (the better row whose duplicate it is, their cosine). Rows that stay are left out, and are no duplicates
    of each other.

    Args:
        vectors: float16 or float32 (N, D), of length 1, the best clip first. May lie on disk.
        threshold: cosine from which two are duplicates, -1 to 1.
    """
    from scipy.spatial import cKDTree

    if len(vectors) < 2:
        return {}
    seen = _coordinates(vectors)
    tree = cKDTree(seen)
    radius = float(np.sqrt(max(0.0, 2 - 2 * threshold))) + SLACK
    found: dict[int, tuple[int, float]] = {}
    for row in range(len(vectors)):
        if row in found:
            continue
        near = np.array([other for other in tree.query_ball_point(seen[row], radius) if other > row], int)
        near = np.sort(near[[int(other) not in found for other in near]]) if len(near) else near
        if not len(near):
            continue
        cosines = vectors[near].astype(np.float32) @ vectors[row].astype(np.float32)
        for other, cosine in zip(near[cosines >= threshold], cosines[cosines >= threshold], strict=True):
            found[int(other)] = row, float(cosine)
    return found


def _coordinates(vectors: np.ndarray) -> np.ndarray:
    """float64 (N, K): on the directions in which a sample of the vectors differs most."""
    from scipy.linalg import eigh

    sample = vectors[:: max(1, len(vectors) // SAMPLE)].astype(np.float64)
    spread = np.cov(sample.T) if len(sample) > 1 else np.eye(vectors.shape[1])
    width = vectors.shape[1]
    _, directions = eigh(np.atleast_2d(spread), subset_by_index=(max(0, width - DIRECTIONS), width - 1))
    pieces = [
        vectors[start : start + SAMPLE].astype(np.float64) @ directions for start in range(0, len(vectors), SAMPLE)
    ]
    return np.concatenate(pieces)
