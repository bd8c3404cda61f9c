"""What generated videos resemble among the clips of a training release: near copies, and the class of the nearest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from medgen.canonical import rounded
from models.metrics.descriptor import (
    LEAST_NEAR_COPY,
    NEAR_COPY,
    Descriptor,
    nearest,
    reference_similarity,
    retrieve,
)
from models.metrics.statistics import share_interval
from tasks.evaluation.measured import Measured


@dataclass(frozen=True)
class TrainingClip:
    """A clip of the training release.

    Args:
        source: id of the video that it was cut from.
        category: of the clip, or a label that the user gave it.
    """

    clip_id: str
    source: str
    category: str
    descriptor: Descriptor


class NearCopies(TypedDict):
    """How near copies were told: by a similarity from `threshold` on, the larger of `least` and `reference`, which is
    that between different sources of the release."""

    threshold: float
    reference: float | None
    least: float
    clips: int
    digest: str


class RetrievedPair(TypedDict):
    """A video's category, and the training clip that it resembles most with the clip's category."""

    category: str
    nearest_category: str
    clip: str


class Retrieval(TypedDict):
    """How many of a system's videos resemble most a clip of their own category: `accuracy` with Wilson's interval."""

    accuracy: float
    low: float
    high: float
    right: int
    videos: int
    chance: float
    categories: list[str]
    p_shuffled: float
    pairs: list[RetrievedPair]


def near_copies(measured: Sequence[Measured], clips: Sequence[TrainingClip]) -> tuple[list[Measured], NearCopies]:
    """The videos with the training clip that each resembles most, and how near copies were told."""
    reference = reference_similarity([(clip.source, clip.descriptor) for clip in clips])
    threshold = max(LEAST_NEAR_COPY, reference if reference is not None else 0.0)
    pool = [(clip.clip_id, clip.descriptor) for clip in clips]
    compared = [
        replace(video, nearest=nearest(video.descriptor, pool, threshold)) if video.descriptor else video
        for video in measured
    ]
    return compared, {
        "threshold": rounded(threshold),
        "reference": None if reference is None else rounded(reference),
        "least": LEAST_NEAR_COPY,
        "clips": len(clips),
        "digest": NEAR_COPY,
    }


def retrieval_of(measured: Sequence[Measured], clips: Sequence[TrainingClip], seed: int) -> Retrieval | None:
    """The probe of one system's videos, with Wilson's interval; None when there is nothing to tell apart."""
    asked = [
        (video.video.category, video.descriptor.features)
        for video in measured
        if video.descriptor and video.video.category
    ]
    result = retrieve(asked, [(clip.clip_id, clip.category, clip.descriptor.features) for clip in clips], seed=seed)
    if result is None:
        return None
    share = share_interval(result.right, result.asked)
    return {
        "accuracy": rounded(share.mean),
        "low": rounded(share.low or 0.0),
        "high": rounded(share.high or 0.0),
        "right": result.right,
        "videos": result.asked,
        "chance": rounded(result.chance),
        "categories": list(result.categories),
        "p_shuffled": rounded(result.shuffled_p),
        "pairs": [
            {"category": category, "nearest_category": nearest_category, "clip": clip}
            for category, nearest_category, clip in result.pairs
        ],
    }
