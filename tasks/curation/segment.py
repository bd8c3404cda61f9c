"""Segment: where the shots of a video begin and end.

One decode yields both the shots and the frames that classify looks at, about one a second.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.media import Limits, Picture, pictures, time_base
from medgen.parameters import MOST_PIXELS, MOST_PIXELS_A_SIDE, MOST_SECONDS, Parameters
from medgen.shard import Item, Past, Step
from medgen.store import Store
from models.segmentation.shot_window import Boundary, DiscardedChange
from models.segmentation.shots import ShotDetector, shots_digest
from tasks.curation.curation_step import CurationStep
from tasks.curation.download import DOWNLOAD

DETECT_WIDTH = 256  # pixels: cuts are looked for in small pictures
MAX_DETECT_HEIGHT = 4 * DETECT_WIDTH  # of a narrow strip; else it would come out of the scaler larger than it went in
MOST_ON_RECORD = 1000  # boundaries in the record; the table of frames has all of them
FRAMES = pa.schema([("pts", pa.int64()), ("time_s", pa.float64()), ("shot", pa.int32())])
SAMPLES = pa.schema([("frame", pa.int64()), ("time_s", pa.float64()), ("shot", pa.int32()), ("jpeg", pa.binary())])


class SegmentParams(Parameters):
    """Parameters of segment."""

    dissolves: bool = Field(True, description="Look for dissolves too (TransNetV2), not only for cuts and fades.")
    sample_fps: float = Field(1.0, gt=0, le=1000, description="Frames per second kept for classify (paper: 1).")
    sample_long_side: int = Field(
        854, ge=64, le=MOST_PIXELS_A_SIDE, description="Kept frames are scaled down to this long side, pixels."
    )
    max_pixels: int = Field(
        4096 * 2304, gt=0, le=MOST_PIXELS, description="Videos with larger pictures are refused, pixels."
    )
    max_duration_s: float = Field(
        4 * 3600.0, gt=0, le=MOST_SECONDS, description="Decoding stops with an error beyond this, seconds."
    )
    segment_limit_s: float = Field(
        3600.0, gt=0, le=MOST_SECONDS, exclude=True, description="Slower decoding is stopped, seconds."
    )

    @property
    def limits(self) -> Limits:
        """For decoding."""
        return Limits(max_pixels=self.max_pixels, max_duration_s=self.max_duration_s)


class SegmentDetail(TypedDict):
    """What segment puts on record: counts, the first boundaries and the first changes that are none."""

    shots: int
    frames: int
    samples: int
    boundaries: list[dict[str, Any]]
    passed_over: list[dict[str, Any]]


class SegmentOutputs(TypedDict):
    """The tables of frames and of samples, see `segment`."""

    frames: str
    samples: str


SEGMENT: Handover[SegmentDetail, SegmentOutputs] = Handover("segment")


@dataclass(frozen=True)
class DecodedVideo:
    """What one decode of a video gave.

    Args:
        times: (presentation time in stream ticks, seconds) of every frame.
        samples: index and JPEG of the kept frames.
        boundaries: between shots, in order.
        discarded: changes that are no boundaries, and why.
    """

    times: list[tuple[int, float]]
    samples: list[tuple[int, bytes]]
    boundaries: list[Boundary]
    discarded: list[DiscardedChange]


def decode_video(path: Path, fps: float, params: SegmentParams) -> DecodedVideo:
    """Decodes a video once, for its shots and its sampled frames.

    Raises:
        ItemFailed: as `medgen.media.pictures`; undecodable, when there is no frame at all.
    """
    detector = ShotDetector(fps, gradual=params.dissolves)
    times: list[tuple[int, float]] = []
    samples: list[tuple[int, bytes]] = []
    for picture in pictures(path, params.limits):
        times.append((picture.pts, picture.time_s))
        if not samples or picture.time_s - times[0][1] >= len(samples) / params.sample_fps - 1e-6:
            samples.append((picture.index, _jpeg(picture, params)))
        frame = picture.frame
        height = min(max(2, round(frame.height * DETECT_WIDTH / frame.width)), MAX_DETECT_HEIGHT)
        detector.process_frame(picture.index, frame.to_ndarray(format="bgr24", width=DETECT_WIDTH, height=height))
    if not times:
        raise ItemFailed("undecodable", "not one frame could be decoded")
    return DecodedVideo(times, samples, detector.boundaries(), detector.discarded)


def segment(work: Work, store: Store, params: SegmentParams) -> Outcome:
    """Finds the shots of a video and keeps its sampled frames.

    Outputs:
        frames: Parquet, a row per decoded frame: pts (stream ticks), time_s, shot (from 0). The frames of a gradual
            transition, which show two shots at once, count as a shot of their own.
        samples: Parquet, a row per sampled frame: frame (index), time_s, shot, jpeg.

    Raises:
        ItemFailed: as `decode_video`.
    """
    path = store.path(work.inputs["video"])
    decoded = decode_video(path, work.context["fps"], params)
    shots = shot_numbers(len(decoded.times), decoded.boundaries)
    frames_table = pa.table(
        [[pts for pts, _ in decoded.times], [round(t, 6) for _, t in decoded.times], shots], schema=FRAMES
    ).replace_schema_metadata({"time_base": str(time_base(path, params.limits))})
    samples_table = pa.Table.from_pylist(
        [{"frame": i, "time_s": decoded.times[i][1], "shot": shots[i], "jpeg": jpeg} for i, jpeg in decoded.samples],
        SAMPLES,
    )
    outputs = {}
    for role, table in (("frames", frames_table), ("samples", samples_table)):
        scratch = store.scratch(".parquet")
        pq.write_table(table, scratch, compression="zstd")
        outputs[role] = store.put_file(scratch, "application/vnd.apache.parquet")
    detail: SegmentDetail = {
        "shots": len(decoded.boundaries) + 1,
        "frames": len(decoded.times),
        "samples": len(decoded.samples),
        "boundaries": [asdict(boundary) for boundary in decoded.boundaries[:MOST_ON_RECORD]],
        "passed_over": [asdict(change) for change in decoded.discarded[:MOST_ON_RECORD]],
    }
    return Outcome("kept", detail=detail, outputs=outputs, decodes=1)


def shot_numbers(frames: int, boundaries: Sequence[Boundary]) -> list[int]:
    """The shot, from 0, of each frame; a gradual transition is counted as a shot between two."""
    starts = {edge for b in boundaries for edge in ((b.frame,) if b.start == b.end else (b.start, b.end))}
    shots = np.zeros(frames, np.int64)
    shots[[start for start in starts if 0 < start < frames]] = 1
    numbers: list[int] = shots.cumsum().tolist()
    return numbers


def _jpeg(picture: Picture, params: SegmentParams) -> bytes:
    rgb = picture.rgb(long_side=params.sample_long_side)
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def step(params: SegmentParams) -> Step:
    """Segment, ready to run."""
    models = {"shots": shots_digest(gradual=params.dissolves)}
    return Step(
        StepIdentity("segment", 2, params.model_dump(mode="json"), models),
        partial(segment, params=params),
        work_of=work_of,
        time_limit_s=params.segment_limit_s,
    )


def work_of(item: Item, past: Past) -> Work:
    """A video and its frame rate."""
    return Work(
        item.subject,
        inputs={"video": DOWNLOAD.outputs(past)["video"]},
        context={"fps": DOWNLOAD.detail(past)["probe"]["fps"]},
    )


STEP = CurationStep("segment", SegmentParams, step)
