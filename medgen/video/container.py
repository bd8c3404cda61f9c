"""Opens a video file and chooses the stream that is its main picture."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from medgen.errors import ItemFailed
from medgen.video.limits import FORMATS, Limits

TIMEOUT_S = 20.0
# Pictures beside the main one, by their container's own account.
STILL = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


@dataclass(frozen=True)
class OpenVideo:
    """An open file, its main picture, and why it is that one."""

    container: InputContainer
    stream: VideoStream
    chosen_for: str

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick of the stream's times."""
        return self.stream.time_base or Fraction(1, 90_000)


def open_container(path: Path, limits: Limits) -> InputContainer:
    """Opens a video container of `FORMATS`. Raises ItemFailed: empty_file, not_a_video."""
    if path.stat().st_size == 0:
        raise ItemFailed("empty_file", "the file has 0 bytes")
    try:
        # Opening decodes too: the first pictures of each stream.
        options = {"format_whitelist": FORMATS, **limits.decoder_options}
        return av.open(str(path), options=options, timeout=(TIMEOUT_S, TIMEOUT_S))
    except (av.error.FFmpegError, ValueError) as error:
        raise ItemFailed("not_a_video", f"no video container: {message(error)}") from error


@contextmanager
def open_video(path: Path, limits: Limits) -> Iterator[OpenVideo]:
    """A file at its beginning. Raises ItemFailed: empty_file, not_a_video, no_video_stream, undecodable."""
    with open_container(path, limits) as container:
        stream, chosen_for = main_picture(path, container, limits)
        if stream.codec_context is None:
            raise ItemFailed("undecodable", "no decoder is known for the picture")
        stream.codec_context.options = limits.decoder_options
        stream.thread_type = "NONE"
        yield OpenVideo(container, stream, chosen_for)


def main_picture(path: Path, container: InputContainer, limits: Limits) -> tuple[VideoStream, str]:
    """The stream that players show, and why: no cover or thumbnail; then the default one, the largest, the longest.

    Raises:
        ItemFailed: no_video_stream.
    """
    moving = [stream for stream in container.streams.video if not stream.disposition & STILL]
    if not moving:
        raise ItemFailed("no_video_stream", "the file has no moving picture (audio only?)")
    if len(moving) == 1:
        others = len(container.streams.video) - 1
        return moving[0], "the only picture" if not others else "the only picture that is no cover or thumbnail"
    frames = _packets(path, limits)
    questions: dict[str, Callable[[VideoStream], int]] = {
        "it can be decoded": lambda stream: stream.codec_context is not None,
        "it moves": lambda stream: frames[stream.index] > 1,
        "it is marked as the default": lambda stream: bool(stream.disposition & Disposition.default),
        "it is the largest": lambda stream: stream.width * stream.height if stream.codec_context else 0,
        "it has the most frames": lambda stream: frames[stream.index],
    }
    for reason, answer in questions.items():
        best = max(map(answer, moving))
        moving = [stream for stream in moving if answer(stream) == best]
        if len(moving) == 1:
            return moving[0], f"of {len(container.streams.video)} pictures {reason}"
    return moving[0], f"the first of {len(moving)} equal pictures"


def _packets(path: Path, limits: Limits) -> Counter[int]:
    """How many packets each stream has, without decoding; as far as the file can be read."""
    counts: Counter[int] = Counter()
    with open_container(path, limits) as container, suppress(av.error.FFmpegError):
        for packet in container.demux(*container.streams.video):
            counts[packet.stream.index] += packet.size > 0
    return counts


def message(error: Exception) -> str:
    """What FFmpeg says of an error."""
    return str(getattr(error, "strerror", None) or error)
