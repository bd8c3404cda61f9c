"""Are probabilities what they promise?"""

import numpy as np

BINS = 10


def expected_calibration_error(probability: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    """The mean distance between what was promised and what was true over 10 equal bins, 0 to 1 (Guo et al. 2017, "On
    Calibration of Modern Neural Networks").

    Args:
        probability: (N,), 0 to 1.
        truth: bool (N,).
        weight: (N,), adding up to 1.
    """
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    return float(sum(abs((weight * (probability - truth))[bins == index].sum()) for index in range(BINS)))
