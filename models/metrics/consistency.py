"""Formulas over a whole video: consistency of features, flicker, text alignment. Sources: VBench's code of each."""

import numpy as np


def consistency(features: np.ndarray) -> float:
    """Mean over the frames from the second on of the mean of two cosines: to the first and to the previous frame.

    Negative cosines count as 0. VBench, `subject_consistency` and `background_consistency`.

    Args:
        features: float (T, D), T >= 2, rows of length 1.

    Returns:
        0 (nothing stays) to 1 (nothing changes).
    """
    if len(features) < 2:
        raise ValueError("consistency over time needs two frames")
    rows = np.asarray(features, np.float64)
    previous = np.clip((rows[1:] * rows[:-1]).sum(axis=1), 0, 1)
    first = np.clip(rows[1:] @ rows[0], 0, 1)
    return float((previous + first).mean() / 2)


def text_alignment(features: np.ndarray, text: np.ndarray) -> float:
    """Mean over frames of the cosine between frame and text (CLIPSIM; Wu et al. 2021, arXiv 2104.14806), -1 to 1.

    Args:
        features: float (T, D), rows of length 1. text: float (D,), of length 1.
    """
    return float((np.asarray(features, np.float64) @ np.asarray(text, np.float64)).mean())


def steadiness(mean_difference: float) -> float:
    """(255 - mean absolute difference in grey levels) / 255: how VBench turns differences of frames into scores."""
    return (255.0 - mean_difference) / 255.0
