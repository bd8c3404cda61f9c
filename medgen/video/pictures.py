"""Every picture of a video, once, as it is meant to be seen: upright, square-pixelled, progressive, in BT.709."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame

from medgen.errors import ItemFailed
from medgen.video.colour import Colour, colour_of, declared_colours, filters_to_bt709, mark_bt709
from medgen.video.colour_lut import lut_file
from medgen.video.container import OpenVideo, open_video
from medgen.video.decoder import Decoder
from medgen.video.filters import filter_graph, filtered
from medgen.video.geometry import Geometry, geometry_of
from medgen.video.limits import Limits
from medgen.video.timeline import REORDERED, Timeline, in_disorder

SETTLED_S = 1.0  # interlacing that changes more often is mixed: no boundary

Break = Literal["time_jump", "size_change", "aspect_change", "turn_change", "interlacing_change", "colour_change"]


@dataclass(frozen=True)
class Picture:
    """One picture: its place in the video, the time at which it is shown, and its pixels.

    Args:
        index: from 0.
        pts: ticks from the first picture, in the stream's time base; grows strictly.
        time_s: the same in seconds.
        frame: yuv420p, BT.709, limited range.
        after_break: what changed just before it, so that it continues nothing; None for most.
    """

    index: int
    pts: int
    time_s: float
    frame: VideoFrame
    after_break: Break | None = None

    def rgb(self, long_side: int | None = None) -> np.ndarray:
        """uint8 (H, W, 3); scaled down so that no side exceeds `long_side` pixels."""
        width, height = self.frame.width, self.frame.height
        scale = min(1.0, long_side / max(width, height)) if long_side else 1.0
        return self.frame.to_ndarray(
            format="rgb24", width=max(1, round(width * scale)), height=max(1, round(height * scale))
        )


@dataclass(frozen=True)
class Source:
    """How pictures are stored: what tells one stretch of a stream from another."""

    width: int
    height: int
    pixel_format: str
    geometry: Geometry
    colour: Colour
    interlaced: bool

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height of the pictures, pixels."""
        return self.geometry.shown_size(self.width, self.height)


class VideoReader:
    """The pictures of an open video, from where its container stands.

    Args:
        clock_start: as in `Timeline`.

    Attributes:
        decoder, timeline: count and place what was read so far.
        sources: (first frame, how the pictures are stored from there on), where that changes; the first 1000.
    """

    MOST_SOURCES = 1000

    def __init__(self, video: OpenVideo, limits: Limits, clock_start: int | None = None) -> None:
        limits.check_size(video.stream.codec_context.width, video.stream.codec_context.height)
        self._limits = limits
        self._declared = declared_colours(video.stream.codec_context)
        self.decoder = Decoder(video, limits)
        stream = video.stream
        self.timeline = Timeline(video.time_base, stream.average_rate or stream.guessed_rate, clock_start)
        self.sources: list[tuple[int, Source]] = []
        self._source: Source | None = None
        self._interlacing = _Interlacing()

    def __iter__(self) -> Iterator[Picture]:
        """All pictures. Raises ItemFailed as `pictures`."""
        base, tick_s = self.timeline.time_base, float(self.timeline.time_base)
        graph: av.filter.Graph | None = None
        waiting: deque[tuple[int, Break | None]] = deque()
        count = 0

        def ready(frames: Iterable[VideoFrame]) -> Iterator[Picture]:
            nonlocal count
            for frame in frames:
                pts, after_break = waiting.popleft()
                frame.pts, frame.time_base = pts, base
                mark_bt709(frame)
                count += 1
                yield Picture(count - 1, pts, pts * tick_s, frame, after_break)

        for frame in self._in_order():
            placed = self.timeline.place(frame)
            time_s = placed.pts * tick_s
            self._limits.check_progress(count, time_s)
            self._limits.check_size(frame.width, frame.height)
            source = self._source_of(frame, time_s)
            after_break: Break | None = "time_jump" if placed.jumped else None
            if source != self._source:
                if graph:
                    yield from ready(filtered(graph, None, len(waiting)))
                if self._source:
                    after_break = _difference(self._source, source) or after_break
                self._source = source
                if len(self.sources) < self.MOST_SOURCES:
                    self.sources.append((count, source))
                graph = self._graph(frame, source)
            elif placed.jumped and graph:  # deinterlacing looks at the pictures around
                yield from ready(filtered(graph, None, len(waiting)))
                graph = self._graph(frame, source)
            waiting.append((placed.pts, after_break))
            yield from ready(filtered(graph, frame, len(waiting)) if graph else [frame])
        if graph:
            yield from ready(filtered(graph, None, len(waiting)))

    def _in_order(self) -> Iterator[VideoFrame]:
        frames, first = self.decoder.frames(), deque[VideoFrame]()
        failure: ItemFailed | None = None
        try:
            first.extend(islice(frames, REORDERED))
        except ItemFailed as error:
            failure = error
        self.timeline.by_dts = in_disorder(first)
        while first:
            yield first.popleft()
        if failure:
            raise failure
        yield from frames

    def _source_of(self, frame: VideoFrame, time_s: float) -> Source:
        return Source(
            frame.width,
            frame.height,
            frame.format.name,
            geometry_of(frame, self.decoder.pixel_aspect),
            colour_of(frame, self._declared),
            self._interlacing.state(frame.interlaced_frame, time_s),
        )

    def _graph(self, frame: VideoFrame, source: Source) -> av.filter.Graph | None:
        with ExitStack() as stack:
            colour = source.colour
            needs_lut = colour.conversion in ("gamut", "tone_mapped")
            lut = stack.enter_context(lut_file(colour.primaries, colour.transfer)) if needs_lut else None
            filters = [
                *([("bwdif", "mode=send_frame:deint=interlaced")] if source.interlaced else []),
                *filters_to_bt709(colour, source.pixel_format, (source.width, source.height), lut),
                *source.geometry.filters(frame.width, frame.height, self._limits),
            ]
            return filter_graph(frame, filters) if filters else None


class _Interlacing:
    """Whether to deinterlace: follows the frames' flags; while these keep changing, all counts as interlaced."""

    def __init__(self) -> None:
        self._state: bool | None = None
        self._flag = False
        self._since_s = 0.0

    def state(self, flag: bool, time_s: float) -> bool:
        """Whether the frame with this flag goes through the deinterlacer, which leaves progressive frames alone."""
        if self._state is None:
            self._state = self._flag = flag
        elif flag != self._flag:
            settled = time_s - self._since_s >= SETTLED_S
            self._state = flag if settled else True
            self._flag, self._since_s = flag, time_s
        return self._state


def pictures(path: Path, limits: Limits) -> Iterator[Picture]:
    """Every picture of the file, once, in presentation order with strictly growing times.

    Raises:
        ItemFailed: empty_file, not_a_video, no_video_stream, undecodable, resolution_above_limit,
            pixel_aspect_above_limit, duration_above_limit, frame_rate_above_limit, colour_unsupported, and
            corrupt_stream when more than `medgen.video.decoder.MAX_BROKEN_SHARE` of the pictures are broken.
    """
    with open_video(path, limits) as video:
        yield from VideoReader(video, limits)


def decode_all(path: Path, limits: Limits) -> None:
    """Decodes every picture, only to see whether that can be done. Raises ItemFailed as `pictures`."""
    deque(pictures(path, limits), maxlen=0)


def _difference(before: Source, now: Source) -> Break | None:
    """What changed from one stretch to the next; None for the pixel format alone."""
    if before.geometry.aspect != now.geometry.aspect:
        return "aspect_change"
    if (before.width, before.height) != (now.width, now.height):
        return "size_change"
    if before.geometry != now.geometry:
        return "turn_change"
    if before.interlaced != now.interlaced:
        return "interlacing_change"
    return "colour_change" if before.colour != now.colour else None


def decode_jpeg(jpeg: bytes) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a JPEG that segment kept. Raises ValueError for other bytes."""
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("the bytes are no JPEG")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def evenly_spaced(n_frames: int, count: int) -> list[int]:
    """Indices of `count` frames out of `n_frames`: the middles of `count` equal stretches, in order.

    All indices when there are no more than `count`. Raises ValueError unless n_frames >= 0 and count >= 1.
    """
    if n_frames < 0 or count < 1:
        raise ValueError(f"cannot pick {count} of {n_frames} frames")
    if n_frames <= count:
        return list(range(n_frames))
    return [(2 * i + 1) * n_frames // (2 * count) for i in range(count)]
