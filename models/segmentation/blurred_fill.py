"""Is the picture set before a blurred, enlarged copy of itself that fills the sides (or the top and the bottom)?

Editors do so with upright recordings in wide videos. No colour tells these sides from the picture; that they are soft
and that the picture begins at a straight line, equally far from both sides, does. Thresholds were chosen on the tuning
part of `bench/made_borders.py`.
"""

from collections.abc import Sequence

import cv2
import numpy as np

LONG_SIDE = 480  # pixels: the fill is found in small frames and its edge then placed in those given
LEAST_WIDTH, MOST_WIDTH = 0.06, 0.36  # of a filled side, share of the frame's length; 9:16 in 16:9 leaves 0.342
STEP = 4.0  # grey levels from one pixel to the next across the edge, the mean along it and over the frames
STANDS_OUT = 4.0  # times the mean step of the lines on the fill's side of the edge
SOFTNESS = 0.35  # most detail of the fill, as a share of the picture's
LEAST_SPREAD = 3.0  # grey levels: standard deviation of a filled side; a plain one is a page's margin or a bar
ALONG = 0.55  # least share of the edge along which the step is more than that within the fill
UNEQUAL = 0.006  # most difference of the two widths, share of the length: such pictures are centred


def blurred_fill(frames: Sequence[np.ndarray]) -> dict[str, int]:
    """Widths of the filled sides, pixels: {"left": …, "right": …}, {"top": …, "bottom": …}, or {} where there are none.

    Args:
        frames: of one clip, uint8 RGB (H, W, 3), all of one shape.
    """
    height, width = frames[0].shape[:2]
    scale = min(1.0, LONG_SIDE / max(height, width))
    size = max(8, round(width * scale)), max(8, round(height * scale))
    # A few frames are enough: the edge stands still.
    greys = [
        cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)
        for frame in frames[:: max(1, len(frames) // 4)]
    ]
    for sides, turned, length in ((("left", "right"), False, width), (("top", "bottom"), True, height)):
        pair = _filled([grey.T for grey in greys] if turned else greys)
        if pair:
            ratio = length / (size[1] if turned else size[0])
            return {side: round(place * ratio) for side, place in zip(sides, pair, strict=True)}
    return {}


def _filled(greys: Sequence[np.ndarray]) -> tuple[int, int] | None:
    """Columns filled at the left and at the right of small grey frames (h, w)."""
    length = greys[0].shape[1]
    steps = np.mean([np.abs(np.diff(grey, axis=1)) for grey in greys], axis=0)  # (h, w - 1)
    across = steps.mean(axis=0)
    # Detail is measured along the edge too, which the step across it does not touch.
    along = np.mean([np.abs(np.diff(grey, axis=0)).mean(axis=0) for grey in greys], axis=0)
    least, most = max(4, round(LEAST_WIDTH * length)), round(MOST_WIDTH * length)
    near = max(1, round(UNEQUAL * length))
    for left in sorted(range(least, most), key=lambda place: -across[place - 1])[:6]:
        around = range(max(least, left - near), min(most, left + near) + 1)
        right = max(around, key=lambda place: across[length - 1 - place])
        if _is_edge(steps, across, along, left) and _is_edge(steps[:, ::-1], across[::-1], along[::-1], right):
            inner = float(along[left:-right].mean())
            soft = max(float(along[: left - 2].mean()), float(along[2 - right :].mean())) <= SOFTNESS * inner
            spread = min(
                float(np.std(grey[:, part])) for grey in greys for part in (np.s_[: left - 2], np.s_[2 - right :])
            )
            if soft and spread >= LEAST_SPREAD:
                return left, right
    return None


def _is_edge(steps: np.ndarray, across: np.ndarray, along: np.ndarray, place: int) -> bool:
    """Whether a soft stretch of so many columns ends in a straight line, seen from the frame's side."""
    fill = float(across[: place - 2].mean()) + 0.05
    step = max(float(across[place - 1]), STEP / 2)
    if across[place - 1] < STEP or step < STANDS_OUT * fill:
        return False
    lines = steps[:, place - 1] > 2 * steps[:, : place - 2].mean(axis=1) + 1
    return float(lines.mean()) >= ALONG
