"""Sources of videos and the shards that they are read in.

A source is a folder of videos, a listing file, a folder or an S3 prefix of listing files, or a feed of the web.
A shard is a file of a source, or a stretch of a big Parquet file. Which shards there are is found out without
reading a file that was read before.
"""

import io
import os
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote_to_bytes, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from minio import Minio
from minio.error import S3Error
from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from medgen.canonical import digest_of
from medgen.catalog import KnownFile
from medgen.errors import ItemFailed, SourceUnreadable
from medgen.listings.rows import storable_text
from medgen.settings import current
from medgen.store import StoreUnavailable, file_digest, open_store, s3_client, through_outages

ListingKind = Literal["jsonl", "csv", "parquet"]
Kind = Literal["jsonl", "csv", "parquet", "folder", "listings", "s3", "web"]
SUFFIXES: dict[str, ListingKind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
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
# Beside videos, files of these names describe them and are no listings of their own.
DESCRIBING = frozenset(["manifest", "metadata", "rejected"])
FOLDER_SCHEME = "folder:"
ARTIFACT_SCHEME = "artifact:"
SEARCH = re.compile(r"[a-z]+search[a-z]*([0-9]+|all)?:")  # yt-dlp's prefixes, for example ytsearch50:
SHARD_ROWS = 500_000  # a big Parquet file is split at row groups into shards of about this many rows
S3_BLOCK = 8 << 20  # bytes asked for at once
HASHING = 8  # files hashed at once; over a network most of the time is waiting


@dataclass(frozen=True)
class Feed:
    """A source that can be read.

    Args:
        name: what the source goes by; part of a folder's video ids.
        kind: a listing file, a folder of videos (folder) or of listings (listings), S3 (s3), or a feed (web).
        path: resolved, of what lies on this machine.
        url: of what does not: ``s3://…``, ``http(s)://…``, or a search like ``ytsearch50:laparoscopy``.
    """

    name: str
    kind: Kind
    path: Path = Path()
    url: str | None = None

    @property
    def uri(self) -> str:
        """Where the source is, as text."""
        return self.url or str(self.path)


@dataclass(frozen=True)
class Shard:
    """A piece of a source that is read at one go.

    Args:
        source: name of the source.
        name: of the file within the source; with ``#FIRST-LAST`` when it is a stretch of row groups.
        kind: how it is read.
        location: a path, ``s3://BUCKET/KEY`` or ``artifact:SHA256``.
        mark: what tells that the bytes are still those of `digest`: size and time of change, or an S3 ETag.
        digest: sha256 of the whole file; of names, sizes and times for a folder of videos; empty with a `fault`.
        row_groups: first and one past the last, when the shard is a stretch of a Parquet file.
        first_row: number of its first row within the file, from 1.
        fault: why it can't be read, as ``reason: message``. Reading it raises that.
    """

    source: str
    name: str
    kind: Literal["jsonl", "csv", "parquet", "folder"]
    location: str
    mark: str = ""
    digest: str = ""
    row_groups: tuple[int, int] | None = None
    first_row: int = 1
    fault: str | None = None

    @property
    def compression(self) -> str | None:
        """gzip, zstd or None."""
        return COMPRESSIONS.get(Path(self.location).suffix.lower()) if self.kind != "folder" else None


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
        return Feed(name or url, "s3", url=url)
    if scheme in ("http", "https") or SEARCH.match(rest):
        return Feed(name or rest, "web", url=_feed_url(rest) if scheme else storable_text(rest))
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
    return Feed(name or path.name, kind, path)


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
        if Path(name).suffix.lower() in VIDEO_SUFFIXES:
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
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.fsencode(os.path.relpath(Path(root, name), folder)) for name in files if not name.startswith(".")]
    return sorted(found)


def folder_digest(folder: Path) -> str:
    """Digest of the names, sizes and times of a folder's files."""
    facts = []
    for relative in files_of(folder):
        status = (folder / os.fsdecode(relative)).lstat()
        facts.append([quote(relative), status.st_size, status.st_mtime_ns])
    return digest_of(facts)


class KnownFiles:
    """Digests of files as last read, kept in the catalog: a file whose mark is the same is not read again."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def find(self, marks: Mapping[str, str]) -> dict[str, str]:
        """uri → sha256, of those files that still bear the mark given for them (uri → mark)."""
        found: dict[str, str] = {}
        uris = iter(marks)
        with Session(self.engine) as session:
            while some := list(islice(uris, 5_000)):
                rows = session.execute(
                    select(KnownFile.uri, KnownFile.mark, KnownFile.sha256).where(KnownFile.uri.in_(some))
                )
                found |= {uri: digest for uri, mark, digest in rows if marks[uri] == mark}
        return found

    def remember(self, uri: str, mark: str, digest: str) -> None:
        """Keeps what was found."""
        with Session(self.engine) as session, session.begin():
            values = {"mark": mark, "sha256": digest}
            session.execute(
                upsert(KnownFile).values(uri=uri, **values).on_conflict_do_update(index_elements=["uri"], set_=values)
            )


def shards(feed: Feed, known: KnownFiles | None = None) -> list[Shard]:
    """The shards of a source, sorted by name; what one holds is named by its digest.

    A file of unknown digest is read once, in pieces. Of a Parquet file the footer is read, each time. A file that
    can't be read becomes a shard with a fault, so that it hides no other.

    Args:
        known: digests of files read before; without it every file is read.

    Raises:
        SourceUnreadable: there is no file, or the source is a feed, which must be listed first.
        StoreUnavailable: S3 does not answer.
    """
    if feed.kind == "web":
        raise SourceUnreadable("unknown_source_type", f"{feed.uri} is a feed of the web, which must be listed first")
    if feed.kind == "folder":
        return [Shard(feed.name, feed.path.name, "folder", str(feed.path), digest=folder_digest(feed.path))]
    found = _s3_files(feed) if feed.kind == "s3" else _local_files(feed)
    if not found:
        raise SourceUnreadable("source_not_found", f"{feed.uri} holds no {', '.join(SUFFIXES)} listing file")
    sound = {shard.location: shard.mark for shard in found if not shard.fault}
    digests = known.find(sound) if known else {}

    def digested(shard: Shard) -> list[Shard]:
        if shard.fault:
            return [shard]
        try:
            digest = digests.get(shard.location)
            if digest is None:
                digest = _digest(shard)
                if known:
                    known.remember(shard.location, shard.mark, digest)
            return _split(_with(shard, digest=digest))
        except SourceUnreadable as failure:
            return [_with(shard, fault=str(failure))]
        except OSError as error:
            return [_with(shard, fault=f"source_unreadable: {shard.name}: {error.strerror or error}")]

    with ThreadPoolExecutor(HASHING) as pool:
        return [shard for some in pool.map(digested, found) for shard in some]


def artifact_shard(source: str, name: str, digest: str) -> Shard:
    """A Parquet artifact of the store, in schema LISTING, as a shard."""
    return Shard(source, name, "parquet", f"{ARTIFACT_SCHEME}{digest}", digest=digest)


def _with(shard: Shard, **changes: Any) -> Shard:
    return Shard(**{**vars(shard), **changes})


def _local_files(feed: Feed) -> list[Shard]:
    if feed.kind != "listings":
        return [_local_file(feed, feed.path, feed.path.name)]
    names = [os.fsdecode(relative) for relative in files_of(feed.path)]
    return [_local_file(feed, feed.path / name, name) for name in names if listing_kind(name)]


def _local_file(feed: Feed, path: Path, name: str) -> Shard:
    kind = listing_kind(name)
    assert kind
    shard = Shard(feed.name, storable_text(name), kind, storable_text(path))
    try:
        str(path).encode()
        if feed.kind == "listings" and not is_inside(feed.path, path):
            return _with(shard, fault=f"outside_folder: {shard.name} is a link that leads out of the folder")
        status = path.stat()
    except (OSError, ValueError) as error:
        return _with(shard, fault=f"source_unreadable: {shard.name}: {getattr(error, 'strerror', None) or error}")
    if not stat.S_ISREG(status.st_mode):
        return _with(shard, fault=f"source_unreadable: {shard.name} is a folder, a pipe, a socket or a device")
    return _with(shard, mark=_mark(status))


def _mark(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"


def _s3_files(feed: Feed) -> list[Shard]:
    assert feed.url
    bucket, _, prefix = feed.url[5:].partition("/")
    client, endpoint = _s3()

    def listed() -> list[Any]:
        folder = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
        if not listing_kind(prefix):
            return list(client.list_objects(bucket, prefix=folder, recursive=True))
        exact = [o for o in client.list_objects(bucket, prefix=prefix) if o.object_name == prefix]
        return exact or list(client.list_objects(bucket, prefix=folder, recursive=True))

    try:
        objects = through_outages(listed, endpoint, bucket)
    except StoreUnavailable as error:
        if isinstance(error.__cause__, S3Error) and error.__cause__.code == "NoSuchBucket":
            raise SourceUnreadable("source_not_found", f"there is no bucket {bucket} at {endpoint}") from error
        raise
    found = []
    for one in sorted(objects, key=lambda one: str(one.object_name).encode("utf-8", "replace")):
        key = str(one.object_name)
        name = key.removeprefix(prefix).lstrip("/") or key.rpartition("/")[2]
        kind = listing_kind(key)
        if kind and not one.is_dir and not any(part.startswith(".") for part in name.split("/")):
            shard = Shard(feed.name, storable_text(name), kind, f"s3://{bucket}/{key}")
            etag = str(one.etag or "").strip('"')
            found.append(_with(shard, mark=f"{one.size} {etag}"))
    return found


def _s3() -> tuple[Minio, str]:
    settings = current()
    if not settings.s3_endpoint:
        raise SourceUnreadable("source_unreadable", "s3:// sources need MEDGEN_S3_ENDPOINT and its keys")
    return s3_client(settings), settings.s3_endpoint


def _digest(shard: Shard) -> str:
    if not shard.location.startswith("s3://"):
        return file_digest(Path(shard.location))[0]
    digest = sha256()
    with open_bytes(shard) as file:
        while piece := file.read(S3_BLOCK):
            digest.update(piece)
    return digest.hexdigest()


def _split(shard: Shard) -> list[Shard]:
    """A Parquet file's stretches of about SHARD_ROWS rows, by its footer. One that is damaged stays whole."""
    if shard.kind != "parquet" or shard.compression:
        return [shard]
    try:
        with open_bytes(shard) as file:
            footer = pq.read_metadata(file)
            counts = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
    except (pa.ArrowException, OSError, ValueError):
        return [shard]  # reading it will say why
    pieces: list[Shard] = []
    start, row, rows = 0, 1, 0
    for index, count in enumerate(counts, start=1):
        rows += count
        if rows >= SHARD_ROWS or (index == len(counts) and (rows or not pieces)):
            name = f"{shard.name}#{start}-{index - 1}"
            pieces.append(_with(shard, name=name, row_groups=(start, index), first_row=row))
            start, row, rows = index, row + rows, 0
    return pieces if len(pieces) > 1 else [shard]


@contextmanager
def open_bytes(shard: Shard) -> Iterator[pa.NativeFile]:
    """The bytes of a shard's file as they lie there, compressed or not. On S3 only what is read is fetched.

    Raises:
        SourceUnreadable: it is gone, can't be opened, or is another file by now (source_changed, which passes:
            the next run finds the new one).
        StoreUnavailable, ArtifactLost: see `medgen.store`.
    """
    if shard.location.startswith("s3://"):
        bucket, _, key = shard.location[5:].partition("/")
        client, endpoint = _s3()
        size, _, etag = shard.mark.partition(" ")
        raw = _S3File(client, endpoint, bucket, key, int(size), etag)
        with pa.PythonFile(io.BufferedReader(raw, S3_BLOCK) if shard.kind != "parquet" else raw, "r") as file:
            yield file
        return
    if shard.location.startswith(ARTIFACT_SCHEME):
        path = open_store().path(shard.location.removeprefix(ARTIFACT_SCHEME))
        with pa.OSFile(str(path)) as file:
            yield file
        return
    path = Path(shard.location)

    def check() -> None:
        if _mark(path.stat()) != shard.mark:
            raise SourceUnreadable("source_changed", f"{shard.name} was changed while it was used", transient=True)

    try:
        check()
        file = pa.OSFile(str(path))
    except OSError as error:
        raise SourceUnreadable(
            "source_unreadable", f"{shard.name}: {error.strerror or error}", transient=True
        ) from error
    with file:
        yield file
        check()


class _S3File(io.RawIOBase):
    """An object of an S3 server as a file. Each read is one request, and each answer must bear the same ETag."""

    def __init__(self, client: Minio, endpoint: str, bucket: str, key: str, size: int, etag: str) -> None:
        self.client, self.endpoint, self.bucket, self.key = client, endpoint, bucket, key
        self.length, self.etag = size, etag
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def size(self) -> int:
        return self.length

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.length - self.position)
        if wanted <= 0:
            return 0
        try:
            data = through_outages(lambda: self._fetch(self.position, wanted), self.endpoint, self.bucket)
        except S3Error as error:
            raise self._changed(str(error.code)) from error
        memoryview(buffer).cast("B")[:wanted] = data
        self.position += wanted
        return wanted

    def _fetch(self, offset: int, length: int) -> bytes:
        response = self.client.get_object(self.bucket, self.key, offset=offset, length=length)
        try:
            if response.headers.get("ETag", "").strip('"') != self.etag:
                raise self._changed("another ETag")
            data = response.read()
        finally:
            response.close()
            response.release_conn()
        if len(data) != length:
            raise ConnectionError(f"{len(data)} of {length} bytes came")
        return data

    def _changed(self, why: str) -> SourceUnreadable:
        return SourceUnreadable(
            "source_changed", f"s3://{self.bucket}/{self.key} was changed while it was used: {why}", transient=True
        )
