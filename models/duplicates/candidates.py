"""Which clips are worth comparing: those that share a piece of some perceptual hash and are alike where they meet.

Multi-index hashing (Norouzi, Punjani and Fleet 2012), band by band and, so that memory stays bounded, piece by piece
range. By chance alone pieces are shared by pairs whose number grows with the square of the clips, so that all here is
arrays, and a pair that met by chance costs some ten nanoseconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.duplicates.index import Hashes
from models.duplicates.near_duplicates import ALIKE, BAND_BITS, BANDS, MOST_APART, MOST_IN_BUCKET, sketches_alike

MOST_KEYS = 1 << 25  # pieces in memory at once; at more, they are taken range by range
MOST_RANGES = 64  # into which pieces are divided; only where one piece is everywhere, one range may still be too much
CLIPS_AT_ONCE = 1 << 12
MEETINGS_AT_ONCE = 1 << 20
SKETCHES_AT_ONCE = 1 << 16
ROW_BITS = 64 - BAND_BITS
PICTURES, PARTS, INNER = range(3)
LOW = np.uint64(0xFFFFFFFF)


def candidate_pairs(hashes: Hashes, order: np.ndarray, known: int | None = None) -> np.ndarray:
    """uint64 (N,), ascending: number of a clip in the upper half, of one before it that it is worth comparing with in
    the lower.

    Looked for are the whole picture of either among whole pictures and parts of the other, and inner part among inner
    parts. Of all that share one piece, a clip meets only the first: when a thousand copies of a film do, the best of
    them is there, and when a thousand films begin with the same picture, the rest would be in vain.

    Args:
        order: int64 (clips,), their places in the index, the best first.
        known: the clips from this number on are paired with those before it only, and these with none.
    """
    clips = _Clips(hashes, order)
    smaller = None if known is None else slice(known) if clips.rows[known] < clips.rows[-1] / 2 else slice(known, None)
    found = np.zeros(0, np.uint64)
    ranges = 1
    for band in range(BANDS):
        part = 0
        while part < ranges:
            here = _Range(band, part, ranges)
            new = [_met(clips, here, inner, known, smaller) for inner in (False, True)]
            if any(pairs is None for pairs in new):
                part, ranges = 2 * part, 2 * ranges
                continue
            found = np.unique(np.concatenate([found, *(pairs for pairs in new if pairs is not None)]))
            part += 1
    return found


@dataclass(frozen=True)
class _Pieces:
    """Pieces of the hashes of some clips.

    Args:
        pieces: uint64 (N,).
        ends: int64 (clips,), the end of each clip's pieces.
        begin: int64 (clips,), what is to be added to a place among the pieces for the row of its hash.
    """

    pieces: np.ndarray
    ends: np.ndarray
    begin: np.ndarray

    def keys(self, inside: np.ndarray) -> np.ndarray:
        """uint64 of those that are `inside`: the piece, and its row in the lower bits."""
        places = np.flatnonzero(inside)
        rows = places + self.begin[np.searchsorted(self.ends, places, side="right")]
        keys: np.ndarray = self.pieces[places] << np.uint64(ROW_BITS) | rows.astype(np.uint64)
        return keys


@dataclass(frozen=True)
class _Range:
    """Those pieces of a band that begin with certain bits: range `part` of `ranges`, a power of two, of equal size."""

    band: int
    part: int
    ranges: int

    @property
    def size(self) -> int:
        """How many different pieces there are."""
        return (1 << BAND_BITS) // self.ranges

    def of(self, pieces: np.ndarray) -> np.ndarray:
        """bool (N,): which of a band's pieces are in it."""
        if self.ranges == 1:
            return np.ones(len(pieces), bool)
        inside: np.ndarray = pieces >> np.uint64(self.size.bit_length() - 1) == np.uint64(self.part)
        return inside


class _Clips:
    """The hashes of the clips of a search, numbered by order: the rows of clip n begin at `rows[n]`.

    Args:
        rows: int64 (clips + 1,).
        kinds: int64 (clips, 4), where in a clip's rows each kind begins, and the last ends.
        first: int64 (clips,), its first row in the index.
    """

    def __init__(self, hashes: Hashes, order: np.ndarray) -> None:
        self.hashes, self.order = hashes, order
        self.first = hashes.first[order]
        self.kinds = np.zeros((len(order), 4), np.int64)
        np.cumsum(hashes.rows[order], axis=1, out=self.kinds[:, 1:])
        self.rows = np.concatenate([[0], np.cumsum(self.kinds[:, -1])])
        self.by_place = np.argsort(order)

    def count(self, kinds: tuple[int, int], among: slice | None) -> int:
        """How many hashes of the kinds from one up to another there are."""
        numbers = among or slice(None)
        return int((self.kinds[numbers, kinds[1]] - self.kinds[numbers, kinds[0]]).sum())

    def pieces(self, band: int, kinds: tuple[int, int], among: slice | None) -> Iterator["_Pieces"]:
        """Pieces of the kinds from one up to another, some clips at a time."""
        numbers = self.by_place
        if among is not None:
            inside = np.zeros(len(numbers), bool)
            inside[among] = True
            numbers = numbers[inside[numbers]]
        for start in range(0, len(numbers), CLIPS_AT_ONCE):
            here = numbers[start : start + CLIPS_AT_ONCE]
            low = self.kinds[here, kinds[0]]
            counts = self.kinds[here, kinds[1]] - low
            ends = np.cumsum(counts)
            begin = low - ends + counts
            rows = np.repeat(self.first[here] + begin, counts)
            rows += np.arange(len(rows))
            yield _Pieces(_pieces(self.hashes, rows, band), ends, self.rows[here] + begin)
            self.hashes.release()

    def sketches(self, numbers: np.ndarray) -> np.ndarray:
        """int8 (N, 2, 64) of the clips with these numbers (uint64)."""
        sketches: np.ndarray = self.hashes.sketches[self.order[numbers.astype(np.int64)]]
        return sketches


def _pieces(hashes: Hashes, rows: np.ndarray, band: int) -> np.ndarray:
    """uint64 (N,): a band's piece of hashes."""
    first, last = band * BAND_BITS, (band + 1) * BAND_BITS
    if last <= 64:
        piece: np.ndarray = hashes.words[rows, 0] >> np.uint64(64 - last)
    elif first >= 64:
        piece = hashes.words[rows, 1] >> np.uint64(128 - last)
    else:
        words = hashes.words[rows]
        piece = words[:, 0] << np.uint64(last - 64) | words[:, 1] >> np.uint64(128 - last)
    piece &= np.uint64((1 << BAND_BITS) - 1)
    return piece


def _met(clips: _Clips, here: _Range, inner: bool, known: int | None, smaller: slice | None) -> np.ndarray | None:
    """Pairs that met in a range of pieces; None when there is too much in it for memory.

    Args:
        inner: by their inner parts, else by whole pictures and other parts.
        smaller: the smaller side of a search among known clips.
    """
    kinds = (INNER, INNER + 1) if inner else (PICTURES, INNER)
    wanted: np.ndarray | None = None
    if smaller is not None or not inner:
        # A clip is of use only where one of the other side has its piece, a part where some whole picture has. Known by
        # its last bits: that some others pass too does no harm.
        asked = kinds if smaller is not None else (PICTURES, PARTS)
        wanted = np.zeros(min(here.size, 1 << (16 * clips.count(asked, smaller)).bit_length()), bool)
        for some in clips.pieces(here.band, asked, smaller):
            wanted[some.pieces[here.of(some.pieces)] & np.uint64(len(wanted) - 1)] = True
    keys, filled = np.empty(MOST_KEYS, np.uint64), 0
    for some in clips.pieces(here.band, kinds, None):
        inside = here.of(some.pieces)
        if wanted is not None:
            inside &= wanted[some.pieces & np.uint64(len(wanted) - 1)]
        new = some.keys(inside)
        if filled + len(new) > len(keys):
            if here.ranges < MOST_RANGES:
                return None
            keys = np.concatenate([keys, np.empty(max(len(keys), len(new)), np.uint64)])
        keys[filled : filled + len(new)] = new
        filled += len(new)
    del wanted
    return _meetings(clips, _shared(clips, keys[:filled]), inner, known)


@dataclass(frozen=True)
class _Shared:
    """Pieces that more than one hash has: of each clip's hashes of one kind with the same piece the first, sorted.

    Args:
        owners: uint64 (N,), the piece in the upper half, the number of the clip in the lower.
        whole: bool (N,), the hash is of a whole picture, not of a part of one.
        words: uint64 (N, 2), leading bits of the hash.
    """

    owners: np.ndarray
    whole: np.ndarray
    words: np.ndarray


def _shared(clips: _Clips, keys: np.ndarray) -> _Shared:
    """Of pieces, each with its row in the lower bits."""
    keys.sort()
    like_next = np.zeros(len(keys), bool)
    like_next[:-1] = (keys[1:] ^ keys[:-1]) >> np.uint64(ROW_BITS) == 0
    keys = keys[like_next | np.roll(like_next, 1)]
    owners, whole, places = np.empty(len(keys), np.uint64), np.empty(len(keys), bool), np.empty(len(keys), np.int64)
    for start in range(0, len(keys), MEETINGS_AT_ONCE):
        some = slice(start, start + MEETINGS_AT_ONCE)
        rows = (keys[some] & np.uint64((1 << ROW_BITS) - 1)).astype(np.int64)
        numbers = np.searchsorted(clips.rows, rows, side="right") - 1
        owners[some] = keys[some] >> np.uint64(ROW_BITS) << np.uint64(32) | numbers.astype(np.uint64)
        local = rows - clips.rows[numbers]
        whole[some] = local < clips.kinds[numbers, PARTS]
        places[some] = clips.first[numbers] + local
    first = np.ones(len(keys), bool)
    first[1:] = (owners[1:] != owners[:-1]) | (whole[1:] != whole[:-1])
    del keys
    owners, whole, places = owners[first], whole[first], places[first]
    words = np.empty((len(places), 2), np.uint64)
    by_place = np.argsort(places)  # as they lie on the disk, so that few pages are mapped at a time
    for start in range(0, len(places), MEETINGS_AT_ONCE):
        here = by_place[start : start + MEETINGS_AT_ONCE]
        words[here] = clips.hashes.words[places[here]]
        clips.hashes.release()
    return _Shared(owners, whole, words)


def _meetings(clips: _Clips, shared: _Shared, inner: bool, known: int | None) -> np.ndarray:
    """uint64: seeker in the upper half, one of the first of its bucket, before itself and like it, in the lower."""
    whole, part = np.flatnonzero(shared.whole), np.flatnonzero(~shared.whole)
    once = np.ones(len(shared.owners), bool)  # of a clip's whole picture and part that have the same piece, the former
    once[1:] = shared.owners[1:] != shared.owners[:-1]
    sought = [(part, part)] if inner else [(whole, np.flatnonzero(once)), (part, whole)]
    found = [np.zeros(0, np.uint64)]
    for seekers, shown in sought:
        if known is not None:
            first = np.uint64(known)
            seekers = seekers[shared.owners[seekers] & LOW >= first]
            shown = shown[shared.owners[shown] & LOW < first]
        found += _close_pairs(clips, shared, seekers, shown)
    return np.unique(np.concatenate(found))


def _close_pairs(clips: _Clips, shared: _Shared, seekers: np.ndarray, shown: np.ndarray) -> Iterator[np.ndarray]:
    """As `_meetings`, in pieces, not unique; of places among what is shared."""
    wanted, there = shared.owners[seekers], shared.owners[shown]
    start = np.searchsorted(there, wanted & ~LOW)
    counts = np.clip(np.searchsorted(there, wanted) - start, 0, MOST_IN_BUCKET)
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(seekers):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + MEETINGS_AT_ONCE, side="right")))
        here = slice(begin, end)
        seeker = np.repeat(seekers[here], counts[here])
        offsets = start[here] - (ends[here] - counts[here] - before)
        rival = shown[np.repeat(offsets, counts[here]) + np.arange(len(seeker))]
        apart = np.bitwise_count(shared.words[seeker] ^ shared.words[rival]).sum(axis=1, dtype=np.int64)
        close = apart <= MOST_APART
        doubtful = np.flatnonzero(~close)
        for at in range(0, len(doubtful), SKETCHES_AT_ONCE):
            few = doubtful[at : at + SKETCHES_AT_ONCE]
            a, b = (clips.sketches(shared.owners[places[few]] & LOW) for places in (seeker, rival))
            close[few] = sketches_alike(a, b) >= ALIKE
        pairs = shared.owners[seeker[close]] << np.uint64(32) | (shared.owners[rival[close]] & LOW)
        yield np.unique(pairs)
        begin = end
