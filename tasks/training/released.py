"""The clips of a release, as training and evaluation read them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq
from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.among import PAGE, among
from medgen.catalog import Release, ReleaseClip
from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from medgen.releases import awaits_approval
from models.captioning.captioner import captioner_kind
from models.training.clip_frames import Geometry, best_fit

COLUMNS = [
    "clip_id", "clip_sha256", "video_id", "category", "brief_caption", "detailed_caption", "title", "resolution", "fps",
    "duration", "captioner", "captioner_kind", "split", "mixed_from",
]  # fmt: skip


@dataclass(frozen=True)
class ReleasedClip:
    """One clip of a release.

    Args:
        sha256: of its MP4 in the store.
        video_id: the source video; splits into training and held-out parts go by it.
        category: as `models.segmentation.category`.
        brief, detailed: captions; `captioner_kind` as `models.captioning.captioner.CaptionerKind`, or "unknown".
        step_run_id: the record that the clip's life in the release ended with.
        split: that its publisher put it in, where the release came from elsewhere; empty: none is known.
        parts: of a mixture, the releases that hold it; see `tasks.training.mixture`.
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
    captioner_kind: str = "unknown"
    split: str = ""
    parts: tuple[str, ...] = ()

    def best_fit(self, choices: Sequence[Geometry], fps: float) -> Geometry | None:
        """The geometry that training takes the clip at; None when it is too short for all."""
        return best_fit(choices, fps, duration_s=self.duration_s, width=self.width, height=self.height)


def usable_release(ledger: Ledger, name: str) -> Release:
    """The row of a release. Raises ItemFailed: unknown_release; release_not_approved."""
    with Session(ledger.engine) as session:
        release = session.get(Release, name)
        if release is None:
            raise ItemFailed("unknown_release", f"no release goes by {name!r}; see `medgen release list`")
        if awaits_approval(session, release):
            raise ItemFailed("release_not_approved", f"the release {name} awaits approval: `medgen release approve`")
        session.expunge(release)
    return release


def stream_clips(ledger: Ledger, name: str) -> tuple[Iterator[ReleasedClip], Release]:
    """The clips of a release as its table lists them, without those of videos that were taken down, and its row.

    However many they are, some thousands at a time are in memory.

    Raises:
        ItemFailed: as `usable_release`; empty_release when no clip is left.
        ArtifactLost, StoreUnavailable: as `Store.path`.
    """
    release = usable_release(ledger, name)
    record = ledger.load([release.step_run_id])[release.step_run_id]
    clips = _clips(ledger, name, ledger.store.path(record.outputs["metadata"]))
    first = next(clips, None)
    if first is None:
        raise ItemFailed("empty_release", f"the release {name} has no clips (left): make one with `medgen refresh`")
    return chain([first], clips), release


def released_clips(ledger: Ledger, name: str) -> tuple[list[ReleasedClip], Release]:
    """As `stream_clips`, all at once and in order of their ids."""
    clips, release = stream_clips(ledger, name)
    return sorted(clips, key=lambda clip: clip.clip_id), release


def _clips(ledger: Ledger, name: str, metadata: Path) -> Iterator[ReleasedClip]:
    with pq.ParquetFile(metadata) as file:
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=PAGE, columns=columns):
            rows = batch.to_pylist()
            ids = [row["clip_id"] for row in rows]
            gone = ledger.forgotten(ids)
            members = select(ReleaseClip.clip_id, ReleaseClip.step_run_id).where(
                ReleaseClip.release_name == name, among(ReleaseClip.clip_id, ids)
            )
            with Session(ledger.engine) as session:
                runs = {clip_id: run_id for clip_id, run_id in session.execute(members)}
            yield from (_clip(row, runs[row["clip_id"]]) for row in rows if row["clip_id"] not in gone)


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
        captioner_kind=_kind(row),
        split=str(row.get("split") or ""),
        parts=tuple(row.get("mixed_from") or ()),  # type: ignore[arg-type]
    )


def _kind(row: dict[str, object]) -> str:
    """Kind of the captioner; releases made before it was part of them only say its name."""
    if kind := row.get("captioner_kind"):
        return str(kind)
    return captioner_kind(str(row["captioner"])) if row.get("captioner") else "unknown"
