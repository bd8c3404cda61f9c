"""What a file says of itself, checked against its packets and its first picture."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
from av.packet import Packet
from av.video.stream import VideoStream

from medgen.errors import ItemFailed
from medgen.video.container import OpenVideo, open_video
from medgen.video.embedded_subtitles import TEXT
from medgen.video.limits import Limits
from medgen.video.pictures import VideoReader
from medgen.video.timeline import Timeline, in_order_shown


@dataclass(frozen=True)
class Probe:
    """What a file holds.

    Args:
        width, height: as shown (upright, square pixels), of the first picture.
        fps: frames over duration, by the packets' times.
        duration_s: of the pictures, by the packets' times.
        rotation, mirrored: how pictures are brought upright, see `medgen.video.geometry.Geometry`.
        pixel_aspect: width over height of stored pixels, as "32:27".
        interlaced: whether the first picture is.
        colour: of the first picture, fields of `medgen.video.colour.Colour`.
        stream, chosen_for: index of the main picture's stream, and why it is that one.
        start_s: the time of the first picture, from which all times count: 0.
        clock_start_s: that time by the file's own clock; beginnings of sound and subtitles count by that.
        file_start_s: where the file's own clock begins, over all of its streams.
        subtitles: index, codec and language of each subtitle stream, and whether it is text.
    """

    container: str
    codec: str
    width: int
    height: int
    fps: float
    duration_s: float
    bit_rate: int
    rotation: int
    mirrored: bool
    pixel_aspect: str
    interlaced: bool
    colour: dict[str, Any]
    stream: int
    chosen_for: str
    start_s: float
    clock_start_s: float
    file_start_s: float
    has_audio: bool
    subtitles: list[dict[str, Any]]


def probe(path: Path, limits: Limits) -> Probe:
    """Reads the header and all packets, and decodes the first picture.

    Raises:
        ItemFailed: as `medgen.video.pictures.pictures`.
    """
    with open_video(path, limits) as video:
        codec = video.stream.codec_context
        limits.check_size(codec.width, codec.height)
        frames, duration_s = _measured(video, limits)
    with open_video(path, limits) as video:
        container = video.container
        reader = VideoReader(video, limits)
        first = next(iter(reader), None)
        if first is None:
            raise ItemFailed("undecodable", "not one frame could be decoded")
        ((_, source), *_) = reader.sources
        return Probe(
            container=container.format.name,
            codec=video.stream.codec_context.name,
            width=first.frame.width,
            height=first.frame.height,
            fps=round(frames / duration_s, 3),
            duration_s=round(duration_s, 3),
            bit_rate=int(container.bit_rate or round(8 * path.stat().st_size / duration_s)),
            rotation=source.geometry.rotation,
            mirrored=source.geometry.mirrored,
            pixel_aspect=f"{source.geometry.aspect.numerator}:{source.geometry.aspect.denominator}",
            interlaced=source.interlaced,
            colour=asdict(source.colour) | {"assumed": list(source.colour.assumed)},
            stream=video.stream.index,
            chosen_for=video.chosen_for,
            start_s=0.0,
            clock_start_s=round(reader.timeline.anchors[0][1], 6),
            file_start_s=round((container.start_time or 0) / av.time_base, 6),
            has_audio=bool(container.streams.audio),
            subtitles=[
                {
                    "stream": stream.index,
                    "codec": stream.codec_context.name if stream.codec_context else None,
                    "language": stream.language,
                    "text": bool(stream.codec_context) and stream.codec_context.name in TEXT,
                }
                for stream in container.streams.subtitles
            ],
        )


def _measured(video: OpenVideo, limits: Limits) -> tuple[int, float]:
    """Frames, and the seconds that they are shown, by the packets; without decoding, as far as the file can be read."""
    stream = video.stream
    timeline = Timeline(video.time_base, stream.average_rate or stream.guessed_rate)
    frames, tick_s = 0, float(video.time_base)
    for packet in in_order_shown(_packets(video), video.time_base):
        frames += 1
        limits.check_progress(frames, timeline.place(packet).pts * tick_s)
    if not frames:
        raise ItemFailed("undecodable", "not one picture could be read")
    duration_s = float(timeline.end * video.time_base)
    if duration_s > limits.max_duration_s:
        raise ItemFailed("duration_above_limit", f"{duration_s:.0f} s, allowed {limits.max_duration_s:.0f} s")
    return frames, duration_s or 1.0


def _packets(video: OpenVideo) -> "Iterator[Packet[VideoStream]]":
    """As far as the file can be read: what is missing at its end shows when it is decoded."""
    with suppress(av.error.FFmpegError):
        yield from (packet for packet in video.container.demux(video.stream) if packet.size)
