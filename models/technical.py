"""How good is the picture technically: sharp, clean, unbroken?

Production uses DOVER or a pyiqa metric from a hub; the offline default is PIQE (Venkatanath et al. 2015), which needs
no weights: 0 is best, 100 worst.
"""

from models.pyiqa_metric import PyiqaMetric, load_metric, metric_digest

SHORT_SIDE = 720


def load_technical(name: str = "piqe") -> PyiqaMetric:
    """The metric of that name. Raises ValueError or ModelUnavailable, see `load_metric`."""
    return load_metric(name, short_side=SHORT_SIDE)


def technical_digest(name: str = "piqe") -> str:
    """sha256 that identifies the metric; loads nothing."""
    return metric_digest(name, SHORT_SIDE)
