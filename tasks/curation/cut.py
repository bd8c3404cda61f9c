"""Cut: a medical stretch of a video becomes a clip, a file of its own.

Frame-accurate, and black borders go in the same encode, so that no picture is encoded twice. Clips that quality will
turn down are cut too: auditors can look at them, and other thresholds need no decoding.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from av.video.frame import VideoFrame
from pydantic import BaseModel, ConfigDict, Field

from medgen.canonical import canonical_json, rounded
from medgen.catalog import Clip
from medgen.errors import ItemFailed
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.media import Limits, decode_jpeg
from medgen.media import cut as cut_video
from medgen.shard import Item, ShardResult, Step
from medgen.store import Artifact, Store
from models.segmentation.borders import Borders, detect_borders
from tasks.curation.classify import clip_facts
from tasks.prefect_step import run_in_prefect, step_task


class CutParams(BaseModel):
    """Parameters of cut."""

    model_config = ConfigDict(frozen=True)

    crop_borders: bool = Field(True, description="Crop black borders away where a large enough picture remains.")
    min_inner_short_side: int = Field(480, ge=16, description="Short side that must remain after a crop, pixels.")
    crf: int = Field(18, ge=0, le=51, description="H.264 quality of clips (lower is better).")
    preset: str = Field("veryfast", description="x264 preset.")
    max_pixels: int = Field(4096 * 2304, gt=0, description="Videos with larger pictures are refused, pixels.")
    cut_limit_s: float = Field(600.0, gt=0, exclude=True, description="Slower cuts are stopped, seconds.")


def cut(work: Work, store: Store, params: CutParams) -> Outcome:
    """Cuts one clip.

    Outputs:
        clip: H.264 MP4 without sound, square pixels, upright.

    Raises:
        ItemFailed: as `medgen.media.cut`.
    """
    start, end = work.context["start_frame"], work.context["end_frame"]
    samples = pq.read_table(store.path(work.inputs["samples"]))
    inside = samples.filter(pc.and_(pc.greater_equal(samples["frame"], start), pc.less(samples["frame"], end)))
    pictures = [decode_jpeg(jpeg) for jpeg in inside["jpeg"].to_pylist()]
    borders = detect_borders(pictures)
    crop = _crop(borders, pictures[0].shape, work.context["size"], params) if params.crop_borders else None
    video, _, _ = work.subject.partition("/")
    encoding = Encoding(
        video_id=video,
        **{name: work.context[name] for name in ("start_frame", "end_frame", "start_s", "end_s")},
        crop=crop,
        crf=params.crf,
        preset=params.preset,
        max_pixels=params.max_pixels,
    )
    clip, made = encode_clip(store, work.inputs, encoding)
    detail = made | {
        "borders": {
            "kind": borders.kind,
            "content_mask": borders.content_mask,
            "cropped": crop is not None,
            "crop": crop,
        },
        "encoding": vars(encoding),
    }
    return Outcome(
        "kept",
        detail=detail,
        outputs={"clip": clip},
        rows=[Clip(**made["clip"])],
        decodes=1,
    )


@dataclass(frozen=True)
class Encoding:
    """Which frames [start_frame, end_frame) of which video become a clip, and how. `crop` in upright source pixels."""

    video_id: str
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    crop: tuple[int, int, int, int] | None
    crf: int
    preset: str
    max_pixels: int


def encode_clip(
    store: Store,
    inputs: Mapping[str, str],
    encoding: Encoding,
    edit: Callable[[int, VideoFrame], VideoFrame] | None = None,
) -> tuple[Artifact, dict[str, Any]]:
    """Encodes one clip into the store.

    Args:
        inputs: digests of "video" and of segment's table "frames".
        edit: as `medgen.media.cut`.

    Returns:
        The file, and {"clip": columns of its catalog row, "bytes", "bit_rate" (bits per second)}.

    Raises:
        ItemFailed: as `medgen.media.cut`.
    """
    start, end = encoding.start_frame, encoding.end_frame
    frames = pq.read_table(store.path(inputs["frames"]), columns=["pts", "time_s"])
    pts, times = frames["pts"], frames["time_s"]
    scratch = store.scratch(".mp4")
    try:
        count, width, height = cut_video(
            store.path(inputs["video"]),
            scratch,
            start_pts=pts[start].as_py(),
            end_pts=pts[end - 1].as_py(),
            crop=encoding.crop,
            crf=encoding.crf,
            preset=encoding.preset,
            limits=Limits(max_pixels=encoding.max_pixels),
            edit=edit,
        )
        if count != end - start:
            raise ItemFailed("frames_missing", f"{count} frames where {end - start} were promised")
        size = scratch.stat().st_size
        clip = store.put_file(scratch, "video/mp4")
    finally:
        scratch.unlink(missing_ok=True)
    between = times[end - 1].as_py() - times[start].as_py()
    identity = hashlib.sha256(canonical_json([encoding.video_id, start, end, clip.sha256])).hexdigest()[:16]
    facts = {
        "id": f"c{identity}",
        "video_id": encoding.video_id,
        "start_frame": start,
        "end_frame": end,
        "start_s": encoding.start_s,
        "end_s": encoding.end_s,
        "width": width,
        "height": height,
        "fps": rounded((count - 1) / between, 3) if count > 1 else 0.0,
        "digest": clip.sha256,
    }
    return clip, {"clip": facts, "bytes": size, "bit_rate": round(8 * size / (encoding.end_s - encoding.start_s))}


def _crop(
    borders: Borders, sampled: tuple[int, ...], size: Sequence[int], params: CutParams
) -> tuple[int, int, int, int] | None:
    """The inner picture in source pixels, even-sized; None when there is no border or too little would remain.

    Borders are found on sampled frames, which may be smaller than the source: edges are rounded inwards.
    """
    if borders.kind == "none":
        return None
    x, y, width, height = borders.inner
    across, down = size[0] / sampled[1], size[1] / sampled[0]
    left, top = int(np.ceil(x * across)), int(np.ceil(y * down))
    right, bottom = int((x + width) * across), int((y + height) * down)
    left, top = left + left % 2, top + top % 2
    wide, high = (right - left) // 2 * 2, (bottom - top) // 2 * 2
    return (left, top, wide, high) if min(wide, high) >= params.min_inner_short_side else None


def step(params: CutParams) -> Step:
    """Cut, ready to run."""
    identity = StepIdentity("cut", 2, params.model_dump(mode="json"), {})
    return Step(identity, partial(cut, params=params), "processes", params.cut_limit_s)


def _work(item: Item, past: Mapping[str, Record]) -> Work:
    start, end = (int(part) for part in item.subject.partition("/")[2].split("-"))
    facts = clip_facts(past, start, end)
    probe = past["download"].detail["probe"]
    return Work(
        item.subject,
        inputs={"video": past["download"].outputs["video"], **past["segment"].outputs},
        context={
            **{name: facts[name] for name in ("start_frame", "end_frame", "start_s", "end_s")},
            "size": [probe["width"], probe["height"]],
        },
    )


def _clip(item: Item, record: Record) -> Iterable[Item]:
    return [Item(record.detail["clip"]["id"], {**item.trail, "cut": record.id})]


@step_task("cut", "cpu")
def cut_shard(label: str, upstream: ShardResult, params: CutParams, retry_quarantined: bool = False) -> ShardResult:
    """Cuts a shard's stretches; gives clips."""
    return run_in_prefect(step(params), upstream.kept, _work, follow=_clip, retry_quarantined=retry_quarantined)
