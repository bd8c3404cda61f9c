"""Fingerprints of all clips, and what came of comparing them, in files of a folder: a million clips take some 8 GB
there, and little memory.

It is a cache: what it holds can be had again from the records, and whatever is wrong with it (damage, another format,
other settings of the comparison, another catalog's ids) empties it. Files are only appended to, the one that tells of
the others last, so that a process killed anywhere leaves at worst bytes that nothing points to.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from models.duplicates.fingerprint import INNER, Fingerprint
from models.duplicates.near_duplicates import NEAR_DUPLICATES, Match, movement_of, sketch_of

FORMAT = 1
FACTS = 3  # numbers that an entry's rank is made of
LEADING = 16  # bytes of each hash in the search for candidates: all that those of parts have
KINDS = 3  # hashes of whole pictures, of PARTS but the last, of the last
AT_ONCE = 1 << 14  # entries or comparisons that are read into memory at once
ENTRY = np.dtype(
    [
        ("id", "<i8"),
        ("clip", "S32"),
        ("facts", "<f8", FACTS),
        ("movement", "<f8"),
        ("sketch", "i1", (2, 64)),
        ("start", "<i8"),  # of the fingerprint's bytes
        ("first", "<i8"),  # row of its hashes
        ("rows", "<i4", KINDS),  # of them, of frames that are not flat
        ("steps", "<i4"),
        ("bytes", "<i4"),
        ("crc", "<u4"),  # of the fingerprint's bytes
        ("hashes_check", "<u8"),
        ("check", "<u8"),  # of the fields before
    ]
)
COMPARISON = np.dtype(
    [("first", "<i8"), ("second", "<i8"), ("similarity", "<f8"), ("overlap_s", "<f8"), ("check", "<u8")]
)
NO_COPY = -1.0  # the similarity on file of two clips that are no copies


class IndexDamaged(Exception):
    """The index is not as it was written. Empty it, and fill it anew."""


@dataclass(frozen=True)
class Entry:
    """A clip in the index.

    Args:
        id: of the step run that took the fingerprint, which belongs to it alone.
        clip: id of the clip, at most 32 bytes.
        facts: numbers that its rank among copies is made of.
        fingerprint: of the clip.
    """

    id: int
    clip: str
    facts: tuple[float, float, float]
    fingerprint: Fingerprint


class FingerprintIndex:
    """The index in a folder, see `open_index`. An entry keeps its place, from 0, until the index is emptied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, int] = {}
        self._known = np.zeros((2, 0), np.int64)  # ids by place, then places by id; longer than there are entries
        self._count = 0
        self._ends = 0, 0  # of the fingerprints, bytes, and of the hashes, rows
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except (OSError, ValueError, IndexDamaged):
            self.clear()

    def clear(self) -> None:
        """Empties the index."""
        self.close()
        header = self.folder / "index.json"
        header.unlink(missing_ok=True)
        for name in ("entries", "fingerprints", "hashes", "comparisons"):
            (self.folder / name).write_bytes(b"")
        made = self.folder / "index.json.new"
        made.write_text(json.dumps(_HEADER), "utf-8")
        made.replace(header)
        self._open()

    def close(self) -> None:
        """Closes the files."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()

    def __len__(self) -> int:
        return self._count

    @property
    def ids(self) -> np.ndarray:
        """int64 (entries,), by place."""
        return self._known[0, : self._count]

    @property
    def _by_id(self) -> np.ndarray:
        """int64 (entries,), places in the order of ids."""
        return self._known[1, : self._count]

    def holds(self, ids: np.ndarray, clips: np.ndarray) -> np.ndarray:
        """bool (N,): which of the entries with these ids (int64) and clips (bytes) are in the index.

        Raises:
            IndexDamaged: an id is that of another clip, as after the catalog was replaced by another one.
        """
        places = self._places(ids)
        held = places >= 0
        if (self.column("clip")[places[held]] != clips[held]).any():
            raise IndexDamaged("the fingerprints are of another catalog")
        return held

    def places(self, ids: np.ndarray) -> np.ndarray:
        """int64 (N,): places of the entries with these ids. Raises KeyError when one is unknown."""
        places = self._places(ids)
        if (places < 0).any():
            raise KeyError(f"no such fingerprints: {ids[places < 0][:10].tolist()}")
        return places

    def _places(self, ids: np.ndarray) -> np.ndarray:
        """As `places`; -1 for those that are unknown."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        found = np.minimum(np.searchsorted(self.ids, ids, sorter=self._by_id), len(self.ids) - 1)
        places: np.ndarray = self._by_id[found]
        return np.where(self.ids[places] == ids, places, -1)

    def column(self, name: str) -> np.ndarray:
        """A field of all entries, by place."""
        entries = np.frombuffer(self._map("entries"), ENTRY) if len(self) else np.zeros(0, ENTRY)
        return entries[name].copy()

    def add(self, entries: Iterable[Entry]) -> None:
        """Adds entries, of which none is in the index. All of them or, killed meanwhile, none.

        Raises:
            ValueError: an id is there already, or a clip's id is too long.
        """
        start, first = self._ends
        added, data, hashes = [], [], []
        for entry in entries:
            words, counts = _hash_rows(entry.fingerprint)
            clip, packed = entry.clip.encode(), entry.fingerprint.data()
            if len(clip) > ENTRY["clip"].itemsize:
                raise ValueError(f"the clip's id is too long: {entry.clip}")
            course = entry.fingerprint.course.astype(np.float32)
            check = _check_hashes(words, np.array([0]))[0] if len(words) else np.uint64(0)
            added.append(
                (
                    entry.id, clip, entry.facts, movement_of(course), sketch_of(course), start, first, counts,
                    len(course), len(packed), zlib.crc32(packed), check, 0,
                )
            )  # fmt: skip
            data.append(packed)
            hashes.append(words)
            start, first = start + len(packed), first + len(words)
        if not added:
            return
        rows = np.array(added, ENTRY)
        if len(np.unique(rows["id"])) < len(rows) or (self._places(rows["id"]) >= 0).any():
            raise ValueError("a fingerprint is in the index already")
        rows["check"] = _check(rows)
        self._cut()
        _write(self._files["fingerprints"], b"".join(data))
        _write(self._files["hashes"], np.concatenate(hashes).tobytes())
        _write(self._files["entries"], rows.tobytes())
        self._ends = start, first
        self._know(rows["id"])

    def fingerprint(self, place: int) -> Fingerprint:
        """The fingerprint of an entry. Raises IndexDamaged."""
        row = self._entry(place)
        data = os.pread(self._files["fingerprints"], int(row["bytes"]), int(row["start"]))
        if zlib.crc32(data) != row["crc"]:
            raise IndexDamaged(f"the fingerprint of {row['clip'].decode()} is not as it was written")
        return Fingerprint.from_data(data)

    def clip(self, place: int) -> str:
        """The clip of an entry."""
        return str(self._entry(place)["clip"].decode())

    def _entry(self, place: int) -> np.void:
        data = os.pread(self._files["entries"], ENTRY.itemsize, place * ENTRY.itemsize)
        row: np.void = np.frombuffer(data, ENTRY)[0]
        return row

    def hashes(self) -> "Hashes":
        """The hashes of all entries. Raises IndexDamaged when they are not as they were written."""
        first, rows = self.column("first"), self.column("rows")
        found = Hashes(self._map("hashes"), first, rows, self.column("sketch"))
        checks = self.column("hashes_check")
        for start in range(0, len(first), AT_ONCE):
            here = slice(start, start + AT_ONCE)
            filled = np.flatnonzero(rows[here].sum(axis=1)) + start
            if len(filled):
                end = first[filled[-1]] + rows[filled[-1]].sum()
                sums = _check_hashes(found.words[first[start] : end], first[filled] - first[start])
                if (sums != checks[filled]).any():
                    raise IndexDamaged("hashes are not as they were written")
            found.release()
        return found

    def remember(self, comparisons: Iterable[tuple[int, int, Match | None]]) -> None:
        """Keeps what comparing (id of the first, id of the second) gave. The order of the two matters."""
        rows = np.array(
            [
                (first, second, match.similarity if match else NO_COPY, match.overlap_s if match else 0.0, 0)
                for first, second, match in comparisons
            ],
            COMPARISON,
        )
        rows["check"] = _check(rows)
        self._cut()
        _write(self._files["comparisons"], rows.tobytes())

    def comparisons(self) -> Iterator[np.ndarray]:
        """What is kept of comparing, in pieces: fields `first`, `second` (ids), `similarity` (NO_COPY: they are no
        copies) and `overlap_s`. What is not as it was written is left out."""
        handle = self._files["comparisons"]
        for start in range(0, os.fstat(handle).st_size, AT_ONCE * COMPARISON.itemsize):
            data = os.pread(handle, AT_ONCE * COMPARISON.itemsize, start)
            rows = np.frombuffer(data, COMPARISON, len(data) // COMPARISON.itemsize)
            yield rows[rows["check"] == _check(rows)]

    def _open(self) -> None:
        if json.loads((self.folder / "index.json").read_text("utf-8")) != _HEADER:
            raise IndexDamaged("the index is of another version")
        for name in ("entries", "fingerprints", "hashes", "comparisons"):
            self._files[name] = os.open(self.folder / name, os.O_RDWR | os.O_APPEND)
        self._count = 0
        self._know(self._checked())
        self._cut()

    def _cut(self) -> None:
        """Cuts off what was being written when a process was killed or the disk was full."""
        size = {name: os.fstat(handle).st_size for name, handle in self._files.items()}
        wanted = {
            "fingerprints": self._ends[0],
            "hashes": self._ends[1] * LEADING,
            "entries": len(self) * ENTRY.itemsize,
            "comparisons": size["comparisons"] // COMPARISON.itemsize * COMPARISON.itemsize,
        }
        for name, end in wanted.items():
            if size[name] < end:
                raise IndexDamaged(f"{name} are missing")
            if size[name] > end:
                os.ftruncate(self._files[name], end)

    def _checked(self) -> np.ndarray:
        """Ids of the entries, all of which are as they were written; sets the ends of what they point to."""
        self._ends = 0, 0
        ids = [np.zeros(0, np.int64)]
        for start in range(0, os.fstat(self._files["entries"]).st_size, AT_ONCE * ENTRY.itemsize):
            data = os.pread(self._files["entries"], AT_ONCE * ENTRY.itemsize, start)
            rows = np.frombuffer(data, ENTRY, len(data) // ENTRY.itemsize)
            if not len(rows):
                break
            if (rows["check"] != _check(rows)).any():
                raise IndexDamaged("entries are not as they were written")
            ids.append(rows["id"])
            last = rows[-1]
            self._ends = int(last["start"] + last["bytes"]), int(last["first"] + last["rows"].sum())
        return np.concatenate(ids)

    def _know(self, ids: np.ndarray) -> None:
        """Takes in the ids of the next entries."""
        before, last = self._count, self.ids[self._by_id[-1:]]
        self._count += len(ids)
        if self._count > self._known.shape[1]:  # then twice as long, so that filling takes time in proportion
            longer = np.zeros((2, 2 * self._count), np.int64)
            longer[:, :before] = self._known[:, :before]
            self._known = longer
        self.ids[before:] = ids
        self._by_id[before:] = before + np.argsort(ids)
        if before and len(ids) and ids.min() < last:  # mostly they are younger than those before
            self._by_id[:] = np.argsort(self.ids)

    def _map(self, name: str) -> mmap.mmap | bytes:
        handle = self._files[name]
        return mmap.mmap(handle, 0, prot=mmap.PROT_READ) if os.fstat(handle).st_size else b""


class Hashes:
    """What the search for candidates reads: the leading 128 bits of all hashes, those of a clip together by kind.

    Args:
        words: uint64 (rows, 2), the higher bits first, on disk.
        first: int64 (entries,), the first row of each.
        rows: int32 (entries, 3), how many of each kind.
        sketches: int8 (entries, 2, 64), see `sketch_of`.
    """

    def __init__(self, mapped: mmap.mmap | bytes, first: np.ndarray, rows: np.ndarray, sketches: np.ndarray) -> None:
        self._mapped = mapped
        self.words = np.frombuffer(mapped, "<u8").reshape(-1, 2)
        self.first, self.rows, self.sketches = first, rows, sketches

    def release(self) -> None:
        """Lets go of the memory that the rows read so far are mapped to."""
        if isinstance(self._mapped, mmap.mmap):
            self._mapped.madvise(mmap.MADV_DONTNEED)


@contextmanager
def open_index(folder: Path) -> Iterator[FingerprintIndex]:
    """The index in a folder, made or emptied when it is not usable. One process at a time has it; others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock", thread_local=False):
        index = FingerprintIndex(folder)
        try:
            yield index
        finally:
            index.close()


_HEADER = {"format": FORMAT, "near_duplicates": NEAR_DUPLICATES}  # the latter changes with the kind of fingerprint


def _hash_rows(fingerprint: Fingerprint) -> tuple[np.ndarray, tuple[int, int, int]]:
    """(uint64 (N, 2), leading bits of the hashes of frames with structure; how many of each kind)."""
    pictures = fingerprint.hashes[~fingerprint.flat, :LEADING]
    parts = fingerprint.parts[~fingerprint.flat[::2]]
    kinds = pictures, parts[:, :INNER].reshape(-1, LEADING), parts[:, INNER]
    words = np.concatenate(kinds).view(">u8").astype("<u8")
    return words, (len(kinds[0]), len(kinds[1]), len(kinds[2]))


_ODD = np.random.default_rng(0).integers(0, 1 << 63, 64, np.uint64) * np.uint64(2) + np.uint64(1)


def _check(rows: np.ndarray) -> np.ndarray:
    """uint64 (N,): a sum over the fields of each row but the last; no single changed field leaves it as it is."""
    words = np.ascontiguousarray(rows).view("<u8").reshape(len(rows), -1)[:, :-1]
    sums: np.ndarray = words @ _ODD[: words.shape[1]] + np.uint64(len(_ODD))
    return sums


def _check_hashes(words: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """uint64 (N,): a sum over the rows from each start to the next, of which there is at least one."""
    lengths = np.diff(np.append(starts, len(words)))
    place = np.arange(len(words), dtype=np.uint64) - np.repeat(starts, lengths).astype(np.uint64)
    mixed = words @ _ODD[:2]
    mixed = (mixed ^ (mixed >> np.uint64(31))) * (_ODD[2] + np.uint64(2) * place)  # in another order, another sum
    sums: np.ndarray = np.add.reduceat(mixed, starts)
    return sums


def _write(handle: int, data: bytes) -> None:
    """Appends, and waits until the disk has it: what points to it is written after it."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
    os.fsync(handle)
