"""A shard of a source, and the bytes of its file: on this machine, on S3, or an artifact of the store."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from minio import Minio
from minio.error import S3Error

from medgen.errors import SourceUnreadable
from medgen.listings.sources import COMPRESSIONS
from medgen.settings import current
from medgen.store import open_store, s3_client, through_outages

ARTIFACT_SCHEME = "artifact:"
S3_BLOCK = 8 << 20  # bytes asked for at once


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
        client, endpoint = s3_of_sources()
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
        if mark_of(path.stat()) != shard.mark:
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


def mark_of(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"


def s3_of_sources() -> tuple[Minio, str]:
    settings = current()
    if not settings.s3_endpoint:
        raise SourceUnreadable("source_unreadable", "s3:// sources need MEDGEN_S3_ENDPOINT and its keys")
    return s3_client(settings), settings.s3_endpoint
