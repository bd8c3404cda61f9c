"""What the judgements of the pipeline say of a file as a whole. Nothing is written to the catalog or the store.

The very functions of the steps are used. Unlike in the pipeline all of a file is judged, in pieces of one shot and at
most 10 s: it has overlay text, or is spoilt, where one piece is, and a border when the same one stands for most of it.
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import ConfigDict

from medgen.canonical import rounded
from medgen.video.container import open_video
from medgen.video.limits import Limits
from medgen.video.pictures import VideoReader, decode_jpeg, evenly_spaced, pictures
from medgen.video.probe import probe
from models.segmentation.borders import Borders, detect_borders
from models.segmentation.heads import NON_MEDICAL
from tasks.curation.classify import ClassifyParams, loaded_model
from tasks.curation.decide import DecideParams, Facts, checks
from tasks.curation.quality import QualityAnalyzer, QualityParams, TextFacts
from tasks.curation.segment import DecodedVideo, SegmentParams, decode_video

PIECE_S = 10.0  # no longer than a clip
MOST_PIECES = 40  # of a long video, evenly spread
BORDER_FRAMES = 8
SAME_BORDER = 8  # pixels by which a border may differ from piece to piece
TOLD = 50  # lines of text
MOTION_FRAMES = 6  # fewer say nothing of motion
STILL = {"still_picture", "frozen"}
# Checks of decide that say: this picture was spoilt.
SPOILT = {"poor_technical_quality", "poor_aesthetic", "mediocre", "blurred", "noisy", "blocky"}


class JudgeParameters(DecideParams, QualityParams, ClassifyParams, SegmentParams):
    """Parameters of all steps that judge."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Verdict:
    """What was compared in one file.

    Args:
        problem, message: why it can't be used (a machine-readable reason, and words); "" when it can.
        boundaries: (time in seconds, "cut" or "gradual").
        medical: probability, 0..1; `is_medical` is its comparison with the threshold.
        border: none, letterbox, pillarbox or window.
        words, overlay_words: over five frames.
        reasons: the checks of decide that fail, other than those on the picture's size.
        seconds: processor time by step.
    """

    file: str
    problem: str = ""
    message: str = ""
    duration_s: float = 0.0
    boundaries: tuple[tuple[float, str], ...] = ()
    medical: float = 0.0
    is_medical: bool = False
    category: str = ""
    border: str = "none"
    content_mask: str = "none"
    words: int = 0
    overlay_words: int = 0
    reasons: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    text: tuple[Mapping[str, Any], ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_overlay_text(self) -> bool:
        """Whether decide would drop it for overlay text."""
        return "overlay_text" in self.reasons

    @property
    def is_degraded(self) -> bool:
        """Whether decide would drop it for the quality of its picture."""
        return bool(SPOILT.intersection(self.reasons))

    def facts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


def measure_file(path: Path, parameters: JudgeParameters) -> Verdict:
    """All judgements on one video.

    Raises:
        ItemFailed: it can't be decoded, or too little of it.
        FileNotFoundError: no such file.
    """
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    facts = probe(path, parameters.limits)
    with clock("segment"):
        frames: list[np.ndarray] = []
        with open_video(path, parameters.limits) as video:
            reader = VideoReader(video, parameters.limits)
            decoded = decode_video(
                reader, facts.fps, parameters, lambda frame, time_s, jpeg: frames.append(decode_jpeg(jpeg))
            )
    with clock("classify"):
        model = loaded_model(parameters)
        probabilities = model.probabilities(model.features(frames))
        mean = probabilities.mean(axis=0)
        other = model.classes.index(NON_MEDICAL)
        medical = rounded(float(1.0 - mean[other]))
        category = model.classes[int(np.where(np.arange(len(mean)) == other, -1.0, mean).argmax())]
    spans = _pieces(decoded)
    borders: list[tuple[int, Borders]] = []
    scores: dict[str, float] = {}
    failed: list[str] = []
    stills, long_enough = 0, 0
    text: list[TextFacts] = []
    for length, few, analyzer in _gathered(path, spans, facts.fps, parameters):
        with clock("borders"):
            borders.append((length, detect_borders(few)))
        with clock("quality"):
            measured = analyzer.measured()
        compared = checks(measured.scores, Facts.of(measured.detail, border="none", cropped=False), parameters)
        failed += [check.reason for check in compared if not check.passed and check.reason != "resolution_too_low"]
        of_stretch = cast(Mapping[str, float], measured.scores)
        scores = {name: max(value, scores.get(name, value)) for name, value in of_stretch.items()}
        text += measured.detail["text"]
        if length >= MOTION_FRAMES:
            long_enough += 1
            stills += bool(STILL.intersection(check.reason for check in compared if not check.passed))
    if stills < long_enough or not long_enough:  # a video with one held picture among moving ones is no still picture
        failed = [reason for reason in failed if reason not in STILL]
    border, mask = _prevailing(borders)
    return Verdict(
        file=path.name,
        duration_s=facts.duration_s,
        boundaries=tuple((rounded(decoded.times[b.frame]), b.kind) for b in decoded.boundaries),
        medical=medical,
        is_medical=medical >= parameters.medical_threshold,
        category=category,
        border=border,
        content_mask=mask,
        words=int(scores["words"]),
        overlay_words=int(scores["overlay_words"]),
        reasons=tuple(dict.fromkeys(failed)),
        scores=scores,
        text=tuple(text[:TOLD]),
        seconds={name: rounded(spent, 2) for name, spent in seconds.items()},
    )


def _pieces(decoded: DecodedVideo) -> list[tuple[int, int]]:
    """Frames [start, end) of stretches of one shot that are no longer than a clip, as the pipeline would cut them."""
    times = decoded.times
    starts = {0, *(b.end if b.end > b.start else b.frame for b in decoded.boundaries)}
    starts |= {frame for frame, _ in decoded.breaks}
    spans = []
    for start, end in itertools.pairwise(sorted(starts | {len(times)})):
        length = times[end - 1] - times[start]
        parts = max(1, math.ceil(length / PIECE_S))
        edges = np.linspace(start, end, parts + 1).round().astype(int)
        spans += [(int(a), int(b)) for a, b in itertools.pairwise(edges) if b > a]
    if len(spans) > MOST_PIECES:
        spans = [spans[i] for i in np.linspace(0, len(spans) - 1, MOST_PIECES).round().astype(int)]
    return spans


def _gathered(
    path: Path, spans: Sequence[tuple[int, int]], fps: float, parameters: JudgeParameters
) -> Iterator[tuple[int, list[np.ndarray], QualityAnalyzer]]:
    """Of each piece its number of frames, the frames for borders, and the analyzer that has decoded its pictures."""
    waiting = list(spans)
    few: list[np.ndarray] = []
    analyzer: QualityAnalyzer | None = None
    for picture in pictures(path, Limits(max_pixels=parameters.max_pixels, max_duration_s=parameters.max_duration_s)):
        if not waiting:
            return
        start, end = waiting[0]
        if picture.index < start:
            continue
        analyzer = analyzer or QualityAnalyzer(end - start, fps, parameters)
        if picture.index - start in evenly_spaced(end - start, BORDER_FRAMES):
            few.append(picture.rgb(parameters.sample_long_side))
        analyzer.process_frame(picture.index - start, picture)
        if picture.index == end - 1:
            yield end - start, few, analyzer
            few, analyzer = [], None
            waiting.pop(0)


def _prevailing(borders: Sequence[tuple[int, Borders]]) -> tuple[str, str]:
    """The border that stands for most of the time, and the content mask that does."""
    total = sum(length for length, _ in borders)
    kinds: Counter[tuple[Any, ...]] = Counter()
    masks: Counter[str] = Counter()
    for length, border in borders:
        sides = tuple(round(side / SAME_BORDER) for side in (border.left, border.top, border.right, border.bottom))
        kinds[(border.kind, sides)] += length
        masks[border.content_mask] += length
    ((kind, _), longest) = kinds.most_common(1)[0]
    mask, masked = masks.most_common(1)[0]
    return (kind if 2 * longest > total else "none"), (mask if 2 * masked > total else "none")


class _Clock:
    """Adds up processor time by name."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def __call__(self, name: str) -> "_Clock":
        self.name = name
        return self

    def __enter__(self) -> None:
        self.started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.process_time() - self.started
