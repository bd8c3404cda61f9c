"""No-reference picture quality by pyiqa metrics, chosen by name."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from models import ModelUnavailable

# Metrics that need no download. Everything else fetches its weights from a hub.
WITHOUT_WEIGHTS = ("piqe", "entropy")


@dataclass(frozen=True)
class PyiqaMetric:
    """A loaded metric.

    Args:
        name: as it goes on record; a stand-in says so.
        digest: sha256 of name, pyiqa version and settings.
        lower_is_better: direction of the scale.
        score_range: as pyiqa states it.
        offline_stand_in: weaker than the model that production would use.
    """

    name: str
    digest: str
    lower_is_better: bool
    score_range: str
    offline_stand_in: bool
    short_side: int | None
    metric: Any

    def scores(self, frames: Sequence[np.ndarray]) -> list[float]:
        """One score per frame, uint8 RGB (H, W, 3)."""
        import torch

        found = []
        with torch.inference_mode():
            for frame in frames:
                pixels = _scaled(frame, self.short_side)
                tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
                found.append(rounded(float(self.metric(tensor).item())))
        return found


def metric_digest(name: str, short_side: int | None) -> str:
    """sha256 that identifies a metric. Loads nothing. Raises ValueError for names that pyiqa doesn't have."""
    return digest_of({"name": name, "pyiqa": importlib.metadata.version("pyiqa"), "short_side": short_side})


def load_metric(name: str, *, short_side: int | None, stand_in_name: str | None = None) -> PyiqaMetric:
    """Makes a metric ready.

    Args:
        short_side: frames are scaled down to this short side first, pixels; None for full size.
        stand_in_name: the name on record when the metric only stands in for a better one.

    Raises:
        ValueError: pyiqa has no no-reference metric of that name; lists those it has.
        ModelUnavailable: its weights can't be fetched here.
    """
    import pyiqa
    import torch
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    torch.set_num_threads(1)
    choices = sorted(key for key, config in DEFAULT_CONFIGS.items() if config.get("metric_mode") == "NR")
    if name not in choices:
        raise ValueError(f"pyiqa has no no-reference metric {name!r}; it has: {', '.join(choices)}")
    try:
        metric = pyiqa.create_metric(name, device="cpu")
    except Exception as error:  # a hub's failure has many faces: sockets, HTTP, missing files, offline mode
        raise ModelUnavailable(
            f"the weights of pyiqa's {name!r} can't be had (looked on the hub and in its cache): {error}; "
            f"without a network choose {' or '.join(WITHOUT_WEIGHTS)}"
        ) from error
    return PyiqaMetric(
        name=stand_in_name or name,
        digest=metric_digest(name, short_side),
        lower_is_better=bool(metric.lower_better),
        score_range=str(metric.score_range),
        offline_stand_in=stand_in_name is not None,
        short_side=short_side,
        metric=metric,
    )


def _scaled(frame: np.ndarray, short_side: int | None) -> np.ndarray:
    height, width = frame.shape[:2]
    if short_side is None or min(height, width) <= short_side:
        return np.ascontiguousarray(frame)
    scale = short_side / min(height, width)
    return cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
