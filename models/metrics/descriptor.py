"""Descriptors of videos, by which a video is compared with training clips: is it a copy of one?

A descriptor has two parts. Its fingerprint (`models.duplicates.fingerprint`) finds the same recording, however it was
cut, cropped or encoded. Its features of eight frames say how alike two videos look, which also sees a repainted copy
but takes look-alikes for one. Digests and records call descriptors `trace`, as they were called at first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from models.duplicates.fingerprint import FINGERPRINT, HASH_SIDE, Fingerprint, fingerprint
from models.duplicates.near_duplicates import NEAR_DUPLICATES, compare
from models.encoders import Encoder
from models.metrics.statistics import shuffled_p

DESCRIPTOR_FRAMES = 8
GREY_WIDTH = 160
GREY_EVERY_S = 0.25  # as clips of a release are fingerprinted
# Similarity from which a look-alike is reported, whatever the training clips are like among themselves. Measured with
# MobileNetV2 on 18 real videos at 224 and 96 pixels: different recordings reach 0.86, other stretches of one film 0.95
# to 0.98; copies that are brighter, mirrored, shifted in time or badly compressed have 0.91 and more; noisy, blurred
# and cropped ones 0.78 and more, of which the fingerprint must tell.
LEAST_NEAR_COPY = 0.9
DESCRIPTOR = digest_of({"frames": DESCRIPTOR_FRAMES, "grey": [GREY_WIDTH, GREY_EVERY_S], "prints": FINGERPRINT})
NEAR_COPY = digest_of(
    {"trace": DESCRIPTOR, "copies": NEAR_DUPLICATES, "similarity": "mean of best cosines", "version": 1}
)


@dataclass(frozen=True)
class Descriptor:
    """Features of a video, float32 (8 or fewer, D), rows of length 1, and its fingerprint."""

    features: np.ndarray
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Nearest:
    """The training clip that a video resembles most.

    Args:
        clip: its id.
        similarity: mean over the video's frames of the cosine to the most similar frame of the clip, -1 to 1.
        threshold: what the similarity was compared with.
        copied: correlation of the courses (0 to 1) when the fingerprints say that it is the same recording.
        near_copy: whether either says so.
    """

    clip: str
    similarity: float
    threshold: float
    copied: float | None
    near_copy: bool


def shrunk(frame: np.ndarray, side: int) -> np.ndarray:
    """The frame with no side longer than `side` pixels; smaller ones stay as they are."""
    height, width = frame.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return frame
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def compute_descriptor(
    frames: Sequence[np.ndarray], grey: Sequence[np.ndarray], step_s: float, encoder: Encoder
) -> Descriptor:
    """The descriptor of a video.

    Args:
        frames: TRACE_FRAMES or fewer frames at even distances, uint8 RGB (H, W, 3), of one size.
        grey: uint8 (T, h, w), one for each `step_s` seconds, as `grey_of` makes them.
    """
    return Descriptor(encoder.embed(frames), fingerprint(np.stack(grey), step_s))


def grey_of(frame: np.ndarray) -> np.ndarray:
    """A small grey picture for the fingerprint, uint8 (h, 160), of a frame uint8 RGB (H, W, 3)."""
    height = max(2 * HASH_SIDE, round(frame.shape[0] * GREY_WIDTH / frame.shape[1]))
    small = cv2.resize(frame, (GREY_WIDTH, height), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)


def similarity(features: np.ndarray, others: np.ndarray) -> float:
    """Mean over the rows of `features` of the greatest cosine to a row of `others`, -1 to 1. Rows have length 1."""
    return float((np.asarray(features, np.float64) @ np.asarray(others, np.float64).T).max(axis=1).mean())


def reference_similarity(clips: Sequence[tuple[str, Descriptor]]) -> float | None:
    """The greatest similarity between training clips of different source videos; None with fewer than two sources.

    Different recordings are that alike by nature; a video that resembles a training clip more is reported.

    Args:
        clips: (source video, descriptor).
    """
    best: float | None = None
    for index, (source, clip) in enumerate(clips):
        for other_source, other in clips[:index]:
            if source != other_source:
                alike = max(similarity(clip.features, other.features), similarity(other.features, clip.features))
                best = alike if best is None else max(best, alike)
    return best


def nearest(video: Descriptor, clips: Sequence[tuple[str, Descriptor]], threshold: float) -> Nearest:
    """The most similar training clip; one that is the same recording comes first.

    A near copy is a video whose fingerprint matches a training clip's (see
    `models.duplicates.near_duplicates.compare`), or whose similarity exceeds `threshold`: the greater of
    LEAST_NEAR_COPY and `reference_similarity`. Measured with MobileNetV2; with another encoder look at the distribution
    in the report before trusting the number.

    Args:
        clips: (id, descriptor), at least one.
    """
    matches = []
    for name, clip in clips:
        match = compare(video.fingerprint, clip.fingerprint)
        alike = similarity(video.features, clip.features)
        matches.append((match.similarity if match else -1.0, alike, name))
    copied, alike, name = max(matches)
    copy = None if copied < 0 else rounded(copied)
    return Nearest(name, rounded(alike), rounded(threshold), copy, copy is not None or alike > threshold)


@dataclass(frozen=True)
class Retrieval:
    """Whether generated videos look most like training clips of their own category.

    Args:
        right, asked: videos whose nearest clip has their category, and videos asked about.
        chance: 1 / number of categories among the training clips.
        shuffled_p: share of shuffles of the categories among the videos that do at least as well (plus one on both
            sides): unlike `chance`, it knows that some categories have more clips.
        pairs: (video's category, nearest clip's category, nearest clip) of each video.
    """

    right: int
    asked: int
    categories: tuple[str, ...]
    chance: float
    shuffled_p: float
    pairs: tuple[tuple[str, str, str], ...]


def retrieve(
    videos: Sequence[tuple[str, np.ndarray]], clips: Sequence[tuple[str, str, np.ndarray]], *, seed: int = 0
) -> Retrieval | None:
    """Finds each video's nearest clip and counts those of the video's category.

    None when there are fewer than two categories on either side, because there is nothing to tell apart.

    Args:
        videos: (category, features (T, D)). Those of categories that no clip has are left out.
        clips: (id, category, features).
    """
    known = {category for _, category, _ in clips}
    asked = [(category, features) for category, features in videos if category in known]
    if len(known) < 2 or len({category for category, _ in asked}) < 2:
        return None
    pairs = []
    for category, features in asked:
        _, name, nearest_category = max(
            (similarity(features, clip), clip_id, clip_category) for clip_id, clip_category, clip in clips
        )
        pairs.append((category, nearest_category, name))
    wanted, got = (np.array([pair[at] for pair in pairs]) for at in (0, 1))
    right, p = int((wanted == got).sum()), shuffled_p(wanted, got, seed)
    return Retrieval(right, len(pairs), tuple(sorted(known)), 1 / len(known), p, tuple(pairs))
