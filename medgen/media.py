"""Video files: probe, decode, cut. Bad files raise `ItemFailed` with a readable reason.

Pictures are always upright and square-pixelled: rotation marks, non-square pixels and interlacing are undone
right after decoding, so that nothing above has to know of them.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from medgen.errors import ItemFailed

# A file that decodes with more broken pictures than this is not worth keeping; fewer are normal for old uploads.
MAX_BROKEN_SHARE = 0.02
# Containers that hold their own pictures. Playlists (HLS, DASH, concat) name other files, which FFmpeg would open.
FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,mpeg1video,mpeg2video,m4v,h264,hevc,flv,asf,ogg,gif,dv,mxf,ivf"


@dataclass(frozen=True)
class Limits:
    """What is too much to decode.

    Args:
        max_pixels: width × height of a picture, of every one, as stored and as shown.
        max_duration_s: playing time.
        max_fps: frames per second, so that a lying header can't promise millions of frames.
        max_side: width and height of a picture as stored and as shown, pixels; the most that x264 encodes.
        max_pixel_aspect: width over height of a pixel, or height over width. The widest that H.264 lists by number is
            2 (ITU-T H.264, table E-1).
    """

    max_pixels: int = 4096 * 2304
    max_duration_s: float = 4 * 3600.0
    max_fps: float = 240.0
    max_side: int = 16384
    max_pixel_aspect: int = 10

    def check_size(self, width: int, height: int) -> None:
        """Raises ItemFailed: resolution_above_limit."""
        if width * height > self.max_pixels:
            raise ItemFailed("resolution_above_limit", f"{width}x{height} pixels, allowed {self.max_pixels} in all")
        if max(width, height) > self.max_side:
            raise ItemFailed("resolution_above_limit", f"{width}x{height} pixels, allowed {self.max_side} a side")

    @property
    def decoder_options(self) -> dict[str, str]:
        """Options by which FFmpeg's decoders refuse a picture before they take memory for it.

        They count whole blocks of up to 128 pixels a side, hence the margin.
        """
        return {"max_pixels": str(min(self.max_pixels + 256 * self.max_side, 2**31 - 1))}


@dataclass(frozen=True)
class Probe:
    """What a file says of itself. Width and height as shown (upright, square pixels); duration in seconds."""

    container: str
    codec: str
    width: int
    height: int
    fps: float
    duration_s: float
    bit_rate: int
    rotation: int
    has_audio: bool


@dataclass(frozen=True)
class Picture:
    """One decoded frame: its place in decoding order, presentation time (stream time base) and pixels."""

    index: int
    pts: int
    time_s: float
    frame: VideoFrame

    def rgb(self, long_side: int | None = None) -> np.ndarray:
        """uint8 (H, W, 3); scaled down so that no side exceeds `long_side` pixels."""
        width, height = self.frame.width, self.frame.height
        scale = min(1.0, long_side / max(width, height)) if long_side else 1.0
        return self.frame.to_ndarray(
            format="rgb24", width=max(1, round(width * scale)), height=max(1, round(height * scale))
        )


def decode_jpeg(jpeg: bytes) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a JPEG that segment kept. Raises ValueError for other bytes."""
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("the bytes are no JPEG")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[tuple[InputContainer, VideoStream]]:
    if path.stat().st_size == 0:
        raise ItemFailed("empty_file", "the file has 0 bytes")
    try:
        # Opening decodes too: the first pictures of each stream.
        options = {"format_whitelist": FORMATS, **limits.decoder_options}
        container = av.open(str(path), options=options, timeout=(20.0, 20.0))
    except (av.error.FFmpegError, ValueError) as error:
        raise ItemFailed("not_a_video", f"no video container: {_message(error)}") from error
    with container:
        videos = [s for s in container.streams.video if "attached_pic" not in str(s.disposition).lower()]
        if not videos:
            raise ItemFailed("no_video_stream", "the file has no moving picture (audio only?)")
        stream = videos[0]
        if stream.codec_context is None:
            raise ItemFailed("undecodable", "no decoder is known for the picture")
        stream.codec_context.options = limits.decoder_options
        stream.thread_type = "NONE"
        yield container, stream


def probe(path: Path, limits: Limits) -> Probe:
    """Reads the header and decodes one frame.

    Raises:
        ItemFailed: empty_file, not_a_video, no_video_stream, undecodable, resolution_above_limit,
            pixel_aspect_above_limit, duration_above_limit, frame_rate_above_limit.
    """
    with _opened(path, limits) as (container, stream):
        limits.check_size(stream.codec_context.width, stream.codec_context.height)
        duration = _duration(container, stream)
        if duration > limits.max_duration_s:
            raise ItemFailed("duration_above_limit", f"{duration:.0f} s, allowed {limits.max_duration_s:.0f} s")
        first = next(_upright(container, stream, limits), None)
        if first is None:
            raise ItemFailed("undecodable", "not one frame could be decoded")
        return Probe(
            container=container.format.name,
            codec=stream.codec_context.name,
            width=first.frame.width,
            height=first.frame.height,
            fps=round(_fps(stream), 3),
            duration_s=round(duration, 3),
            bit_rate=int(container.bit_rate or 0),
            rotation=first.frame.rotation,
            has_audio=bool(container.streams.audio),
        )


def time_base(path: Path, limits: Limits) -> Fraction:
    """Seconds per tick of the presentation times of `pictures`."""
    with _opened(path, limits) as (_, stream):
        return _time_base(stream)


def pictures(path: Path, limits: Limits) -> Iterator[Picture]:
    """Every frame of the file, once, in presentation order with strictly growing times.

    Raises:
        ItemFailed: as `probe`, and corrupt_stream when more than `MAX_BROKEN_SHARE` of the pictures are broken.
    """
    with _opened(path, limits) as (container, stream):
        limits.check_size(stream.codec_context.width, stream.codec_context.height)
        yield from _upright(container, stream, limits)


def decode_all(path: Path, limits: Limits) -> None:
    """Decodes every frame, only to see whether that can be done. Raises ItemFailed as `pictures`."""
    deque(pictures(path, limits), maxlen=0)


def cut(
    path: Path,
    target: Path,
    *,
    start_pts: int,
    end_pts: int,
    crop: tuple[int, int, int, int] | None,
    crf: int,
    preset: str,
    limits: Limits,
    edit: Callable[[int, VideoFrame], VideoFrame] | None = None,
) -> tuple[int, int, int]:
    """Encodes the frames with `start_pts` ≤ time ≤ `end_pts` as H.264 in MP4, without sound.

    The first and last frame of the new file are the frames of the source with just these presentation times.
    Frame times are kept, variable rates included. One thread, so that the same frames give the same bytes.

    Args:
        crop: (x, y, width, height) in upright source pixels; odd sizes lose a row or column.
        edit: (index from `start_pts` on, cropped yuv420p frame) → the frame to encode, of the same size.

    Returns:
        (number of frames, width, height) of the new file.

    Raises:
        ItemFailed: as `pictures`; frames_missing when the promised first or last frame is not there; size_changes when
            a frame has another size than the first one.
    """
    frames = _from(path, start_pts, limits)
    first = next(frames, None)
    if first is None or first.pts != start_pts:
        raise ItemFailed("frames_missing", f"no frame at time {start_pts} of {path.name}")
    full = (first.frame.width, first.frame.height)
    x, y, width, height = crop or (0, 0, *full)
    width, height = width - width % 2, height - height % 2
    if x + width > full[0] or y + height > full[1]:
        raise ItemFailed("size_changes", f"a crop to {crop} of pictures that are {full[0]}x{full[1]} here")
    if not (width and height):
        raise ItemFailed("resolution_too_low", f"H.264 has no pictures of {full[0]}x{full[1]} pixels")
    base = first.frame.time_base
    assert base is not None  # every frame of a stream has it
    count, last = 0, None
    with av.open(str(target), "w", format="mp4", container_options={"movflags": "faststart"}) as out:
        # No macroblock tree: with B-frames x264's assembly for it reads memory that nobody has set (seen with
        # MALLOC_PERTURB_), so that the same frames would not always give the same bytes.
        options = {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"}
        stream = out.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.thread_count = base, 1
        graph, shape = None, None
        picture: Picture | None = first
        while picture is not None and picture.pts <= end_pts:
            # A crop takes each frame for as large as the first, and would read beyond the end of a smaller one.
            if (size := (picture.frame.width, picture.frame.height)) != full:
                raise ItemFailed(
                    "size_changes", f"from {full[0]}x{full[1]} to {size[0]}x{size[1]} at {picture.time_s} s"
                )
            if graph is None or shape != _shape(picture.frame):
                graph, shape = _crop_graph(picture.frame, (x, y, width, height)), _shape(picture.frame)
            graph.vpush(picture.frame)
            cropped = graph.vpull()
            if edit is not None:
                cropped = edit(count, cropped)
            cropped.pts, cropped.time_base = picture.pts - start_pts, base
            cropped.pict_type = 0  # the encoder decides, not the source
            out.mux(stream.encode(cropped))
            count, last = count + 1, picture.pts
            picture = next(frames, None)
        out.mux(stream.encode(None))
    if last != end_pts:
        raise ItemFailed("frames_missing", f"no frame at time {end_pts} of {path.name}")
    return count, width, height


def _from(path: Path, start_pts: int, limits: Limits) -> Iterator[Picture]:
    """Pictures from `start_pts` on. Seeks; decodes from the beginning where a file's index misleads."""
    for seek in (True, False):
        with _opened(path, limits) as (container, stream):
            if seek:
                with suppress(av.error.FFmpegError):
                    container.seek(start_pts, stream=stream, backward=True)
            frames = _upright(container, stream, limits)
            first = next(frames, None)
            if seek and (first is None or first.pts > start_pts):
                continue
            while first is not None and first.pts < start_pts:
                first = next(frames, None)
            if first is not None:
                yield first
                yield from frames
            return


def _upright(container: InputContainer, stream: VideoStream, limits: Limits) -> Iterator[Picture]:
    base = _time_base(stream)
    graph: av.filter.Graph | None = None
    shape: tuple[int, int, str] | None = None
    waiting: deque[int] = deque()
    index = 0
    first: int | None = None
    last: int | None = None

    def ready(frame: VideoFrame) -> Picture:
        nonlocal index
        pts = waiting.popleft()
        frame.pts, frame.time_base = pts, base
        index += 1
        return Picture(index - 1, pts, float(pts * base), frame)

    for frame in _decoded(container, stream, limits):
        pts = frame.pts if frame.pts is not None else frame.dts
        if pts is None or (last is not None and pts <= last):
            continue
        first = min(stream.start_time or 0, pts) if first is None else first  # headers may lie
        last = pts
        if float((pts - first) * base) > limits.max_duration_s:
            raise ItemFailed("duration_above_limit", f"plays on past {limits.max_duration_s:.0f} s")
        if index > limits.max_fps * limits.max_duration_s:
            raise ItemFailed("frame_rate_above_limit", f"more than {limits.max_fps:.0f} frames a second")
        limits.check_size(frame.width, frame.height)
        if shape != _shape(frame):  # filters are made for frames of one size and format
            yield from map(ready, _filtered(graph, None, len(waiting)) if graph else [])
            waiting.clear()
            graph, shape = _upright_graph(frame, stream, limits), _shape(frame)
        waiting.append(pts)
        yield from map(ready, _filtered(graph, frame, len(waiting)) if graph else [frame])
    yield from map(ready, _filtered(graph, None, len(waiting)) if graph else [])


def _shape(frame: VideoFrame) -> tuple[int, int, str]:
    """What a graph of filters is made for."""
    return frame.width, frame.height, frame.format.name


def _decoded(container: InputContainer, stream: VideoStream, limits: Limits) -> Iterator[VideoFrame]:
    good = broken = too_large = 0
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                if isinstance(error, av.error.EOFError):
                    break
                broken += 1
                too_large += _refused(error, stream, limits)
                continue
            for frame in frames:
                broken += frame.is_corrupt
                good += not frame.is_corrupt
                yield frame
    except av.error.FFmpegError as error:
        raise ItemFailed("corrupt_stream", f"reading stops after {good} frames: {_message(error)}") from error
    if too_large and (not good or broken > _bearable(good + broken)):
        raise ItemFailed(
            "resolution_above_limit",
            f"after {good} frames, pictures of far more than the {limits.max_pixels} pixels allowed",
        )
    if broken > _bearable(good + broken):
        raise ItemFailed("corrupt_stream", f"{broken} of {good + broken} pictures are broken")


def _bearable(pictures: int) -> float:
    """How many broken ones are too few to matter."""
    return max(1, MAX_BROKEN_SHARE * pictures)


def _refused(error: av.error.FFmpegError, stream: VideoStream, limits: Limits) -> bool:
    """Whether the decoder refused a picture for its size: it then says "invalid argument", and that it has no size."""
    pixels = stream.codec_context.width * stream.codec_context.height
    return isinstance(error, av.error.ArgumentError) and not 0 < pixels <= limits.max_pixels


def _upright_graph(frame: VideoFrame, stream: VideoStream, limits: Limits) -> av.filter.Graph | None:
    """Filters that undo interlacing, rotation and non-square pixels; None when there is nothing to undo.

    Raises:
        ItemFailed: resolution_above_limit, pixel_aspect_above_limit.
    """
    chain: list[tuple[str, str]] = []
    if frame.interlaced_frame:
        chain.append(("bwdif", "mode=send_frame:deint=all"))
    turn = frame.rotation % 360
    chain += {90: [("transpose", "cclock")], 180: [("hflip", ""), ("vflip", "")], 270: [("transpose", "clock")]}.get(
        turn, []
    )
    aspect = stream.codec_context.sample_aspect_ratio
    if aspect and aspect != 1:
        if not 1 <= max(aspect, 1 / aspect) <= limits.max_pixel_aspect:
            raise ItemFailed(
                "pixel_aspect_above_limit", f"pixels of {aspect}, allowed {limits.max_pixel_aspect} either way"
            )
        wide = max(1, round(frame.width * aspect))
        limits.check_size(wide, frame.height)
        size = (wide, frame.height) if turn in (0, 180) else (frame.height, wide)
        chain.append(("scale", f"{size[0]}:{size[1]}:flags=bicubic"))
    return _chained(frame, chain) if chain else None


def _crop_graph(frame: VideoFrame, box: tuple[int, int, int, int]) -> av.filter.Graph:
    x, y, width, height = box
    return _chained(frame, [("crop", f"{width}:{height}:{x}:{y}:exact=1"), ("format", "yuv420p"), ("setsar", "1")])


def _chained(frame: VideoFrame, chain: list[tuple[str, str]]) -> av.filter.Graph:
    graph = av.filter.Graph()
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)]
    nodes += [graph.add(name, arguments or None) for name, arguments in chain]
    nodes.append(graph.add("buffersink"))
    for before, after in itertools.pairwise(nodes):
        before.link_to(after)
    graph.configure()
    return graph


def _filtered(graph: av.filter.Graph, frame: VideoFrame | None, most: int) -> Iterator[VideoFrame]:
    """The frames that come out when one goes in, or, with None, when no more will come; at most so many.

    Raises:
        ItemFailed: undecodable.
    """
    try:
        graph.vpush(frame)
        for _ in range(most):
            yield graph.vpull()
    except (BlockingIOError, av.error.BlockingIOError, EOFError, av.error.EOFError):
        return
    except av.error.FFmpegError as error:
        raise ItemFailed("undecodable", f"a picture can't be turned upright: {_message(error)}") from error


def _time_base(stream: VideoStream) -> Fraction:
    return stream.time_base or Fraction(1, 90_000)


def _duration(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return float((container.duration or 0) / av.time_base)


def _fps(stream: VideoStream) -> float:
    """Average frame rate; nominal rates of variable-rate files mean nothing (90000 is common)."""
    if stream.frames and stream.duration and stream.time_base:
        return stream.frames / float(stream.duration * stream.time_base)
    return float(stream.average_rate or stream.guessed_rate or 0)


def _message(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def evenly_spaced(n_frames: int, count: int) -> list[int]:
    """Indices of `count` frames out of `n_frames`: the middles of `count` equal stretches, in order.

    All indices when there are no more than `count`. Raises ValueError unless n_frames >= 0 and count >= 1.
    """
    if n_frames < 0 or count < 1:
        raise ValueError(f"cannot pick {count} of {n_frames} frames")
    if n_frames <= count:
        return list(range(n_frames))
    return [(2 * i + 1) * n_frames // (2 * count) for i in range(count)]
