"""Makes regions of a frame unreadable, for good.

A region is replaced by at most `CELLS` x `CELLS` mean values: what was in it can't be computed back from them, as it
could be from a mere Gaussian blur.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from av.video.frame import VideoFrame

CELLS = 6
MARGIN = 0.2  # of a box's size, added on each side


@dataclass(frozen=True)
class Region:
    """A box in pixels of the frame."""

    x: int
    y: int
    width: int
    height: int

    def widened(self, margin: float = MARGIN) -> "Region":
        """With a margin on each side, as a share of its size."""
        dx, dy = round(self.width * margin), round(self.height * margin)
        return Region(self.x - dx, self.y - dy, self.width + 2 * dx, self.height + 2 * dy)


def redact(frame: VideoFrame, regions: Iterable[Region]) -> VideoFrame:
    """The frame (yuv420p) with all regions coarsened; pixels outside them keep their very values."""
    height, width = frame.height, frame.width
    planes = frame.to_ndarray()  # (H * 3 / 2, W): Y, then U and V with half the width and height
    quarter = height // 4
    for region in regions:
        left, top = max(0, region.x) // 2 * 2, max(0, region.y) // 2 * 2
        right, bottom = min(width, region.x + region.width), min(height, region.y + region.height)
        right, bottom = min(width, right + right % 2), min(height, bottom + bottom % 2)
        if right <= left or bottom <= top:
            continue
        _coarsen(planes[top:bottom, left:right])
        for start in (height, height + quarter):
            plane = planes[start : start + quarter].reshape(height // 2, width // 2)
            _coarsen(plane[top // 2 : bottom // 2, left // 2 : right // 2])
    edited = VideoFrame.from_ndarray(planes, format="yuv420p")
    edited.colorspace, edited.color_range = frame.colorspace, frame.color_range
    edited.color_primaries, edited.color_trc = frame.color_primaries, frame.color_trc
    return edited


def regions_over_time(regions: Sequence[Sequence[Region]], reach: int) -> list[list[Region]]:
    """For every frame the regions found on it and within `reach` frames before and after it.

    A detector misses a face on single frames, as it turns or is blurred by motion; what was there just before and
    comes back just after is covered in between.
    """
    return [
        [region for nearby in regions[max(0, index - reach) : index + reach + 1] for region in nearby]
        for index in range(len(regions))
    ]


def tracked(regions: Sequence[Sequence[Region]], most_gap: int) -> list[list[Region]]:
    """For every frame the regions found on it, and those that a region passed through while the detector lost it.

    A region with none like it on the next frame is looked for on those that follow; to the first that has one where it
    may have come to, its way is filled in evenly.

    Args:
        most_gap: frames for which it may be lost.
    """
    filled = [list(here) for here in regions]
    for index, here in enumerate(regions):
        for region in here:
            for after in range(index + 1, min(index + 1 + most_gap, len(regions) - 1) + 1):
                again = [other for other in regions[after] if _may_be(region, other, after - index)]
                if not again:
                    continue
                nearest = min(again, key=lambda other: _distance(region, other))
                for step in range(1, after - index):
                    filled[index + step].append(_between(region, nearest, step / (after - index)))
                break
    return filled


def _distance(one: Region, other: Region) -> float:
    """Between the middles, in widths of the larger region."""
    across = one.x + one.width / 2 - other.x - other.width / 2
    down = one.y + one.height / 2 - other.y - other.height / 2
    return float(np.hypot(across, down)) / max(1, one.width, other.width)


def _may_be(one: Region, other: Region, frames: int) -> bool:
    """Whether a region may have come to be the other so many frames later: moved by half its width, and then slower."""
    sizes = one.width / max(1, other.width)
    return 0.5 <= sizes <= 2 and _distance(one, other) <= min(2.0, 0.5 + 0.1 * (frames - 1))


def _between(one: Region, other: Region, share: float) -> Region:
    places = zip((one.x, one.y, one.width, one.height), (other.x, other.y, other.width, other.height), strict=True)
    return Region(*(round(a + (b - a) * share) for a, b in places))


def _coarsen(view: np.ndarray) -> None:
    height, width = view.shape
    cells = (min(CELLS, width), min(CELLS, height))
    means = cv2.resize(np.ascontiguousarray(view), cells, interpolation=cv2.INTER_AREA)
    view[:] = cv2.resize(means, (width, height), interpolation=cv2.INTER_LINEAR)
