"""Decodes the main picture of a file, in the order in which it is shown; counts what is broken."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.video.frame import VideoFrame

from medgen.errors import ItemFailed
from medgen.video.container import OpenVideo, message
from medgen.video.limits import Limits

# A file that decodes with more broken pictures than this is not worth keeping; fewer are normal for old uploads.
MAX_BROKEN_SHARE = 0.02


@dataclass
class Decoder:
    """Frames as they are stored.

    Attributes:
        decoded: frames that came out.
        dropped: packets that gave no frame because they are broken.
    """

    video: OpenVideo
    limits: Limits
    decoded: int = 0
    dropped: int = 0
    _damaged: int = 0
    _too_large: int = 0
    # Width over height of the pixels as the pictures say it: of the first ones, of those that come out now, and of
    # those from the next key frame on.
    _first_aspect: Fraction | None = None
    _aspect: Fraction | None = None
    _next_aspect: Fraction | None = None

    def frames(self) -> Iterator[VideoFrame]:
        """All frames. Raises ItemFailed: corrupt_stream, resolution_above_limit."""
        try:
            for packet in self.video.container.demux(self.video.stream):
                try:
                    frames = packet.decode()
                except av.error.EOFError:
                    break
                except av.error.FFmpegError as error:
                    self.dropped += 1
                    self._too_large += self._refused_for_size(error)
                    continue
                self._next_aspect = self.video.stream.codec_context.sample_aspect_ratio
                for frame in frames:
                    # The decoder still holds pictures from before the change: the new ones begin with a key frame.
                    if frame.key_frame or not self.decoded:
                        self._aspect = self._next_aspect
                    if not self.decoded:
                        self._first_aspect = self._aspect
                    self.decoded += 1
                    self._damaged += frame.is_corrupt
                    yield frame
        except av.error.FFmpegError as error:
            raise ItemFailed(
                "corrupt_stream", f"reading stops after {self.decoded} frames: {message(error)}"
            ) from error
        self._check_broken()

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width over height of the newest frame's pixels: by the container where it says so, else by the pictures."""
        of_stream = self.video.stream.sample_aspect_ratio
        # What the container alone says holds for all pictures; what it took from them holds until they change.
        return of_stream if of_stream and of_stream != self._first_aspect else self._aspect

    def _check_broken(self) -> None:
        good, broken = self.decoded - self._damaged, self.dropped + self._damaged
        bearable = max(1, MAX_BROKEN_SHARE * (good + broken))
        if self._too_large and (not good or broken > bearable):
            raise ItemFailed(
                "resolution_above_limit",
                f"after {good} frames, pictures of far more than the {self.limits.max_pixels} pixels allowed",
            )
        if broken > bearable:
            raise ItemFailed("corrupt_stream", f"{broken} of {good + broken} pictures are broken")

    def _refused_for_size(self, error: av.error.FFmpegError) -> bool:
        """Whether the decoder refused a picture for its size: "invalid argument", and it has no size."""
        codec = self.video.stream.codec_context
        pixels = codec.width * codec.height
        return isinstance(error, av.error.ArgumentError) and not 0 < pixels <= self.limits.max_pixels
