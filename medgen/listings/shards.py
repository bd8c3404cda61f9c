"""The shards that a source is read in: a file each, or a stretch of a big Parquet file.

Which shards there are is found out without reading a file that was read before.
"""

import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from minio.datatypes import Object
from minio.error import S3Error
from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from medgen.among import among, pages
from medgen.catalog import KnownFile
from medgen.errors import SourceUnreadable
from medgen.listings.rows import storable_text
from medgen.listings.shard_file import ARTIFACT_SCHEME, S3_BLOCK, Shard, mark_of, open_bytes, s3_of_sources
from medgen.listings.sources import SUFFIXES, Feed, files_of, folder_digest, is_inside, listing_kind
from medgen.store import StoreUnavailable, file_digest, through_outages

SHARD_ROWS = 500_000  # a big Parquet file is split at row groups into shards of about this many rows
HASHING = 8  # files hashed at once; over a network most of the time is waiting


class KnownFiles:
    """Digests of files as last read, kept in the catalog: a file whose mark is the same is not read again."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def find(self, marks: Mapping[str, str]) -> dict[str, str]:
        """uri → sha256, of those files that still bear the mark given for them (uri → mark)."""
        digests: dict[str, str] = {}
        query = select(KnownFile.uri, KnownFile.mark, KnownFile.sha256)
        with Session(self.engine) as session:
            for page in pages(marks):
                rows = session.execute(query.where(among(KnownFile.uri, page)))
                digests |= {uri: digest for uri, mark, digest in rows if marks[uri] == mark}
        return digests

    def remember(self, uri: str, mark: str, digest: str) -> None:
        """Keeps the digest of a file, under the mark that the file bears now."""
        with Session(self.engine) as session, session.begin():
            values = {"mark": mark, "sha256": digest}
            session.execute(
                upsert(KnownFile).values(uri=uri, **values).on_conflict_do_update(index_elements=["uri"], set_=values)
            )


def shards(feed: Feed, known: KnownFiles | None = None) -> list[Shard]:
    """The shards of a source, sorted by name, each with the digest of its file.

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
    files = _s3_files(feed) if feed.kind == "s3" else _local_files(feed)
    if not files:
        raise SourceUnreadable("source_not_found", f"{feed.uri} holds no {', '.join(SUFFIXES)} listing file")
    sound = {shard.location: shard.mark for shard in files if not shard.fault}
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
            return _split(replace(shard, digest=digest))
        except SourceUnreadable as failure:
            return [replace(shard, fault=str(failure))]
        except OSError as error:
            return [replace(shard, fault=f"source_unreadable: {shard.name}: {error.strerror or error}")]

    with ThreadPoolExecutor(HASHING) as pool:
        return [shard for some in pool.map(digested, files) for shard in some]


def artifact_shard(source: str, name: str, digest: str) -> Shard:
    """A Parquet artifact of the store, in schema LISTING, as a shard."""
    return Shard(source, name, "parquet", f"{ARTIFACT_SCHEME}{digest}", digest=digest)


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
            return replace(shard, fault=f"outside_folder: {shard.name} is a link that leads out of the folder")
        status = path.stat()
    except (OSError, ValueError) as error:
        return replace(shard, fault=f"source_unreadable: {shard.name}: {getattr(error, 'strerror', None) or error}")
    if not stat.S_ISREG(status.st_mode):
        return replace(shard, fault=f"source_unreadable: {shard.name} is a folder, a pipe, a socket or a device")
    return replace(shard, mark=mark_of(status))


def _s3_files(feed: Feed) -> list[Shard]:
    assert feed.url
    bucket, _, prefix = feed.url[5:].partition("/")
    client, endpoint = s3_of_sources()

    def objects_below() -> list[Object]:
        folder = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
        if not listing_kind(prefix):
            return list(client.list_objects(bucket, prefix=folder, recursive=True))
        exact = [o for o in client.list_objects(bucket, prefix=prefix) if o.object_name == prefix]
        return exact or list(client.list_objects(bucket, prefix=folder, recursive=True))

    try:
        objects = through_outages(objects_below, endpoint, bucket)
    except StoreUnavailable as error:
        if isinstance(error.__cause__, S3Error) and error.__cause__.code == "NoSuchBucket":
            raise SourceUnreadable("source_not_found", f"there is no bucket {bucket} at {endpoint}") from error
        raise
    files = []
    for item in sorted(objects, key=lambda item: str(item.object_name).encode("utf-8", "replace")):
        key = str(item.object_name)
        name = key.removeprefix(prefix).lstrip("/") or key.rpartition("/")[2]
        kind = listing_kind(key)
        if kind and not item.is_dir and not any(part.startswith(".") for part in name.split("/")):
            shard = Shard(feed.name, storable_text(name), kind, f"s3://{bucket}/{key}")
            etag = str(item.etag or "").strip('"')
            files.append(replace(shard, mark=f"{item.size} {etag}"))
    return files


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
            pieces.append(replace(shard, name=name, row_groups=(start, index), first_row=row))
            start, row, rows = index, row + rows, 0
    return pieces if len(pieces) > 1 else [shard]
