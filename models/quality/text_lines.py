"""What the pixels say of a line of text on a frame: is it drawn or filmed, does it stay, run or move with the scene?"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from models.quality.text_reader import TextBox

LEAST_CONFIDENCE = 0.5
"""Boxes read with less confidence are not counted as words: mostly texture taken for letters, or an unknown script."""
LEAST_DETECTION = 0.55
"""Least detection score (0..1) of a line that could not be read, to count as text in an unknown script."""
MOST_TILT = 1.5
"""Degrees by which the baseline of drawn text may seem tilted; short boxes are measured less exactly (4 times that)."""
LEAST_SHARPNESS = 0.4
"""Least step between neighbouring pixels (98th percentile, share of the text's contrast). Measured: drawn text 0.44
(upscaled) to 1.0, letters on filmed objects 0.2 to 0.6, round shapes taken for an "O" at most 0.3."""
LEAST_CONTRAST = 40
"""Grey levels (of 255) between letters and ground below which sharpness is noise."""
STAYS = 0.85
"""Least correlation of a box's pixels with the same place on another frame for the text to be still there. Measured:
subtitles over a moving picture 0.93 and more, other words in the same place at most 0.3."""
SURE_READING = 0.8
"""Confidence from which a reading tells how many words there are; unknown scripts come to less."""
WORD_UNREAD, WORD_UNSURE = 1.6, 1.8
"""Heights of the box that a word takes: of text that could not be read (Arabic and Devanagari: 1.1 to 1.4, Cyrillic:
2.3), and of text that was read in letters that it may not have (Thai: 1.8; Latin, read for sure: 2.3)."""
HELD = 0.45
"""Least share of the edges in a box, by energy, that are there on all frames, for letters that stand before a moving
picture: edges of a ground that moves come to one over the number of frames. So large letters, through which much ground
shows, and translucent ones are known."""
HELD_AROUND = 0.7
"""Most of that share around the box, relative to the box's own."""
PASSES_BEHIND = 0.05
"""Least share of changed pixels around letters for the picture to move behind them: on a wall nothing does."""
MOVED = 24
"""Grey levels by which a pixel has changed for certain."""
MOVING_PICTURE = 0.04
"""Least share of changed pixels for the picture to count as moving: below, staying proves nothing."""
STILL_GROUND = 0.1
"""Most share of changed pixels around a moving line for it to run over a still ground (ticker, credits)."""
HUGE = 0.25
"""Text higher than this share of the frame must consist of few flat colours to be text at all."""

# Chinese characters, Japanese kana and their compatibility forms: written without spaces. Hangul has spaces.
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")


@dataclass(frozen=True)
class MeasuredLine:
    """A box with what the pixels say of it."""

    frame: int
    box: TextBox
    place: tuple[slice, slice]
    words: int
    drawn: bool
    stays: int
    """Number of other frames on which the same pixels stand in the same place."""
    stays_always: bool
    ground_moves: float
    """Share (0..1) of changed pixels around the box between its frame and another, the median of all others: a hand
    that passes by changes few of them."""
    runs: bool
    """The same pixels stand elsewhere on a neighbouring frame."""
    carried: bool
    """They went there with what is around them."""
    held: bool
    """The edges in the box stand still on all frames while those around it do not."""
    dark_ground: bool

    @property
    def middle(self) -> tuple[float, float]:
        return self.box.x + self.box.width / 2, self.box.y + self.box.height / 2


class ClipFrames:
    """Grey frames, half-size copies, and how much of the picture changes from frame to frame."""

    def __init__(self, frames: Sequence[np.ndarray]) -> None:
        self.rgb = frames
        self.grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        self.half = [cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for grey in self.grey]
        self.height, self.width = self.grey[0].shape
        first, rest = self.half[0], self.half[1:]
        moved = [float((cv2.absdiff(first, other) > MOVED).mean()) for other in rest]
        self.moves = max(moved, default=0.0) >= MOVING_PICTURE
        self.dark_share = float(np.mean([(half < 40).mean() for half in self.half]))

    def others(self, frame: int) -> list[int]:
        return [i for i in range(len(self.grey)) if i != frame]


def measure_line(clip: ClipFrames, frame: int, box: TextBox) -> MeasuredLine | None:
    """Measures a box; None where there is no text: neither read nor like a line of letters."""
    top, bottom = max(box.y, 0), min(box.y + box.height, clip.height)
    left, right = max(box.x, 0), min(box.x + box.width, clip.width)
    if bottom - top < 4 or right - left < 4:
        return None
    place = slice(top, bottom), slice(left, right)
    grey = clip.grey[frame][place]
    low, high = np.percentile(grey, (2, 98))
    contrast = float(high - low)
    steps = np.abs(np.diff(grey.astype(np.int16), axis=1))
    sharpness = float(np.percentile(steps, 98)) / max(contrast, 1.0)
    long = box.width >= 3 * box.height
    level = abs(box.angle) <= MOST_TILT * (1 if long else 4)
    huge = box.height > HUGE * clip.height
    drawn = level and contrast >= LEAST_CONTRAST and sharpness >= LEAST_SHARPNESS
    if huge:
        drawn = level and box.confidence >= 0.9 and _few_flat_colours(clip.rgb[frame][place])
    words = word_count(box.text)
    # For letters that it does not know, RapidOCR gives no text, and is sure of it.
    if box.confidence < LEAST_CONFIDENCE or not box.text:
        if not (drawn and long and not huge and box.detection >= LEAST_DETECTION):
            return None
        words = max(1, round(box.width / (WORD_UNREAD * box.height)))
    elif box.confidence < SURE_READING and long and not huge:
        words = max(words, round(box.width / (WORD_UNSURE * box.height)))
    if not words:
        return None
    others = clip.others(frame)
    stays = sum(_alike(grey, clip.grey[i][place]) for i in others)
    around = (
        slice(max(top - box.height, 0), min(bottom + box.height, clip.height)),
        slice(max(left - box.height, 0), min(right + box.height, clip.width)),
    )
    ring = np.ones((around[0].stop - around[0].start, around[1].stop - around[1].start), bool)
    ring[top - around[0].start : bottom - around[0].start, left - around[1].start : right - around[1].start] = False
    changes = [cv2.absdiff(clip.grey[frame][around], clip.grey[i][around])[ring] > MOVED for i in others]
    ground_moves = float(np.median([change.mean() for change in changes])) if others and ring.any() else 0.0
    runs, carried = (False, False) if stays or huge else _runs(clip, frame, place, ground_moves)
    return MeasuredLine(
        frame=frame,
        box=box,
        place=place,
        words=words,
        drawn=drawn,
        stays=stays,
        stays_always=stays == len(others),
        ground_moves=ground_moves,
        runs=runs,
        carried=carried,
        dark_ground=float(np.median(grey)) < 70,
        held=ground_moves >= PASSES_BEHIND and _held(clip, place, around),
    )


def _alike(patch: np.ndarray, other: np.ndarray) -> bool:
    step = max(1, min(patch.shape) // 64)  # letters of more than 64 px are as well compared at less
    patch, other = np.ascontiguousarray(patch[::step, ::step]), np.ascontiguousarray(other[::step, ::step])
    if patch.std() < 1 or other.std() < 1:
        return False
    return float(cv2.matchTemplate(patch, other, cv2.TM_CCOEFF_NORMED)[0, 0]) >= STAYS


def _held(clip: ClipFrames, place: tuple[slice, slice], around: tuple[slice, slice]) -> bool:
    """Whether the edges of a place stand still over all frames, and more so than those around it."""
    if len(clip.half) < 3:
        return False
    rows, columns = (slice(side.start // 2, max(side.start // 2 + 2, side.stop // 2)) for side in around)
    there = [half[rows, columns].astype(np.float32) for half in clip.half]
    if min(there[0].shape) < 4:
        return False
    edges = np.stack([np.stack([cv2.Sobel(one, cv2.CV_32F, 1, 0), cv2.Sobel(one, cv2.CV_32F, 0, 1)]) for one in there])
    lasting = (edges.mean(axis=0) ** 2).sum(axis=0)
    all_of_them = (edges**2).sum(axis=1).mean(axis=0)
    inside = np.zeros(lasting.shape, bool)
    top, left = place[0].start // 2 - rows.start, place[1].start // 2 - columns.start
    inside[top : place[0].stop // 2 - rows.start, left : place[1].stop // 2 - columns.start] = True
    if not inside.any() or inside.all():
        return False
    letters = float(lasting[inside].sum()) / (float(all_of_them[inside].sum()) + 1)
    ground = float(lasting[~inside].sum()) / (float(all_of_them[~inside].sum()) + 1)
    return letters >= HELD and ground <= HELD_AROUND * letters


def _runs(clip: ClipFrames, frame: int, place: tuple[slice, slice], ground_moves: float) -> tuple[bool, bool]:
    """Whether the pixels of a place stand elsewhere on a neighbouring frame, and whether their surroundings do too."""
    rows, columns = (slice(side.start // 2, side.stop // 2) for side in place)
    half = clip.half[frame]
    patch = half[rows, columns]
    tall, wide = patch.shape
    if min(tall, wide) < 4 or patch.std() < 4:
        return False, False
    for near in (frame - 1, frame + 1):
        if not 0 <= near < len(clip.half):
            continue
        other = clip.half[near]
        _, best, _, (left, top) = cv2.minMaxLoc(cv2.matchTemplate(other, patch, cv2.TM_CCOEFF_NORMED))
        if best < 0.8:
            continue
        # What is around, as far as both frames show it, without the text itself.
        up, down = min(tall, rows.start, top), min(tall, half.shape[0] - rows.stop, half.shape[0] - top - tall)
        back, on = min(tall, columns.start, left), min(tall, half.shape[1] - columns.stop, half.shape[1] - left - wide)
        ring = np.ones((tall + up + down, wide + back + on), bool)
        ring[up : up + tall, back : back + wide] = False
        here = half[rows.start - up : rows.stop + down, columns.start - back : columns.stop + on][ring]
        there = other[top - up : top + tall + down, left - back : left + wide + on][ring]
        if not here.size or min(here.std(), there.std()) < 6:  # a plain ground: its edges show whether it moved
            return True, ground_moves > STILL_GROUND
        return True, float(np.corrcoef(here, there)[0, 1]) >= 0.6
    return False, False


def _few_flat_colours(picture: np.ndarray) -> bool:
    """Whether nearly all pixels have one of three colours, two of them common: a drawn letter and its ground."""
    small = cv2.resize(picture, (96, 96), interpolation=cv2.INTER_NEAREST).astype(np.int32) + 16 >> 5
    _, counts = np.unique(small @ np.array([64, 8, 1]), return_counts=True)
    common = np.sort(counts)[::-1] / counts.sum()
    return len(common) >= 2 and float(common[:3].sum()) >= 0.9 and float(common[1]) >= 0.1


def word_count(text: str) -> int:
    spaced = sum(any(c.isalnum() for c in word) for word in _CJK.sub(" ", text).split())
    return math.ceil(len(_CJK.findall(text)) / 2) + spaced
