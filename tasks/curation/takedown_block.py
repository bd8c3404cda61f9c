"""Takedown block: what shows the same as a video that was taken down comes in by no other address.

What is kept for this is the fingerprint of each of its clips, which quality or its import put on record: perceptual
hashes and the mean brightness of 8 by 8 cells over time, some 5 kB of numbers: no frame, nothing finer than those
cells. A takedown leaves it where it is when it blanks the words beside it. Not known again are videos whose takedown
still blanked fingerprints (before there was this block), and those of whose clips none was taken.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypedDict

import numpy as np
from sqlalchemy import Engine, and_, func, or_, select

from medgen.canonical import rounded
from medgen.catalog import Clip, StepRun, Tombstone
from medgen.takedown import IMPORT
from models.duplicates.index import FingerprintIndex
from models.duplicates.near_duplicates import SAME_COURSE
from models.duplicates.search import copies_of
from tasks.curation.fingerprints import QUALITY, Read, fill, index_folder, newest, read_entries, searched


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
        fingerprints: clip of a video that was taken down → id of the step run that took its fingerprint.
        tombstones: the clip → id of the video.
    """

    fingerprints: Mapping[str, int] = field(default_factory=dict)
    tombstones: Mapping[str, str] = field(default_factory=dict)

    def blocked(self, index: FingerprintIndex, ids: np.ndarray, read: Read) -> dict[str, BlockedBy]:
        """clip → what it copies, for every clip that copies what was taken down.

        Args:
            index: holds the clips.
            ids: int64, of the step runs that took their fingerprints, one a clip.
            read: of what was taken down, what the index does not hold yet.

        Raises:
            IndexDamaged: see `FingerprintIndex`.
        """
        gone, clips = newest((run_id, clip) for clip, run_id in self.fingerprints.items())
        gone = gone[fill(index, gone, clips, read)]
        found = copies_of(index, index.places(gone), index.places(ids))
        blocked: dict[str, BlockedBy] = {}
        for place, (of, match) in found.items():
            clip = index.clip(of)
            blocked[index.clip(place)] = {
                "clip": clip,
                "tombstone": self.tombstones[clip],
                "similarity": rounded(match.similarity),
                "threshold": SAME_COURSE,
                "overlap_s": rounded(match.overlap_s),
            }
        return blocked


def blocked_clips(engine: Engine, runs: Iterable[tuple[int, str]]) -> dict[str, BlockedBy]:
    """clip → what it copies, for every clip that copies what was taken down.

    Args:
        runs: (id of the step run that took its fingerprint, clip) of the clips to look at.
    """
    block = takedown_block(engine)
    if not block.fingerprints:
        return {}
    read = partial(read_entries, engine)
    ids, clips = newest(runs)
    return searched(index_folder(), lambda index: block.blocked(index, ids[fill(index, ids, clips, read)], read))


def takedown_block(engine: Engine) -> TakedownBlock:
    """The block as it stands. A takedown that lets copies in (`Takedown.blocking`) has no part in it."""
    text = StepRun.detail["fingerprint"].as_string()
    blocking = Tombstone.detail["blocking"]
    query = (
        select(Clip.id, Clip.video_id, StepRun.id)
        .join(Tombstone, Tombstone.video_id == Clip.video_id)
        .join(
            StepRun,
            or_(
                and_(StepRun.subject == Clip.id, StepRun.step == QUALITY),
                and_(StepRun.id == Clip.step_run_id, StepRun.step == IMPORT),
            ),
        )
        .where(
            ~StepRun.superseded,
            text != "",
            or_(func.jsonb_typeof(blocking).is_distinct_from("array"), blocking.has_key(Clip.id)),
        )
        .order_by(Clip.id, StepRun.id)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    # Of a clip that was measured more than once the last one counts.
    return TakedownBlock({clip: run_id for clip, _, run_id in rows}, {clip: video_id for clip, video_id, _ in rows})
