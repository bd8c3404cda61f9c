"""Batches of one size, so that what a model says of one row never depends on how many others there are.

Libraries choose their kernels, and with them the order of sums, by the size of a batch: the last digits of a row differ
between a batch of 1 and one of 64. With one size they don't.
"""

from collections.abc import Callable, Sequence

import numpy as np

ON_CPU = 1  # row by row costs a CPU hardly more
ON_GPU = 64


def batch_size(device: str) -> int:
    """Rows of a batch on a device."""
    return ON_CPU if device == "cpu" else ON_GPU


def in_fixed_batches(rows: Sequence[np.ndarray], size: int, forward: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What a model says of rows of one shape: (N, …), of `forward`: (size, …) → (size, …).

    The last batch is filled up with zeros, whose answers are dropped.

    Raises:
        ValueError: no row.
    """
    if not len(rows):
        raise ValueError("no row is given")
    answers = []
    for start in range(0, len(rows), size):
        part = np.stack(rows[start : start + size])
        missing = size - len(part)
        filled = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) if missing else part
        answers.append(forward(filled)[: len(part)])
    return np.concatenate(answers)
