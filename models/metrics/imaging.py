"""Imaging quality of single frames: VBench's MUSIQ and other metrics by name, and a stand-in of measured defects."""

from collections.abc import Sequence

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from models.quality.defects import MIN_SIDE, SHARPNESS_MIN_RANGE, SHARPNESS_SIDE, defects_digest, measure_defects
from models.quality.pyiqa_metric import FrameMetric
from models.quality.technical import load_technical, technical_digest

DEFECTS = "defects"
STAND_IN = "defects_stand_in"
MUSIQ_LONG_SIDE = 512  # VBench, imaging_quality, mode "longer"
SHARP = SHARPNESS_SIDE / 3  # edges three lines wide of 240 count as fully sharp
NOISY = 30.0  # grey levels of noise at which nothing is left


class DefectsStandIn:
    """Sharpness, absence of noise and of blocks, multiplied: 0 (worst) to 1.

    Each by `models.quality.defects`: sharpness as a share of SHARP, noise as what is left of NOISY grey levels, the
    inverse of blockiness. A frame without any edge gets 0: nothing can be seen on it. It knows nothing of taste or
    content. PIQE and NIQE are no better stand-ins here: both call added noise an improvement on smooth pictures, which
    generated videos often are.
    """

    name = STAND_IN
    lower_is_better = False
    score_range = (0.0, 1.0)
    offline_stand_in = True

    def __init__(self) -> None:
        self.digest = imaging_digest(DEFECTS)

    def scores(self, frames: Sequence[np.ndarray]) -> list[float]:
        """One score per frame, uint8 RGB (H, W, 3)."""
        return [self._score(frame) for frame in frames]

    @staticmethod
    def _score(frame: np.ndarray) -> float:
        scale = MIN_SIDE / min(frame.shape[:2])
        if scale > 1:
            frame = cv2.resize(frame, None, fx=scale * 1.01, fy=scale * 1.01, interpolation=cv2.INTER_LINEAR)
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        darkest, brightest = np.percentile(cv2.GaussianBlur(grey, (0, 0), 1.5), (0.5, 99.5))
        if brightest - darkest < SHARPNESS_MIN_RANGE:
            return 0.0
        defects = measure_defects([frame], grey[None], 1.0)
        sharp = min(1.0, defects.sharpness / SHARP)
        clean = max(0.0, 1.0 - defects.noise / NOISY)
        return rounded(sharp * clean / max(1.0, defects.blockiness))


class LongSide:
    """A metric on frames with a long side of at most 512, bilinear without smoothing, as VBench prepares for MUSIQ."""

    def __init__(self, metric: FrameMetric) -> None:
        self.metric = metric
        self.name, self.lower_is_better, self.score_range = metric.name, metric.lower_is_better, metric.score_range
        self.offline_stand_in = metric.offline_stand_in
        self.digest = _long_side_digest(metric.digest)

    def scores(self, frames: Sequence[np.ndarray]) -> list[float]:
        """One score per frame, uint8 RGB (H, W, 3)."""
        return self.metric.scores([_shrunk(frame) for frame in frames])


def load_imaging(name: str, device: str = "cpu") -> FrameMetric:
    """`defects`, or a no-reference metric of pyiqa (VBench: musiq-spaq) on a device of PyTorch.

    Raises ModelUnavailable, ValueError.
    """
    if name == DEFECTS:
        return DefectsStandIn()
    metric = load_technical(name, device=device)
    return LongSide(metric) if name.startswith("musiq") else metric


def imaging_digest(name: str) -> str:
    """sha256 (hex) of the metric. Raises ModelUnavailable as loading does."""
    if name == DEFECTS:
        return digest_of({"name": STAND_IN, "defects": defects_digest(), "settings": [SHARP, NOISY]})
    digest = technical_digest(name)
    return _long_side_digest(digest) if name.startswith("musiq") else digest


def _long_side_digest(metric: str) -> str:
    return digest_of([metric, MUSIQ_LONG_SIDE, "bilinear, no smoothing, whole levels"])


def to_unit(metric: FrameMetric, score: float) -> float:
    """A frame's score on a scale of 0 (worst) to 1 (best) by the metric's range: MUSIQ / 100, LAION / 10 as in VBench.

    Learned metrics may leave their range by a little; such scores are cut to it.
    """
    least, greatest = (0.0, 10.0) if metric.name == "laion_aes" else metric.score_range
    share = min(max((score - least) / (greatest - least), 0.0), 1.0)
    return 1.0 - share if metric.lower_is_better else share


def _shrunk(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    scale = MUSIQ_LONG_SIDE / max(height, width)
    if scale >= 1:
        return frame
    import torch
    from torchvision.transforms.functional import resize

    # OpenCV interpolates by fixed-point numbers, and other levels come out.
    picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
    small = resize(picture, [int(scale * height), int(scale * width)], antialias=False)
    return np.asarray(small.permute(1, 2, 0))
