"""Does a clip show its picture inside a border: letterbox, pillarbox or window?

The paper finds black borders by Canny edges and Hough lines, that is: by long straight edges. Here the same
idea is used without a general line search, because a border's edge can only lie parallel to the side of the
frame: the share of pixels that keep the border's colour in every frame is computed per line (row or column),
and a border is a margin where that share is near 1 and from which it falls within a few lines. Round scope
masks, X-ray collimators and dark backgrounds of CT or ultrasound fade gradually in that measure and stay: they are
content. So is the page around several panels: its margin is only one of the gaps between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from models.segmentation.blurred_fill import blurred_fill

COLOUR_TOLERANCE = 16
"""Most grey levels (per channel, of 255) by which compression and noise may move a border pixel."""
LEAST_TOLERANCE = 5
"""Least such levels: drawn bars are as even as this, and a dark picture differs from dark bars by little more."""
PAPER = 220
"""Grey level from which a ground is as light as paper."""
VISIBLE_DROP = 0.15
"""Least fall, at the edge, of the share of pixels within the most tolerance: what nobody sees is no border."""
PAGE_SHARE = 0.35
"""Least share of the inner picture that has the margin's colour all the time where both are a page, a plot or the dark
ground of a scan. Measured on the tuning part of `bench/made_borders.py`: plots and pages 0.5 to 0.97."""
MARGIN_SHARE = 0.9
"""Least mean share of pixels with the border's colour over the lines of a margin."""
LINE_SHARE = 0.5
"""Least share in any single line of a margin: subtitles or a logo may stand in a bar."""
EDGE_DROP = 2 / 3
"""Least fall of that share at the edge: the part of the inner picture's extent where the edge is straight.
Measured: borders of ordinary pictures 0.69 to 1.0, scope circles at most 0.28. A letterboxed scope circle
(0.67) and a rounded X-ray collimator (up to 0.66) meet here, as their outlines do."""
CANDIDATE_DROP = 0.4
"""The same while the other sides are not yet known, so that the line is measured over too long an extent; and enough
for two equal wide bars with nothing at the other two sides: a scope circle in a letterbox is cut straight only in
part."""
WIDE_BARS = 0.07
"""Least width of such bars (share of the side's length): so wide or wider are the bars between common formats (3:2 in
16:9: 0.078; 4:3 in 16:9 and back, 2.39:1 in 16:9: 0.125). Collimator blades at the frame's sides are narrower."""
EQUAL_BARS = 3
"""Opposite bars whose widths differ by no more (px) count as equal."""
STRIPS: dict[str, Any] = {"left": np.s_[:, :2], "top": np.s_[:2], "right": np.s_[:, -2:], "bottom": np.s_[-2:]}
"""The outermost pixels of each side, which tell its colour."""
DARK = 32
"""Grey level up to which bars are dark."""
OPPOSITE = {"left": "right", "top": "bottom"}
LEAST_WIDTH = 0.01
"""Narrower margins (share of the side's length; never below 4 px) are rounding of codecs, not borders."""
CORNER = 0.12
"""Side of the squares (share of the inner picture's shorter side) in which its corners are looked at."""
SOLID, ROUND, SQUARE = 0.93, 0.95, 0.8
"""Least share of a mask's hull that has picture in it, least overlap of a circle with its disc, and least share of
its bounding box that a picture with cut corners fills (a disc fills 0.785)."""
MOST_WIDTH = 0.45
"""Wider margins (share of the side's length) leave no picture worth cropping to: they are background."""


Masks = dict[str, np.ndarray]  # by side
Widths = dict[str, int]  # of the margin on each side, pixels


@dataclass(frozen=True)
class Borders:
    """Borders of a clip.

    `left`, `top`, `right`, `bottom` are widths in pixels (0: no border on that side); `inner` is the picture
    within them as (x, y, width, height). `kind` is "letterbox" (only top/bottom), "pillarbox" (only
    left/right), "window" (both directions) or "none".

    `content_mask` says what constant mask the inner picture itself has, which is content and stays: "circle" (an
    endoscope's), "corners" (cut or rounded ones, a collimator's or a scope's), "page" (panels on one ground) or "none".
    """

    kind: Literal["none", "letterbox", "pillarbox", "window"]
    left: int
    top: int
    right: int
    bottom: int
    inner: tuple[int, int, int, int]
    content_mask: Literal["none", "circle", "corners", "page"] = "none"

    def even_crop(self) -> tuple[int, int, int, int]:
        """`inner` shrunk to even x, y, width and height, as 4:2:0 video needs; lies within `inner`."""
        x, y, width, height = self.inner
        left, top = x + x % 2, y + y % 2
        return left, top, (x + width - left) // 2 * 2, (y + height - top) // 2 * 2


def detect_borders(frames: Sequence[np.ndarray]) -> Borders:
    """Finds uniform, temporally constant margins with a straight edge.

    Args:
        frames: 6 to 10 samples of one clip at source resolution, uint8 RGB (H, W, 3), all of one shape. With
            fewer frames a dark scene is more easily taken for a border.

    Returns:
        The borders; edges are exact to about 2 px. A border may have any colour and stand on one side only; two
        opposite ones may also be filled with a blurred copy of the picture (`models.segmentation.blurred_fill`).

    Raises:
        ValueError: no frames, or frames of different shapes or other than uint8 (H, W, 3).
    """
    if not len(frames):
        raise ValueError("no frames")
    shape = frames[0].shape
    if any(f.shape != shape or f.dtype != np.uint8 or f.ndim != 3 or f.shape[2] != 3 for f in frames):
        raise ValueError("frames must be uint8 (H, W, 3) of one shape")
    height, width = shape[:2]
    low, high = _extremes(frames)
    masks = _border_colour_masks(low, high, COLOUR_TOLERANCE)
    widths, page = _plain_borders(masks, _light_ground(low, high))
    if not any(widths.values()):
        # Dark bars over a dark picture show by what is darker still: the evenness of what was drawn.
        strict = _border_colour_masks(low, high)
        widths, _ = _plain_borders(strict, _light_ground(low, high))
        _drop_unseen_edges(widths, masks)
        widths |= dict.fromkeys(_lit_sides(high), 0)
    if not any(widths.values()) and not page:
        widths |= blurred_fill(frames)
    left, top, right, bottom = widths["left"], widths["top"], widths["right"], widths["bottom"]
    across, along = left or right, top or bottom
    kind: Literal["none", "letterbox", "pillarbox", "window"] = "none"
    if across and along:
        kind = "window"
    elif across:
        kind = "pillarbox"
    elif along:
        kind = "letterbox"
    inner = (left, top, width - left - right, height - top - bottom)
    content = "page" if page else _content_mask(masks[max(widths, key=lambda side: widths[side])], inner)
    return Borders(kind, left, top, right, bottom, inner, content)


def _plain_borders(masks: Masks, light: np.ndarray) -> tuple[Widths, list[str]]:
    """Widths of the margins of one colour that are borders, and the sides whose margin is the ground of a page."""
    widths = _candidates(masks)
    page = _panel_margins(widths, masks) or _page_margins(widths, masks, light)
    # What is ground at one side is ground wherever it has the same colour.
    page = [side for side in widths if any(masks[side] is masks[other] for other in page)]
    widths |= dict.fromkeys(page, 0)
    _drop_soft_edges(widths, masks)
    return widths, page


def _lit_sides(high: np.ndarray) -> list[str]:
    """Sides whose outermost strip is not dark."""
    return [side for side, strip in STRIPS.items() if float(np.median(high[strip])) > DARK]


def _light_ground(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Mask (H, W) of 255 where a pixel is light, without a colour, and stays so: paper, and the inside of most axes."""
    paper = cv2.inRange(low, np.full(3, PAPER, np.uint8), np.full(3, 255, np.uint8))
    return cv2.bitwise_and(paper, cv2.inRange(cv2.subtract(high, low), np.zeros(3, np.uint8), np.full(3, 16, np.uint8)))


def _extremes(frames: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The least and the most of every pixel and channel over all frames."""
    low, high = np.array(frames[0]), np.array(frames[0])
    for frame in frames[1:]:
        np.minimum(low, frame, out=low)
        np.maximum(high, frame, out=high)
    return low, high


def _border_colour_masks(low: np.ndarray, high: np.ndarray, tolerance: int | None = None) -> Masks:
    """Side → mask (H, W) of 255 where a pixel keeps, in every frame, the colour of that side's outermost strip.

    Args:
        tolerance: levels by which it may be off; None: by how even the strip itself is.
    """
    by_colour: dict[tuple[int, ...], np.ndarray] = {}

    def mask(strip: Any) -> np.ndarray:
        colour = (np.median(low[strip].reshape(-1, 3), axis=0) + np.median(high[strip].reshape(-1, 3), axis=0)) / 2
        off = tolerance or _unevenness(low[strip], high[strip], colour)
        key = (off, *(int(c) for c in colour))
        if key not in by_colour:
            floor = np.array([max(c - off, 0) for c in key[1:]], np.uint8)
            ceiling = np.array([min(c + off, 255) for c in key[1:]], np.uint8)
            by_colour[key] = cv2.bitwise_and(
                cv2.inRange(low, floor, np.full(3, 255, np.uint8)),
                cv2.inRange(high, np.zeros(3, np.uint8), ceiling),
            )
        return by_colour[key]

    return {side: mask(strip) for side, strip in STRIPS.items()}


def _unevenness(low: np.ndarray, high: np.ndarray, colour: np.ndarray) -> int:
    """Levels by which the pixels of a strip are off its colour, doubled for those further in, within the tolerances."""
    off = np.maximum(np.abs(low - colour), np.abs(high - colour)).reshape(-1, 3)
    return int(np.clip(2 * np.percentile(off, 90) + 3, LEAST_TOLERANCE, COLOUR_TOLERANCE))


def _shares(side: str, widths: Widths, masks: Masks) -> np.ndarray:
    """Share of border-coloured pixels per line from that side inwards, within the other two sides."""
    mask = masks[side]
    height, width = mask.shape
    if side in ("left", "right"):
        line = cv2.reduce(mask[widths["top"] : height - widths["bottom"]], 0, cv2.REDUCE_AVG, dtype=cv2.CV_32F)
    else:
        line = cv2.reduce(mask[:, widths["left"] : width - widths["right"]], 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F)
    profile = line.ravel() / 255
    return profile[::-1] if side in ("right", "bottom") else profile


def _candidates(masks: Masks) -> Widths:
    """Margins by the lenient limit. A window's edge spans only the inner picture, so each side is judged within the
    other three, until nothing changes."""
    widths = dict.fromkeys(masks, 0)
    for _ in range(3):
        before = dict(widths)
        for side in widths:
            width, drop = _margin(_shares(side, widths, masks))
            widths[side] = width if drop >= CANDIDATE_DROP else 0
        if widths == before:
            break
    return widths


def _drop_soft_edges(widths: Widths, masks: Masks) -> None:
    """Sets margins without a straight edge to 0, by the strict limit; a side that fails is out for good."""
    while any(widths.values()):
        drops = {side: _margin(_shares(side, widths, masks))[1] for side in widths if widths[side]}
        for side, opposite in OPPOSITE.items():
            # Players centre the picture: two equal bars are judged together, by their mean.
            if side in drops and opposite in drops and abs(widths[side] - widths[opposite]) <= EQUAL_BARS:
                drops[side] = drops[opposite] = (drops[side] + drops[opposite]) / 2
        least = CANDIDATE_DROP if _wide_pair(widths, *masks["left"].shape) else EDGE_DROP
        failed = [side for side, drop in drops.items() if drop < least]
        for side in failed:
            widths[side] = 0
        if not failed:
            break


def _drop_unseen_edges(widths: Widths, masks: Masks) -> None:
    """Sets margins to 0 whose edge is too faint to be seen, by masks of the most tolerance."""
    faint = []
    for side in (side for side in widths if widths[side]):
        profile = _shares(side, widths, masks)
        soft = max(3, round(len(profile) * 0.005))
        beyond = profile[widths[side] : widths[side] + 4 * soft]
        if not len(beyond) or float(profile[max(widths[side] - soft, 0)]) - float(np.median(beyond)) < VISIBLE_DROP:
            faint.append(side)
    widths |= dict.fromkeys(faint, 0)


def _page_margins(widths: Widths, masks: Masks, light: np.ndarray) -> list[str]:
    """Sides whose margin is the ground of what is shown: a page, a plot or a scan has it all over."""
    height, width = masks["left"].shape
    inner = slice(widths["top"], height - widths["bottom"]), slice(widths["left"], width - widths["right"])
    sides = []
    for side in (side for side in widths if widths[side]):
        ground = masks[side] if cv2.mean(light[STRIPS[side]])[0] < 128 else cv2.bitwise_or(masks[side], light)
        if cv2.mean(ground[inner])[0] / 255 >= PAGE_SHARE:
            sides.append(side)
    return sides


def _wide_pair(widths: Widths, height: int, width: int) -> bool:
    """Whether there are two opposite bars, equal and wide, and nothing else."""
    lengths = {"left": width, "right": width, "top": height, "bottom": height}
    bars = [side for side in widths if widths[side]]
    if set(bars) not in ({"left", "right"}, {"top", "bottom"}):
        return False
    first, second = bars
    narrowest = min(widths[side] / lengths[side] for side in bars)
    return abs(widths[first] - widths[second]) <= EQUAL_BARS and narrowest >= WIDE_BARS


def _panel_margins(widths: Widths, masks: Masks) -> list[str]:
    """Sides whose margin is the ground of a page: ground of the same colour parts the inner picture right through."""
    height, width = masks["left"].shape
    inner = slice(widths["top"], height - widths["bottom"]), slice(widths["left"], width - widths["right"])
    sides = []
    for side in (side for side in widths if widths[side]):
        across = side in ("left", "right")
        line = cv2.reduce(masks[side][inner], 0 if across else 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel() / 255
        gap = max(4, round(len(line) * LEAST_WIDTH))
        # A gap has panels on both sides of it; ground next to the margin itself is a soft edge.
        middle = line[len(line) // 10 : len(line) - len(line) // 10]
        run = np.convolve(middle >= MARGIN_SHARE, np.ones(gap), "valid") if len(middle) >= gap else np.zeros(1)
        if run.max() >= gap:
            sides.append(side)
    return sides


def _content_mask(mask: np.ndarray, inner: tuple[int, int, int, int]) -> Literal["none", "circle", "corners"]:
    """Whether the inner picture fills a disc, or a rectangle without its corners, on a ground of the border's colour.

    Bodies on the black ground of a scan are neither round nor as solid.
    """
    x, y, width, height = inner
    scale = min(1.0, 256 / max(width, height))
    size = max(8, round(width * scale)), max(8, round(height * scale))
    ground = cv2.resize(mask[y : y + height, x : x + width], size, interpolation=cv2.INTER_AREA)
    content = cv2.morphologyEx((ground < 128).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    outlines, _ = cv2.findContours(content, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return "none"
    hull = cv2.convexHull(max(outlines, key=cv2.contourArea))
    filled = cv2.fillConvexPoly(np.zeros_like(content), hull, 1).astype(bool)
    side = max(4, round(min(size) * CORNER))
    corners = (filled[:side, :side], filled[:side, -side:], filled[-side:, :side], filled[-side:, -side:])
    covered = sum(1 - float(corner.mean()) >= 0.4 for corner in corners)
    area = int(filled.sum())
    # Three corners are enough: the fourth may hold text or a mark.
    if covered < 3 or area < 0.4 * filled.size or int(content[filled].sum()) < SOLID * area:
        return "none"
    (middle_x, middle_y), radius = cv2.minEnclosingCircle(hull)
    disc = cv2.circle(np.zeros_like(content), (round(middle_x), round(middle_y)), round(radius), 1, -1).astype(bool)
    overlap = int((disc & filled).sum()) / int((disc | filled).sum())
    if overlap >= ROUND:
        return "circle"
    _, _, wide, high = cv2.boundingRect(hull)
    return "corners" if area >= SQUARE * wide * high else "none"


def _margin(profile: np.ndarray) -> tuple[int, float]:
    """The margin at the start of `profile` (shares 0..1 per line, from the side inwards).

    Returns its width in lines and the drop of the share at its edge, or (0, 0.0) where there is none.
    """
    length = len(profile)
    reach = int(length * MOST_WIDTH)
    inside = profile[: reach + 1] < LINE_SHARE
    width = int(inside.argmax()) if inside.any() else 0
    if width < max(4, round(length * LEAST_WIDTH)) or float(profile[:width].mean()) < MARGIN_SHARE:
        return 0, 0.0
    # An edge between two pixels, softened by scaling and chroma subsampling, spreads over a few lines.
    soft = max(3, round(length * 0.005))
    outside = float(profile[max(width - soft, 0)])
    # Where the picture begins it goes on: a ruled line on a dark page has the page's colour again behind it.
    within = float(np.median(profile[width : width + 4 * soft]))
    return width, outside - within
