"""Which clips are copies of others: re-uploads at another size, crop, rate or offset, and repeated stretches.

Candidates share a piece of some perceptual hash (multi-index hashing; Norouzi, Punjani and Fleet 2012) and are then
aligned in time by their courses: what moves in a copy moves at the same moments in the same places. Only where nothing
moves at all, the picture itself decides.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from medgen.canonical import digest_of
from models.duplicates.fingerprint import CELLS, FINGERPRINT, Fingerprint

# Least correlation of how the cells of two clips change over time. Measured on 46 moving clips: 0.86 or more with
# copies of them (re-encoded, a third of the size, brighter, with logo and subtitle, shifted, at 12.5 fps, 5 % faster),
# 0.57 at most with other videos; cropped copies are aligned first.
SAME_COURSE = 0.7
SAME_LAYOUT = 0.5  # least correlation of the cells' brightness over the picture; loose, for logos and other contrast
SAME_CROPPED_LAYOUT = 0.75
CERTAIN = 0.9  # correlation at which no other rate is tried
STILL = 0.5  # grey levels: cells that change less over a clip show nothing that moves
STILL_BITS = 12  # of 256, by which the hashes of still pictures may differ at most: two slides of a talk differ in more
LEAST_OVERLAP_S = 3.0
LEAST_OVERLAP_SHARE = 0.45  # of the shorter clip: of a copy cut at other places one clip has that much of one original
LEAST_STEPS = 6
RATES = (1.0, 0.95, 1.05, 0.9, 1.1, 0.8, 1.25)
NOISE = 0.1  # squared grey levels: what rounding of the cells adds
WORTH_ALIGNING = 0.25  # correlation from which a crop is looked for
BANDS, BAND_BITS = 4, 28  # pieces of the 112 lowest bits: chance hits stay few up to a million clips
MOST_IN_BUCKET = 16  # a clip is compared with so many, the best, of those that share a piece with it
# Two clips that share a piece are compared when the leading 128 bits of the hashes that have it differ by so many at
# most, or else their sketches are so much alike. Measured on 12,544 pairs of copies of 34 videos (re-encoded, smaller,
# blurred, noisy, brighter, cropped by 5 to 20 %, with logo and subtitle, stretched, shifted, at other rates, or several
# of these) that share a piece and that `compare` finds: 0 to 36 bits between an original and its copy, up to 56 between
# two spoilt copies, and sketches of 1.08 or more wherever it is 16 or more: none of them is lost. Hashes that share a
# piece by chance differ by 50 bits; of such pairs of other videos three quarters have sketches below 0.8, of noise all.
MOST_APART = 32
ALIKE = 0.8
NEAR_DUPLICATES = digest_of(
    {
        "name": "near duplicates",
        "version": 3,
        "fingerprint": FINGERPRINT,
        "settings": [
            SAME_COURSE, SAME_LAYOUT, SAME_CROPPED_LAYOUT, CERTAIN, STILL, STILL_BITS, LEAST_OVERLAP_S,
            LEAST_OVERLAP_SHARE, LEAST_STEPS, RATES, NOISE, WORTH_ALIGNING, BANDS, BAND_BITS, MOST_IN_BUCKET,
            MOST_APART, ALIKE,
        ],
    }
)  # fmt: skip


@dataclass(frozen=True)
class Match:
    """How alike two clips are (0..1) over how many seconds that they share.

    The similarity is the correlation of their courses; of two still pictures the share of equal bits of their hashes.
    """

    similarity: float
    overlap_s: float


@dataclass(frozen=True)
class Copy:
    """The better clip that a clip copies."""

    kept: str
    similarity: float
    overlap_s: float
    threshold: float = SAME_COURSE


def compare(first: Fingerprint, second: Fingerprint) -> Match | None:
    """How one clip copies another; None when it does not."""
    if min(len(first.course), len(second.course)) < 2:
        return None
    a, b = first.course.astype(np.float32), second.course.astype(np.float32)
    movement = movement_of(a), movement_of(b)
    if max(movement) < STILL or min(len(a), len(b)) < LEAST_STEPS:
        return _same_pictures(first, second)
    if min(movement) < STILL:
        return None
    match = _aligned(first, second, a, b)
    if match is None:
        for x, y in _likely_crops(a, b):
            match = match or _aligned(first, second, x, y)
    return match


def sketch_of(course: np.ndarray) -> np.ndarray:
    """What a course shows on the whole, to tell other clips at sight: mean picture, and where how much moves.

    Args:
        course: float32 (S, 64).

    Returns:
        int8 (2, 64), of mean 0 each; their scale means nothing.
    """
    both = np.stack([course.mean(axis=0), np.log1p(course.std(axis=0))])
    both -= both.mean(axis=1, keepdims=True)
    most = np.abs(both).max(axis=1, keepdims=True)
    sketch: np.ndarray = np.round(127 * both / np.maximum(most, 1e-6)).astype(np.int8)
    return sketch


def sketches_alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float32 (N,), the sum of the correlations of either part of two sketches, int8 (N, 2, 64): -2..2."""
    x, y = a.astype(np.float32), b.astype(np.float32)
    shared = np.einsum("npc,npc->np", x, y)
    size = np.sqrt(np.einsum("npc,npc->np", x, x) * np.einsum("npc,npc->np", y, y))
    alike: np.ndarray = (shared / np.maximum(size, 1e-6)).sum(axis=1)
    return alike


def _aligned(first: Fingerprint, second: Fingerprint, a: np.ndarray, b: np.ndarray) -> Match | None:
    """The match at the rate and offset at which the courses a and b agree best; None when they agree nowhere."""
    shortest = min(first.seconds, second.seconds)
    least_s = max(min(LEAST_OVERLAP_S, 0.8 * shortest), LEAST_OVERLAP_SHARE * shortest)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    products = _Products(a, b)
    for rate in RATES:
        for offset in products.offsets(first.step_s, second.step_s, rate, least_s):
            here, there = _shared(a, first.step_s, b, second.step_s, rate, offset)
            if len(here) >= LEAST_STEPS and (len(here) + 1) * first.step_s >= least_s:
                likeness = _same_changes(here, there)
                if best is None or likeness > best[0]:
                    best = likeness, here, there
        if best is not None and best[0] > CERTAIN:
            break
    if best is None:
        return None
    likeness, here, there = best
    if likeness < SAME_COURSE or _layout(here, there) < SAME_LAYOUT:
        likeness = _cropped(here, there) if likeness >= WORTH_ALIGNING else 0.0
    if likeness < SAME_COURSE:
        return None
    return Match(min(1.0, likeness), min(len(here) * first.step_s, first.seconds))


def movement_of(course: np.ndarray) -> float:
    """Standard deviation of the cells over time, root mean square, grey levels."""
    return float(np.sqrt(np.square(course - course.mean(0)).mean()))


def _same_pictures(first: Fingerprint, second: Fingerprint) -> Match | None:
    """For clips without a course, still or of a few frames: their very pictures must be the same."""
    x, y = first.hashes[~first.flat], second.hashes[~second.flat]
    if not len(x) or not len(y):
        return None
    apart = np.bitwise_count(x[:, None] ^ y[None]).sum(axis=-1, dtype=np.int64)
    bits = max(float(np.median(apart.min(axis=axis))) for axis in (0, 1))
    if bits > STILL_BITS:
        return None
    return Match(1.0 - bits / (8 * x.shape[1]), min(first.seconds, second.seconds))


class _Products:
    """What each step of a has in common with each half step of b: all that the likeliest offsets are found from."""

    def __init__(self, a: np.ndarray, b: np.ndarray) -> None:
        fine = _changes(_at(b, np.arange(2 * len(b) - 1) / 2))
        a = _changes(a)
        self.steps, self.ticks = len(a), len(fine)
        # Nothing on either side, as far as places out of b may be.
        self.shared = np.pad(a @ fine.T, ((0, 0), (1, 1))).ravel()
        self.energy_a = np.square(a).sum(1)
        self.energy_b = np.pad(np.square(fine).sum(1), 1)

    def offsets(self, step_a: float, step_b: float, rate: float, least_s: float) -> Iterator[float]:
        """The three likeliest offsets: time t of a is time rate * t + offset of b. At half steps of b."""
        tick = step_b / 2
        times = np.round(rate * step_a * np.arange(self.steps) / tick).astype(int)
        first = -times[-1] + round(least_s * rate / tick) - 2
        last = self.ticks - round(least_s * rate / tick) + 2
        if last <= first:
            return
        shifts = np.arange(first, last)
        places = np.clip(times[None, :] + shifts[:, None], -1, self.ticks) + 1
        inside = (places > 0) & (places <= self.ticks)
        shared = self.shared.take(places + (self.ticks + 2) * np.arange(self.steps)).sum(1)
        energy_a = np.where(inside, self.energy_a, 0).sum(1)
        energy_b = self.energy_b.take(places).sum(1)
        likeness = shared / np.sqrt((energy_a + NOISE) * (energy_b + NOISE))
        for place in np.argsort(-likeness, kind="stable")[:3]:
            if likeness[place] >= WORTH_ALIGNING / 2:
                yield float(shifts[place] * tick)


def _shared(
    a: np.ndarray, step_a: float, b: np.ndarray, step_b: float, rate: float, offset: float
) -> tuple[np.ndarray, np.ndarray]:
    """The two courses over the time that the clips share, step by step of a."""
    places = (rate * step_a * np.arange(len(a)) + offset) / step_b
    inside = (places > -0.3) & (places < len(b) - 0.7)
    return a[inside], _at(b, np.clip(places[inside], 0, len(b) - 1))


def _at(course: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The course between its steps."""
    before = np.minimum(places.astype(int), max(0, len(course) - 2))
    share = (places - before)[:, None].astype(np.float32)
    after = np.minimum(before + 1, len(course) - 1)
    between: np.ndarray = course[before] * (1 - share) + course[after] * share
    return between


def _cropped(a: np.ndarray, b: np.ndarray) -> float:
    """The best correlation of two courses when either is a crop of the other (0..1)."""
    best = 0.0
    for crop in _crops():
        for part, full in ((a @ crop, b), (b @ crop, a)):
            # One crop among many is chosen: what that gains by chance must not suffice.
            if _layout(part, full) >= SAME_CROPPED_LAYOUT:
                best = max(best, _same_changes(part, full))
    return best


def _same_changes(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of how the cells change over time (-1..1)."""
    return _correlation(_changes(a), _changes(b))


def _changes(course: np.ndarray) -> np.ndarray:
    """The course without its mean picture and without what all cells do: every fade to black brightens alike."""
    moving: np.ndarray = course - course.mean(axis=0)
    moving -= moving.mean(axis=1, keepdims=True)
    return moving


def _likely_crops(a: np.ndarray, b: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two crops, of either, in which the mean pictures are most alike: small motion needs the place before time."""
    mean_a, mean_b = a.mean(axis=0, keepdims=True), b.mean(axis=0, keepdims=True)
    ranked = [(alike, place, 0) for place, alike in enumerate(_layouts(mean_a @ _all_crops(), mean_b))]
    ranked += [(alike, place, 1) for place, alike in enumerate(_layouts(mean_b @ _all_crops(), mean_a))]
    chosen = sorted(ranked, reverse=True)[:2]
    return [
        (a, b @ _crops()[place]) if second else (a @ _crops()[place], b)
        for alike, place, second in chosen
        if alike >= SAME_CROPPED_LAYOUT
    ]


def _layout(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the brightness of the cells over the picture (-1..1)."""
    return _correlation(a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True))


def _layouts(a: np.ndarray, b: np.ndarray) -> list[float]:
    """As `_layout`, of each of many courses (N, S, 64) with one."""
    x, y = a - a.mean(axis=2, keepdims=True), b - b.mean(axis=1, keepdims=True)
    size = np.sqrt(np.square(x).mean(axis=(1, 2)) * np.square(y).mean()) + NOISE
    alike: list[float] = ((x * y).mean(axis=(1, 2)) / size).tolist()
    return alike


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays of mean 0."""
    return float((a * b).mean() / (np.sqrt(np.square(a).mean() * np.square(b).mean()) + NOISE))


@cache
def _all_crops() -> np.ndarray:
    """float32 (48, 64, 64): `_crops`."""
    return np.stack(_crops())


@cache
def _crops() -> tuple[np.ndarray, ...]:
    """Matrices (64, 64) that turn the cells of a picture into those of a part of it: 1, 0.9 or 0.8 of either side."""
    spans = [(0.0, 1.0)] + [(at * (1 - size), size) for size in (0.9, 0.8) for at in (0.0, 0.5, 1.0)]
    lines = []
    for start, size in spans:
        # Overlap of each new cell with each old one.
        edges = (start + size * np.arange(CELLS + 1) / CELLS) * CELLS
        low = np.maximum(edges[:-1, None], np.arange(CELLS)[None])
        high = np.minimum(edges[1:, None], np.arange(CELLS)[None] + 1)
        line = np.clip(high - low, 0, None)
        lines.append(line / line.sum(1, keepdims=True))
    return tuple(np.kron(down, across).T.astype(np.float32) for down in lines for across in lines)[1:]
