"""Content-addressed artifacts: a local folder, with an S3 server behind it when one is configured.

An object's name is the sha256 of its bytes. With S3, that is the store of record: writes go through, reads
that miss the folder fetch and check the digest, and the folder is a bounded cache. Nothing above the store
knows which is in use.
"""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential, wait_random

from medgen.errors import ItemFailed
from medgen.settings import Settings, current

log = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK = 1 << 20
# A restarted server is back within a minute or so; a longer outage fails the item, which the next run retries.
OUTAGE_S = 90.0
RECENT_S = 3600.0  # the cache never evicts what was used within the last hour


@dataclass(frozen=True)
class Artifact:
    """Bytes in the store: sha256 (64 hex digits), media type and size in bytes."""

    sha256: str
    media_type: str
    bytes: int


class ArtifactLost(ItemFailed):
    """An artifact on record is in no store, or its bytes are not what its digest says."""


class StoreUnavailable(ItemFailed):
    """The S3 server does not answer, or refuses."""


class Store:
    """Puts and gets artifacts by digest. Safe for any number of threads and processes."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.store_folder
        self.temporary = settings.home / "tmp"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.cache_bytes = settings.cache_bytes
        self.remote = _Remote(settings) if settings.s3_endpoint else None
        self._written = 0

    def put_file(self, path: Path, media_type: str) -> Artifact:
        """Moves the file at `path` into the store (it is gone afterwards). Putting twice is harmless."""
        digest, size = file_digest(path)
        target = self._local(digest)
        path.chmod(0o644)  # scratch files are private; what is released is not
        if self.remote:
            self.remote.put(digest, path, size, media_type)
        if target.exists():
            os.utime(target)  # gc must take it for new
            path.unlink()
        else:
            target.parent.mkdir(exist_ok=True)
            with path.open("rb") as written:
                os.fsync(written.fileno())
            # The store may lie on another file system than the file: rename only within the store's own.
            path.replace(target) if path.is_relative_to(self.temporary) else _move(path, target, self.temporary)
        if self.remote:
            self._written += size
            if self._written > self.cache_bytes // 20:
                self._written = 0
                self.evict()
        return Artifact(digest, media_type, size)

    def put_bytes(self, data: bytes, media_type: str) -> Artifact:
        """Stores `data`."""
        path = self.scratch()
        path.write_bytes(data)
        return self.put_file(path, media_type)

    def scratch(self, suffix: str = "") -> Path:
        """A new empty file for work in progress. What a killed process leaves there is swept by `gc`."""
        handle, name = tempfile.mkstemp(dir=self.temporary, suffix=suffix)
        os.close(handle)
        return Path(name)

    def path(self, digest: str) -> Path:
        """Local path of an artifact, fetched and checked first when only S3 has it.

        Raises:
            ArtifactLost: no store has it, or S3 returns other bytes.
            StoreUnavailable: S3 does not answer.
        """
        local = self._local(digest)
        if local.exists():
            if self.remote:
                os.utime(local)  # marks it as used, for eviction
            return local
        if self.remote is None:
            raise ArtifactLost("artifact_lost", f"artifact {digest} is not in {self.folder}", transient=True)
        fetched = self.scratch()
        self.remote.get(digest, fetched)
        actual, _ = file_digest(fetched)
        if actual != digest:
            fetched.unlink()
            raise ArtifactLost(
                "artifact_lost", f"S3 returned other bytes ({actual}) for artifact {digest}", transient=True
            )
        local.parent.mkdir(exist_ok=True)
        fetched.replace(local)
        return local

    def read(self, digest: str) -> bytes:
        """The bytes of an artifact. Raises as `path`."""
        return self.path(digest).read_bytes()

    def missing(self, digests: Iterable[str]) -> set[str]:
        """Those of `digests` that no store has. Looks at presence only; `verify` looks at the bytes.

        With S3 only the server's answer counts, because the folder is a cache.
        """
        wanted = set(digests)
        if self.remote is None:
            return {digest for digest in wanted if not self._local(digest).exists()}
        with ThreadPoolExecutor(16) as pool:
            present = pool.map(self.remote.has, sorted(wanted))
            return {digest for digest, there in zip(sorted(wanted), present, strict=True) if not there}

    def digests(self) -> Iterator[tuple[str, float, int]]:
        """(digest, time of writing in epoch seconds, bytes) of every object of the store of record."""
        if self.remote:
            yield from self.remote.digests()
            return
        for path in self.folder.glob("??/*"):
            status = path.stat()
            yield path.name, status.st_mtime, status.st_size

    def remove(self, digest: str) -> None:
        """Deletes an object everywhere. Deleting what isn't there is harmless."""
        if self.remote:
            self.remote.remove(digest)
        self._local(digest).unlink(missing_ok=True)

    def actual_digest(self, digest: str) -> str:
        """sha256 of the bytes that the store of record really holds under `digest`. Raises as `path`."""
        if self.remote is None:
            return file_digest(self.path(digest))[0]
        fetched = self.scratch()
        try:
            self.remote.get(digest, fetched)
            return file_digest(fetched)[0]
        finally:
            fetched.unlink(missing_ok=True)

    def evict(self) -> None:
        """Shrinks the cache below its size, least recently used first. Does nothing without S3."""
        if self.remote is None:
            return
        files = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in self.folder.glob("??/*"))
        excess = sum(size for _, size, _ in files) - self.cache_bytes
        for used, size, path in files:
            if excess <= 0 or used > time.time() - RECENT_S:
                break
            path.unlink(missing_ok=True)
            excess -= size

    def _local(self, digest: str) -> Path:
        if len(digest) != 64 or not digest.isalnum():
            raise ValueError(f"not a sha256: {digest!r}")
        return self.folder / digest[:2] / digest


class _Remote:
    """The S3 side. Waits out short outages."""

    def __init__(self, settings: Settings) -> None:
        self.client = s3_client(settings)
        self.endpoint = str(settings.s3_endpoint)
        self.bucket = settings.s3_bucket
        self._call(self._make_bucket)

    def put(self, digest: str, path: Path, size: int, media_type: str) -> None:
        if self.has(digest):
            return
        self._call(lambda: self.client.fput_object(self.bucket, _name(digest), str(path), content_type=media_type))

    def get(self, digest: str, path: Path) -> None:
        try:
            self._call(lambda: self.client.fget_object(self.bucket, _name(digest), str(path)))
        except S3Error as error:
            raise ArtifactLost(
                "artifact_lost", f"artifact {digest} is not in S3: {error.code}", transient=True
            ) from error

    def has(self, digest: str) -> bool:
        try:
            self._call(lambda: self.client.stat_object(self.bucket, _name(digest)))
        except S3Error:
            return False
        return True

    def digests(self) -> Iterator[tuple[str, float, int]]:
        for item in self.client.list_objects(self.bucket, prefix="sha256/", recursive=True):
            written = item.last_modified.timestamp() if item.last_modified else 0.0
            yield str(item.object_name).rsplit("/", 1)[-1], written, item.size or 0

    def remove(self, digest: str) -> None:
        self._call(lambda: self.client.remove_object(self.bucket, _name(digest)))

    def _make_bucket(self) -> None:
        if not self.client.bucket_exists(self.bucket):
            with suppress_codes("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):  # another process was quicker
                self.client.make_bucket(self.bucket)

    def _call(self, operation: Callable[[], T]) -> T:
        return through_outages(operation, self.endpoint, self.bucket)


def s3_client(settings: Settings) -> Minio:
    """A client of the installation's S3 server. Its own retries are off: see `through_outages`."""
    assert settings.s3_endpoint and settings.s3_access_key and settings.s3_secret_key
    url = urlsplit(settings.s3_endpoint)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ValueError(f"MEDGEN_S3_ENDPOINT must be http(s)://host:port, not {settings.s3_endpoint!r}")
    return Minio(
        url.netloc,
        access_key=settings.s3_access_key.get_secret_value(),
        secret_key=settings.s3_secret_key.get_secret_value(),
        secure=url.scheme == "https",
        # Retries are ours: the client's own are too few for a restart of the server.
        http_client=urllib3.PoolManager(maxsize=32, timeout=urllib3.Timeout(connect=5, read=60), retries=False),
    )


def through_outages(operation: Callable[[], T], endpoint: str, bucket: str) -> T:
    """What `operation` gives; it is repeated while the server restarts.

    Raises:
        S3Error: there is no such object.
        StoreUnavailable: the server does not answer for OUTAGE_S, or refuses.
    """
    try:
        for attempt in Retrying(
            retry=retry_if_exception(_is_transient),
            stop=stop_after_delay(OUTAGE_S),
            wait=wait_exponential(multiplier=0.2, max=5) + wait_random(0, 1),
            reraise=True,
        ):
            with attempt:
                return operation()
    except S3Error as error:
        if error.code in ("NoSuchKey", "NoSuchObject"):
            raise
        raise StoreUnavailable(
            "store_refused", f"S3 at {endpoint}, bucket {bucket}: {error.code}", transient=True
        ) from error
    except (urllib3.exceptions.HTTPError, MinioException, OSError) as error:
        raise StoreUnavailable(
            "store_unavailable", f"S3 at {endpoint} does not answer: {error}", transient=True
        ) from error
    raise AssertionError("unreachable")


@contextmanager
def suppress_codes(*codes: str) -> Iterator[None]:
    """Suppresses S3 errors with one of these codes."""
    try:
        yield
    except S3Error as error:
        if error.code not in codes:
            raise


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, S3Error):
        return error.code in ("InternalError", "ServiceUnavailable", "SlowDown", "XMinioServerNotInitialized")
    return isinstance(error, urllib3.exceptions.HTTPError | MinioException | ConnectionError)


def _name(digest: str) -> str:
    return f"sha256/{digest[:2]}/{digest}"


def _move(path: Path, target: Path, temporary: Path) -> None:
    handle, name = tempfile.mkstemp(dir=temporary)
    with os.fdopen(handle, "wb") as out, path.open("rb") as source:
        while chunk := source.read(CHUNK):
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    Path(name).replace(target)
    path.unlink()


def file_digest(path: Path) -> tuple[str, int]:
    """(sha256 hex, size in bytes) of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()


@cache
def open_store() -> Store:
    """The store of this installation, one per process."""
    return Store(current())
