"""Near-duplicates among the clips of an index.

What comparing two clips gave stays in the index, so that a night compares only what is new with what stands.
"""

from collections.abc import Iterator

import numpy as np

from models.duplicates.candidates import LOW, candidate_pairs
from models.duplicates.index import NO_COPY, FingerprintIndex
from models.duplicates.near_duplicates import LEAST_STEPS, STILL, Match, compare

REMEMBERED_AT_ONCE = 256  # comparisons that a killed process loses at most


def duplicates(index: FingerprintIndex, order: np.ndarray) -> dict[int, tuple[int, Match]]:
    """Place in the index → (place of the better copy that stays, how alike they are), of every clip that has one.

    Clips are taken from the best to the worst and compared with those that stay, so that nothing is dropped for the
    sake of a clip that is dropped itself.

    Args:
        order: int64 (clips,), places of the clips to look at, each once, the best first.

    Raises:
        IndexDamaged: what the index holds is not what was put there.
    """
    dropped = np.zeros(len(order), bool)
    copies: dict[int, tuple[int, Match]] = {}
    with _Comparisons(index, order, _pairs(index, order)) as comparisons:
        for number, rivals in comparisons.groups():
            if best := comparisons.best(rivals, dropped):
                rival, match = best
                dropped[number] = True
                copies[int(order[number])] = int(order[rival]), match
    return copies


def copies_of(index: FingerprintIndex, known: np.ndarray, clips: np.ndarray) -> dict[int, tuple[int, Match]]:
    """Place → (place of the known clip that it copies most of, how alike they are), of every clip that copies any.

    Each clip is judged on its own, whatever else is among `clips`.

    Args:
        known, clips: int64, places, each once; of known clips that are equally good copies, the first counts.

    Raises:
        IndexDamaged: what the index holds is not what was put there.
    """
    if not len(known) or not len(clips):
        return {}
    order = np.concatenate([known, clips])
    copies: dict[int, tuple[int, Match]] = {}
    with _Comparisons(index, order, _pairs(index, order, len(known))) as comparisons:
        for number, rivals in comparisons.groups():
            if best := comparisons.best(rivals, np.zeros(len(known), bool)):
                copies[int(order[number])] = int(order[best[0]]), best[1]
    return copies


def _pairs(index: FingerprintIndex, order: np.ndarray, known: int | None = None) -> np.ndarray:
    """As `candidate_pairs`, without those of which `compare` says at first sight that they are no copies."""
    pairs = candidate_pairs(index.hashes(), order, known)
    steps, still = index.column("steps")[order], index.column("movement")[order] < STILL
    first, second = (pairs >> np.uint64(32)).astype(np.int64), (pairs & LOW).astype(np.int64)
    shortest = np.minimum(steps[first], steps[second])
    alike = (still[first] == still[second]) | (shortest < LEAST_STEPS)
    kept: np.ndarray = pairs[alike & (shortest >= 2)]
    return kept


class _Comparisons:
    """What comparing pairs gives: what is on file, else what `compare` says, which then goes on file.

    Args:
        order: places of the clips, by number.
        pairs: as `candidate_pairs`.
    """

    def __init__(self, index: FingerprintIndex, order: np.ndarray, pairs: np.ndarray) -> None:
        self.index, self.order, self.pairs = index, order, pairs
        self.similarity = np.full(len(pairs), np.nan)
        self.overlap_s = np.zeros(len(pairs))
        self.new: list[tuple[int, int, Match | None]] = []
        self._recall()

    def _recall(self) -> None:
        ids = self.index.ids[self.order]
        by_id = np.argsort(ids)
        for rows in self.index.comparisons() if len(self.pairs) else ():
            numbers, known = [], np.ones(len(rows), bool)
            for name in ("first", "second"):
                number = by_id[np.minimum(np.searchsorted(ids, rows[name], sorter=by_id), len(ids) - 1)]
                known &= ids[number] == rows[name]
                numbers.append(number.astype(np.uint64))
            keys = (numbers[0] << np.uint64(32) | numbers[1])[known]
            at = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
            wanted = self.pairs[at] == keys
            self.similarity[at[wanted]] = rows["similarity"][known][wanted]
            self.overlap_s[at[wanted]] = rows["overlap_s"][known][wanted]

    def __enter__(self) -> "_Comparisons":
        return self

    def __exit__(self, *_: object) -> None:
        if self.new:
            self.index.remember(self.new)

    def groups(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of a clip, places of its pairs), the best clip first."""
        owners = self.pairs >> np.uint64(32)
        for group in np.split(np.arange(len(owners)), np.flatnonzero(np.diff(owners)) + 1):
            if len(group):
                yield int(owners[group[0]]), group

    def best(self, pairs: np.ndarray, dropped: np.ndarray) -> tuple[int, Match] | None:
        """(number of the rival with which a clip shares most, how); None when it copies none that is not dropped."""
        best: tuple[float, int, Match] | None = None
        for pair in pairs:
            rival = int(self.pairs[pair] & LOW)
            if dropped[rival]:
                continue
            match = self._match(int(pair), rival)
            if match and (best is None or match.overlap_s * match.similarity > best[0]):
                best = match.overlap_s * match.similarity, rival, match
        return best[1:] if best else None

    def _match(self, pair: int, rival: int) -> Match | None:
        similarity = float(self.similarity[pair])
        if not np.isnan(similarity):
            return None if similarity == NO_COPY else Match(similarity, float(self.overlap_s[pair]))
        first, second = (int(self.order[n]) for n in (self.pairs[pair] >> np.uint64(32), rival))
        match = compare(self.index.fingerprint(first), self.index.fingerprint(second))
        self.new.append((int(self.index.ids[first]), int(self.index.ids[second]), match))
        if len(self.new) == REMEMBERED_AT_ONCE:
            self.index.remember(self.new)
            self.new = []
        return match
