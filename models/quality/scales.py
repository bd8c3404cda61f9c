"""Scales of the quality metrics: where each begins and ends, which end is good, and which thresholds suit it.

A threshold means something on the scale of one metric only: 95 drops next to nothing by PIQE (0 to 100, lower is
better) and everything by DOVER (0 to 1, higher is better). No metric is loaded to know its scale.
"""

import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from models import ModelUnavailable
from models.quality.aesthetic import OFFLINE_CHOICE as ENTROPY
from models.quality.dover import Dover
from models.quality.pyiqa_metric import NOT_FOR_FRAMES
from models.quality.technical import OFFLINE_CHOICE as PIQE

Kind = Literal["technical", "aesthetic"]


@dataclass(frozen=True)
class Thresholds:
    """A clip that is worse than `single` is dropped; one that is worse than `joint` by both metrics, too."""

    single: float
    joint: float


@dataclass(frozen=True)
class Scale:
    """Scale of a metric.

    Args:
        least, greatest: its ends as the metric's authors give them; for learned metrics they are approximate.
        lower_is_better: which end is good.
    """

    least: float
    greatest: float
    lower_is_better: bool

    @property
    def worst(self) -> float:
        """The bad end: as a threshold it drops nothing."""
        return self.greatest if self.lower_is_better else self.least

    def holds(self, value: float) -> bool:
        """Whether the value lies on the scale."""
        return self.least <= value <= self.greatest

    def __str__(self) -> str:
        best = self.least if self.lower_is_better else self.greatest
        return f"{self.worst:g} (worst) to {best:g} (best)"


# DOVER: the paper prints no threshold that could be used (its two inequalities would drop the good clips). DOVER's
# scores are standardised on LSVQ before the logistic function, so that 0.5 is an average video there, and 0.13 is
# exceeded by 97.2 % of a standard normal distribution: the share that the paper's technical filter kept (69,044 of
# 71,042). PIQE and entropy only tell empty or structureless pictures: these dropped nothing else among 54 real videos.
SUGGESTED: Mapping[tuple[Kind, str], Thresholds] = MappingProxyType(
    {
        ("technical", PIQE): Thresholds(95.0, 95.0),
        ("technical", Dover.name): Thresholds(0.13, 0.5),
        ("aesthetic", ENTROPY): Thresholds(0.5, 0.0),
        ("aesthetic", "laion_aes"): Thresholds(3.0, 4.0),  # the paper's
    }
)
"""Thresholds with a reason, by kind and name of the metric."""


@cache
def scales(kind: Kind) -> Mapping[str, Scale]:
    """Scales of all metrics that can be named for technical or aesthetic quality.

    Raises:
        ModelUnavailable: pyiqa is not installed.
    """
    known = {name: scale for name, scale in _pyiqa_scales().items() if name not in NOT_FOR_FRAMES}
    known[Dover.name] = Scale(0.0, 1.0, lower_is_better=False)
    if kind == "aesthetic":
        known[ENTROPY] = Scale(0.0, 8.0, lower_is_better=False)
    return MappingProxyType(known)


def suggested(kind: Kind, name: str) -> Thresholds:
    """Thresholds for the metric; where none are known, its worst value, which drops nothing. Raises KeyError."""
    worst = scales(kind)[name].worst
    return SUGGESTED.get((kind, name), Thresholds(worst, worst))


def _pyiqa_scales() -> dict[str, Scale]:
    """Of pyiqa's no-reference metrics, from its table of metrics alone: importing pyiqa itself loads torch."""
    package = importlib.util.find_spec("pyiqa")
    if package is None or package.origin is None:
        raise ModelUnavailable("pyiqa is not installed: pip install pyiqa")
    table = importlib.util.spec_from_file_location(
        "pyiqa_metrics", Path(package.origin).with_name("default_model_configs.py")
    )
    assert table is not None and table.loader is not None
    module = importlib.util.module_from_spec(table)
    table.loader.exec_module(module)
    metrics: Mapping[str, Mapping[str, Any]] = module.DEFAULT_CONFIGS
    return {name: _scale(metric) for name, metric in metrics.items() if metric["metric_mode"] == "NR"}


def _scale(metric: Mapping[str, Any]) -> Scale:
    """Of an entry of pyiqa's table, whose ranges read "0, 100", "~1, ~10" or, without an end, "~0, ~"."""
    least, _, greatest = metric["score_range"].partition(",")
    return Scale(_end(least, -math.inf), _end(greatest, math.inf), bool(metric.get("lower_better")))


def _end(text: str, without: float) -> float:
    number = re.search(r"-?\d+(?:\.\d+)?", text)
    return float(number[0]) if number else without
