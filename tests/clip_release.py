"""A release on record without any refresh: clips that are given, captions that are told."""

import io
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medgen.catalog import Base, Clip, Release, ReleaseClip, Source, Video, now
from medgen.ledger import Ledger, Outcome, StepIdentity, Work

FPS = 12
SIZE = (96, 160)  # height, width


@dataclass(frozen=True)
class Made:
    """One clip of the release: its bytes, whose video it is, and what its row says."""

    data: bytes
    video_id: str
    duration_s: float
    category: str = "imaging"
    brief: str = "A heart beats in an ultrasound."
    detailed: str = "A grey sector on black ground; within it the walls of a heart move."


def moving_clip(folder: Path, seed: int, seconds: float = 3.0) -> bytes:
    """An MP4 of two soft shapes that move before a ground with a texture, which drifts."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    ground = draw.uniform(30, 160, 3) + (rows[..., None] + columns[..., None]) * draw.uniform(-0.3, 0.3, 3)
    texture = cv2.resize(draw.uniform(-45, 45, (SIZE[0] // 4, SIZE[1] // 4, 1)), SIZE[::-1])[..., None]
    path = folder / f"{seed}.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "14"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        centre, speed, colour = (
            draw.uniform(20, 80, (2, 2)),
            draw.uniform(-20, 20, (2, 2)),
            draw.uniform(0, 255, (2, 3)),
        )
        for index in range(round(seconds * FPS)):
            picture = ground + np.roll(texture, index, axis=1)
            for at, moves, paint in zip(centre, speed, colour, strict=True):
                y, x = at + moves * np.sin(index / 6)
                near = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 300)[..., None]
                picture = picture * (1 - near) + paint * near
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path.read_bytes()


def put_release(ledger: Ledger, clips: dict[str, Made], name: str = "made-1") -> None:
    """Puts a release with these clips, id → clip, on record."""
    rows: list[Base] = [Source(name="made", kind="folder", uri="made", added_at=now())]
    for video in dict.fromkeys(clip.video_id for clip in clips.values()):
        url = f"https://example.org/{video}"
        rows.append(
            Video(id=video, source_name="made", url=url, title=video, description="", tags=[], discovered_at=now())
        )
    members: list[Base] = []
    table, digests = [], {}
    for clip_id, clip in clips.items():
        digests[f"clip:{clip_id}"] = stored = ledger.store.put_bytes(clip.data, "video/mp4")
        size = {"width": SIZE[1], "height": SIZE[0], "fps": float(FPS)}
        times = {"start_frame": 0, "end_frame": 1, "start_s": 0.0, "end_s": clip.duration_s}
        members.append(Clip(id=clip_id, video_id=clip.video_id, digest=stored.sha256, **size, **times))
        table.append(
            {
                "clip_id": clip_id,
                "clip_sha256": stored.sha256,
                "video_id": clip.video_id,
                "category": clip.category,
                "brief_caption": clip.brief,
                "detailed_caption": clip.detailed,
                "title": clip.video_id,
                "resolution": f"{SIZE[1]}x{SIZE[0]}",
                "fps": float(FPS),
                "duration": clip.duration_s,
            }
        )
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table), written)
    metadata = ledger.store.put_bytes(written.getvalue(), "application/vnd.apache.parquet")
    release = Release(
        name=name, digest=metadata.sha256, policy={}, clips=len(clips), record_root=metadata.sha256, created_at=now()
    )
    links = [ReleaseClip(release_name=name, clip_id=clip_id) for clip_id in clips]
    outcome = Outcome(
        "kept",
        detail={"name": name},
        outputs={"metadata": metadata, **digests},
        rows=[*rows, *members, release, *links],
    )
    ledger.write(StepIdentity("release", 1, {}, {}), Work(name), outcome, started_at=now(), flow_run_id=None)
