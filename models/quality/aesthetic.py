"""How pleasing is the picture?

The paper scores this with the LAION aesthetic predictor ("laion_aes" in pyiqa). Without its weights there is
only a stand-in that catches empty pictures.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from models.quality.pyiqa_metric import FrameMetric, ServedMetric, load_pyiqa_metric, pyiqa_metric_digest

OFFLINE_CHOICE = "entropy"
ENTROPY_NAME = "entropy_stand_in"
_ENTROPY_DEFINITION = "Shannon entropy in bits of the 256-bin histogram of BT.601 grey levels"


class EntropyStandIn:
    """Shannon entropy of a frame's grey levels in bits: 0 (one grey) to 8 (all greys alike).

    It says how much of the tonal range a picture uses and nothing about beauty: low values mean empty, black
    or washed-out frames, and flat drawings too.
    """

    name = ENTROPY_NAME
    lower_is_better = False
    score_range = (0.0, 8.0)
    offline_stand_in = True

    def __init__(self) -> None:
        self.digest = aesthetic_digest(OFFLINE_CHOICE)

    def scores(self, frames: Sequence[np.ndarray]) -> list[float]:
        return [self._score(frame) for frame in frames]

    @staticmethod
    def _score(frame: np.ndarray) -> float:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        counts = np.bincount(grey.ravel(), minlength=256)
        shares = counts[counts > 0] / grey.size
        return rounded(float(-(shares * np.log2(shares)).sum()))


def load_aesthetic(name: str = OFFLINE_CHOICE, *, weights: Path | None = None, device: str = "cpu") -> FrameMetric:
    """Loads the metric of aesthetic quality.

    Args:
        name: "entropy" for the offline stand-in (its scores go on record as "entropy_stand_in"), or a
            no-reference metric of pyiqa (laion_aes: about 1 to 10, higher is better; nima; musiq-ava ...).
        weights: file in place of a download, for metrics that take one.
        device: torch device.

    Raises:
        ValueError: unknown metric, the message lists the choices; or weights given for the stand-in.
        ModelUnavailable: weights or a needed package cannot be had.
    """
    if name == OFFLINE_CHOICE:
        if weights is not None:
            raise ValueError("the entropy stand-in takes no weights file")
        return EntropyStandIn()
    return load_pyiqa_metric(name, offline_choice=OFFLINE_CHOICE, weights=weights, device=device)


def served_aesthetic(name: str = OFFLINE_CHOICE) -> FrameMetric:
    """As `load_aesthetic`; a metric of pyiqa runs in an inference process, see `medgen.inference`."""
    return load_aesthetic(name) if name == OFFLINE_CHOICE else ServedMetric(name, offline_choice=OFFLINE_CHOICE)


def aesthetic_digest(name: str = OFFLINE_CHOICE, *, weights: Path | None = None) -> str:
    """sha256 (hex) that identifies the metric; imports no torch. Raises ModelUnavailable as loading does."""
    if name == OFFLINE_CHOICE:
        return digest_of({"name": ENTROPY_NAME, "definition": _ENTROPY_DEFINITION})
    return pyiqa_metric_digest(name, weights)
