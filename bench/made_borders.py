"""Clips with and without borders, of the kinds that are mistaken: bars of any colour over pictures of any brightness,
sides filled with a blurred copy; plots, pages, scans on black, scopes, pictures with soft sides."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from bench.picture_pool import Pool

Random = np.random.Generator
WIDTH, HEIGHT, FRAMES = 640, 360, 8


@dataclass(frozen=True)
class MadeClip:
    """Frames uint8 RGB (360, 640, 3), and the widths of the border (left, top, right, bottom), pixels; all 0: none."""

    kind: str
    frames: list[np.ndarray]
    border: tuple[int, int, int, int] = (0, 0, 0, 0)


def made_clips(pool: Pool, count: int, seed: int) -> Iterator[MadeClip]:
    """So many clips of each kind; the same for the same pool and seed."""
    for kind, make in KINDS.items():
        for number in range(count):
            random = np.random.default_rng([seed, sum(kind.encode()), number])
            frames, border = make(pool, random)
            quality = int(random.integers(55, 90))
            yield MadeClip(kind, [_compressed(frame, quality) for frame in frames], border)


Made = tuple[list[np.ndarray], tuple[int, int, int, int]]
NO_BORDER = (0, 0, 0, 0)


def _compressed(frame: np.ndarray, quality: int) -> np.ndarray:
    coded = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def moved(picture: np.ndarray, size: tuple[int, int], random: Random, drift: float = 12.0) -> list[np.ndarray]:
    """The picture at this size (width, height), under a camera that drifts; with its noise."""
    wide, high = size
    scale = max(wide / picture.shape[1], high / picture.shape[0]) * 1.12
    large = cv2.resize(picture, (round(picture.shape[1] * scale) + 1, round(picture.shape[0] * scale) + 1))
    reach = np.array([large.shape[1] - wide, large.shape[0] - high])
    way = reach / 2 + np.cumsum(random.normal(0, drift / 3, (FRAMES, 2)), axis=0)
    frames = []
    for x, y in np.clip(way, 0, reach).astype(int):
        frame = large[y : y + high, x : x + wide] + random.normal(0, 2, (high, wide, 1))
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return frames


def _sides(random: Random) -> tuple[int, int, int, int]:
    """Bars as players and editors make them."""
    shape = random.choice(["letterbox", "pillarbox", "window", "one side"])
    across, along = int(WIDTH * random.uniform(0.05, 0.33)), int(HEIGHT * random.uniform(0.05, 0.3))
    if shape == "letterbox":
        return 0, along, 0, along
    if shape == "pillarbox":
        return across, 0, across, 0
    if shape == "window":
        return (
            across // 2,
            along // 2,
            across // 2 + int(random.integers(0, 30)),
            along // 2 + int(random.integers(0, 30)),
        )
    return (across, 0, 0, 0) if random.random() < 0.5 else (0, 0, 0, along)


def _inside(pool: Pool, random: Random, sides: tuple[int, int, int, int]) -> list[np.ndarray]:
    left, top, right, bottom = sides
    picture = pool.picture(random, "photo", "photo", "people", "endoscopy")
    return moved(picture, (WIDTH - left - right, HEIGHT - top - bottom), random)


def _framed(frames: list[np.ndarray], sides: tuple[int, int, int, int], colour: tuple[int, ...]) -> list[np.ndarray]:
    left, top, right, bottom = sides
    return [cv2.copyMakeBorder(f, top, bottom, left, right, cv2.BORDER_CONSTANT, value=colour) for f in frames]


def _bars(*levels: int) -> Callable[[Pool, Random], Made]:
    def make(pool: Pool, random: Random) -> Made:
        sides, level = _sides(random), int(random.choice(levels))
        return _framed(_inside(pool, random, sides), sides, (level,) * 3), sides

    return make


def _dark_on_dark(pool: Pool, random: Random) -> Made:
    sides, gain = _sides(random), float(random.uniform(0.12, 0.35))
    dark = [np.clip(f * gain + 3, 0, 255).astype(np.uint8) for f in _inside(pool, random, sides)]
    return _framed(dark, sides, (int(random.choice([0, 0, 4])),) * 3), sides


def _blurred_fill(pool: Pool, random: Random) -> Made:
    """A higher or squarer picture before an enlarged, blurred and often dimmed copy of itself."""
    wide = int(HEIGHT * random.choice([9 / 16, 3 / 4, 1.0, 4 / 3]))
    left = (WIDTH - wide) // 2
    blur, dim, frames = float(random.uniform(8, 30)), float(random.uniform(0.5, 1)), []
    for inner in moved(pool.picture(random, "photo", "photo", "people", "endoscopy"), (wide, HEIGHT), random):
        scale = WIDTH / wide
        high = round(HEIGHT * scale)
        fill = cv2.resize(inner, (WIDTH, high))[(high - HEIGHT) // 2 :][:HEIGHT]
        frame = np.clip(cv2.GaussianBlur(fill, (0, 0), blur) * dim, 0, 255).astype(np.uint8)
        frame[:, left : left + wide] = inner
        frames.append(frame)
    return frames, (left, 0, WIDTH - wide - left, 0)


def _fitted(picture: np.ndarray, ground: int, share: float, random: Random) -> list[np.ndarray]:
    """The picture as a whole on a ground of its own kind, with a pointer that moves."""
    scale = min(WIDTH / picture.shape[1], HEIGHT / picture.shape[0]) * share
    small = cv2.resize(picture, (round(picture.shape[1] * scale), round(picture.shape[0] * scale)))
    frames = []
    x, y = (WIDTH - small.shape[1]) // 2, (HEIGHT - small.shape[0]) // 2
    for _ in range(FRAMES):
        frame = np.full((HEIGHT, WIDTH, 3), ground, np.uint8)
        frame[y : y + small.shape[0], x : x + small.shape[1]] = small
        cv2.circle(frame, tuple(int(v) for v in random.integers(40, 320, 2)), 4, (60, 60, 200), -1)
        frames.append(frame)
    return frames


def _plot(pool: Pool, random: Random) -> Made:
    """Axes in a box on white, grey or black, with curves that move."""
    ground = int(random.choice([255, 255, 240, 0]))
    ink, box = ((40, 40, 40) if ground else (220, 220, 220)), random.integers(20, 70, 4)
    frames, phase, filled = [], random.uniform(0, 6), bool(random.random() < 0.3)
    for step in range(FRAMES):
        frame = np.full((HEIGHT, WIDTH, 3), ground, np.uint8)
        left, top, right, bottom = int(box[0]), int(box[1]), WIDTH - int(box[2]), HEIGHT - int(box[3])
        if ground and filled:
            cv2.rectangle(frame, (left, top), (right, bottom), (234, 234, 242), -1)
        cv2.rectangle(frame, (left, top), (right, bottom), ink, 1)
        at = np.arange(left + 1, right)
        up = (top + bottom) / 2 + (bottom - top) * 0.4 * np.sin(at / 50 + phase + step * 0.3)
        cv2.polylines(frame, [np.stack([at, up], 1).astype(np.int32)], False, (180, 90, 30), 2, cv2.LINE_AA)
        frames.append(frame)
    return frames, NO_BORDER


def _page(pool: Pool, random: Random) -> Made:
    """A figure or page with white paper around it."""
    picture = pool.picture(random, "page")
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    if np.median(edge) < 225:  # on other paper its edge would be one
        return moved(picture, (WIDTH, HEIGHT), random), NO_BORDER
    return _fitted(picture, int(np.median(edge)), float(random.uniform(0.7, 1)), random), NO_BORDER


def _scan(pool: Pool, random: Random) -> Made:
    """A slice, sector or skeleton on its black ground, which moves or whose brightness does."""
    for _ in range(20):
        picture = pool.picture(random, "scan")
        edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        if np.percentile(edge, 80) < 12:
            break
    else:
        return _scope(pool, random)
    gains = 1 + 0.15 * np.sin(np.arange(FRAMES) + random.uniform(0, 6))
    frames = _fitted(picture, 0, float(random.uniform(0.75, 1)), random)
    return [np.clip(f * g, 0, 255).astype(np.uint8) for f, g in zip(frames, gains, strict=True)], NO_BORDER


def _scope(pool: Pool, random: Random) -> Made:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius, soft = HEIGHT * random.uniform(0.42, 0.75), float(random.choice([1.0, 4.0, 15.0]))
    disc = np.clip((radius - np.hypot(x - WIDTH / 2, y - HEIGHT / 2)) / soft, 0, 1)[..., None]
    frames = moved(pool.picture(random, "endoscopy"), (WIDTH, HEIGHT), random)
    return [(f * disc).astype(np.uint8) for f in frames], NO_BORDER


def _soft_sides(pool: Pool, random: Random) -> Made:
    """Sharp in the middle alone, as before a wide aperture."""
    middle = np.exp(-(((np.arange(WIDTH) - WIDTH / 2) / random.uniform(70, 160)) ** 4))[None, :, None]
    frames = moved(pool.picture(random, "photo", "people"), (WIDTH, HEIGHT), random)
    return [(f * middle + cv2.GaussianBlur(f, (0, 0), 10) * (1 - middle)).astype(np.uint8) for f in frames], NO_BORDER


def _plain(*kinds: str) -> Callable[[Pool, Random], Made]:
    def make(pool: Pool, random: Random) -> Made:
        return moved(pool.picture(random, *kinds), (WIDTH, HEIGHT), random, float(random.choice([0.5, 12]))), NO_BORDER

    return make


KINDS: dict[str, Callable[[Pool, Random], Made]] = {
    "black bars": _bars(0, 0, 16),
    "grey bars": _bars(40, 90, 128, 200),
    "white bars": _bars(255, 255, 245),
    "dark bars, dark picture": _dark_on_dark,
    "blurred fill": _blurred_fill,
    "photograph": _plain("photo", "people"),
    "screen": _plain("screen"),
    "plot": _plot,
    "page": _page,
    "scan on black": _scan,
    "scope": _scope,
    "soft sides": _soft_sides,
}
