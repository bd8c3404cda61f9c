"""Which clips are worth comparing: those that share a piece of some perceptual hash and are alike where they meet.

Multi-index hashing (Norouzi, Punjani and Fleet 2012), band by band and, so that memory stays bounded, piece by piece
range. By chance alone pieces are shared by pairs whose number grows with the square of the clips, so that all here is
arrays, and a pair that met by chance costs less than a microsecond.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.duplicates.index import Hashes
from models.duplicates.near_duplicates import ALIKE, BAND_BITS, BANDS, MOST_APART, MOST_IN_BUCKET, sketches_alike

MOST_KEYS = 1 << 24  # pieces in memory at once; at more, they are taken range by range
MOST_RANGES = 64  # into which pieces are divided; only where one piece is everywhere, one range may still be too much
CLIPS_AT_ONCE = 1 << 12
MEETINGS_AT_ONCE = 1 << 20
SKETCHES_AT_ONCE = 1 << 12  # few enough for the processor's cache
PLACE_BITS = np.uint64(64 - BAND_BITS)
PICTURES, PARTS, INNER = range(3)
LOW = np.uint64(0xFFFFFFFF)
HAD, MET = 1, 2  # marks of pieces: some hash has it, another one too


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
    found = np.zeros(0, np.uint64)
    ranges = 1
    for band in range(BANDS):
        part = 0
        while part < ranges:
            here = _Range(band, part, ranges)
            new = [_met(clips, here, inner, known) for inner in (False, True)]
            if any(pairs is None for pairs in new):
                part, ranges = 2 * part, 2 * ranges
                continue
            found = np.unique(np.concatenate([found, *(pairs for pairs in new if pairs is not None)]))
            part += 1
    return found


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
        inside: np.ndarray = pieces >> (self.size.bit_length() - 1) == self.part
        return inside


@dataclass(frozen=True)
class _Side:
    """The hashes of the kinds from one up to another of the clips whose numbers are from one up to another."""

    kinds: tuple[int, int]
    numbers: tuple[int, int]


@dataclass(frozen=True)
class _Pieces:
    """Pieces of the hashes of some clips.

    Args:
        pieces: int64 (N,).
        rows: int64 (N,), the rows of their hashes in the index.
        slots: int64 (2 * clips,), of each clip twice its number, for whole pictures, and one more, for parts.
        ends: int64 (2 * clips,), where the pieces of each slot end.
    """

    pieces: np.ndarray
    rows: np.ndarray
    slots: np.ndarray
    ends: np.ndarray


class _Clips:
    """The hashes of the clips of a search, numbered by order but listed as they lie on the disk.

    Args:
        numbers: int64 (clips,).
        first: int64 (clips,), a clip's first row in the index.
        kinds: int64 (clips, 4), where in a clip's rows each kind begins, and the last ends.
    """

    def __init__(self, hashes: Hashes, order: np.ndarray) -> None:
        self.hashes, self.order = hashes, order
        self.numbers = np.argsort(order)
        places = order[self.numbers]
        self.first = hashes.first[places]
        self.kinds = np.zeros((len(order), 4), np.int64)
        np.cumsum(hashes.rows[places], axis=1, out=self.kinds[:, 1:])

    def sides(self, inner: bool, known: int | None) -> list[_Side]:
        """The one or two between which, or inside the first of which, pieces are to meet; the first has the fewer."""
        clips = len(self.order)
        if known is not None:
            kinds = (INNER, INNER + 1) if inner else (PICTURES, INNER)
            return sorted([_Side(kinds, (0, known)), _Side(kinds, (known, clips))], key=self.count)
        if inner:
            return [_Side((INNER, INNER + 1), (0, clips))]
        return [_Side((PICTURES, PARTS), (0, clips)), _Side((PARTS, INNER), (0, clips))]

    def count(self, side: _Side) -> int:
        """How many hashes there are."""
        inside, (low, high) = self._inside(side), side.kinds
        return int((self.kinds[inside, high] - self.kinds[inside, low]).sum())

    def pieces(self, here: _Range, side: _Side) -> Iterator[_Pieces]:
        """The pieces in a range, those of some clips at a time."""
        inside = self._inside(side)
        numbers, firsts, kinds = self.numbers[inside], self.first[inside], self.kinds[inside]
        for start in range(0, len(numbers), CLIPS_AT_ONCE):
            some = slice(start, start + CLIPS_AT_ONCE)
            low, high = kinds[some, side.kinds[0]], kinds[some, side.kinds[1]]
            ends = np.cumsum(high - low)
            begin = high - ends
            rows = np.repeat(firsts[some] + begin, high - low)
            rows += np.arange(len(rows))
            ends = np.stack([np.clip(kinds[some, PARTS], low, high) - begin, ends], axis=1).ravel()
            pieces = _pieces(self.hashes, rows, here.band)
            if here.ranges > 1:
                places = np.flatnonzero(here.of(pieces))
                pieces, rows, ends = pieces[places], rows[places], np.searchsorted(places, ends)
            yield _Pieces(pieces, rows, (2 * numbers[some, None] + np.arange(2)).ravel(), ends)
            self.hashes.release()

    def sketches(self, numbers: np.ndarray) -> np.ndarray:
        """int8 (N, 2, 64) of the clips with these numbers (uint64)."""
        sketches: np.ndarray = self.hashes.sketches[self.order[numbers.view(np.int64)]]
        return sketches

    def _inside(self, side: _Side) -> np.ndarray | slice:
        """Which clips are on a side, as an index."""
        first, last = side.numbers
        return (self.numbers >= first) & (self.numbers < last) if last - first < len(self.numbers) else slice(None)


def _pieces(hashes: Hashes, rows: np.ndarray, band: int) -> np.ndarray:
    """int64 (N,): a band's piece of hashes."""
    first, last = band * BAND_BITS, (band + 1) * BAND_BITS
    if last <= 64:
        piece: np.ndarray = hashes.words[rows, 0] >> np.uint64(64 - last)
    elif first >= 64:
        piece = hashes.words[rows, 1] >> np.uint64(128 - last)
    else:
        words = hashes.words[rows]
        piece = words[:, 0] << np.uint64(last - 64) | words[:, 1] >> np.uint64(128 - last)
    piece &= np.uint64((1 << BAND_BITS) - 1)
    return piece.view(np.int64)


def _met(clips: _Clips, here: _Range, inner: bool, known: int | None) -> np.ndarray | None:
    """Pairs that met in a range of pieces; None when there is too much in it for memory.

    Args:
        inner: by their inner parts, else by whole pictures and other parts.
    """
    side, *others = clips.sides(inner, known)
    # Few pieces meet any other. They are picked out first, as sorting all would take longest: pieces are marked by
    # their last bits, and that some others pass too does no harm.
    marks = np.zeros(min(here.size, 1 << (16 * clips.count(side)).bit_length()), np.uint8)
    for some in clips.pieces(here, side):
        at = some.pieces & (len(marks) - 1)
        again = at[(marks[at] > 0) | _repeated(at)]
        marks[at] = HAD
        if known is None:  # else clips of one side don't meet each other
            marks[again] = MET
    kept = _Kept(clips)
    for other in others:
        for some in clips.pieces(here, other):
            at = some.pieces & (len(marks) - 1)
            places = np.flatnonzero(marks[at])
            marks[at[places]] = MET
            if not kept.add(some, places, grow=here.ranges >= MOST_RANGES):
                return None
    for some in clips.pieces(here, side):
        places = np.flatnonzero(marks[some.pieces & (len(marks) - 1)] == MET)
        if not kept.add(some, places, grow=here.ranges >= MOST_RANGES):
            return None
    del marks
    shared = kept.shared()
    del kept
    return _meetings(clips, shared, inner, known)


def _repeated(values: np.ndarray) -> np.ndarray:
    """bool (N,): of int64 values that are the same all but one, and a few others."""
    last = np.empty(1 << (16 * len(values)).bit_length(), np.int32)  # place of a value, by its last bits
    spots, places = values & (len(last) - 1), np.arange(len(values), dtype=np.int32)
    last[spots] = places
    repeated: np.ndarray = last[spots] != places
    return repeated


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


class _Kept:
    """Pieces that are likely to be shared, with their hashes; those of a slot come one after the other."""

    def __init__(self, clips: _Clips) -> None:
        self.on_disk, self.filled = clips.hashes.words, 0
        self.pieces, self.words = np.empty(MOST_KEYS, np.uint64), np.empty((MOST_KEYS, 2), np.uint64)
        self.counts = np.zeros(2 * len(clips.order), np.int64)  # of each slot
        self.came = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]  # slots, and how many pieces of each

    def add(self, some: _Pieces, places: np.ndarray, *, grow: bool) -> bool:
        """Keeps the pieces at some places; False when they are too many, unless it may take more memory for them."""
        end = self.filled + len(places)
        if end > len(self.pieces):
            if not grow:
                return False
            more = max(end, 2 * len(self.pieces)) - len(self.pieces)
            self.pieces = np.concatenate([self.pieces, np.empty(more, np.uint64)])
            self.words = np.concatenate([self.words, np.empty((more, 2), np.uint64)])
        self.pieces[self.filled : end] = some.pieces[places]
        self.words[self.filled : end] = self.on_disk[some.rows[places]]
        self.filled = end
        counts = np.diff(np.searchsorted(places, some.ends), prepend=0)
        self.counts[some.slots] += counts
        self.came.append((some.slots, counts))
        return True

    def shared(self) -> _Shared:
        """Those that are shared. Nothing can be added any more."""
        slots, counts = (np.concatenate(parts) for parts in zip(*self.came, strict=True))
        # They are sorted by piece, then by clip: each gets its place in the order of slots.
        begin = np.cumsum(self.counts) - self.counts
        places = np.repeat(begin[slots] - (np.cumsum(counts) - counts), counts)
        places += np.arange(self.filled)
        came = np.empty(self.filled, np.int32)
        came[places] = np.arange(self.filled, dtype=np.int32)
        keys = self.pieces[: self.filled]
        keys <<= PLACE_BITS
        keys |= places.view(np.uint64)
        del places, slots, counts
        keys.sort()
        like_next = np.zeros(len(keys), bool)
        like_next[:-1] = (keys[1:] ^ keys[:-1]) >> PLACE_BITS == 0
        keys = keys[like_next | np.roll(like_next, 1)]
        places = (keys & ((np.uint64(1) << PLACE_BITS) - np.uint64(1))).view(np.int64)
        keys >>= PLACE_BITS
        slot = np.repeat(np.arange(len(self.counts), dtype=np.uint32), self.counts)[places]
        first = np.ones(len(keys), bool)
        first[1:] = (keys[1:] != keys[:-1]) | (slot[1:] != slot[:-1])
        keys, slot, places = keys[first], slot[first], places[first]
        return _Shared(keys << np.uint64(32) | slot >> np.uint32(1), slot % 2 == 0, self.words[came[places]])


def _meetings(clips: _Clips, shared: _Shared, inner: bool, known: int | None) -> np.ndarray:
    """uint64: seeker in the upper half, one of the first of its bucket, before itself and like it, in the lower."""
    whole, part = shared.whole, ~shared.whole
    piece_begins, owner_begins = _begins(shared.owners >> np.uint64(32)), _begins(shared.owners)
    # Of a clip's whole picture and part that have the same piece, the former.
    once = owner_begins == np.arange(len(owner_begins))
    sought = [(part, part)] if inner else [(whole, once), (part, whole)]
    found = [np.zeros(0, np.uint64)]
    for seekers, shown in sought:
        if known is not None:
            new = shared.owners & LOW >= np.uint64(known)
            seekers, shown = seekers & new, shown & ~new
        before = np.cumsum(shown) - shown
        start = before[piece_begins]
        counts = np.minimum(before[owner_begins] - start, MOST_IN_BUCKET)
        seeking = np.flatnonzero(seekers & (counts > 0))
        found += _close_pairs(clips, shared, seeking, np.flatnonzero(shown), start[seeking], counts[seeking])
    return np.unique(np.concatenate(found))


def _close_pairs(
    clips: _Clips, shared: _Shared, seekers: np.ndarray, shown: np.ndarray, start: np.ndarray, counts: np.ndarray
) -> Iterator[np.ndarray]:
    """As `_meetings`, in pieces, not unique.

    Args:
        seekers, shown: int64, places among what is shared.
        start, counts: int64 (seekers,), which of those shown each seeker meets.
    """
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(seekers):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + MEETINGS_AT_ONCE, side="right")))
        here = slice(begin, end)
        seeker = np.repeat(seekers[here], counts[here])
        offsets = start[here] - (ends[here] - counts[here] - done)
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


def _begins(values: np.ndarray) -> np.ndarray:
    """int64 (N,): of ascending values, the place of the first that is the same."""
    first = np.ones(len(values), bool)
    first[1:] = values[1:] != values[:-1]
    places = np.where(first, np.arange(len(values)), 0)
    return np.maximum.accumulate(places, out=places)
