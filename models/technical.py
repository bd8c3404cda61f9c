"""How good is the picture technically: sharp, free of noise and blocks?

The paper scores this with DOVER. Here it is any no-reference metric of pyiqa; the default needs no download.
"""

from pathlib import Path

from models.pyiqa_metric import FrameMetric, load_pyiqa_metric, pyiqa_metric_digest

OFFLINE_CHOICE = "piqe"


def load_technical(name: str = OFFLINE_CHOICE, *, weights: Path | None = None, device: str = "cpu") -> FrameMetric:
    """Loads the metric of technical quality.

    "piqe" (0..100, lower is better; Venkatanath et al. 2015) measures visible blocks and noise in the active
    parts of a frame. It is an offline stand-in: it also calls smooth pictures bad (X-ray about 70, fluorescence
    microscopy about 90), so only values near 100 (no structure at all) are safe to drop by. "niqe" (lower is
    better, about 3 to 20; Mittal et al. 2013) needs no download either. Others (musiq, topiq_nr ...) do.

    Args:
        name: a no-reference metric of pyiqa.
        weights: file in place of a download, for metrics that take one.
        device: torch device.

    Raises:
        ValueError: unknown metric; the message lists the choices.
        ModelUnavailable: weights or a needed package cannot be had.
    """
    return load_pyiqa_metric(name, offline_choice=OFFLINE_CHOICE, weights=weights, device=device)


def technical_digest(name: str = OFFLINE_CHOICE, *, weights: Path | None = None) -> str:
    """sha256 (hex) that identifies the metric; imports no torch. Raises ModelUnavailable as loading does."""
    return pyiqa_metric_digest(name, weights)
