"""Segment: where the shots of a video begin and end.

One decode yields the shots, the time of every frame, what had to be done to show the pictures as they are meant to be
seen, and the frames that classify looks at, about one a second.
"""

from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, Self, TypedDict

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.parameters import MOST_PIXELS, MOST_PIXELS_A_SIDE, MOST_SECONDS, Parameters
from medgen.shard import Item, Past, Step
from medgen.store import Store
from medgen.video.container import open_video
from medgen.video.embedded_subtitles import EmbeddedSubtitles, embedded_subtitles
from medgen.video.limits import Limits
from medgen.video.pictures import Picture, VideoReader
from medgen.video.report import VideoReport, report
from models.segmentation.shot_window import Boundary, DiscardedChange
from models.segmentation.shots import ShotDetector, shots_digest
from tasks.curation.curation_step import CurationStep
from tasks.curation.download import DOWNLOAD

DETECT_WIDTH = 256  # pixels: cuts are looked for in small pictures
MAX_DETECT_HEIGHT = 4 * DETECT_WIDTH  # of a narrow strip; else it would come out of the scaler larger than it went in
MOST_ON_RECORD = 1000  # boundaries in the record; the table of frames has all of them
ROW_GROUP = 16  # samples that are read and written at once: a cut reads those of its stretch alone
FRAMES = pa.schema([("pts", pa.int64()), ("time_s", pa.float64()), ("shot", pa.int32())])
SAMPLES = pa.schema([("frame", pa.int64()), ("time_s", pa.float64()), ("jpeg", pa.binary())])


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
    """What segment puts on record.

    Counts; the first boundaries, the first changes that are none, and the first breaks, which are boundaries whatever
    the pictures show; how the file is stored and what was done to its pictures and times, see `VideoReport`; the
    subtitles in it.
    """

    shots: int
    frames: int
    samples: int
    boundaries: list[dict[str, Any]]
    passed_over: list[dict[str, Any]]
    breaks: list[dict[str, Any]]
    video: VideoReport
    subtitles: dict[str, Any] | None


class SegmentOutputs(TypedDict):
    """The tables of frames and of samples, see `segment`, and WebVTT where the file holds subtitles."""

    frames: str
    samples: str
    subtitles: NotRequired[str]


SEGMENT: Handover[SegmentDetail, SegmentOutputs] = Handover("segment")


@dataclass
class DecodedVideo:
    """What one decode of a video gives.

    Attributes:
        pts, times: of every frame, ticks and seconds from the first one.
        samples: how many frames were kept.
        boundaries: between shots, in order.
        discarded: changes that are no boundaries, and why.
        breaks: (frame, what changed just before it): boundaries too.
    """

    pts: "array[int]" = field(default_factory=lambda: array("q"))
    times: "array[float]" = field(default_factory=lambda: array("d"))
    samples: int = 0
    boundaries: list[Boundary] = field(default_factory=list)
    discarded: list[DiscardedChange] = field(default_factory=list)
    breaks: list[tuple[int, str]] = field(default_factory=list)

    def shot_numbers(self) -> np.ndarray:
        """int32 (F,): the shot, from 0, of each frame; a gradual transition is counted as a shot between two."""
        starts = {edge for b in self.boundaries for edge in ((b.frame,) if b.start == b.end else (b.start, b.end))}
        starts |= {frame for frame, _ in self.breaks}
        shots = np.zeros(len(self.times), np.int32)
        shots[[start for start in starts if 0 < start < len(shots)]] = 1
        return np.cumsum(shots, dtype=np.int32)


def decode_video(
    reader: VideoReader, fps: float, params: SegmentParams, keep: Callable[[int, float, bytes], object]
) -> DecodedVideo:
    """Decodes a video once, for its shots and its sampled frames.

    Args:
        keep: takes the index, time and JPEG of each sampled frame, in order.

    Raises:
        ItemFailed: as `medgen.video.pictures.pictures`; undecodable, when there is no frame at all.
    """
    decoded, sampler = DecodedVideo(), FrameSampler(params)
    detector, begins = ShotDetector(fps, gradual=params.dissolves), 0
    for picture in reader:
        if picture.after_break:  # nothing before it says anything of what comes
            decoded.breaks.append((picture.index, picture.after_break))
            _take(detector, begins, decoded)
            detector, begins = ShotDetector(fps, gradual=params.dissolves), picture.index
        decoded.pts.append(picture.pts)
        decoded.times.append(picture.time_s)
        if jpeg := sampler.sample(picture):
            keep(picture.index, picture.time_s, jpeg)
        frame = picture.frame
        height = min(max(2, round(frame.height * DETECT_WIDTH / frame.width)), MAX_DETECT_HEIGHT)
        small = frame.to_ndarray(format="bgr24", width=DETECT_WIDTH, height=height)
        detector.process_frame(picture.index - begins, small)
    if not decoded.times:
        raise ItemFailed("undecodable", "not one frame could be decoded")
    _take(detector, begins, decoded)
    decoded.samples = sampler.count
    return decoded


class FrameSampler:
    """Keeps `sample_fps` frames a second, as JPEG."""

    def __init__(self, params: SegmentParams) -> None:
        self._params = params
        self.count = 0

    def sample(self, picture: Picture) -> bytes | None:
        """The JPEG of the next picture of a video; None when it is not one of those that are kept."""
        if picture.time_s < self.count / self._params.sample_fps - 1e-6:
            return None
        self.count += 1
        bgr = cv2.cvtColor(picture.rgb(long_side=self._params.sample_long_side), cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def _take(detector: ShotDetector, begins: int, decoded: DecodedVideo) -> None:
    """Adds what a detector found since frame `begins`."""
    decoded.boundaries += [
        replace(b, frame=b.frame + begins, start=b.start + begins, end=b.end + begins) for b in detector.boundaries()
    ]
    decoded.discarded += [replace(c, frame=c.frame + begins, back=c.back + begins) for c in detector.discarded]


def segment(work: Work, store: Store, params: SegmentParams) -> Outcome:
    """Finds the shots of a video and keeps its sampled frames.

    Outputs:
        frames: Parquet, a row per decoded frame: pts (ticks from the first), time_s, shot (from 0). The frames of a
            gradual transition, which show two shots at once, count as a shot of their own. Metadata: time_base;
            end_s, when the last frame ends; clock_start, the file's own time of the first frame in ticks, where all
            frames' times are the file's own.
        samples: Parquet, a row per sampled frame: frame (index), time_s, jpeg.
        subtitles: WebVTT, where the file holds subtitles that are text; times count from the first frame.

    Raises:
        ItemFailed: as `decode_video`.
    """
    path = store.path(work.inputs["video"])
    samples = store.scratch(".parquet")
    with open_video(path, params.limits) as video, _SamplesFile(samples) as table:
        reader = VideoReader(video, params.limits)
        decoded = decode_video(reader, work.context["fps"], params, table.add)
        facts = report(video, reader, len(decoded.times))
    shots = decoded.shot_numbers()
    frames = store.scratch(".parquet")
    pq.write_table(_frames_table(decoded, shots, reader), frames, compression="zstd")
    outputs = {
        role: store.put_file(scratch, "application/vnd.apache.parquet")
        for role, scratch in (("frames", frames), ("samples", samples))
    }
    subtitles = embedded_subtitles(path, params.limits, facts["clock"])
    if subtitles:
        outputs["subtitles"] = store.put_bytes(subtitles.webvtt.encode(), "text/vtt")
    detail: SegmentDetail = {
        "shots": int(shots[-1]) + 1,
        "frames": len(decoded.times),
        "samples": decoded.samples,
        "boundaries": [asdict(boundary) for boundary in decoded.boundaries[:MOST_ON_RECORD]],
        "passed_over": [asdict(change) for change in decoded.discarded[:MOST_ON_RECORD]],
        "breaks": [{"frame": frame, "change": change} for frame, change in decoded.breaks[:MOST_ON_RECORD]],
        "video": facts,
        "subtitles": _on_record(subtitles),
    }
    return Outcome("kept", detail=detail, outputs=outputs, decodes=1)


class _SamplesFile:
    """The table of samples, which is written a few rows at a time: they need not all be in memory."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SAMPLES, compression="none")  # JPEG is compressed
        self._rows: list[dict[str, Any]] = []

    def add(self, frame: int, time_s: float, jpeg: bytes) -> None:
        """Adds a row."""
        self._rows.append({"frame": frame, "time_s": time_s, "jpeg": jpeg})
        if len(self._rows) == ROW_GROUP:
            self._write()

    def _write(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, SAMPLES))
        self._rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._writer.close()


def _frames_table(decoded: DecodedVideo, shots: np.ndarray, reader: VideoReader) -> pa.Table:
    timeline = reader.timeline
    metadata = {"time_base": str(timeline.time_base), "end_s": repr(float(timeline.end * timeline.time_base))}
    if (clock_start := timeline.plain_start) is not None:
        metadata["clock_start"] = str(clock_start)
    columns = [np.asarray(decoded.pts), np.asarray(decoded.times).round(6), shots]
    return pa.table(columns, schema=FRAMES).replace_schema_metadata(metadata)


def _on_record(subtitles: EmbeddedSubtitles | None) -> dict[str, Any] | None:
    return None if subtitles is None else {
        "stream": subtitles.stream, "codec": subtitles.codec, "language": subtitles.language, "cues": subtitles.cues,
    }  # fmt: skip


def step(params: SegmentParams) -> Step:
    """Segment, ready to run."""
    models = {"shots": shots_digest(gradual=params.dissolves)}
    return Step(
        StepIdentity("segment", 3, params.model_dump(mode="json"), models),
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
