"""An index of vectors in files of a folder, for a catalog whose server has no pgvector.

Nothing is approximated: a question reads all vectors of a space, some thousands at a time, straight from the disk's
cache (docs/scale.md has figures). It is a cache of what is on record. Files are only appended to, the vectors first, so
that a process killed anywhere leaves at worst bytes that nothing points to; what is taken out is overwritten in place.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

from models.retrieval.vector_index import Entry, Neighbour, Space, unit

FORMAT = 1
BLOCK = 8192  # vectors that are compared at once
ROW = np.dtype([("clip", "S32"), ("run", "<i8")])


class VectorFile:
    """The index in a folder. Several processes may use it: one writes at a time, and readers see what is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def spaces(self) -> list[Space]:
        """See `VectorIndex`."""
        headers = sorted(self.folder.glob("*/space.json"), key=lambda path: (-path.stat().st_mtime_ns, path))
        return [space for header in headers if (space := _read_header(header))]

    def size(self, space: Space) -> int:
        """See `VectorIndex`."""
        return len(_newest(self._rows(space)))

    def held(self, space: Space, clips: Sequence[str]) -> dict[str, int]:
        """See `VectorIndex`."""
        rows = self._rows(space)
        places = self._places(rows, clips)
        return {clip: int(rows["run"][place]) for clip, place in places.items()}

    def put(self, space: Space, entries: Sequence[Entry]) -> None:
        """See `VectorIndex`. Raises ValueError for an id that is too long or a vector of another space."""
        entries = [*{entry.clip: entry for entry in entries}.values()]
        if not entries:
            return
        for entry in entries:
            if len(entry.clip.encode()) > ROW["clip"].itemsize or entry.vector.shape != (space.dimension,):
                raise ValueError(f"{entry.clip} has no vector of {space.name}: {entry.vector.shape}")
        vectors = unit(np.stack([entry.vector for entry in entries])).astype(np.float16)
        rows = np.array([(entry.clip.encode(), entry.run) for entry in entries], ROW)
        with self._writing(space) as folder:
            known = self._rows(space)
            superseded = [*self._places(known, [entry.clip for entry in entries]).values()]
            _append(folder / "vectors", vectors.tobytes(), len(known) * vectors.itemsize * space.dimension)
            _append(folder / "rows", rows.tobytes(), len(known) * ROW.itemsize)
            self._blank(space, superseded)

    def vectors(self, space: Space, clips: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """See `VectorIndex`."""
        rows = self._rows(space)
        mapped = self._mapped(space, len(rows))
        for clip, place in sorted(self._places(rows, clips).items(), key=lambda pair: pair[1]):
            yield clip, unit(mapped[place])

    def nearest(self, space: Space, vector: np.ndarray, count: int) -> list[Neighbour]:
        """See `VectorIndex`."""
        rows = self._rows(space)
        mapped, wanted = self._mapped(space, len(rows)), unit(vector)
        best = np.zeros(0, [("similarity", "<f4"), ("clip", "S32")])
        for start in range(0, len(rows), BLOCK):
            here = rows["clip"][start : start + BLOCK]
            found = np.zeros(len(here), best.dtype)
            found["similarity"] = mapped[start : start + BLOCK].astype(np.float32) @ wanted
            found["clip"] = here
            best = np.concatenate([best, found[here != b""]])
            best = best[np.lexsort((best["clip"], -best["similarity"]))][:count]
        return [Neighbour(clip.decode(), float(similarity)) for similarity, clip in best]

    def remove(self, clips: Sequence[str]) -> None:
        """See `VectorIndex`."""
        for space in self.spaces():
            with self._writing(space):
                self._blank(space, [*self._places(self._rows(space), clips).values()])

    def clear(self) -> None:
        """Empties the index."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _blank(self, space: Space, places: Sequence[int]) -> None:
        """Overwrites rows and vectors with zeros."""
        width = 2 * space.dimension
        for name, size in (("rows", ROW.itemsize), ("vectors", width)) if places else ():
            handle = os.open(self._place(space) / name, os.O_WRONLY)
            try:
                for place in places:
                    os.pwrite(handle, bytes(size), place * size)
                os.fsync(handle)
            finally:
                os.close(handle)

    @contextmanager
    def _writing(self, space: Space) -> Iterator[Path]:
        folder = self._place(space)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock", thread_local=False):
            header = folder / "space.json"
            if _read_header(header) != space:
                for name in ("vectors", "rows"):
                    (folder / name).write_bytes(b"")
                made = folder / "space.json.new"
                made.write_text(json.dumps({"format": FORMAT, **vars(space)}), "utf-8")
                made.replace(header)
            yield folder

    def _place(self, space: Space) -> Path:
        return self.folder / f"{space.kind}-{space.digest[:32]}"

    def _rows(self, space: Space) -> np.ndarray:
        """All rows whose vectors are whole, by place; those that were taken out have no clip."""
        folder = self._place(space)
        try:
            data = (folder / "rows").read_bytes()
            whole = (folder / "vectors").stat().st_size // (2 * space.dimension)
        except FileNotFoundError:
            return np.zeros(0, ROW)
        return np.frombuffer(data, ROW, min(whole, len(data) // ROW.itemsize))

    def _mapped(self, space: Space, count: int) -> np.ndarray:
        """float16 (count, D), on disk."""
        if not count:
            return np.zeros((0, space.dimension), np.float16)
        path = self._place(space) / "vectors"
        mapped: np.ndarray = np.memmap(path, np.float16, "r", shape=(count, space.dimension))
        return mapped

    @staticmethod
    def _places(rows: np.ndarray, clips: Sequence[str]) -> dict[str, int]:
        """Clip → its newest place, of those that are there."""
        places = _newest(rows)
        names = rows["clip"][places]
        wanted = np.array([clip.encode() for clip in clips], ROW["clip"])
        at = np.minimum(np.searchsorted(names, wanted), max(0, len(names) - 1))
        return {
            clip: int(places[place])
            for clip, name, place in zip(clips, wanted, at, strict=True)
            if len(names) and name and names[place] == name
        }


def _newest(rows: np.ndarray) -> np.ndarray:
    """int64, the last place of every clip, by clip."""
    order = np.argsort(rows["clip"], kind="stable")
    names = rows["clip"][order]
    last = np.append(names[1:] != names[:-1], True)[: len(names)]
    newest: np.ndarray = order[last & (names != b"")]
    return newest


def _append(path: Path, data: bytes, end: int) -> None:
    """Writes at the end of what is whole, and waits until the disk has it."""
    with path.open("r+b") as file:
        file.truncate(end)
        file.seek(end)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_header(path: Path) -> Space | None:
    try:
        header = json.loads(path.read_text("utf-8"))
        if header.pop("format") != FORMAT:
            return None
        return Space(**header)
    except (OSError, ValueError, KeyError, TypeError):
        return None
