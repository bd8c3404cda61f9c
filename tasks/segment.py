"""Segment: where the shots of a video begin and end.

One decode yields both the shots (PySceneDetect) and the frames that classify looks at, about one a second.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from medgen.errors import ItemFailed
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.media import Limits, Picture, pictures, time_base
from medgen.shard import Item, ShardResult, Step
from medgen.store import Store
from tasks.prefect_step import run_in_prefect, step_task

FRAMES = pa.schema([("pts", pa.int64()), ("time_s", pa.float64()), ("shot", pa.int32())])
SAMPLES = pa.schema([("frame", pa.int64()), ("time_s", pa.float64()), ("shot", pa.int32()), ("jpeg", pa.binary())])


class SegmentParams(BaseModel):
    """Parameters of segment."""

    model_config = ConfigDict(frozen=True)

    # 27 is PySceneDetect's default for its content detector, in mean HSV difference (0..255).
    content_threshold: float = Field(27.0, gt=0, description="PySceneDetect content threshold of a cut.")
    adaptive_threshold: float = Field(3.0, gt=0, description="PySceneDetect adaptive ratio of a cut.")
    min_shot_s: float = Field(0.6, ge=0, description="A shot lasts at least this long, seconds.")
    sample_fps: float = Field(1.0, gt=0, description="Frames per second kept for classify (paper: 1).")
    sample_long_side: int = Field(854, ge=64, description="Kept frames are scaled down to this long side, pixels.")
    detect_width: int = Field(256, ge=32, description="Width of the pictures that cuts are looked for in, pixels.")
    max_pixels: int = Field(4096 * 2304, gt=0, description="Videos with larger pictures are refused, pixels.")
    max_duration_s: float = Field(4 * 3600.0, gt=0, description="Decoding stops with an error beyond this, seconds.")
    segment_limit_s: float = Field(3600.0, gt=0, exclude=True, description="Slower decoding is stopped, seconds.")


def segment(work: Work, store: Store, params: SegmentParams) -> Outcome:
    """Finds the shots of a video and keeps its sampled frames.

    Outputs:
        frames: Parquet, a row per decoded frame: pts (stream ticks), time_s, shot (from 0).
        samples: Parquet, a row per sampled frame: frame (index), time_s, shot, jpeg.

    Raises:
        ItemFailed: as `medgen.media.pictures`.
    """
    path = store.path(work.inputs["video"])
    limits = Limits(max_pixels=params.max_pixels, max_duration_s=params.max_duration_s)
    cuts = _Cuts(params, work.context["fps"])
    times: list[tuple[int, float]] = []
    samples: list[dict[str, Any]] = []
    for picture in pictures(path, limits):
        times.append((picture.pts, picture.time_s))
        if not samples or picture.time_s - times[0][1] >= len(samples) / params.sample_fps - 1e-6:
            samples.append({"frame": picture.index, "time_s": picture.time_s, "jpeg": _jpeg(picture, params)})
        cuts.look(picture)
    if not times:
        raise ItemFailed("undecodable", "not one frame could be decoded")
    firsts = [0, *cuts.found()]
    shots = _shot_numbers(len(times), firsts)
    frames_table = pa.table(
        [[pts for pts, _ in times], [round(t, 6) for _, t in times], shots], schema=FRAMES
    ).replace_schema_metadata({"time_base": str(time_base(path))})
    samples_table = pa.Table.from_pylist([s | {"shot": shots[s["frame"]]} for s in samples], SAMPLES)
    outputs = {}
    for role, table in (("frames", frames_table), ("samples", samples_table)):
        scratch = store.scratch(".parquet")
        pq.write_table(table, scratch, compression="zstd")
        outputs[role] = store.put_file(scratch, "application/vnd.apache.parquet")
    detail = {"shots": len(firsts), "frames": len(times), "samples": len(samples), "shot_first_frames": firsts[:1000]}
    return Outcome("kept", detail=detail, outputs=outputs, decodes=1)


class _Cuts:
    """Both PySceneDetect detectors, fed frame by frame. A cut needs both: the content detector alone takes fast
    motion for cuts, the adaptive one alone takes small flicker in still scenes for cuts."""

    def __init__(self, params: SegmentParams, fps: float) -> None:
        self.fps = fps if fps > 0 else 25.0
        self.width = params.detect_width
        shortest = max(1, round(params.min_shot_s * self.fps))
        self.content = ContentDetector(threshold=params.content_threshold, min_scene_len=shortest)
        self.adaptive = AdaptiveDetector(adaptive_threshold=params.adaptive_threshold, min_scene_len=shortest)
        self.by_content: set[int] = set()
        self.by_adaptive: set[int] = set()
        self.last: FrameTimecode | None = None

    def look(self, picture: Picture) -> None:
        frame = picture.frame
        height = max(2, round(frame.height * self.width / frame.width))
        small = frame.to_ndarray(format="bgr24", width=self.width, height=height)
        self.last = FrameTimecode(picture.index, self.fps)
        self.by_content.update(cut.frame_num for cut in self.content.process_frame(self.last, small))
        self.by_adaptive.update(cut.frame_num for cut in self.adaptive.process_frame(self.last, small))

    def found(self) -> list[int]:
        """Index of the first frame of every shot but the first."""
        if self.last is not None:
            self.by_content.update(cut.frame_num for cut in self.content.post_process(self.last))
            self.by_adaptive.update(cut.frame_num for cut in self.adaptive.post_process(self.last))
        return sorted(cut for cut in self.by_content & self.by_adaptive if cut > 0)


def _shot_numbers(frames: int, firsts: Sequence[int]) -> list[int]:
    numbers, shot = [], -1
    starts = set(firsts)
    for index in range(frames):
        shot += index in starts
        numbers.append(shot)
    return numbers


def _jpeg(picture: Picture, params: SegmentParams) -> bytes:
    rgb = picture.rgb(long_side=params.sample_long_side)
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def step(params: SegmentParams) -> Step:
    """Segment, ready to run."""
    identity = StepIdentity("segment", 1, params.model_dump(mode="json"), {})
    return Step(identity, partial(segment, params=params), "processes", params.segment_limit_s)


def _work(item: Item, past: Mapping[str, Record]) -> Work:
    downloaded = past["download"]
    return Work(
        item.subject,
        inputs={"video": downloaded.outputs["video"]},
        context={"fps": downloaded.detail["probe"]["fps"]},
    )


@step_task("segment", "cpu")
def segment_shard(
    label: str, upstream: ShardResult, params: SegmentParams, retry_quarantined: bool = False
) -> ShardResult:
    """Segments a shard of videos."""
    return run_in_prefect(step(params), upstream.kept, _work, retry_quarantined=retry_quarantined)
