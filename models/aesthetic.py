"""How pleasing is the picture?

Production uses the LAION aesthetic predictor, as the paper does, through pyiqa (`laion_aes`). No aesthetic model comes
inside a package: the offline stand-in is the entropy of grey levels, 0 to 8 bits, which only catches empty pictures.
"""

import logging

from models.pyiqa_metric import PyiqaMetric, load_metric, metric_digest

log = logging.getLogger(__name__)

STAND_IN = "entropy"
SHORT_SIDE = 240  # entropy hardly depends on size, but pyiqa's takes seconds on a large picture


def load_aesthetic(name: str = STAND_IN) -> PyiqaMetric:
    """The metric of that name. Raises ValueError or ModelUnavailable, see `load_metric`."""
    if name == STAND_IN:
        log.warning("aesthetic scores by %s: a weak stand-in that only catches empty pictures", STAND_IN)
        return load_metric(name, short_side=SHORT_SIDE, stand_in_name="entropy_stand_in")
    return load_metric(name, short_side=None)


def aesthetic_digest(name: str = STAND_IN) -> str:
    """sha256 that identifies the metric; loads nothing."""
    return metric_digest(name, SHORT_SIDE if name == STAND_IN else None)
