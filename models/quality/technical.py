"""How good is the picture technically: sharp, free of noise and blocks?

The paper scores this with DOVER, which looks at whole clips: see `models.quality.dover`. Here it is any no-reference
metric of pyiqa for single frames; the default needs no download. What exactly is wrong with a picture,
`models.quality.defects` says.
"""

from pathlib import Path

from models.quality.pyiqa_metric import FrameMetric, ServedMetric, load_pyiqa_metric, pyiqa_metric_digest

OFFLINE_CHOICE = "piqe"


def load_technical(name: str = OFFLINE_CHOICE, *, weights: Path | None = None, device: str = "cpu") -> FrameMetric:
    """Loads the metric of technical quality.

    "piqe" (0..100, lower is better; Venkatanath et al. 2015) looks for visible blocks, blur and noise in the
    active parts of a frame. It is an offline stand-in. Measured on 11 clips: blur of 2 px raises 30-70 to
    above 80 and of 6 px mostly to 100, JPEG at quality 8 to 57-86, noise of 25 grey levels to 49-66, but noise
    of 8 lowers most scores. Smooth pictures score badly too (X-ray about 70, fluorescence microscopy 90, but a
    laparoscopy blurred beyond use 58), so only values near 100 are safe to drop by. "niqe" (lower is better,
    mostly 9 to 40 and up to 100 for small pictures; Mittal et al. 2013)
    needs no download either. Others (musiq, topiq_nr ...) do.

    Args:
        name: a no-reference metric of pyiqa.
        weights: file in place of a download, for metrics that take one.
        device: torch device.

    Raises:
        ValueError: unknown metric; the message lists the choices.
        ModelUnavailable: weights or a needed package cannot be had.
    """
    return load_pyiqa_metric(name, offline_choice=OFFLINE_CHOICE, weights=weights, device=device)


def served_technical(name: str = OFFLINE_CHOICE) -> FrameMetric:
    """As `load_technical`, in an inference process unless it is one of `CLASSICAL`, see `medgen.inference`."""
    return ServedMetric(name, offline_choice=OFFLINE_CHOICE)


def technical_digest(name: str = OFFLINE_CHOICE, *, weights: Path | None = None) -> str:
    """sha256 (hex) that identifies the metric; imports no torch. Raises ModelUnavailable as loading does."""
    return pyiqa_metric_digest(name, weights)
