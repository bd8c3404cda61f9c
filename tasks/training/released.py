"""The clips of a release, as training and evaluation read them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq
from sqlalchemy.orm import Session

from medgen.catalog import Release, ReleaseClip
from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from models.training.clip_frames import Geometry, best_fit
from tasks.curation.release_files import awaits_approval


@dataclass(frozen=True)
class ReleasedClip:
    """One clip of a release.

    Args:
        sha256: of its MP4 in the store.
        video_id: the source video; splits into training and held-out parts go by it.
        category: as `models.segmentation.category`.
        brief, detailed: captions.
        step_run_id: the record that the clip's life in the release ended with.
    """

    clip_id: str
    sha256: str
    video_id: str
    category: str
    brief: str
    detailed: str
    title: str
    width: int
    height: int
    fps: float
    duration_s: float
    step_run_id: int

    def best_fit(self, choices: Sequence[Geometry], fps: float) -> Geometry | None:
        """The geometry that training takes the clip at; None when it is too short for all."""
        return best_fit(choices, fps, duration_s=self.duration_s, width=self.width, height=self.height)


def released_clips(ledger: Ledger, name: str) -> tuple[list[ReleasedClip], Release]:
    """The clips of a release in order of their ids, without those of videos that were taken down, and its row.

    Raises:
        ItemFailed: unknown_release; release_not_approved; empty_release when no clip is left.
        ArtifactLost, StoreUnavailable: as `Store.path`.
    """
    with Session(ledger.engine) as session:
        release = session.get(Release, name)
        if release is None:
            raise ItemFailed("unknown_release", f"no release goes by {name!r}; see `medgen release list`")
        if awaits_approval(session, release):
            raise ItemFailed("release_not_approved", f"the release {name} awaits approval: `medgen release approve`")
        session.expunge(release)
        members = session.query(ReleaseClip.clip_id, ReleaseClip.step_run_id).filter_by(release_name=name)
        runs = {clip_id: run_id for clip_id, run_id in members}
    record = ledger.load([release.step_run_id])[release.step_run_id]
    rows = pq.read_table(io.BytesIO(ledger.store.read(record.outputs["metadata"]))).to_pylist()
    gone = ledger.forgotten(row["clip_id"] for row in rows)
    clips = [_clip(row, runs[row["clip_id"]]) for row in rows if row["clip_id"] not in gone]
    if not clips:
        raise ItemFailed("empty_release", f"the release {name} has no clips (left): make one with `medgen refresh`")
    return sorted(clips, key=lambda clip: clip.clip_id), release


def _clip(row: dict[str, object], step_run_id: int) -> ReleasedClip:
    width, height = map(int, str(row["resolution"]).split("x"))
    return ReleasedClip(
        clip_id=str(row["clip_id"]),
        sha256=str(row["clip_sha256"]),
        video_id=str(row["video_id"]),
        category=str(row["category"]),
        brief=str(row["brief_caption"] or ""),
        detailed=str(row["detailed_caption"] or ""),
        title=str(row["title"] or ""),
        width=width,
        height=height,
        fps=float(row["fps"]),  # type: ignore[arg-type]
        duration_s=float(row["duration"]),  # type: ignore[arg-type]
        step_run_id=step_run_id,
    )
