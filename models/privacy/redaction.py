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


def _coarsen(view: np.ndarray) -> None:
    height, width = view.shape
    cells = (min(CELLS, width), min(CELLS, height))
    means = cv2.resize(np.ascontiguousarray(view), cells, interpolation=cv2.INTER_AREA)
    view[:] = cv2.resize(means, (width, height), interpolation=cv2.INTER_LINEAR)
