"""Takedown block: what shows the same as a video that was taken down comes in by no other address.

What is kept for this is the fingerprint of each of its clips, which quality put on record: perceptual hashes and the
mean brightness of 8 by 8 cells over time, some 5 kB of numbers: no frame, nothing finer than those cells. A takedown
leaves it where it is when it blanks the words beside it. Not known again are videos whose takedown still blanked
fingerprints (before there was this block), and those that quality had seen no clip of.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from sqlalchemy import Engine, func, or_, select

from medgen.canonical import rounded
from medgen.catalog import Clip, StepRun, Tombstone
from models.duplicates.fingerprint import Fingerprint
from models.duplicates.near_duplicates import copies_of

log = logging.getLogger(__name__)

QUALITY = "quality"  # the step that takes fingerprints; named only, for its module loads Prefect


class BlockedBy(TypedDict):
    """The clip, of a video that was taken down, which another clip copies: how alike they are (0..1), how alike two
    clips must be to count as copies, and over how many seconds."""

    clip: str
    tombstone: str  # id of the video
    similarity: float
    threshold: float
    overlap_s: float


@dataclass(frozen=True)
class TakedownBlock:
    """What was taken down, as far as it can be known again.

    Args:
        fingerprints: clip of a video that was taken down → its fingerprint.
        tombstones: the clip → id of the video.
    """

    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)
    tombstones: Mapping[str, str] = field(default_factory=dict)

    def blocked(self, clips: Mapping[str, Fingerprint]) -> dict[str, BlockedBy]:
        """clip → what it copies, for every one of `clips` that copies what was taken down."""
        return {
            clip: {
                "clip": copy.kept,
                "tombstone": self.tombstones[copy.kept],
                "similarity": rounded(copy.similarity),
                "threshold": copy.threshold,
                "overlap_s": rounded(copy.overlap_s),
            }
            for clip, copy in copies_of(self.fingerprints, clips).items()
        }


def takedown_block(engine: Engine) -> TakedownBlock:
    """The block as it stands. A takedown that lets copies in (`Takedown.blocking`) has no part in it."""
    text = StepRun.detail["fingerprint"].as_string()
    blocking = Tombstone.detail["blocking"]
    query = (
        select(Clip.id, Clip.video_id, text)
        .join(Tombstone, Tombstone.video_id == Clip.video_id)
        .join(StepRun, StepRun.subject == Clip.id)
        .where(
            StepRun.step == QUALITY,
            ~StepRun.superseded,
            text != "",
            or_(func.jsonb_typeof(blocking).is_distinct_from("array"), blocking.has_key(Clip.id)),
        )
        .order_by(Clip.id, StepRun.id)
    )
    fingerprints: dict[str, Fingerprint] = {}
    tombstones: dict[str, str] = {}
    with engine.connect() as connection:
        for clip, video_id, recorded in connection.execute(query):
            try:
                fingerprints[clip] = Fingerprint.parse(recorded)
            except ValueError as error:
                log.warning("clip %s of %s, which was taken down, stops no copies: %s", clip, video_id, error)
                continue
            tombstones[clip] = video_id
    return TakedownBlock(fingerprints, tombstones)
