"""What each quality measure says of a folder of labelled videos: a table in docs/judgement.md.

FOLDER holds videos and a MANIFEST.csv with the columns file, kind and quality_note. A video counts as good unless its
note names a defect of `BAD`; each measure must tell the videos with its own defect from all good ones. Defects that no
sample has are made from the good ones' frames, which is said in the table.
"""

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import evenly_spaced, pictures
from models.quality import defects
from models.quality.aesthetic import load_aesthetic
from models.quality.motion import PHOTO_UNEXPLAINED_TO, STILL_BELOW, measure_motion
from models.quality.pyiqa_metric import FrameMetric
from models.quality.technical import load_technical

FRAMES = 5
SMALL_WIDTH = 160
MOTION_FPS = 4.0
MAX_SECONDS = 30.0
# Words of the manifest's quality_note that make a video bad, and the measures that are asked to see it.
BAD = {
    "static": {"moving_fraction", "freeze_share"},
    "blurry, noisy, blocky": {"sharpness", "noise", "blockiness"},
    "interlaced, blocky": {"combing", "blockiness"},
}


@dataclass
class Measured:
    """The values of one video (or of one made from it), and the time that each group of measures took."""

    file: str
    note: str
    values: dict[str, float]
    ms: dict[str, float]
    sharp: list[np.ndarray] = field(repr=False)
    small: np.ndarray = field(repr=False)
    fps: float


@dataclass(frozen=True)
class Row:
    """One line of the table: a measure, the side on which it is bad, its default and how to make it bad."""

    measure: str
    catches: str
    bad_when: str
    default: float
    group: str
    made: Callable[[Measured], float] | None = None
    made_how: str = ""


def table(folder: Path) -> str:
    """The markdown table for the videos in `folder`.

    Raises:
        FileNotFoundError: the folder has no MANIFEST.csv.
    """
    with (folder / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cv2.setNumThreads(1)
    judges = {
        "piqe": load_technical("piqe"),
        "niqe": load_technical("niqe"),
        "entropy": load_aesthetic("entropy"),
    }
    videos = []
    for row in rows:
        try:
            video = measured(folder / row["file"], row["quality_note"], judges)
        except (ItemFailed, FileNotFoundError):
            continue
        if len(video.small) > 1:
            videos.append(video)
    return _markdown(videos)


def measured(path: Path, note: str, judges: Mapping[str, FrameMetric]) -> Measured:
    """Decodes one video (30 s at most) and takes all measures."""
    small, times = [], []
    for picture in pictures(path, Limits()):
        if picture.time_s > MAX_SECONDS:
            break
        height = max(16, round(picture.frame.height * SMALL_WIDTH / picture.frame.width))
        small.append(picture.frame.to_ndarray(format="gray", width=SMALL_WIDTH, height=height))
        times.append(picture.time_s)
    wanted, sharp = set(evenly_spaced(len(small), FRAMES)), []
    for picture in pictures(path, Limits()):
        if picture.index in wanted:
            sharp.append(picture.rgb())
        if picture.index >= max(wanted):
            break
    span = times[-1] - times[0]
    fps = (len(times) - 1) / span if span > 0 else MOTION_FPS
    video = Measured(path.name, note, {}, {}, sharp, np.stack(small), fps)
    for name, judge in judges.items():
        start = time.perf_counter()
        video.values[name] = float(np.mean(judge.scores(sharp)))
        video.ms[name] = (time.perf_counter() - start) * 1000
    start = time.perf_counter()
    video.values |= vars(defects.measure_defects(sharp, video.small, fps))
    video.ms["defects"] = (time.perf_counter() - start) * 1000
    start = time.perf_counter()
    video.values |= vars(measure_motion(video.small[:: max(1, round(fps / MOTION_FPS))]))
    video.ms["motion"] = (time.perf_counter() - start) * 1000
    return video


def _changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Measured], float]:
    """The measure of a video whose full-size frames were changed."""

    def made(video: Measured) -> float:
        frames = [change(frame) for frame in video.sharp]
        value: float = getattr(defects.measure_defects(frames, video.small, video.fps), name)
        return value

    return made


def _blurred(frame: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(frame, (0, 0), min(frame.shape[:2]) / 80)


def _noisy(frame: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 40, frame.shape)
    return np.clip(frame + noise, 0, 255).astype(np.uint8)


def _blocky(frame: np.ndarray) -> np.ndarray:
    decoded = cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 5])[1], cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


def _woven(frame: np.ndarray) -> np.ndarray:
    picture = frame.copy()
    picture[1::2] = np.roll(frame, max(4, frame.shape[1] // 100), axis=1)[1::2]
    return picture


def _flashing(video: Measured) -> float:
    dimmed = video.small.copy()
    dimmed[1::3] = (dimmed[1::3] * 0.6).astype(np.uint8)
    return defects.measure_defects(video.sharp, dimmed, video.fps).flashes_per_s


def _frozen(video: Measured) -> float:
    held = np.repeat(video.small[:1], max(2, round(6 * video.fps)), axis=0)
    return defects.measure_defects(video.sharp, held, video.fps).freeze_share


def _blackened(video: Measured) -> float:
    return defects.measure_defects(video.sharp, (video.small * 0.06).astype(np.uint8), video.fps).black_share


def _photograph(video: Measured) -> float:
    """An even pan over the middle frame in 6 s."""
    frame = cv2.cvtColor(video.sharp[len(video.sharp) // 2], cv2.COLOR_RGB2GRAY)
    height, width = frame.shape
    size = (SMALL_WIDTH, max(16, round(height * SMALL_WIDTH / width)))
    views = []
    for part in np.linspace(0, 1, 25):
        x = width * (0.4 + 0.2 * part)
        view = np.array([[1.35, 0, width / 2 - 1.35 * x], [0, 1.35, -0.175 * height]], np.float32)
        views.append(cv2.resize(cv2.warpAffine(frame, view, (width, height)), size, interpolation=cv2.INTER_AREA))
    return measure_motion(np.stack(views)).unexplained_change


ROWS = (
    Row("moving_fraction", "pictures held still", "below", STILL_BELOW, "motion"),
    Row("unexplained_change", "pans over a photograph", "at most", PHOTO_UNEXPLAINED_TO, "motion", _photograph, "pan"),
    Row("freeze_share", "freezes of 2 s and more", "above", defects.MAX_FREEZE_SHARE, "defects", _frozen, "held"),
    Row("black_share", "black pictures", "above", defects.MAX_BLACK_SHARE, "defects", _blackened, "6 % of brightness"),
    Row("flashes_per_s", "flicker", "above", defects.MAX_FLASHES_PER_S, "defects", _flashing, "every third at 60 %"),
    Row("combing", "interlacing", "above", defects.MAX_COMBING, "defects", _changed("combing", _woven), "woven by 1 %"),
    Row(
        "blockiness",
        "8x8 blocks",
        "above",
        defects.MAX_BLOCKINESS,
        "defects",
        _changed("blockiness", _blocky),
        "JPEG at 5",
    ),
    Row("noise", "noise", "above", defects.MAX_NOISE, "defects", _changed("noise", _noisy), "noise of 40 a channel"),
    Row(
        "sharpness",
        "blur",
        "below",
        defects.MIN_SHARPNESS,
        "defects",
        _changed("sharpness", _blurred),
        "Gauss of 1/80 of the short side",
    ),
    Row("piqe", "structureless pictures", "above", 95.0, "piqe"),
    Row("niqe", "nothing reliably (see the overlap)", "above", float("inf"), "niqe"),
    Row("entropy", "empty pictures", "below", 0.5, "entropy"),
)


def _markdown(videos: list[Measured]) -> str:
    lines = [
        "| measure | catches | good videos: 5 %, median, 95 %, and the nearest to the limit | labelled bad | "
        "made bad: caught | default: drop when | good ones dropped | ms per video |",
        "|---|---|---|---|---|---|---|---|",
    ]
    good = [video for video in videos if not any(word in video.note for word in BAD)]
    for row in ROWS:
        values = {video.file: video.values[row.measure] for video in good}
        nearest = _nearest(row, values)
        spread = " ".join(f"{value:.4g}" for value in np.percentile(list(values.values()), (5, 50, 95)))
        labelled = [
            f"{video.values[row.measure]:.4g} ({video.file})"
            for video in videos
            for word, measures in BAD.items()
            if word in video.note and (row.measure in measures or row.group in ("piqe", "niqe"))
        ]
        made = ""
        if row.made is not None:
            answers = [row.made(video) for video in good]
            caught = sum(_bad(row, answer) for answer in answers)
            made = f"{caught} of {len(answers)} ({row.made_how}; median {np.median(answers):.4g})"
        dropped = [file for file, value in values.items() if _bad(row, value)]
        limit = "not used" if np.isinf(row.default) else f"{row.bad_when} {row.default:g}"
        cost = np.median([video.ms[row.group] for video in videos])
        lines.append(
            f"| {row.measure} | {row.catches} | {spread}; {values[nearest]:.4g} ({nearest}) | "
            f"{'; '.join(labelled) or '-'} | {made or '-'} | {limit} | {', '.join(dropped) or 'none'} | {cost:.0f} |"
        )
    shared = "Measures of the same group (motion; defects) share one time: it is for all of them."
    return "\n".join([*lines, "", f"{len(videos)} videos, {len(good)} of them good. {shared}"])


def _nearest(row: Row, values: Mapping[str, float]) -> str:
    """The file whose value is nearest to the measure's limit, or farthest beyond it."""
    sign = -1 if row.bad_when in ("below", "at most") else 1
    return max(values, key=lambda file: sign * values[file])


def _bad(row: Row, value: float) -> bool:
    if row.bad_when == "below":
        return value < row.default
    return value <= row.default if row.bad_when == "at most" else value > row.default
