"""How well borders and overlay text are told, method by method, on a folder of labelled videos.

FOLDER holds videos and a MANIFEST.csv with the columns file, has_black_border, has_subtitles_or_heavy_text (yes/no;
other values are left out), cut_times_s (seconds, separated by ";") and text_note (burned-in words in double quotes).
As in curation a video is judged in pieces: between cuts, at most 10 s long. A video has
heavy text when one piece has it, and a border when the same one stands on most of its pieces.
"""

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from bench.made_borders import made_clips
from bench.made_texts import made_texts
from bench.picture_pool import PARTS, load_pools
from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import evenly_spaced, pictures
from models.quality.overlay_text import OverlayText, count_words, judge_overlay
from models.quality.text_reader import TextBox, TextReader, load_text_reader
from models.segmentation.borders import detect_borders

PIECE_S = 10.0
BORDER_FRAMES, TEXT_FRAMES = 8, 5
MAX_WORDS = 20
"""More words over five frames are heavy text (the paper's limit)."""
MAX_SHARE = 0.15
"""A larger mean share of the frame under text is heavy text, whatever its words."""
MAX_IMAGING_WORDS = 100
"""More words of an imaging device over five frames are a menu, not a scale."""
SEED = 10
"""Of the made clips; thresholds were chosen with clips of other seeds in view."""
SAME_BORDER = 4
"""Pixels by which the border of one piece may differ from another's."""


@dataclass(frozen=True)
class Video:
    """A labelled video: frames of its pieces for borders and for text."""

    name: str
    border: str
    text: str
    words: list[str]
    border_frames: list[list[np.ndarray]]
    text_frames: list[list[np.ndarray]]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    question: str
    method: str
    true_positives: int
    wrong_yes: list[str]
    wrong_no: list[str]
    ms: float
    words_read: str = ""

    def markdown(self) -> str:
        """The line as Markdown."""
        precision = self.true_positives / max(self.true_positives + len(self.wrong_yes), 1)
        recall = self.true_positives / max(self.true_positives + len(self.wrong_no), 1)
        wrong = ", ".join([f"+{name}" for name in self.wrong_yes] + [f"−{name}" for name in self.wrong_no])
        cells = (self.question, self.method, f"{precision:.2f}", f"{recall:.2f}", self.words_read, f"{self.ms:.0f}")
        return "| " + " | ".join([*cells, wrong]) + " |"


HEAD = (
    "| question | method | precision | recall | burned-in words read | CPU ms a piece | wrong (+) and missed (−) |\n"
    "|---|---|---|---|---|---|---|"
)


def load_videos(folder: Path) -> list[Video]:
    """The labelled videos of a folder that can be decoded."""
    videos = []
    with (folder / "MANIFEST.csv").open(newline="") as stream:
        for label in csv.DictReader(stream):
            try:
                pieces = _pieces(folder / label["file"], label["cut_times_s"])
            except ItemFailed:
                continue
            words = [word for quoted in re.findall(r'"([^"]+)"', label["text_note"]) for word in _spoken(quoted)]
            frames = {
                count: [[piece[i] for i in evenly_spaced(len(piece), count)] for piece in pieces]
                for count in (BORDER_FRAMES, TEXT_FRAMES)
            }
            videos.append(
                Video(
                    label["file"],
                    label["has_black_border"],
                    label["has_subtitles_or_heavy_text"],
                    words,
                    frames[BORDER_FRAMES],
                    frames[TEXT_FRAMES],
                )
            )
    return videos


def _pieces(path: Path, cut_times: str) -> list[list[np.ndarray]]:
    """Up to 40 frames of each piece of a video."""
    times = [picture.time_s for picture in pictures(path, Limits())]
    cuts = [float(cut) for cut in cut_times.split(";") if re.fullmatch(r"\s*\d+(\.\d+)?\s*", cut)]
    starts, begun = [0], times[0]
    for i, moment in enumerate(times[1:], 1):
        if any(times[i - 1] - times[0] < cut - 1e-3 <= moment - times[0] for cut in cuts) or moment - begun >= PIECE_S:
            starts.append(i)
            begun = moment
    ends = [*starts[1:], len(times)]
    wanted: dict[int, int] = {}
    for piece, (start, end) in enumerate(zip(starts, ends, strict=True)):
        wanted |= {start + i: piece for i in evenly_spaced(end - start, 40)}
    frames: list[list[np.ndarray]] = [[] for _ in starts]
    for picture in pictures(path, Limits()):
        if picture.index in wanted:
            frames[wanted[picture.index]].append(picture.rgb())
    return frames


def _cpu_ms() -> float:
    """Processor time so far, of this process and those that it started (Tesseract is a program of its own)."""
    used = os.times()
    return 1000 * (used.user + used.system + used.children_user + used.children_system)


def border_rows(videos: Sequence[Video]) -> Iterator[Row]:
    """Ours beside the paper's idea."""
    methods: dict[str, Callable[[list[np.ndarray]], tuple[int, ...]]] = {
        "Canny + Hough lines (the paper's idea)": hough_borders,
        "constant margins (models/segmentation/borders.py)": _constant_margins,
    }
    for method, borders in methods.items():
        begun = _cpu_ms()
        answers = {video.name: _same_on_most([borders(piece) for piece in video.border_frames]) for video in videos}
        ms = (_cpu_ms() - begun) / sum(len(video.border_frames) for video in videos)
        yield _row("borders", method, answers, {video.name: video.border for video in videos}, ms)


def made_border_tables(folder: Path, count: int = 8) -> Iterator[str]:
    """Markdown: on clips made so that the borders are known, each part by its sources; and ours by kind, held out."""
    methods: dict[str, Callable[[list[np.ndarray]], tuple[int, ...]]] = {
        "Canny + Hough lines (the paper's idea)": hough_borders,
        "models/segmentation/borders.py": _constant_margins,
    }
    rows = ["| part | method | found | wrongly found | missed | precision | recall | of the found, within 4 px |"]
    rows.append("|---" * 8 + "|")
    kinds = ["| kind, held out | found | wrongly found | missed |", "|---|---|---|---|"]
    for seed, (part, pool) in enumerate(load_pools(folder).items()):
        clips = list(made_clips(pool, count, SEED + seed))
        for name, method in methods.items():
            found = [method(clip.frames) for clip in clips]
            tallies = {clip.kind: [0, 0, 0, 0] for clip in clips}
            for clip, widths in zip(clips, found, strict=True):
                one, there = tallies[clip.kind], any(clip.border)
                one[0] += there and any(widths)
                one[1] += any(widths) and not there
                one[2] += there and not any(widths)
                one[3] += there and max(abs(a - b) for a, b in zip(widths, clip.border, strict=True)) <= 4
            right, wrong, missed, exact = (sum(one[i] for one in tallies.values()) for i in range(4))
            precision, recall = right / max(1, right + wrong), right / max(1, right + missed)
            cells = (part, name, right, wrong, missed, f"{precision:.2f}", f"{recall:.2f}", exact)
            rows.append("| " + " | ".join(map(str, cells)) + " |")
            if part == PARTS[-1] and name == list(methods)[-1]:
                kinds += [f"| {kind} | {one[0]} | {one[1]} | {one[2]} |" for kind, one in tallies.items()]
    yield "\n".join(rows)
    yield "\n".join(kinds)


def made_text_table(folder: Path, fonts: Path, count: int = 1) -> str:
    """Markdown: which kinds of text drop a clip, on clips made for it, each part by its sources."""
    reader = load_text_reader("rapidocr")
    rows = [
        "| part | kind | made | dropped by words of overlays | dropped by more than 20 words (paper) |",
        "|---" * 5 + "|",
    ]
    for seed, (part, pool) in enumerate(load_pools(folder).items()):
        tallies: dict[tuple[str, bool], list[int]] = {}
        for clip in made_texts(pool, fonts, count, SEED + seed):
            boxes = reader.read(clip.frames)
            kind = clip.kind if clip.heavy else f"{clip.kind} (to be kept)"
            tally = tallies.setdefault((kind, clip.heavy), [0, 0, 0])
            tally[0] += 1
            tally[1] += is_heavy(judge_overlay(boxes, clip.frames))
            tally[2] += count_words(boxes) > MAX_WORDS
        rows += [f"| {part} | {kind} | {' | '.join(map(str, tally))} |" for (kind, _), tally in tallies.items()]
    return "\n".join(rows)


def _constant_margins(frames: list[np.ndarray]) -> tuple[int, ...]:
    borders = detect_borders(frames)
    return borders.left, borders.top, borders.right, borders.bottom


def hough_borders(frames: list[np.ndarray]) -> tuple[int, ...]:
    """Margins (left, top, right, bottom) beyond straight lines parallel to the sides, as the paper names it.

    It gives no parameters; here: Canny 50/150 on the mean frame, lines over 60 % of the side within the outer 30 %,
    and a margin that is black (mean below 32).
    """
    mean = np.mean([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames], axis=0).astype(np.uint8)
    height, width = mean.shape
    edges = cv2.Canny(mean, 50, 150)
    found = [0, 0, 0, 0]
    shortest = int(0.6 * min(height, width))
    lines = cv2.HoughLinesP(edges, 1, np.pi / 180, 100, minLineLength=shortest, maxLineGap=20)
    for x0, y0, x1, y1 in lines.reshape(-1, 4) if lines is not None else ():
        if abs(x1 - x0) <= 2 and abs(y1 - y0) >= 0.6 * height:
            for side, margin, strip in ((0, x0, mean[:, :x0]), (2, width - 1 - x0, mean[:, x0 + 1 :])):
                if 4 <= margin <= 0.3 * width and strip.mean() < 32:
                    found[side] = max(found[side], int(margin))
        elif abs(y1 - y0) <= 2 and abs(x1 - x0) >= 0.6 * width:
            for side, margin, strip in ((1, y0, mean[:y0]), (3, height - 1 - y0, mean[y0 + 1 :])):
                if 4 <= margin <= 0.3 * height and strip.mean() < 32:
                    found[side] = max(found[side], int(margin))
    return tuple(found)


def _same_on_most(borders: Sequence[tuple[int, ...]]) -> bool:
    """Whether one and the same border stands on more than half of the pieces: a dark or empty shot hides a side."""
    widths = np.array(borders)
    alike = [(np.abs(widths - one) <= SAME_BORDER).all(axis=1).sum() for one in widths if one.any()]
    return max(alike, default=0) * 2 > len(widths)


def text_rows(videos: Sequence[Video]) -> Iterator[Row]:
    """Both readers, with the paper's count and with the judgement."""
    for name in ("rapidocr", "tesseract"):
        reader: TextReader = load_text_reader(name)
        reader.read([np.zeros((360, 640, 3), np.uint8)])
        pieces = [(video, piece) for video in videos for piece in video.text_frames]
        begun = _cpu_ms()
        read = [reader.read(piece) for _, piece in pieces]
        reading = (_cpu_ms() - begun) / len(pieces)
        begun = _cpu_ms()
        judged = [judge_overlay(boxes, piece) for boxes, (_, piece) in zip(read, pieces, strict=True)]
        judging = (_cpu_ms() - begun) / len(pieces)
        plain, ours = {video.name: False for video in videos}, {video.name: False for video in videos}
        texts: dict[str, str] = {video.name: "" for video in videos}
        for (video, _), boxes, judgement in zip(pieces, read, judged, strict=True):
            plain[video.name] |= count_words(boxes) > MAX_WORDS
            ours[video.name] |= is_heavy(judgement)
            texts[video.name] += " ".join(_all_text(boxes)).lower()
        wanted = [(video.name, word) for video in videos for word in video.words]
        got = sum(word in texts[name] for name, word in wanted)
        share = f"{got} of {len(wanted)}"
        labels = {video.name: video.text for video in videos}
        yield _row("overlay text", f"{name}, more than 20 words (paper)", plain, labels, reading, share)
        yield _row("overlay text", f"{name}, words of overlays", ours, labels, reading + judging, share)


def is_heavy(judgement: OverlayText) -> bool:
    """Whether a piece has more text than may stay."""
    return (
        judgement.overlay_words > MAX_WORDS
        or judgement.overlay_share > MAX_SHARE
        or judgement.imaging_words > MAX_IMAGING_WORDS
    )


def _all_text(read: Sequence[Sequence[TextBox]]) -> list[str]:
    return [box.text for boxes in read for box in boxes]


def _spoken(quoted: str) -> list[str]:
    """Words of a line; of Chinese and Japanese, which have no spaces, every character."""
    cjk = re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]", quoted)
    return cjk or [re.sub(r"^\W+|\W+$", "", word).lower() for word in quoted.split()]


def _row(
    question: str, method: str, answers: dict[str, bool], labels: dict[str, str], ms: float, words_read: str = ""
) -> Row:
    known = {name: label == "yes" for name, label in labels.items() if label in ("yes", "no")}
    return Row(
        question,
        method,
        sum(answers[name] and known[name] for name in known),
        sorted(name for name in known if answers[name] and not known[name]),
        sorted(name for name in known if not answers[name] and known[name]),
        ms,
        words_read,
    )
