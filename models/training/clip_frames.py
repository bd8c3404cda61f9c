"""Frames of a clip as a video model takes them: so many, at such a rate and size, from the middle of the clip."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import Picture, pictures

EPSILON_S = 1e-6  # times are sums of floats


@dataclass(frozen=True)
class Geometry:
    """Frames, height and width in pixels of what a model takes."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    def lasts(self, fps: float) -> float:
        """Seconds between the first and the last frame."""
        return (self.frames - 1) / fps


def read_geometries(text: str) -> tuple[Geometry, ...]:
    """The geometries of "17x64x96,9x64x96": frames x height x width, by commas.

    Raises:
        ValueError: the text is no such thing.
    """
    geometries = []
    for part in text.split(","):
        numbers = part.strip().lower().split("x")
        if len(numbers) != 3 or not all(n.isdecimal() and 0 < int(n) < 10_000 for n in numbers):
            raise ValueError(f"geometries are FRAMESxHEIGHTxWIDTH, by commas, such as 81x480x832; not {part!r}")
        geometries.append(Geometry(*map(int, numbers)))
    return tuple(geometries)


def best_fit(choices: Sequence[Geometry], fps: float, *, duration_s: float, width: int, height: int) -> Geometry | None:
    """The geometry that a clip goes to; None when the clip is too short for all.

    Of those that the clip lasts long enough for: the nearest aspect ratio, then one that needs no enlarging, then the
    most frames, then the most pixels.
    """
    long_enough = [g for g in choices if g.lasts(fps) <= duration_s + EPSILON_S]
    if not long_enough:
        return None
    return min(
        long_enough,
        key=lambda g: (
            round(abs(math.log(width * g.height / (height * g.width))), 2),
            g.height > height or g.width > width,
            -g.frames,
            -g.height * g.width,
            str(g),
        ),
    )


def window_starts(duration_s: float, lasts_s: float, most: int) -> list[float]:
    """Where windows of a clip begin, seconds: evenly spread, each at least half a window after the one before.

    One is the middle of the clip.
    """
    spare = max(0.0, duration_s - lasts_s)
    count = min(most, 1 + int((spare + EPSILON_S) / (lasts_s / 2))) if lasts_s > 0 else 1
    return [spare / 2] if count == 1 else [spare * n / (count - 1) for n in range(count)]


def read_frames(
    path: Path, geometry: Geometry, fps: float, duration_s: float, start_s: float | None = None
) -> np.ndarray:
    """uint8 RGB (F, H, W, 3): the middle of a clip, or what follows `start_s`, at `fps` frames a second.

    Each frame is the one shown nearest to its time, the earlier of two as near; the middle of the picture is cut to
    the aspect ratio and resized, by the mean over areas where it gets smaller. The file is read once and only what is
    wanted is held.

    Args:
        duration_s: what the clip is said to last, seconds.

    Raises:
        ItemFailed: as `medgen.video.pictures.pictures`; clip_too_short when it ends before the frames do.
    """
    start = max(0.0, (duration_s - geometry.lasts(fps)) / 2) if start_s is None else start_s
    times = [start + index / fps for index in range(geometry.frames)]
    chosen: list[np.ndarray] = []
    first = last = None
    before: _Candidate | None = None
    for picture in pictures(path, Limits()):
        first = picture.time_s if first is None else first
        here = _Candidate(picture, picture.time_s - first, geometry)
        while len(chosen) < len(times) and times[len(chosen)] <= here.time_s:
            wanted = times[len(chosen)]
            nearer = before if before and wanted - before.time_s <= here.time_s - wanted + EPSILON_S else here
            chosen.append(nearer.pixels())
        before, last = here, here.time_s
    while before and len(chosen) < len(times) and times[len(chosen)] <= before.time_s + 1 / fps + EPSILON_S:
        chosen.append(before.pixels())
    if len(chosen) < geometry.frames:
        raise ItemFailed(
            "clip_too_short",
            f"the clip ends at {last or 0.0:.2f} s, {geometry.frames} frames at {fps:g} a second from {start:.2f} s on "
            f"need {geometry.lasts(fps):.2f} s",
        )
    return np.stack(chosen)


class _Candidate:
    """A picture that may be wanted; cropped and resized at most once."""

    def __init__(self, picture: Picture, time_s: float, geometry: Geometry) -> None:
        self.picture, self.time_s, self.geometry = picture, time_s, geometry
        self.made: np.ndarray | None = None

    def pixels(self) -> np.ndarray:
        if self.made is None:
            self.made = fitted(self.picture.rgb(), self.geometry.height, self.geometry.width)
        return self.made


def fitted(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): the middle of a frame (H, W, 3), cut to the aspect ratio and resized."""
    tall, wide = frame.shape[:2]
    cut_wide = min(wide, max(1, round(tall * width / height)))
    cut_tall = min(tall, max(1, round(wide * height / width)))
    y, x = (tall - cut_tall) // 2, (wide - cut_wide) // 2
    cut = frame[y : y + cut_tall, x : x + cut_wide]
    shrinks = height <= cut_tall and width <= cut_wide
    return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
