"""Ways to find copies, on copies made of labelled videos; a find between videos of different sources is wrong."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagehash
import numpy as np
from PIL import Image

from medgen.errors import ItemFailed
from medgen.media import Limits, pictures
from models.fingerprint import fingerprint
from models.near_duplicates import compare
from models.train_frame_head import read_manifest

STEP_S = 0.24  # as the pipeline samples a clip
LONGEST_S = 10.0
LEAST_S = 4.0
SIZE = (160, 90)
COLLAGE = 144  # pixels of a picture's side in a collage
BITS = 10  # of 64, by which hashes may differ: the default of the packages named

Grey = np.ndarray  # uint8 (T, 90, 160), a picture every STEP_S


@dataclass(frozen=True)
class Method:
    """A way to describe a clip and to say whether two descriptions are of the same."""

    name: str
    describe: Callable[[Grey], Any]
    same: Callable[[Any, Any], bool]


def table(folder: Path) -> Iterator[str]:
    """Markdown."""
    clips = _clips(folder)
    copies = {"smaller and compressed": _compressed, "cropped by 10 %": _cropped, "starts a second later": _later}
    made = {how: [make(grey) for _, grey in clips] for how, make in copies.items()}
    yield "| method | " + " | ".join(copies) + " | wrongly found | pairs of other sources | CPU ms a clip |"
    yield "|---" * (len(copies) + 4) + "|"
    for method in METHODS:
        started = time.process_time()
        known = [method.describe(grey) for _, grey in clips]
        cost = 1000 * (time.process_time() - started) / max(1, len(clips))
        cells = [
            f"{sum(method.same(method.describe(copy), one) for copy, one in zip(made[how], known, strict=True))}"
            f" of {len(clips)}"
            for how in copies
        ]
        others = [
            (one, two)
            for (one, two) in itertools.combinations(range(len(clips)), 2)
            if not clips[one][0] & clips[two][0]
        ]
        wrong = sum(method.same(known[one], known[two]) for one, two in others)
        yield f"| {method.name} | " + " | ".join(cells) + f" | {wrong} | {len(others)} | {cost:.1f} |"


def _clips(folder: Path) -> list[tuple[frozenset[str], Grey]]:
    """The sources and pictures of every labelled video that is long enough."""
    found = []
    for file in read_manifest(folder)[0]:
        grey: list[np.ndarray] = []
        try:
            for picture in pictures(folder / file.file, Limits()):
                if picture.time_s > LONGEST_S:
                    break
                if picture.time_s >= len(grey) * STEP_S:
                    grey.append(picture.frame.to_ndarray(format="gray", width=SIZE[0], height=SIZE[1]))
        except (ItemFailed, OSError):
            continue
        if len(grey) * STEP_S >= LEAST_S:
            found.append((file.sources, np.stack(grey)))
    return found


def _compressed(grey: Grey) -> Grey:
    """At 60 % of the size, brighter, JPEG of quality 40."""
    copies = []
    for frame in grey:
        small = cv2.convertScaleAbs(cv2.resize(frame, (96, 54), interpolation=cv2.INTER_AREA), alpha=1.1, beta=8)
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
        copies.append(cv2.resize(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), SIZE))
    return np.stack(copies)


def _cropped(grey: Grey) -> Grey:
    top, left = round(0.05 * SIZE[1]), round(0.05 * SIZE[0])
    return np.stack([cv2.resize(frame[top:-top, left:-left], SIZE) for frame in grey])


def _later(grey: Grey) -> Grey:
    return grey[round(1 / STEP_S) :]


def _collage(grey: Grey) -> imagehash.ImageHash:
    """Wavelet hash of a square collage of a picture a second, the idea of the package videohash."""
    shown = [cv2.resize(frame, (COLLAGE, COLLAGE)) for frame in grey[:: round(1 / STEP_S)]]
    side = int(np.ceil(np.sqrt(len(shown))))
    shown += [np.zeros((COLLAGE, COLLAGE), np.uint8)] * (side * side - len(shown))
    rows = [np.hstack(shown[row * side : (row + 1) * side]) for row in range(side)]
    return imagehash.whash(Image.fromarray(np.vstack(rows)))


def _hashes(grey: Grey) -> list[imagehash.ImageHash]:
    return [imagehash.phash(Image.fromarray(frame)) for frame in grey[:: round(1 / STEP_S)]]


def _alike(one: list[imagehash.ImageHash], two: list[imagehash.ImageHash]) -> bool:
    return float(np.median([a - b for a, b in zip(one, two, strict=False)])) <= BITS


METHODS = (
    Method("wavelet hash of a collage (videohash)", _collage, lambda one, two: one - two <= BITS),
    Method("imagehash's pHash a second, median distance", _hashes, _alike),
    Method(
        "course of the cells, aligned in time (models/near_duplicates.py)",
        lambda grey: fingerprint(grey, STEP_S),
        lambda one, two: compare(one, two) is not None,
    ),
)
