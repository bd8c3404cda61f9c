"""Which videos are in each training step of a classifier."""

import numpy as np


def shuffled_batches(videos: int, size: int, steps: int, seed: int) -> list[list[int]]:
    """Rows of each of `steps` steps: whole shuffled rounds over the videos, cut into batches of `size` at most."""
    rng = np.random.default_rng(seed)
    size = min(size, videos)
    rounds = -(-steps * size // videos)
    order = np.concatenate([rng.permutation(videos) for _ in range(rounds)])
    return [order[start : start + size].tolist() for start in range(0, steps * size, size)]
