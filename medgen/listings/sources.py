"""Sources of videos, as people name them, and the folders that some of them are.

A source is a folder of videos, a listing file, a folder or an S3 prefix of listing files, or a feed of the web.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote_to_bytes, urlsplit

from medgen.canonical import digest_of
from medgen.errors import ItemFailed, SourceUnreadable
from medgen.listings.rows import storable_text

ListingKind = Literal["jsonl", "csv", "parquet"]
Kind = Literal["jsonl", "csv", "parquet", "folder", "listings", "s3", "web"]
SUFFIXES: dict[str, ListingKind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
VIDEO_SUFFIXES = frozenset(
    [
        ".3gp", ".avi", ".dv", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf",
        ".ogv", ".ts", ".vob", ".webm", ".wmv",
    ]
)  # fmt: skip
# Multi-frame DICOM, see `medgen.video.dicom`; read as a source alone.
DICOM_SUFFIXES = frozenset([".dcm"])
# Beside videos, files of these names describe them and are no listings of their own.
DESCRIBING = frozenset(["manifest", "metadata", "rejected"])
FOLDER_SCHEME = "folder:"
SEARCH = re.compile(r"[a-z]+search[a-z]*([0-9]+|all)?:")  # yt-dlp's prefixes, for example ytsearch50:


@dataclass(frozen=True)
class Feed:
    """A source that can be read.

    Args:
        name: what the source goes by; part of a folder's video ids. Its label, until
            `medgen.listings.source_identity` finds that another source has that name.
        kind: a listing file, a folder of videos (folder) or of listings (listings), S3 (s3), or a feed (web).
        path: resolved, of what lies on this machine.
        url: of what does not: ``s3://…``, ``http(s)://…``, or a search like ``ytsearch50:laparoscopy``.
        label: what people call it. Several sources may be called the same.
        place: a path as it was written, made absolute, its links not followed; else the URL.
        named: the label was given with ``NAME=``.
    """

    name: str
    kind: Kind
    path: Path = Path()
    url: str | None = None
    label: str = ""
    place: str = ""
    named: bool = False

    @property
    def uri(self) -> str:
        """Where the source is, as text."""
        return self.url or str(self.path)


def open_feed(text: str) -> Feed:
    """Understands a source as people write it, each optionally with ``NAME=`` before it.

    ``PATH`` of a folder or listing file, ``s3://BUCKET/PREFIX-OR-FILE``, ``http(s)://…`` of a channel, playlist,
    search or RSS feed, or a search of yt-dlp such as ``ytsearch50:laparoscopy``. Nothing is asked of any server.

    Raises:
        SourceUnreadable: source_not_found, source_unreadable, ambiguous_folder or unknown_source_type; says which
            kinds there are.
    """
    name, equals, rest = text.partition("=")
    if not equals or "/" in name or SEARCH.match(name):
        name, rest = "", text
    scheme = rest.partition("://")[0].lower() if "://" in rest else ""
    if scheme == "s3":
        bucket = rest[5:].partition("/")[0]
        if not bucket:
            raise SourceUnreadable("unknown_source_type", f"{rest!r} names no bucket: s3://BUCKET/PREFIX-OR-FILE")
        url = rest.rstrip("/")
        return _named(Feed(url, "s3", url=url, place=url), name)
    if scheme in ("http", "https") or SEARCH.match(rest):
        url = _feed_url(rest) if scheme else storable_text(rest)
        return _named(Feed(rest, "web", url=url, place=url), name)
    try:
        path = Path(rest).expanduser().resolve()
        is_file, exists = path.is_file(), path.exists()
        str(path).encode()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, not UTF-8 or with a NUL; a loop of links
        raise SourceUnreadable("source_unreadable", f"{rest[:200]!r}: {error}") from error
    if scheme or (is_file and not listing_kind(path.name)):
        raise SourceUnreadable(
            "unknown_source_type",
            f"{rest!r} is neither a folder nor a {', '.join(SUFFIXES)} listing file (or one of these as .gz or .zst), "
            "nor an s3:// or http(s):// URL",
        )
    if not exists:
        raise SourceUnreadable("source_not_found", f"{rest!r} does not exist")
    kind: Kind | None = _folder_kind(path) if path.is_dir() else listing_kind(path.name)
    if kind is None:
        raise SourceUnreadable("unknown_source_type", f"{rest!r} is a pipe, a socket or a device")
    return _named(Feed(path.name, kind, path, place=storable_text(Path(rest).expanduser().absolute())), name)


def _named(feed: Feed, name: str) -> Feed:
    """A feed under its label: the name that was given to it, or else its own."""
    label = storable_text(name or feed.name)
    return replace(feed, name=label, label=label, named=bool(name))


def listing_kind(name: str) -> ListingKind | None:
    """How a file of this name is read; None when it is no listing."""
    path = Path(name.lower())
    if path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    return SUFFIXES.get(path.suffix)


def _feed_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or min(url) <= " ":
        raise SourceUnreadable("source_unreadable", f"not a URL: {url[:200]!r}")
    if parts.username or parts.password:
        raise SourceUnreadable(
            "source_unreadable", f"the URL of {parts.hostname} holds a user or password: it would go on record"
        )
    if listing_kind(parts.path):
        raise SourceUnreadable(
            "unknown_source_type",
            f"{url!r} looks like a listing file: those are read from disk or s3://, not from the web",
        )
    return url


def _folder_kind(folder: Path) -> Kind:
    videos: list[str] = []
    listings: list[str] = []
    for relative in files_of(folder):
        name = os.fsdecode(relative)
        if Path(name).suffix.lower() in VIDEO_SUFFIXES | DICOM_SUFFIXES:
            videos.append(name)
        elif listing_kind(name):
            listings.append(name)
    own = [name for name in listings if not videos or Path(name).name.partition(".")[0].lower() not in DESCRIBING]
    if videos and own:
        raise SourceUnreadable(
            "ambiguous_folder",
            f"{folder} holds videos ({storable_text(videos[0])}) and listings ({storable_text(own[0])}): "
            "name the listings, or a folder with one of the two, as the source",
        )
    return "listings" if own else "folder"


def folder_path(feed: Feed, url: str) -> Path:
    """The file that a ``folder:`` URL of this feed stands for.

    Raises:
        ItemFailed: outside_folder when the URL, or a link in it, leads out of the folder.
    """
    encoded = url.removeprefix(f"{FOLDER_SCHEME}{quote(feed.name)}/")
    path = feed.path / os.fsdecode(unquote_to_bytes(encoded))
    if not is_inside(feed.path, path):
        raise ItemFailed("outside_folder", f"{url} leads out of its folder")
    return path


def is_inside(folder: Path, path: Path) -> bool:
    """Whether `path`, all links followed, lies in `folder`. A loop of links lies nowhere."""
    try:
        return path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):
        return False


def files_of(folder: Path) -> list[bytes]:
    """Relative paths of all files below `folder`, sorted by bytes; hidden ones are left out."""
    paths = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [os.fsencode(os.path.relpath(Path(root, name), folder)) for name in files if not name.startswith(".")]
    return sorted(paths)


def folder_digest(folder: Path) -> str:
    """Digest of the names, sizes and times of a folder's files."""
    facts = []
    for relative in files_of(folder):
        path = folder / os.fsdecode(relative)
        status, dicom = path.lstat(), path.suffix.lower() in DICOM_SUFFIXES
        # Folders that were listed before DICOM was read are listed anew.
        facts.append([quote(relative), status.st_size, status.st_mtime_ns, *(["dicom"] if dicom else [])])
    return digest_of(facts)
