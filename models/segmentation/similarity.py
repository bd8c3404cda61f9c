"""Which similarity do neighbouring frames of one scene have, by an encoder? It calibrates τ, the paper's threshold.

Cosines of one encoder say nothing about another's: MobileNetV2's features of two unrelated pictures have about 0.3,
those of CLIP-class models 0.5 and more, as their embeddings lie in a narrow cone (Liang et al. 2022, "Mind the Gap").
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from medgen.canonical import rounded
from models.encoders import MOBILENET
from models.segmentation.training_frames import LabelledVideo

OF_MOBILENET = 0.55
# The paper gives no τ for its CLIP. Until `medgen train-frames` has measured one on videos of yours: high above what
# unrelated pictures have, and below what a moving camera leaves of a scene within a second.
OF_CLIP_CLASS = 0.8
MOST_VIDEOS = 2000  # that are compared with one another


class CalibratedSimilarity(TypedDict):
    """τ, and how well it tells frames of one video that follow each other from frames of two videos.

    Args:
        frame_similarity: τ, a cosine.
        neighbours_above: share of neighbouring frames above it, every video weighing the same, 0 to 1.
        strangers_above: share of pairs of videos without a common source whose middle frames are above it, 0 to 1.
    """

    frame_similarity: float
    neighbours_above: float
    strangers_above: float


def default_similarity(encoder: str) -> float:
    """τ for an encoder whose own has not been measured."""
    return OF_MOBILENET if encoder == MOBILENET else OF_CLIP_CLASS


def calibrated_similarity(videos: Sequence[LabelledVideo]) -> CalibratedSimilarity | None:
    """The τ that tells best, by balanced accuracy, a scene that goes on from another one.

    Neighbours are a second or more apart, and cuts lie between some: with them the shares are lower than within a shot.
    None when there is no pair of one kind.
    """
    near = [np.sum(v.embeddings[:-1] * v.embeddings[1:], axis=1) for v in videos if len(v.embeddings) > 1]
    some = videos[:MOST_VIDEOS]
    middle = np.stack([video.embeddings[len(video.embeddings) // 2] for video in some])
    sources = [video.label.sources for video in some]
    strangers = np.array(
        [[a < b and not sources[a] & sources[b] for b in range(len(some))] for a in range(len(some))], bool
    )
    if not near or not strangers.any():
        return None
    alike = np.concatenate(near)
    weight = np.concatenate([np.full(len(own), 1 / (len(near) * len(own))) for own in near])
    far = np.sort((middle @ middle.T)[strangers])
    order = np.argsort(alike)
    values = np.unique(np.round(np.concatenate([alike, far]), 4))
    places = np.concatenate([[0.0], np.cumsum(weight[order])])
    above = 1 - places[np.searchsorted(alike[order], values, "right")]
    stranger_above = 1 - np.searchsorted(far, values, "right") / len(far)
    gain = above - stranger_above
    best = np.flatnonzero(gain > gain.max() - 1e-9)
    # The middle of the first stretch of best values: as far from both kinds as can be.
    breaks = np.flatnonzero(np.diff(best) > 1)
    last = best[breaks[0]] if len(breaks) else best[-1]
    end = values[min(last + 1, len(values) - 1)]
    chosen = rounded((values[best[0]] + end) / 2)
    return {
        "frame_similarity": chosen,
        "neighbours_above": rounded(float(weight[alike > chosen].sum())),
        "strangers_above": rounded(float((far > chosen).mean())),
    }
