"""Pictures and moving scenes from which labelled sequences are made, parted by source for tuning and for reporting.

FOLDER of pictures: a MANIFEST.csv with file, repository, scene and made (empty for pictures as they were found).
"""

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import pictures

Part = Literal["tuning", "held out"]
PARTS: tuple[Part, ...] = ("tuning", "held out")
KINDS = {  # by words of the scene; the first that fits
    "endoscopy": r"endoscop|laparoscop|colonoscop|arthroscop|polyp",
    "screen": r"screenshot|software|window|dialog|terminal|dashboard|\bIDE\b|web app|app\b|viewer|tutorial screen",
    "page": r"textbook|diagram|plot|chart|ECG|graph|slide|handwriting|figure|document|table|icon|receipt|logo",
    "scan": r"\bCT\b|MRI|X-ray|ultrasound|echo|OCT|fundus|angiogra|histolog|microscop|H&E|tissue|blood|cell",
    "people": r"portrait|people|man\b|woman|team|child|pedestrian|worker|person|student|nurse|doctor|surgeon|patient",
}
LEAST_SIDE = 140  # pixels; smaller pictures are icons
WIDTH, HEIGHT = 256, 144  # of moving scenes, as shots are looked for
MOST_FRAMES = 250  # of a moving scene


@dataclass(frozen=True)
class Pool:
    """Pictures of one part by kind (those of `KINDS` and "photo"), and moving scenes, uint8 BGR (N, 144, 256, 3)."""

    by_kind: Mapping[str, Sequence[Path]]
    scenes: Sequence[np.ndarray] = field(default=())

    def picture(self, random: np.random.Generator, *kinds: str) -> np.ndarray:
        """One of these kinds, uint8 BGR."""
        paths = self.by_kind[kinds[int(random.integers(len(kinds)))]]
        return _read(paths[int(random.integers(len(paths)))])


def part_of(source: str) -> Part:
    """Which part a source, such as a repository, belongs to."""
    return PARTS[hashlib.sha256(source.encode()).digest()[0] % 2]


def load_pools(folder: Path, videos: Path | None = None) -> dict[Part, Pool]:
    """The pools of both parts; with `videos`, a folder of labelled videos, also moving scenes."""
    by_kind: dict[Part, dict[str, list[Path]]] = {part: {kind: [] for kind in (*KINDS, "photo")} for part in PARTS}
    with (folder / "MANIFEST.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            path = folder / row["file"]
            if row["made"] or not path.is_file():
                continue
            kind = next((kind for kind, words in KINDS.items() if re.search(words, row["scene"])), "photo")
            by_kind[part_of(row["repository"])][kind].append(path)
    scenes: dict[Part, list[np.ndarray]] = {part: [] for part in PARTS}
    for source, scene in _moving_scenes(videos) if videos else ():
        scenes[part_of(source)].append(scene)
    return {part: Pool(by_kind[part], scenes[part]) for part in PARTS}


def _moving_scenes(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(source, frames) of the videos of one shot."""
    with (folder / "MANIFEST.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row.get("n_hard_cuts") != "0" or "gradual" in row.get("cut_times_s", ""):
                continue
            frames = []
            try:
                for picture in pictures(folder / row["file"], Limits()):
                    frames.append(picture.frame.to_ndarray(format="bgr24", width=WIDTH, height=HEIGHT))
                    if len(frames) == MOST_FRAMES:
                        break
            except (ItemFailed, OSError):
                continue
            if len(frames) >= 50:
                yield row["source"], np.stack(frames)


@cache
def _read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{path} is no picture")
    return picture
