"""When is each picture shown? Times count from the first picture and always grow.

Where a file's own times are missing, repeat, jump or start again, they are rebuilt from what else is known: the order
of decoding, the lengths of frames, the gaps before.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import heappop, heappush
from itertools import pairwise
from statistics import median_low

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

JUMP_S = 10.0  # a longer gap is a jump: FFmpeg's dts_delta_threshold (fftools/ffmpeg_demux.c)
BACK_S = 0.5  # a longer step back means that the clock was set; shorter ones are times in disorder
PERSISTENT = 3  # so many repaired times in a row: the clock was set by little
REORDERED = 16  # frames out of whose order of decoding that of showing is known: H.264 reorders by no more
RECENT = 9  # gaps and frame lengths that are remembered
MOST_ANCHORS = 1000
DEFAULT_FPS = 25


@dataclass(frozen=True)
class Placed:
    """Where a picture is placed: ticks from the first one, and whether the clock jumped just before it."""

    pts: int
    jumped: bool


@dataclass
class Timeline:
    """The times of one stream's frames, in the order in which the decoder gives them.

    Args:
        time_base: seconds per tick.
        rate: frames per second by the header; None where it tells none.
        clock_start: the file's own time, ticks, of the first picture; None: the first frame is that picture.
        by_dts: presentation times are in disorder; those of decoding are taken (AVI keeps no others).

    Attributes:
        repaired: frames whose time is not the file's own.
        anchors: (time from the first picture, the file's own time), seconds, at the start and wherever the two came
            to differ by another amount; the first `MOST_ANCHORS`.
    """

    time_base: Fraction
    rate: Fraction | None = None
    clock_start: int | None = None
    by_dts: bool = False
    repaired: int = 0
    anchors: list[tuple[float, float]] = field(default_factory=list)
    _last: int | None = None
    _offset: int = 0
    _late: int = 0
    _gaps: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))
    _lengths: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))
    _jump: int = field(init=False)
    _back: int = field(init=False)

    def __post_init__(self) -> None:
        self._jump, self._back = (int(Fraction(seconds) / self.time_base) for seconds in (JUMP_S, BACK_S))

    def place(self, frame: "VideoFrame | Packet[VideoStream]") -> Placed:
        """Places the next frame, or the next packet in the order of `in_order_shown`."""
        own = frame.dts if self.by_dts or frame.pts is None else frame.pts
        self._lengths.append(frame.duration or 0)
        if self._last is None:
            self.repaired += self.by_dts or own is None
            self._last = (own or 0) - (own or 0 if self.clock_start is None else self.clock_start)
            self._set_clock(self._last, own or 0)
            return Placed(self._last, False)
        gap = None if own is None else own + self._offset - self._last
        jumped = gap is not None and self._is_jump(gap)
        if gap is not None and gap > 0 and not jumped:
            self._gaps.append(gap)
            self._last += gap
            self._late = 0
            self.repaired += self.by_dts
            return Placed(self._last, False)
        self._last += self.usual_gap
        self.repaired += 1
        self._late = 0 if jumped else self._late + 1
        if jumped or self._late == PERSISTENT:
            self._set_clock(self._last, own)
        return Placed(self._last, jumped)

    def _is_jump(self, gap: int) -> bool:
        return gap < -self._back or (gap > self._jump and 2 * max(self._lengths) < gap)

    @property
    def usual_gap(self) -> int:
        """Ticks between two frames, by the last gaps, else by the length of a frame, else by the header; at least 1."""
        known = self._gaps or [length for length in self._lengths if length > 0]
        if known:
            return max(1, median_low(known))
        return max(1, round(1 / (self.time_base * (self.rate or DEFAULT_FPS))))

    @property
    def end(self) -> int:
        """Ticks at which the last frame placed ends: by its own length where the file tells a likely one."""
        if self._last is None:
            return 0
        length = self._lengths[-1]
        most = 4 * max(self._gaps, default=length)
        return self._last + (length if 0 < length <= most else self.usual_gap)

    @property
    def plain_start(self) -> int | None:
        """The file's own time of the first picture, ticks, where every picture's time is the file's own; else None."""
        return -self._offset if self._last is not None and not self.repaired else None

    def _set_clock(self, here: int, own: int | None) -> None:
        if own is None:
            return
        self._offset = here - own
        if len(self.anchors) < MOST_ANCHORS:
            self.anchors.append((float(here * self.time_base), float(own * self.time_base)))


def in_order_shown(packets: "Iterable[Packet[VideoStream]]", time_base: Fraction) -> "Iterator[Packet[VideoStream]]":
    """Packets in the order of their presentation times; where the clock is set back, what came before comes first."""
    heap: list[tuple[int, int, Packet[VideoStream]]] = []
    back = int(Fraction(BACK_S) / time_base)
    for number, packet in enumerate(packets):
        own = packet.pts if packet.pts is not None else packet.dts
        if own is None:  # its place is where it stands
            yield from (heappop(heap)[2] for _ in range(len(heap)))
            yield packet
            continue
        if heap and heap[0][0] - own > back:
            yield from (heappop(heap)[2] for _ in range(len(heap)))
        heappush(heap, (own, number, packet))
        if len(heap) > REORDERED:
            yield heappop(heap)[2]
    yield from (heappop(heap)[2] for _ in range(len(heap)))


def in_disorder(frames: Sequence[VideoFrame]) -> bool:
    """Whether the first frames' presentation times go to and fro while those of decoding grow."""
    pts = [frame.pts for frame in frames if frame.pts is not None]
    dts = [frame.dts for frame in frames if frame.dts is not None]
    base = float(frames[0].time_base or 0) if frames else 0.0
    back = [before - after for before, after in pairwise(pts) if after <= before]
    grows = all(after > before for before, after in pairwise(dts))
    return len(dts) > 1 and grows and any(step * base <= BACK_S for step in back)
