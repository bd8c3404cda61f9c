"""A release that stands in the catalog without any refresh: made-up clips of made-up videos."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medgen.canonical import canonical_json
from medgen.catalog import Clip, Release, ReleaseClip, Source, Video, now
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from models.training.job import Sample

SIZE = (64, 96)  # height, width of the clips
FPS, FRAMES = 8, 24


def clip_bytes(folder: Path, seed: int) -> bytes:
    """An MP4 of a bright block that moves before a coloured ground."""
    path = folder / f"{seed}.mp4"
    draw = np.random.default_rng(seed)
    ground, block = draw.integers(20, 120, 3), draw.integers(130, 255, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for at in range(FRAMES):
            frame = np.full((*SIZE, 3), ground, np.uint8)
            frame[16:48, 8 + 2 * at : 30 + 2 * at] = block
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def made_release(ledger: Ledger, folder: Path, clips: dict[str, str], name: str = "made-1") -> Record:
    """Puts a release on record.

    Args:
        clips: clip id → id of its source video.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Any] = [Source(name="made", kind="folder", uri="made", added_at=now())]
    table, members, digests = [], [], {}
    for place, (clip, video) in enumerate(clips.items()):
        artifact = ledger.store.put_bytes(clip_bytes(folder, place), "video/mp4")
        digests[f"clip:{clip}"] = artifact
        rows.append(
            Video(id=video, source_name="made", url=f"https://example.org/{video}", title=f"Video {video}",
                  description="", tags=[], discovered_at=now())
        )  # fmt: skip
        members.append(
            Clip(id=clip, video_id=video, start_frame=0, end_frame=FRAMES, start_s=0.0, end_s=FRAMES / FPS,
                 width=SIZE[1], height=SIZE[0], fps=FPS, digest=artifact.sha256)
        )  # fmt: skip
        table.append(
            {
                "clip_id": clip, "clip_sha256": artifact.sha256, "video_id": video,
                "category": ("imaging", "clinical_practice")[place % 2], "title": f"Video {video}",
                "brief_caption": f"A scan of the heart, number {place}.",
                "detailed_caption": f"A bright block moves over a plain ground, number {place}.",
                "resolution": f"{SIZE[1]}x{SIZE[0]}", "fps": float(FPS), "duration": FRAMES / FPS,
                "file_name": f"clips/{clip}.mp4", "captioner": "evidence_template",
            }
        )  # fmt: skip
    out = io.BytesIO()
    columns = list(
        ("clip_id", "clip_sha256", "video_id", "category", "title", "brief_caption", "detailed_caption", "resolution",
         "fps", "duration", "file_name", "captioner")
    )  # fmt: skip
    kinds = [pa.float64() if c in ("fps", "duration") else pa.string() for c in columns]
    pq.write_table(pa.Table.from_pylist(table, pa.schema(list(zip(columns, kinds, strict=True)))), out)
    metadata = ledger.store.put_bytes(out.getvalue(), "application/vnd.apache.parquet")
    digest = metadata.sha256
    files = [
        {"path": row["file_name"], "sha256": row["clip_sha256"], "bytes": digests[f"clip:{row['clip_id']}"].bytes}
        for row in table
    ]
    files.append({"path": "metadata.parquet", "sha256": digest, "bytes": metadata.bytes})
    listed = {"format": 1, "policy": {}, "files": sorted(files, key=lambda file: file["path"])}
    manifest = ledger.store.put_bytes(canonical_json(listed), "application/json")
    release = Release(name=name, digest=digest, policy={}, clips=len(clips), record_root=digest, created_at=now())
    links = [ReleaseClip(release_name=name, clip_id=clip) for clip in clips]
    seen: set[str] = set()
    unique = [r for r in rows if not isinstance(r, Video) or not (r.id in seen or seen.add(r.id))]  # type: ignore[func-returns-value]
    outcome = Outcome(
        "kept",
        detail={"name": name},
        outputs={"metadata": metadata, "manifest": manifest, **digests},
        rows=[*unique, *members, release, *links],
    )
    return ledger.write(StepIdentity("release", 2, {}, {}), Work(name), outcome, started_at=now(), flow_run_id=None)


def put_encoded(ledger: Ledger, samples: tuple[Sample, ...], empty: Path) -> tuple[list[Record], Record]:
    """Puts encoded clips on record as the step encode does, without encoding anything."""
    records = [
        ledger.write(
            StepIdentity("encode", 1, {"made": True}, {}),
            Work(sample.clip_id),
            Outcome(
                "kept",
                outputs={"latents": ledger.store.put_bytes(sample.path.read_bytes(), "application/octet-stream")},
            ),
            started_at=now(),
            flow_run_id=None,
        )
        for sample in samples
    ]
    nothing = ledger.write(
        StepIdentity("empty_text", 1, {"made": True}, {}),
        Work("empty_text"),
        Outcome("kept", outputs={"empty": ledger.store.put_bytes(empty.read_bytes(), "application/octet-stream")}),
        started_at=now(),
        flow_run_id=None,
    )
    return records, nothing
