"""Layouts in which captioned video sets are published, and the files of a set that say which clips there are.

Known are a table beside its videos (CSV, JSON, JSON lines, Parquet), Hugging Face's videofolder with `metadata.csv`,
`.jsonl` or `.parquet` in each folder, its Parquet files with the videos inside, WebDataset shards (tar), and the
folders of releases and exports of medgen.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medgen.errors import SourceUnreadable
from medgen.listings.rows import storable_text
from medgen.listings.shard_file import mark_of
from medgen.listings.sources import COMPRESSIONS, SUFFIXES, files_of, is_inside

Kind = Literal["csv", "json", "jsonl", "parquet", "webdataset"]
TABLES: dict[str, Kind] = {**SUFFIXES, ".json": "json"}
METADATA = "metadata"  # files of this name describe the videos of their folder
PREFERRED = ("parquet", "jsonl", "json", "csv")  # of several that describe the same folder
# Tables beside a set's own: of releases and exports of medgen, and of the tools of Hugging Face.
BESIDE = frozenset(
    ["manifest", "rejected", "funnel", "shards", "takedown", "croissant", "dataset_info", "dataset_infos", "state"]
)
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "validation": "validation",
    "valid": "validation", "val": "validation", "dev": "validation", "eval": "validation",
}  # fmt: skip
LAYOUTS = (
    "a table (.csv, .json, .jsonl, .parquet) beside its videos, a folder with metadata.csv, .jsonl or .parquet, or one "
    "with WebDataset shards (.tar)"
)


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published set that says which clips there are.

    Args:
        name: path within the set.
        split: that its name or folder tells, as `split_of`; empty: none.
        mark: what tells that its bytes are still the same: size and time of change.
    """

    name: str
    path: Path
    kind: Kind
    split: str
    mark: str


@dataclass(frozen=True)
class PublishedSet:
    """A published set: its folder, all links followed, and its files by name."""

    folder: Path
    files: tuple[PublishedFile, ...]


def open_published(text: str) -> PublishedSet:
    """The set at a path: a folder, or the one file that describes it.

    Raises:
        SourceUnreadable: source_not_found; unknown_layout, which says what is known.
    """
    try:
        path = Path(text).expanduser().resolve()
        exists, is_file = path.exists(), path.is_file()
        str(path).encode()
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceUnreadable("source_unreadable", f"{text[:200]!r}: {error}") from error
    if not exists:
        raise SourceUnreadable("source_not_found", f"{text[:200]!r} does not exist")
    if is_file:
        kind = _kind(path.name)
        if kind is None:
            raise SourceUnreadable("unknown_layout", f"{path.name} is no table and no .tar: name {LAYOUTS}")
        return PublishedSet(path.parent, (_file(path.parent, path.name, kind),))
    if not path.is_dir():
        raise SourceUnreadable("unknown_layout", f"{text[:200]!r} is a pipe, a socket or a device")
    return PublishedSet(path, tuple(_files(path)))


def split_of(name: str) -> str:
    """train, validation or test, where a path, its folders or the beginning of its name say so; else empty.

    As on Hugging Face: `train/…`, `data/test-00000-of-00002.parquet`, `my_validation.csv`.
    """
    for part in reversed(name.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in SPLITS:
                return SPLITS[word]
    return ""


def _kind(name: str) -> Kind | None:
    path = Path(name.lower())
    if path.suffix == ".tar":
        return "webdataset"
    if path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    return TABLES.get(path.suffix)


def _files(folder: Path) -> list[PublishedFile]:
    names = [os.fsdecode(relative) for relative in files_of(folder)]
    kinds = {name: kind for name in names if (kind := _kind(name))}
    describing: dict[str, str] = {}  # folder → the file that describes its videos
    for name in kinds:
        if _stem(name) == METADATA and kinds[name] != "webdataset":
            parent = name.rpartition("/")[0]
            before = describing.get(parent)
            if before is None or PREFERRED.index(kinds[name]) < PREFERRED.index(kinds[before]):
                describing[parent] = name
    shards = [name for name, kind in kinds.items() if kind == "webdataset"]
    tables = [name for name in kinds if name not in shards and _stem(name) not in BESIDE]
    chosen = [*describing.values()] or shards or tables
    if not chosen:
        raise SourceUnreadable("unknown_layout", f"{folder} holds no description of its videos: name {LAYOUTS}")
    return [_file(folder, name, kinds[name]) for name in sorted(chosen)]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0].lower()


def _file(folder: Path, name: str, kind: Kind) -> PublishedFile:
    path = folder / name
    shown = storable_text(name)
    if not is_inside(folder, path):
        raise SourceUnreadable("outside_folder", f"{shown} is a link that leads out of the set")
    try:
        status = path.stat()
        name.encode()
    except (OSError, ValueError) as error:
        raise SourceUnreadable("source_unreadable", f"{shown}: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SourceUnreadable("source_unreadable", f"{shown} is a folder, a pipe, a socket or a device")
    return PublishedFile(shown, path, kind, split_of(shown), mark_of(status))
