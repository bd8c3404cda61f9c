"""Subtitles inside a video file, where they are text: as WebVTT, on the scale of the pictures."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.subtitles.stream import SubtitleStream

from medgen.video.container import open_container
from medgen.video.limits import Limits

# Kinds that are text; others are pictures of text.
TEXT = frozenset({"subrip", "srt", "ass", "ssa", "webvtt", "mov_text", "text"})
MOST_CUES = 100_000
MOST_CHARS = 2_000  # of a cue
UNTIL_S = 5.0  # a cue without a length is shown so long


@dataclass(frozen=True)
class EmbeddedSubtitles:
    """One stream of subtitles.

    Args:
        language: as the container has it (ISO 639-2); None where it doesn't say.
        webvtt: times count from the first picture; cues before it are left out.
    """

    stream: int
    codec: str
    language: str | None
    cues: int
    webvtt: str


def text_streams(container: InputContainer) -> list[SubtitleStream]:
    """Streams of subtitles that are text, those marked as the default first, forced ones last."""
    text = [s for s in container.streams.subtitles if s.codec_context and s.codec_context.name in TEXT]
    return sorted(
        text,
        key=lambda s: (bool(s.disposition & Disposition.forced), not s.disposition & Disposition.default, s.index),
    )


def embedded_subtitles(path: Path, limits: Limits, clock: Sequence[Sequence[float]]) -> EmbeddedSubtitles | None:
    """The file's subtitles; None when it holds none that are text, or none can be read.

    Args:
        clock: of the pictures, see `medgen.video.report.VideoReport`.

    Raises:
        ItemFailed: empty_file, not_a_video.
    """
    with open_container(path, limits) as container:
        streams = text_streams(container)
        if not streams:
            return None
        stream = streams[0]
        cues: list[str] = []
        with suppress(av.error.FFmpegError):
            for packet in container.demux(stream):
                start, text = _shown(packet, clock), _text(packet, stream.codec_context.name)
                if text and start is not None and len(cues) < MOST_CUES:
                    length = float(packet.duration * packet.time_base) if packet.duration else UNTIL_S
                    cues.append(f"{_stamp(max(0.0, start))} --> {_stamp(start + length)}\n{text}\n")
        if not cues:
            return None
        return EmbeddedSubtitles(
            stream.index, stream.codec_context.name, stream.language, len(cues), "\n".join(["WEBVTT\n", *cues])
        )


def _shown(packet: "Packet[SubtitleStream]", clock: Sequence[Sequence[float]]) -> float | None:
    """When a cue is shown, seconds from the first picture; None before it."""
    if packet.pts is None or not packet.size:
        return None
    own_s = float(packet.pts * packet.time_base)
    length = float(packet.duration * packet.time_base) if packet.duration else UNTIL_S
    before = [(here, own) for here, own in clock if own <= own_s + length]
    if not before:
        return None
    # Where the clock was set back a time stands for several; the first is taken.
    here, own = min(before, key=lambda pair: (own_s + length - pair[1], pair[0]))
    return own_s - own + here


def _text(packet: "Packet[SubtitleStream]", codec: str) -> str:
    """The words of a packet, without marks of style; lines are kept."""
    data = bytes(packet)
    if codec == "mov_text":  # 3GPP TS 26.245: two bytes of length, then the text
        data = data[2 : 2 + int.from_bytes(data[:2], "big")]
    text = data.decode("utf-8", "replace").replace("\0", "")
    if codec in ("ass", "ssa"):  # ReadOrder, Layer, Style, Name, MarginL, MarginR, MarginV, Effect, Text
        text = text.split(",", 8)[-1].replace("\\N", "\n").replace("\\n", "\n")
    return "\n".join(_lines(text))[:MOST_CHARS]


def _lines(text: str) -> Iterator[str]:
    for raw in text.splitlines():
        line = _without(_without(raw, "{", "}"), "<", ">").replace("-->", "->").strip()
        if line:
            yield line


def _without(line: str, opening: str, closing: str) -> str:
    """A line without what stands between brackets."""
    kept, rest = "", line
    while opening in rest:
        before, _, after = rest.partition(opening)
        _, closed, rest_after = after.partition(closing)
        if not closed:
            break
        kept, rest = kept + before, rest_after
    return kept + rest


def _stamp(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"
