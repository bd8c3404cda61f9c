"""How medgen writes H.264: the same frames always give the same bytes, tagged with their colours and exact times."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from medgen.video.colour import BT709, LIMITED, Colour, filters_to_bt709, mark_bt709
from medgen.video.filters import filter_graph, filtered

RGB = Colour("gbr", "bt709", "bt709", "pc", (), "matrix")


class H264File:
    """An MP4 that is being written, see `h264_file`."""

    def __init__(
        self, path: Path, size: tuple[int, int], time_base: Fraction, crf: int, preset: str, b_frames: bool
    ) -> None:
        self.container = av.open(str(path), "w", format="mp4", container_options={"movflags": "faststart"})
        # No macroblock tree: with B-frames x264's assembly for it reads memory that nobody has set (seen with
        # MALLOC_PERTURB_), so that the same frames would not always give the same bytes.
        options = {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"} | ({} if b_frames else {"bf": "0"})
        self._stream = self.container.add_stream("libx264", rate=30, options=options)
        codec = self._stream.codec_context
        codec.width, codec.height, codec.pix_fmt = *size, "yuv420p"
        codec.time_base, codec.thread_count = time_base, 1  # one thread: see above
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = LIMITED
        self._time_base = time_base
        self._waiting: tuple[VideoFrame, int] | None = None  # until it is known how long it is shown
        self._lengths: dict[int, int] = {}
        self._first_dts: int | None = None
        self._held: Packet[VideoStream] | None = None

    def add(self, frame: VideoFrame, pts: int) -> None:
        """Takes the next frame, yuv420p in BT.709, that is shown from `pts` ticks on."""
        self._encode_waiting(pts)
        self._waiting = (frame, pts)

    def end(self, pts: int) -> None:
        """Ends the file; its last frame is shown until `pts`."""
        self._encode_waiting(pts)
        self._waiting = None
        self._mux(self._stream.encode(None))
        if self._held is not None:
            assert self._held.dts is not None and self._first_dts is not None
            # By the order of decoding, too, the whole must last as long: some readers go by that.
            self._held.duration = max(1, pts - (self._held.dts - self._first_dts))
            self.container.mux(self._held)
            self._held = None

    def _encode_waiting(self, until: int) -> None:
        if self._waiting is None:
            return
        frame, pts = self._waiting
        frame.pts, frame.time_base = pts, self._time_base
        frame.pict_type = 0  # the encoder decides, not the source
        self._lengths[pts] = max(1, until - pts)
        self._mux(self._stream.encode(frame))

    def _mux(self, packets: "Iterable[Packet[VideoStream]]") -> None:
        for packet in packets:
            assert packet.pts is not None
            packet.duration = self._lengths.pop(packet.pts)
            if self._first_dts is None:
                self._first_dts = packet.dts
            if self._held is not None:
                self.container.mux(self._held)
            self._held = packet


@contextmanager
def h264_file(
    path: Path, size: tuple[int, int], time_base: Fraction, *, crf: int, preset: str, even_gaps: bool = True
) -> Iterator[H264File]:
    """An MP4 for frames of a size (even width, even height), without sound.

    Args:
        even_gaps: all frames are shown for as long, but for rounding. Where they are not, B-frames are left out: with
            them MP4's edit list and its samples can't both tell the length of the video.
    """
    file = H264File(path, size, time_base, crf, preset, even_gaps)
    with file.container:
        yield file


def bt709_frames(rgb: Iterable[np.ndarray]) -> Iterator[VideoFrame]:
    """yuv420p frames in BT.709, limited range, of uint8 RGB pictures (H, W, 3) of one size."""
    graph: av.filter.Graph | None = None
    for index, picture in enumerate(rgb):
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = index, Fraction(1, 1000)
        frame.colorspace, frame.color_range = 0, 2
        graph = graph or filter_graph(frame, filters_to_bt709(RGB, "rgb24", (frame.width, frame.height)))
        for converted in filtered(graph, frame, 1):
            mark_bt709(converted)
            yield converted
