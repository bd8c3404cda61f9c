"""The search for near-duplicates as it was before there was an index: all in memory, every candidate compared.

Kept as what the search in the index is measured against, and checked by: the clips that it compares are those that the
index takes a look at.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.duplicates.fingerprint import INNER, Fingerprint
from models.duplicates.near_duplicates import BAND_BITS, BANDS, MOST_IN_BUCKET, Match, compare


@dataclass(frozen=True)
class Candidate:
    """A clip to compare; of two copies the one with the smaller rank is the better."""

    clip: str
    fingerprint: Fingerprint
    rank: tuple[float | str, ...]


def duplicates(candidates: Iterable[Candidate]) -> dict[str, str]:
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
    copies: dict[str, str] = {}
    dropped: set[int] = set()
    for index, others in rivals(fingerprints):
        if best := _best_match(fingerprints, index, (rival for rival in others if rival not in dropped)):
            rival, _ = best
            dropped.add(index)
            copies[ordered[index].clip] = ordered[rival].clip
    return copies


def _best_match(fingerprints: Sequence[Fingerprint], index: int, others: Iterable[int]) -> tuple[int, Match] | None:
    """(place of the rival that the clip at `index` shares most with, how); None when it copies none of them."""
    best: tuple[float, int, Match] | None = None
    for rival in others:
        match = compare(fingerprints[index], fingerprints[rival])
        if match and (best is None or match.overlap_s * match.similarity > best[0]):
            best = match.overlap_s * match.similarity, rival, match
    return best[1:] if best else None


def rivals(fingerprints: Sequence[Fingerprint], *, known: int | None = None) -> Iterator[tuple[int, list[int]]]:
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
