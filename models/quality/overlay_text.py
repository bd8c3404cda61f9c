"""Is the text on a clip's frames laid over the picture, part of the scene, or the imaging device's own?

The paper counts every word on five frames. That drops clips for a monitor, a shirt or a keyboard in the scene. Here
each text line is judged by what sets an overlay apart: it is drawn, not filmed (level baseline, edges of one pixel or
two), and it stands still on its own: its pixels stay while the picture moves, or its band stays while its words
change (subtitles) or run through (tickers, credits).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medgen.canonical import digest_of, rounded
from models.quality.text_lines import (
    HELD,
    HELD_AROUND,
    HUGE,
    LEAST_CONFIDENCE,
    LEAST_CONTRAST,
    LEAST_DETECTION,
    LEAST_SHARPNESS,
    MOST_TILT,
    MOVED,
    MOVING_PICTURE,
    PASSES_BEHIND,
    STAYS,
    STILL_GROUND,
    SURE_READING,
    WORD_UNREAD,
    WORD_UNSURE,
    ClipFrames,
    MeasuredLine,
    measure_line,
    word_count,
)
from models.quality.text_reader import TextBox

Kind = Literal["overlay", "imaging", "scene"]
TITLE = 0.12
"""Least height of a title's letters, share of the frame's."""
ALIKE_HEIGHTS = 0.75
"""Least ratio of the heights of two lines of one font."""
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
        SURE_READING,
        WORD_UNREAD,
        WORD_UNSURE,
        HELD,
        HELD_AROUND,
        PASSES_BEHIND,
        TITLE,
    )
    return digest_of({"name": "overlay rules", "version": 3, "thresholds": thresholds, "device": _DEVICE.pattern})


def count_words(frames_boxes: Iterable[Iterable[TextBox]]) -> int:
    """Total number of words over all frames given, as the paper counts them (it drops more than 20 over 5).

    A word is a run of characters between spaces with at least one letter or digit. Chinese and Japanese are
    written without spaces: there every two characters, rounded up per box, count as a word, which is about
    the mean length of a Chinese word. A word that stands on several frames counts on each. Boxes with less
    confidence than LEAST_CONFIDENCE are left out.
    """
    return sum(word_count(box.text) for boxes in frames_boxes for box in boxes if box.confidence >= LEAST_CONFIDENCE)


def judge_overlay(frames_boxes: Sequence[Sequence[TextBox]], frames: Sequence[np.ndarray]) -> OverlayText:
    """Judges which text is overlay, which the imaging device's and which in the scene.

    Args:
        frames_boxes: what a reader found on each frame.
        frames: those frames, uint8 RGB (H, W, 3) of one shape, spread over one shot in order of time. With fewer
            than two frames nothing is known of staying, and only drawn lines of two words and more are overlay.

    Returns:
        The judgement. A level, sharp line that could not be read (its script is none of the reader's) counts with
        one word per 1.6 of its heights, an estimate.

    Raises:
        ValueError: as many lists as frames are needed, and frames of one shape.
    """
    if len(frames_boxes) != len(frames) or len({frame.shape for frame in frames}) > 1:
        raise ValueError("one list of boxes per frame, and frames of one shape, are needed")
    if not len(frames):
        return OverlayText(0, 0, 0, 0, 0.0, ())
    clip = ClipFrames(frames)
    measured = [measure_line(clip, i, box) for i, boxes in enumerate(frames_boxes) for box in boxes]
    lines = [line for line in measured if line is not None]
    kinds: list[Kind] = ["overlay" if _is_overlay(line, lines, clip) else "scene" for line in lines]
    margins = _imaging_margins(lines, clip)
    for i, line in enumerate(lines):
        device = (line.stays_always and not _is_subtitle(line, clip)) or _DEVICE.search(line.box.text)
        if _is_readout(line, lines) or (margins and device):
            kinds[i] = "imaging"
        elif _is_window_title(line, clip):
            kinds[i] = "scene"
    counts = dict.fromkeys(("overlay", "imaging", "scene"), 0)
    covered = np.zeros((len(frames), *clip.grey[0].shape), bool)
    for line, kind in zip(lines, kinds, strict=True):
        # Devices write Latin letters and figures: their words are those that were read, blurred as they may be.
        counts[kind] += (kind == "imaging" and word_count(line.box.text)) or line.words
        if kind == "overlay":
            covered[line.frame][line.place] = True
    share = rounded(float(covered.mean()))
    return OverlayText(
        words=count_words(frames_boxes),
        overlay_words=counts["overlay"],
        imaging_words=counts["imaging"],
        scene_words=counts["scene"],
        overlay_share=share,
        lines=_together(lines, kinds),
    )


def _is_overlay(line: MeasuredLine, lines: Sequence[MeasuredLine], clip: ClipFrames) -> bool:
    """Whether the line is laid over the picture (or drawn on the slide, diagram or page that is the picture)."""
    if line.carried:
        return False
    if line.stays >= 2 and line.ground_moves >= 0.3 and abs(line.box.angle) <= MOST_TILT * 4:
        return True  # whatever its edges: it stands still where the picture around it moves
    if line.held and clip.moves and _letters(line.box.text) >= 2:
        return True  # large or translucent letters, through which the moving picture shows
    if line.stays >= 2 and line.ground_moves >= PASSES_BEHIND and _is_title(line, clip):
        return True
    if not line.drawn:
        return False
    if line.box.height > HUGE * clip.height or (line.words >= 2 and (line.stays or line.runs)):
        return True
    if line.stays:
        # A single word or number: a label, where the picture moves and labels come in company.
        company = sum(other.drawn and other.stays > 0 for other in lines if other.frame == line.frame)
        return clip.moves and company >= 2 and _letters(line.box.text) >= 2
    return line.words >= 3 or (line.words >= 2 and (_is_subtitle(line, clip) or _has_band(line, lines)))


def _is_title(line: MeasuredLine, clip: ClipFrames) -> bool:
    """Whether the line is read for sure and large, whatever its letters look like."""
    return line.box.height >= TITLE * clip.height and line.box.confidence >= 0.9 and _letters(line.box.text) >= 2


def _is_subtitle(line: MeasuredLine, clip: ClipFrames) -> bool:
    """Whether the line stands where subtitles do: centred, in the lower third but not at the very edge."""
    across, down = line.middle
    centred = abs(across / clip.width - 0.5) < 0.08
    return line.words >= 3 and centred and 0.65 < down / clip.height < 0.95


def _has_band(line: MeasuredLine, lines: Sequence[MeasuredLine]) -> bool:
    """Whether drawn text of the same height stands at the same level on another frame."""
    return any(
        other.frame != line.frame
        and other.drawn
        and abs(other.middle[1] - line.middle[1]) <= 0.3 * line.box.height
        and min(other.box.height, line.box.height) >= ALIKE_HEIGHTS * max(other.box.height, line.box.height)
        for other in lines
    )


def _is_readout(line: MeasuredLine, lines: Sequence[MeasuredLine]) -> bool:
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


def _is_window_title(line: MeasuredLine, clip: ClipFrames) -> bool:
    """Whether the line is the title of the window of a recorded screen: one small line in a plain bar along the top."""
    rows, columns = line.place
    if rows.start > 0.015 * clip.height or line.box.height > 0.05 * clip.height:
        return False
    bar = clip.grey[line.frame][(rows.start + rows.stop) // 2]
    ground = np.concatenate([bar[: columns.start], bar[columns.stop :]])
    # Buttons may stand in the bar; the picture under the text of a plain caption is not of one colour.
    return len(ground) > 0 and float((np.abs(ground.astype(int) - int(np.median(ground))) <= 12).mean()) >= 0.8


def _imaging_margins(lines: Sequence[MeasuredLine], clip: ClipFrames) -> bool:
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


def _letters(text: str) -> int:
    return sum(character.isalnum() for character in text)


def _together(lines: Sequence[MeasuredLine], kinds: Sequence[Kind]) -> tuple[TextLine, ...]:
    """One entry per text, kind and place (to a text height), in order of kind, then from top to bottom."""
    groups: dict[tuple[str, Kind, int, int], list[MeasuredLine]] = {}
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
