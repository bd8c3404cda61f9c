"""Sources of videos: listing files (JSONL, CSV, Parquet) and local folders, read as rows."""

import csv
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote_to_bytes, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from medgen.canonical import digest_of
from medgen.errors import ItemFailed, SourceUnreadable
from medgen.store import file_digest

Kind = Literal["jsonl", "csv", "parquet", "folder"]
SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".avi",
        ".dv",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)
MAX_LINE_BYTES = 1 << 20
MAX_TEXT = 100_000  # characters of a title or description that are read
FOLDER_SCHEME = "folder:"


@dataclass(frozen=True)
class Feed:
    """A source that can be read: its name (part of a folder's video ids), kind and resolved path."""

    name: str
    kind: Kind
    path: Path


@dataclass(frozen=True)
class Listed:
    """One row of a listing. `url` is http(s), or ``folder:NAME/RELATIVE-PATH`` (percent-encoded)."""

    url: str
    title: str
    description: str
    tags: tuple[str, ...]
    channel: str | None
    licence: str | None
    published: str | None
    duration_s: float | None
    external_id: str | None
    subtitles_url: str | None


def open_feed(text: str) -> Feed:
    """Understands a source as people write it: ``PATH`` or ``NAME=PATH``.

    Raises:
        SourceUnreadable: source_not_found, source_unreadable or unknown_source_type; says which kinds there are.
    """
    name, equals, rest = text.partition("=")
    if not equals or "/" in name:
        name, rest = "", text
    try:
        path = Path(rest).expanduser().resolve()
        is_file, exists = path.is_file(), path.exists()
        str(path).encode()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, not UTF-8 or with a NUL; a loop of links
        raise SourceUnreadable("source_unreadable", f"{rest[:200]!r}: {error}") from error
    if "://" in rest or (is_file and path.suffix.lower() not in SUFFIXES):
        raise SourceUnreadable(
            "unknown_source_type", f"{rest!r} is neither a folder nor a {', '.join(SUFFIXES)} listing file"
        )
    if not exists:
        raise SourceUnreadable("source_not_found", f"{rest!r} does not exist")
    kind: Kind = "folder" if path.is_dir() else SUFFIXES[path.suffix.lower()]
    return Feed(name or path.name, kind, path)


def feed_digest(feed: Feed) -> str:
    """Digest of what the source lists now: the file's bytes, or names, sizes and times of a folder's files."""
    if feed.kind != "folder":
        return file_digest(feed.path)[0]
    facts = []
    for relative in _files(feed.path):
        status = (feed.path / os.fsdecode(relative)).lstat()
        facts.append([quote(relative), status.st_size, status.st_mtime_ns])
    return digest_of(facts)


def rows(feed: Feed) -> Iterator[tuple[int, Listed | ItemFailed]]:
    """(row number from 1, row or why it is unusable), in file order, streaming.

    Raises:
        SourceUnreadable: the source as a whole is unreadable.
    """
    reader = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "folder": _folder}[feed.kind]
    for number, row in enumerate(reader(feed), start=1):
        try:
            yield number, row if isinstance(row, Listed | ItemFailed) else _listed(row)
        except ItemFailed as failure:
            yield number, failure


def folder_path(feed: Feed, url: str) -> Path:
    """The file that a ``folder:`` URL of this feed stands for.

    Raises:
        ItemFailed: outside_folder when the URL, or a link in it, leads out of the folder.
    """
    encoded = url.removeprefix(f"{FOLDER_SCHEME}{quote(feed.name)}/")
    path = feed.path / os.fsdecode(unquote_to_bytes(encoded))
    if not _inside(feed.path, path):
        raise ItemFailed("outside_folder", f"{url} leads out of its folder")
    return path


def _listed(row: Any) -> Listed:
    if not isinstance(row, dict):
        raise ItemFailed("bad_row", "the row is not an object")
    url = storable_text(row.get("url")).strip()
    if not url:
        raise ItemFailed("missing_url", "the row has no url")
    if not url.lower().startswith(("http://", "https://")):
        raise ItemFailed("unsupported_url", f"only http and https are read, not {url[:200]!r}")
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0 and min(url) >= " "
    except ValueError:
        usable = False
    if not usable:
        raise ItemFailed("unsupported_url", f"not a URL: {url[:200]!r}")
    tags = row.get("tags") or ()
    if isinstance(tags, str):
        tags = [part.strip() for part in tags.split("|" if "|" in tags else ",")]
    if not isinstance(tags, list | tuple):
        raise ItemFailed("bad_row", f"tags are neither a list nor text: {str(tags)[:50]!r}")
    duration = row.get("duration", row.get("duration_s"))
    try:
        seconds = float(duration) if duration not in (None, "") else None
        if seconds is not None and not math.isfinite(seconds):
            raise ValueError("not finite")
    except (TypeError, ValueError, OverflowError) as error:
        raise ItemFailed("bad_row", f"duration is not a number: {repr(duration)[:50]}") from error
    return Listed(
        url=url,
        title=storable_text(row.get("title")),
        description=storable_text(row.get("description")),
        tags=tuple(storable_text(tag) for tag in tags if tag),
        channel=storable_text(row.get("channel")) or None,
        licence=storable_text(row.get("licence") or row.get("license")) or None,
        published=storable_text(row.get("published")) or None,
        duration_s=seconds,
        external_id=storable_text(row.get("id")) or None,
        subtitles_url=storable_text(row.get("subtitles_url")) or None,
    )


def storable_text(value: Any) -> str:
    """Text that Postgres and Parquet can hold: no NUL, no lone surrogates, bounded."""
    text = "" if value is None else str(value)[:MAX_TEXT]
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _jsonl(feed: Feed) -> Iterator[Any]:
    with feed.path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                yield ItemFailed("bad_row", f"the line is longer than {MAX_LINE_BYTES} bytes")
            elif line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield ItemFailed("bad_row", f"not JSON: {error}")


def _csv(feed: Feed) -> Iterator[Any]:
    try:
        with feed.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.DictReader(line.replace("\x00", "\ufffd") for line in file)
            if "url" not in (reader.fieldnames or ()):
                raise SourceUnreadable("source_unreadable", f"{feed.path.name} has no url column in its first line")
            yield from reader
    except csv.Error as error:
        raise SourceUnreadable("source_unreadable", f"{feed.path.name} is not CSV: {error}") from error


def _parquet(feed: Feed) -> Iterator[Any]:
    try:
        with pq.ParquetFile(feed.path) as file:
            if "url" not in file.schema_arrow.names:
                raise SourceUnreadable("source_unreadable", f"{feed.path.name} has no url column")
            for batch in file.iter_batches(batch_size=10_000):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise SourceUnreadable("source_unreadable", f"{feed.path.name} is not Parquet: {error}") from error


def _folder(feed: Feed) -> Iterator[Listed | ItemFailed]:
    for relative in _files(feed.path):
        path = feed.path / os.fsdecode(relative)
        name = os.fsdecode(relative)
        if not _inside(feed.path, path):
            yield ItemFailed("outside_folder", f"{storable_text(name)} is a link that leads out of the folder")
        elif path.suffix.lower() not in VIDEO_SUFFIXES:
            yield ItemFailed("not_a_video_name", f"{storable_text(name)} is no video by its name")
        elif path.exists() and not path.is_file():
            yield ItemFailed("not_a_file", f"{storable_text(name)} is a pipe, a socket or a device")
        else:
            yield Listed(
                url=f"{FOLDER_SCHEME}{quote(feed.name)}/{quote(relative)}",
                title=storable_text(path.stem),
                description="",
                tags=(),
                channel=None,
                licence=None,
                published=None,
                duration_s=None,
                external_id=storable_text(name),
                subtitles_url=None,
            )


def _inside(folder: Path, path: Path) -> bool:
    """Whether `path`, all links followed, lies in `folder`. A loop of links lies nowhere."""
    try:
        return path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):
        return False


def _files(folder: Path) -> list[bytes]:
    """Relative paths of all files below `folder`, sorted by bytes; hidden ones are left out."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.fsencode(os.path.relpath(Path(root, name), folder)) for name in files if not name.startswith(".")]
    return sorted(found)
