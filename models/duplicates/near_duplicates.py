"""Which clips are copies of others: re-uploads at another size, crop, rate or offset, and repeated stretches.

Candidates share a piece of some perceptual hash (multi-index hashing; Norouzi, Punjani and Fleet 2012) and are then
aligned in time by their courses: what moves in a copy moves at the same moments in the same places. Only where nothing
moves at all, the picture itself decides.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from medgen.canonical import digest_of
from models.duplicates.fingerprint import CELLS, FINGERPRINT, INNER, Fingerprint

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
NEAR_DUPLICATES = digest_of(
    {
        "name": "near duplicates",
        "version": 2,
        "fingerprint": FINGERPRINT,
        "settings": [
            SAME_COURSE, SAME_LAYOUT, SAME_CROPPED_LAYOUT, CERTAIN, STILL, STILL_BITS, LEAST_OVERLAP_S,
            LEAST_OVERLAP_SHARE, LEAST_STEPS, RATES, NOISE, WORTH_ALIGNING, BANDS, BAND_BITS, MOST_IN_BUCKET,
        ],
    }
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A clip to compare; of two copies the one with the smaller rank is the better."""

    clip: str
    fingerprint: Fingerprint
    rank: tuple[float | str, ...]


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


def duplicates(candidates: Iterable[Candidate]) -> dict[str, Copy]:
    """clip → the better copy that stays, for every clip that has one. Independent of order.

    Clips are taken from the best to the worst and compared with those that stay, so that nothing is dropped for the
    sake of a clip that is dropped itself.

    Raises:
        ValueError: two clips of one rank: which is the better would depend on order.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.rank)
    if len({candidate.rank for candidate in ordered}) < len(ordered):
        raise ValueError("every clip needs a rank of its own")
    fingerprints = [candidate.fingerprint for candidate in ordered]
    copies: dict[str, Copy] = {}
    dropped: set[int] = set()
    for index, rivals in _rivals(fingerprints):
        if best := _best_match(fingerprints, index, (rival for rival in rivals if rival not in dropped)):
            rival, match = best
            dropped.add(index)
            copies[ordered[index].clip] = Copy(ordered[rival].clip, match.similarity, match.overlap_s)
    return copies


def copies_of(known: Mapping[str, Fingerprint], clips: Mapping[str, Fingerprint]) -> dict[str, Copy]:
    """clip → the known clip that it copies most of, for every one of `clips` that copies any.

    Each clip is judged on its own, whatever else is among `clips`. Independent of order.
    """
    names = [*sorted(known), *sorted(clips)]
    fingerprints = [*(known[clip] for clip in sorted(known)), *(clips[clip] for clip in sorted(clips))]
    copies: dict[str, Copy] = {}
    for index, rivals in _rivals(fingerprints, known=len(known)) if known and clips else ():
        if best := _best_match(fingerprints, index, rivals):
            rival, match = best
            copies[names[index]] = Copy(names[rival], match.similarity, match.overlap_s)
    return copies


def _best_match(fingerprints: Sequence[Fingerprint], index: int, rivals: Iterable[int]) -> tuple[int, Match] | None:
    """(place of the rival that the clip at `index` shares most with, how); None when it copies none of them."""
    best: tuple[float, int, Match] | None = None
    for rival in rivals:
        match = compare(fingerprints[index], fingerprints[rival])
        if match and (best is None or match.overlap_s * match.similarity > best[0]):
            best = match.overlap_s * match.similarity, rival, match
    return best[1:] if best else None


def compare(first: Fingerprint, second: Fingerprint) -> Match | None:
    """How one clip copies another; None when it does not."""
    if min(len(first.course), len(second.course)) < 2:
        return None
    a, b = first.course.astype(np.float32), second.course.astype(np.float32)
    movement = _movement(a), _movement(b)
    if max(movement) < STILL or min(len(a), len(b)) < LEAST_STEPS:
        return _same_pictures(first, second)
    if min(movement) < STILL:
        return None
    match = _aligned(first, second, a, b)
    if match is None:
        for x, y in _likely_crops(a, b):
            match = match or _aligned(first, second, x, y)
    return match


def _aligned(first: Fingerprint, second: Fingerprint, a: np.ndarray, b: np.ndarray) -> Match | None:
    """The match at the rate and offset at which the courses a and b agree best; None when they agree nowhere."""
    shortest = min(first.seconds, second.seconds)
    least_s = max(min(LEAST_OVERLAP_S, 0.8 * shortest), LEAST_OVERLAP_SHARE * shortest)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for rate in RATES:
        for offset in _offsets(a, first.step_s, b, second.step_s, rate, least_s):
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


def _movement(course: np.ndarray) -> float:
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


def _offsets(
    a: np.ndarray, step_a: float, b: np.ndarray, step_b: float, rate: float, least_s: float
) -> Iterator[float]:
    """The three likeliest offsets: time t of a is time rate * t + offset of b. At half steps of b."""
    tick = step_b / 2
    fine = _changes(_at(b, np.arange(2 * len(b) - 1) / 2))
    a = _changes(a)
    times = np.round(rate * step_a * np.arange(len(a)) / tick).astype(int)
    first = -times[-1] + round(least_s * rate / tick) - 2
    last = len(fine) - round(least_s * rate / tick) + 2
    if last <= first:
        return
    shifts = np.arange(first, last)
    places = times[None, :] + shifts[:, None]
    inside = (places >= 0) & (places < len(fine))
    places = np.clip(places, 0, len(fine) - 1)
    product = a @ fine.T
    shared = np.where(inside, product[np.arange(len(a)), places], 0).sum(1)
    energy_a = np.where(inside, np.square(a).sum(1), 0).sum(1)
    energy_b = np.where(inside, np.square(fine).sum(1)[places], 0).sum(1)
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
    ranked = [(_layout(mean_a @ crop, mean_b), place, 0) for place, crop in enumerate(_crops())]
    ranked += [(_layout(mean_a, mean_b @ crop), place, 1) for place, crop in enumerate(_crops())]
    chosen = sorted(ranked, reverse=True)[:2]
    return [
        (a, b @ _crops()[place]) if second else (a @ _crops()[place], b)
        for alike, place, second in chosen
        if alike >= SAME_CROPPED_LAYOUT
    ]


def _layout(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the brightness of the cells over the picture (-1..1)."""
    return _correlation(a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays of mean 0."""
    return float((a * b).mean() / (np.sqrt(np.square(a).mean() * np.square(b).mean()) + NOISE))


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


def _rivals(fingerprints: Sequence[Fingerprint], *, known: int | None = None) -> Iterator[tuple[int, list[int]]]:
    """Each clip that shares a piece of a hash with clips before it, and these, in order.

    Looked for are the whole picture of either among whole pictures and parts of the other, and inner part among inner
    parts. Of all that share one piece, a clip meets only the first: when a thousand copies of a film do, the best of
    them is there, and when a thousand films begin with the same picture, the rest would be in vain.

    Args:
        known: the clips from this place on are compared with those before it only, and these with none.
    """
    structured = [(clip.hashes[~clip.flat], clip.parts[~clip.flat[::2]]) for clip in fingerprints]
    pictures = _owned([hashes[:, None] for hashes, _ in structured])
    parts = _owned([parts[:, :INNER] for _, parts in structured])
    inner = _owned([parts[:, INNER:] for _, parts in structured])
    pairs = np.zeros(0, np.uint64)
    for band in range(BANDS):
        of_pictures, of_parts, of_inner = (_pieces(*hashes, band) for hashes in (pictures, parts, inner))
        sought = (of_pictures, np.union1d(of_pictures, of_parts)), (of_parts, of_pictures), (of_inner, of_inner)
        new = [_meetings(*_split(seekers, shown, known)) for seekers, shown in sought]
        pairs = np.unique(np.concatenate([pairs, *new]))
    owner = (pairs >> np.uint64(32)).astype(np.int64)
    rival = (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
    for group in np.split(np.arange(len(pairs)), np.flatnonzero(np.diff(owner)) + 1):
        if len(group):
            yield int(owner[group[0]]), rival[group].tolist()


def _owned(hashes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The leading bytes of all hashes (..., bytes) of all clips in one array, and the place of each one's clip."""
    width = BANDS * BAND_BITS // 8
    owners = np.repeat(np.arange(len(hashes)), [own.shape[0] * own.shape[1] for own in hashes])
    flat = [own[..., :width].reshape(-1, width) for own in hashes]
    return np.concatenate(flat) if flat else np.zeros((0, width), np.uint8), owners.astype(np.uint64)


def _pieces(hashes: np.ndarray, owners: np.ndarray, band: int) -> np.ndarray:
    """uint64, sorted: a band's piece of a hash in the upper half, the place of its clip in the lower."""
    bits = np.uint64(BAND_BITS)
    first, last = band * BAND_BITS // 8, -(-(band + 1) * BAND_BITS // 8)
    piece = np.zeros(len(hashes), np.uint64)
    for byte in range(first, last):
        piece = piece << np.uint64(8) | hashes[:, byte]
    piece = piece >> np.uint64(8 * last - (band + 1) * BAND_BITS) & ((np.uint64(1) << bits) - np.uint64(1))
    return np.unique(piece << np.uint64(32) | owners)


def _split(seekers: np.ndarray, shown: np.ndarray, known: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Of the pieces of both those that count: of seekers from place `known` on, of what is shown before it."""
    if known is None:
        return seekers, shown
    low, first = np.uint64(0xFFFFFFFF), np.uint64(known)
    return seekers[seekers & low >= first], shown[shown & low < first]


def _meetings(seekers: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """uint64: seeker in the upper half, one of the first of its bucket, before itself, in the lower."""
    start = np.searchsorted(shown, seekers & ~np.uint64(0xFFFFFFFF))
    end = np.minimum(np.searchsorted(shown, seekers), start + MOST_IN_BUCKET)
    counts = np.maximum(0, end - start)
    places = np.repeat(start - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
    low = np.uint64(0xFFFFFFFF)
    pairs: np.ndarray = np.repeat(seekers & low, counts) << np.uint64(32) | (shown[places] & low)
    return pairs
