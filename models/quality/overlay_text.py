"""Is the text on a clip's frames laid over the picture, part of the scene, or the imaging device's own?

The paper counts every word on five frames. That drops clips for a monitor, a shirt or a keyboard in the scene. Here
each text line is judged by what sets an overlay apart: it is drawn, not filmed (level baseline, edges of one pixel or
two), and it stands still on its own: its pixels stay while the picture moves, or its band stays while its words
change (subtitles) or run through (tickers, credits).
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from models.quality.text_reader import TextBox

Kind = Literal["overlay", "imaging", "scene"]

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
MOVED = 24
"""Grey levels by which a pixel has changed for certain."""
MOVING_PICTURE = 0.04
"""Least share of changed pixels for the picture to count as moving: below, staying proves nothing."""
STILL_GROUND = 0.1
"""Most share of changed pixels around a moving line for it to run over a still ground (ticker, credits)."""
HUGE = 0.25
"""Text higher than this share of the frame must consist of few flat colours to be text at all."""
ALIKE_HEIGHTS = 0.75
"""Least ratio of the heights of two lines of one font."""

# Chinese characters, Japanese kana and their compatibility forms: written without spaces. Hangul has spaces.
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
# What imaging devices write at the margins: measures with units, settings, patient fields, dates and times.
_DEVICE = re.compile(
    r"\d\s*(mm|cm|hz|khz|mhz|db|fps|bpm|kv|kvp|ma|mas|ms|cm/s|m/s|%)(?![a-z])"
    r"|\b(MI|TIS|TIB|TIC|PRF|FR|FPS|HR|WL|WW|FOV|TR|TE|DR|SID|FRQ|FREQ|PWR)\b\s*[:=]?\s*\d"
    r"|\b(gain|depth|freq(uency)?|zoom|pat(ient)?|dob|sex|reject|power|persist|focus|probe|mode|slice|series|image"
    r"|acq|se|im|name|id|dyn|harm|tx|enh|proc|window|level)\b\s*[.:#]"
    r"|\b\d{1,4}[/.-]\d{1,2}[/.-]\d{2,4}\b|\b\d{1,2}:\d{2}(:\d{2})?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TextLine:
    """A line as it stands on one place: its text, kind, box (x, y, width, height) and on how many frames."""

    text: str
    kind: Kind
    box: tuple[int, int, int, int]
    frames: int


@dataclass(frozen=True)
class OverlayText:
    """Text of a clip by kind; words are counted on every frame on which they stand.

    `words` is the paper's count (all text that could be read). `overlay_words`: subtitles, captions, banners,
    tickers, watermarks, titles, labels and slides. `imaging_words`: what the imaging device writes, clocks and
    counters of recordings and simulations among it. `scene_words`: text in the scene or in a recorded window's title
    bar, and short marks that cannot be told from it. `overlay_share` is the mean share of the frame's area (0..1)
    under overlay text: one huge letter is one word. `lines` are in order of kind, then from top to bottom.
    """

    words: int
    overlay_words: int
    imaging_words: int
    scene_words: int
    overlay_share: float
    lines: tuple[TextLine, ...]


def overlay_rules_digest() -> str:
    """sha256 (hex) of the thresholds of `judge_overlay`; with the reader's digest it identifies a judgement."""
    thresholds = (
        LEAST_CONFIDENCE,
        LEAST_DETECTION,
        MOST_TILT,
        LEAST_SHARPNESS,
        LEAST_CONTRAST,
        STAYS,
        MOVED,
        MOVING_PICTURE,
        STILL_GROUND,
        HUGE,
        ALIKE_HEIGHTS,
    )
    return digest_of({"name": "overlay rules", "version": 1, "thresholds": thresholds, "device": _DEVICE.pattern})


def count_words(frames_boxes: Iterable[Iterable[TextBox]]) -> int:
    """Total number of words over all frames given, as the paper counts them (it drops more than 20 over 5).

    A word is a run of characters between spaces with at least one letter or digit. Chinese and Japanese are
    written without spaces: there every two characters, rounded up per box, count as a word, which is about
    the mean length of a Chinese word. A word that stands on several frames counts on each. Boxes with less
    confidence than LEAST_CONFIDENCE are left out.
    """
    return sum(_words(box.text) for boxes in frames_boxes for box in boxes if box.confidence >= LEAST_CONFIDENCE)


def judge_overlay(frames_boxes: Sequence[Sequence[TextBox]], frames: Sequence[np.ndarray]) -> OverlayText:
    """Tells overlay, imaging device's and scene text apart.

    Args:
        frames_boxes: what a reader found on each frame.
        frames: those frames, uint8 RGB (H, W, 3) of one shape, spread over one shot in order of time. With fewer
            than two frames nothing is known of staying, and only drawn lines of two words and more are overlay.

    Returns:
        The judgement. A level, sharp line that could not be read (its script is none of the reader's) counts with
        one word per 2.5 of its heights, an estimate.

    Raises:
        ValueError: as many lists as frames are needed, and frames of one shape.
    """
    if len(frames_boxes) != len(frames) or len({frame.shape for frame in frames}) > 1:
        raise ValueError("one list of boxes per frame, and frames of one shape, are needed")
    if not len(frames):
        return OverlayText(0, 0, 0, 0, 0.0, ())
    clip = _Clip(frames)
    found = [_look(clip, i, box) for i, boxes in enumerate(frames_boxes) for box in boxes]
    seen = [line for line in found if line is not None]
    kinds: list[Kind] = ["overlay" if _is_overlay(line, seen, clip) else "scene" for line in seen]
    margins = _imaging_margins(seen, clip)
    for i, line in enumerate(seen):
        device = (line.stays_always and not _is_subtitle(line, clip)) or _DEVICE.search(line.box.text)
        if _is_readout(line, seen) or (margins and device):
            kinds[i] = "imaging"
        elif _is_window_title(line, clip):
            kinds[i] = "scene"
    counts = dict.fromkeys(("overlay", "imaging", "scene"), 0)
    covered = np.zeros((len(frames), *clip.grey[0].shape), bool)
    for line, kind in zip(seen, kinds, strict=True):
        counts[kind] += line.words
        if kind == "overlay":
            covered[line.frame][line.place] = True
    share = rounded(float(covered.mean()))
    lines = _together(seen, kinds)
    return OverlayText(count_words(frames_boxes), counts["overlay"], counts["imaging"], counts["scene"], share, lines)


@dataclass(frozen=True)
class _Line:
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
    dark_ground: bool

    @property
    def middle(self) -> tuple[float, float]:
        return self.box.x + self.box.width / 2, self.box.y + self.box.height / 2


class _Clip:
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


def _look(clip: _Clip, frame: int, box: TextBox) -> _Line | None:
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
    words = _words(box.text)
    # For letters that it does not know, RapidOCR gives no text, and is sure of it.
    if box.confidence < LEAST_CONFIDENCE or not box.text:
        if not (drawn and long and not huge and box.detection >= LEAST_DETECTION):
            return None
        words = max(1, round(box.width / (2.5 * box.height)))
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
    return _Line(
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
    )


def _is_overlay(line: _Line, lines: Sequence[_Line], clip: _Clip) -> bool:
    """Whether the line is laid over the picture (or drawn on the slide, diagram or page that is the picture)."""
    if line.carried:
        return False
    if line.stays >= 2 and line.ground_moves >= 0.3 and abs(line.box.angle) <= MOST_TILT * 4:
        return True  # whatever its edges: it stands still where the picture around it moves
    if not line.drawn:
        return False
    if line.box.height > HUGE * clip.height or (line.words >= 2 and (line.stays or line.runs)):
        return True
    if line.stays:
        # A single word or number: a label, where the picture moves and labels come in company.
        company = sum(other.drawn and other.stays > 0 for other in lines if other.frame == line.frame)
        return clip.moves and company >= 2 and _letters(line.box.text) >= 2
    return line.words >= 3 or (line.words >= 2 and (_is_subtitle(line, clip) or _has_band(line, lines)))


def _is_subtitle(line: _Line, clip: _Clip) -> bool:
    """Whether the line stands where subtitles do: centred, in the lower third but not at the very edge."""
    across, down = line.middle
    centred = abs(across / clip.width - 0.5) < 0.08
    return line.words >= 3 and centred and 0.65 < down / clip.height < 0.95


def _has_band(line: _Line, lines: Sequence[_Line]) -> bool:
    """Whether drawn text of the same height stands at the same level on another frame."""
    return any(
        other.frame != line.frame
        and other.drawn
        and abs(other.middle[1] - line.middle[1]) <= 0.3 * line.box.height
        and min(other.box.height, line.box.height) >= ALIKE_HEIGHTS * max(other.box.height, line.box.height)
        for other in lines
    )


def _is_readout(line: _Line, lines: Sequence[_Line]) -> bool:
    """Whether the line is a clock or counter: on another frame the same words stand here with other digits."""

    def words(text: str) -> str:
        return "".join(character for character in text if character.isalpha()).lower()

    digits = [character for character in line.box.text if character.isdigit()]
    return (
        line.drawn
        and bool(digits)
        and line.words <= 3
        and any(
            other.frame != line.frame
            and max(abs(other.middle[0] - line.middle[0]), abs(other.middle[1] - line.middle[1])) <= line.box.height
            and words(other.box.text) == words(line.box.text)
            and digits != [character for character in other.box.text if character.isdigit()]
            for other in lines
        )
    )


def _is_window_title(line: _Line, clip: _Clip) -> bool:
    """Whether the line is the title of the window of a recorded screen: one small line in a plain bar along the top."""
    rows, columns = line.place
    if rows.start > 0.015 * clip.height or line.box.height > 0.05 * clip.height:
        return False
    bar = clip.grey[line.frame][(rows.start + rows.stop) // 2]
    ground = np.concatenate([bar[: columns.start], bar[columns.stop :]])
    # Buttons may stand in the bar; the picture under the text of a plain caption is not of one colour.
    return len(ground) > 0 and float((np.abs(ground.astype(int) - int(np.median(ground))) <= 12).mean()) >= 0.8


def _imaging_margins(lines: Sequence[_Line], clip: _Clip) -> bool:
    """Whether staying text stands at the dark margins as imaging devices write it: settings, measures, patient."""
    staying = [line for line in lines if line.stays_always and line.box.height <= HUGE * clip.height]
    if not staying or clip.dark_share < 0.35 or len(clip.grey) < 2:
        return False
    margin = [
        line
        for line in staying
        if line.dark_ground
        and (not 0.2 < line.middle[0] / clip.width < 0.78 or not 0.12 < line.middle[1] / clip.height < 0.88)
    ]
    marks = {line.box.text for line in lines if line.dark_ground and _DEVICE.search(line.box.text)}
    columns = len({round(8 * line.middle[0] / clip.width) for line in margin})
    # Without a readable mark: text in small print on several sides of a dark picture.
    small = all(line.box.height <= 0.15 * clip.height for line in staying)
    return len(margin) >= 0.6 * len(staying) and (len(marks) >= 2 or (small and columns >= 3))


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    step = max(1, min(one.shape) // 64)  # letters of more than 64 px are as well compared at less
    one, other = np.ascontiguousarray(one[::step, ::step]), np.ascontiguousarray(other[::step, ::step])
    if one.std() < 1 or other.std() < 1:
        return False
    return float(cv2.matchTemplate(one, other, cv2.TM_CCOEFF_NORMED)[0, 0]) >= STAYS


def _runs(clip: _Clip, frame: int, place: tuple[slice, slice], ground_moves: float) -> tuple[bool, bool]:
    """Whether the pixels of a place stand elsewhere on a neighbouring frame, and whether their surroundings do too."""
    rows, columns = (slice(side.start // 2, side.stop // 2) for side in place)
    one = clip.half[frame]
    patch = one[rows, columns]
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
        up, down = min(tall, rows.start, top), min(tall, one.shape[0] - rows.stop, one.shape[0] - top - tall)
        back, on = min(tall, columns.start, left), min(tall, one.shape[1] - columns.stop, one.shape[1] - left - wide)
        ring = np.ones((tall + up + down, wide + back + on), bool)
        ring[up : up + tall, back : back + wide] = False
        here = one[rows.start - up : rows.stop + down, columns.start - back : columns.stop + on][ring]
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


def _letters(text: str) -> int:
    return sum(character.isalnum() for character in text)


def _words(text: str) -> int:
    spaced = sum(any(c.isalnum() for c in word) for word in _CJK.sub(" ", text).split())
    return math.ceil(len(_CJK.findall(text)) / 2) + spaced


def _together(lines: Sequence[_Line], kinds: Sequence[Kind]) -> tuple[TextLine, ...]:
    """One entry per text, kind and place (to a text height), in order of kind, then from top to bottom."""
    groups: dict[tuple[str, Kind, int, int], list[_Line]] = {}
    for line, kind in zip(lines, kinds, strict=True):
        step = max(line.box.height, 8)
        key = (line.box.text, kind, round(line.box.x / step), round(line.box.y / step))
        groups.setdefault(key, []).append(line)
    entries = [
        TextLine(text, kind, (g[0].box.x, g[0].box.y, g[0].box.width, g[0].box.height), len({line.frame for line in g}))
        for (text, kind, _, _), g in groups.items()
    ]
    order = {"overlay": 0, "imaging": 1, "scene": 2}
    return tuple(sorted(entries, key=lambda e: (order[e.kind], e.box[1], e.box[0], e.text)))
