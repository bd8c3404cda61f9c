"""Pictures upright and with square pixels: turns and mirrors of the display matrix, pixel aspects."""

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame

from medgen.errors import ItemFailed
from medgen.video.limits import Limits


@dataclass(frozen=True)
class _Turn:
    """Filters; first mirrored left to right or not, then turned by so many degrees counterclockwise."""

    filters: tuple[tuple[str, str], ...]
    mirrored: bool
    rotation: int


# By (transposed, x runs backwards, y runs backwards), as the display matrix has them (libavutil/display.h).
_TURNS = {
    (False, False, False): _Turn((), False, 0),
    (False, True, False): _Turn((("hflip", ""),), True, 0),
    (False, False, True): _Turn((("vflip", ""),), True, 180),
    (False, True, True): _Turn((("hflip", ""), ("vflip", "")), False, 180),
    (True, False, False): _Turn((("transpose", "cclock_flip"),), True, 90),
    (True, False, True): _Turn((("transpose", "cclock"),), False, 90),
    (True, True, False): _Turn((("transpose", "clock"),), False, 270),
    (True, True, True): _Turn((("transpose", "clock_flip"),), True, 270),
}


@dataclass(frozen=True)
class Geometry:
    """How stored pictures become shown ones.

    Args:
        transposed: rows become columns.
        x_backwards, y_backwards: the shown x or y runs against the stored axis that it comes from.
        aspect: width over height of a stored pixel.
    """

    transposed: bool
    x_backwards: bool
    y_backwards: bool
    aspect: Fraction

    @property
    def rotation(self) -> int:
        """Degrees counterclockwise by which pictures are turned: 0, 90, 180 or 270."""
        return self._turn.rotation

    @property
    def mirrored(self) -> bool:
        """Whether pictures are mirrored left to right before they are turned."""
        return self._turn.mirrored

    def shown_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height as shown of a stored picture."""
        wide = max(1, round(width * self.aspect))
        return (height, wide) if self.transposed else (wide, height)

    def filters(self, width: int, height: int, limits: Limits) -> list[tuple[str, str]]:
        """FFmpeg's filters, name and arguments, for stored pictures of a size.

        Raises:
            ItemFailed: resolution_above_limit, pixel_aspect_above_limit.
        """
        chain = list(self._turn.filters)
        if self.aspect != 1:
            most = limits.max_pixel_aspect
            if not 1 <= max(self.aspect, 1 / self.aspect) <= most:
                raise ItemFailed("pixel_aspect_above_limit", f"pixels of {self.aspect}, allowed {most} either way")
            shown = self.shown_size(width, height)
            limits.check_size(*shown)
            chain.append(("scale", f"{shown[0]}:{shown[1]}:flags=bicubic"))
        return chain

    @property
    def _turn(self) -> _Turn:
        return _TURNS[self.transposed, self.x_backwards, self.y_backwards]


def geometry_of(frame: VideoFrame, aspect: Fraction | None) -> Geometry:
    """The geometry of a decoded frame, by its display matrix and the aspect of its pixels (None: square).

    Turns by other than right angles are taken for the nearest right one.
    """
    a, b, c, d = 1, 0, 0, 1
    # Not `frame.side_data`, which makes frame and container hold each other: hundreds of pictures would stay in memory
    # until the next collection of garbage.
    container: Any = SideDataContainer  # its stub lacks the constructor's argument
    matrix = container(frame).get("DISPLAYMATRIX")
    if matrix is not None and matrix.buffer_size >= 36:
        a, b, _, c, d, _, _, _, _ = struct.unpack("=9i", bytes(matrix)[:36])
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    x, y = (c, b) if transposed else (a, d)
    return Geometry(transposed, x < 0, y < 0, aspect if aspect and aspect > 0 else Fraction(1))
