"""Content-addressed artifacts: a local folder, with an S3 server behind it when one is configured.

An object's name is the sha256 of its bytes. With S3, that is the store of record: writes go through and are
compared with what the server then holds, reads that miss the folder fetch and check the digest, and the folder
is a bounded cache. Nothing above the store knows which is in use.
"""

import hashlib
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error
from minio.helpers import get_part_info
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential, wait_random

from medgen.errors import ItemFailed
from medgen.home import private_home
from medgen.settings import Settings, current

log = logging.getLogger(__name__)

T = TypeVar("T")

_scratch: ContextVar[list[Path] | None] = ContextVar("scratch", default=None)  # files of the innermost `tidy`

CHUNK = 1 << 20
# A restarted server is back within a minute or so; a longer outage fails the item, which the next run retries.
OUTAGE_S = 90.0
READ_ONLY = 0o444  # files of releases are links to objects: who appends to one must be refused
RECENT_S = 3600.0  # the cache never evicts what was used within the last hour
LISTED_AT_ONCE = 1000  # objects; as many as S3 names in one answer
NO_SUCH_OBJECT = ("NoSuchKey", "NoSuchObject")
PASSING = frozenset({408, 429, 500, 502, 503, 504})  # HTTP status codes of a server that may answer later


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
        private_home(settings.home)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.cache_bytes = settings.cache_bytes
        self.remote = _Remote(settings) if settings.s3_endpoint else None
        # Bytes since the cache was looked at, which short-lived processes would never do if all began with 0.
        self._cached = random.randrange(self.cache_bytes // 20 + 1)

    def put_file(self, path: Path, media_type: str) -> Artifact:
        """Moves the file at `path` into the store (it is gone afterwards). Putting twice is harmless."""
        digest, size = file_digest(path)
        target = self._local(digest)
        path.chmod(READ_ONLY)
        if self.remote:
            self.remote.put(digest, path, size, media_type)
        if _size(target) == size:
            os.utime(target)  # gc must take it for new
            _protect(target)
            path.unlink()
        else:
            target.parent.mkdir(exist_ok=True)
            with path.open("rb") as written:
                os.fsync(written.fileno())
            # The store may lie on another file system than the file: rename only within the store's own.
            path.replace(target) if path.is_relative_to(self.temporary) else _move(path, target, self.temporary)
        self._count(size)
        return Artifact(digest, media_type, size)

    def put_bytes(self, data: bytes, media_type: str) -> Artifact:
        """Stores `data`."""
        with self.tidy():
            path = self.scratch()
            path.write_bytes(data)
            return self.put_file(path, media_type)

    def scratch(self, suffix: str = "") -> Path:
        """A new empty file for work in progress. What a killed process leaves there is swept by `gc`."""
        handle, name = tempfile.mkstemp(dir=self.temporary, suffix=suffix)
        os.close(handle)
        path = Path(name)
        if (made := _scratch.get()) is not None:
            made.append(path)
        return path

    @contextmanager
    def tidy(self) -> Iterator[None]:
        """Removes the scratch files that were made inside the block, in this thread, and are still there after it."""
        made: list[Path] = []
        outer = _scratch.set(made)
        try:
            yield
        finally:
            _scratch.reset(outer)
            for path in made:
                path.unlink(missing_ok=True)

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
            _protect(local)
            return local
        if self.remote is None:
            raise ArtifactLost("artifact_lost", f"artifact {digest} is not in {self.folder}", transient=True)
        fetched = self.scratch()
        try:
            actual = self.remote.get(digest, fetched)
            if actual != digest:
                raise ArtifactLost(
                    "artifact_lost", f"S3 returned other bytes ({actual}) for artifact {digest}", transient=True
                )
            local.parent.mkdir(exist_ok=True)
            fetched.chmod(READ_ONLY)
            size = fetched.stat().st_size
            fetched.replace(local)
        finally:
            fetched.unlink(missing_ok=True)
        self._count(size)
        return local

    def read(self, digest: str) -> bytes:
        """The bytes of an artifact. Raises as `path`."""
        return self.path(digest).read_bytes()

    def missing(self, digests: Iterable[str], sizes: Mapping[str, int] | None = None) -> set[str]:
        """Those of `digests` that no store has whole. Looks at presence and size only; `verify` looks at the bytes.

        With S3 only the server's answer counts, because the folder is a cache.

        Args:
            sizes: digest → bytes, of those whose size is known. An object of another size counts as missing.
        """
        wanted, expected = sorted(set(digests)), sizes or {}
        if self.remote is None:
            found = [_size(self._local(digest)) for digest in wanted]
        else:
            with ThreadPoolExecutor(16) as pool:
                found = list(pool.map(self.remote.size, wanted))
        return {
            digest
            for digest, size in zip(wanted, found, strict=True)
            if size is None or size != expected.get(digest, size)
        }

    def digests(self) -> Iterator[tuple[str, float, int]]:
        """(digest, time of writing in epoch seconds, bytes) of every object of the store of record."""
        if self.remote:
            yield from self.remote.digests()
            return
        for part in self.folder.glob("??"):
            with os.scandir(part) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # removed meanwhile
                        status = entry.stat()
                        yield entry.name, status.st_mtime, status.st_size

    def remove(self, digest: str) -> None:
        """Deletes an object everywhere. Deleting what isn't there is harmless."""
        if self.remote:
            self.remote.remove(digest)
        self._local(digest).unlink(missing_ok=True)

    def actual_digest(self, digest: str) -> str:
        """sha256 of the bytes that the store of record really holds under `digest`. Raises as `path`."""
        if self.remote is None:
            return file_digest(self.path(digest))[0]
        return self.remote.get(digest)

    def _count(self, size: int) -> None:
        """Counts bytes that the cache got, and shrinks it now and then."""
        if self.remote is None:
            return
        self._cached += size
        if self._cached > self.cache_bytes // 20:
            self._cached = 0
            self.evict()

    def evict(self) -> None:
        """Shrinks the cache below its size, least recently used first. Does nothing without S3."""
        if self.remote is None:
            return
        files = []
        for path in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):  # another process evicts too
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        files.sort()
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
        """Uploads a file, unless the server holds it. Raises StoreUnavailable when it does not hold it afterwards."""
        part_size, _ = get_part_info(size, 0)
        etag = _etag(path, part_size)

        def upload() -> None:
            if self._holds(digest, size, etag):
                return
            self.client.fput_object(self.bucket, _name(digest), str(path), content_type=media_type, part_size=part_size)
            if not self._holds(digest, size, etag):
                raise ConnectionError(f"of artifact {digest} the server holds other bytes than were sent")

        self._call(upload)

    def get(self, digest: str, path: Path | None = None) -> str:
        """sha256 of the bytes that the server has under `digest`, which are written to `path`, if one is given."""
        try:
            return self._call(lambda: self._get(digest, path))
        except S3Error as error:
            raise ArtifactLost(
                "artifact_lost", f"artifact {digest} is not in S3: {error.code}", transient=True
            ) from error

    def size(self, digest: str) -> int | None:
        """Bytes of an object; None when there is none."""
        try:
            return self._call(lambda: self.client.stat_object(self.bucket, _name(digest)).size) or 0
        except S3Error:
            return None

    def digests(self) -> Iterator[tuple[str, float, int]]:
        """See `Store.digests`. An outage in between is waited out, and the listing goes on where it was."""
        last: str | None = None
        while True:
            listed = self._call(partial(self._listed_after, last))
            for name, written, size in listed:
                yield name.rsplit("/", 1)[-1], written, size
            if len(listed) < LISTED_AT_ONCE:
                return
            last = listed[-1][0]

    def remove(self, digest: str) -> None:
        self._call(lambda: self.client.remove_object(self.bucket, _name(digest)))

    def _holds(self, digest: str, size: int, etag: str) -> bool:
        """Whether the server has all bytes of an object.

        Not every server's ETag is the MD5, and another client may have used parts of another size. Then the bytes
        are read.
        """
        try:
            found = self.client.stat_object(self.bucket, _name(digest))
        except S3Error as error:
            if error.code in NO_SUCH_OBJECT:
                return False
            raise
        if found.size != size:
            return False
        return (found.etag or "").strip('"') == etag or self._get(digest, None) == digest

    def _get(self, digest: str, path: Path | None) -> str:
        response = self.client.get_object(self.bucket, _name(digest))
        try:
            sha256 = hashlib.sha256()
            with path.open("wb") if path else nullcontext() as out:
                for piece in response.stream(CHUNK):
                    sha256.update(piece)
                    if out:
                        out.write(piece)
                if out:
                    out.flush()
                    os.fsync(out.fileno())
            return sha256.hexdigest()
        finally:
            response.close()
            response.release_conn()

    def _listed_after(self, name: str | None) -> list[tuple[str, float, int]]:
        """(name, time of writing in epoch seconds, bytes) of the objects that follow `name`, of one answer."""
        objects = self.client.list_objects(self.bucket, prefix="sha256/", recursive=True, start_after=name)
        return [
            (str(item.object_name), item.last_modified.timestamp() if item.last_modified else 0.0, item.size or 0)
            for item in islice(objects, LISTED_AT_ONCE)
        ]

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
        StoreUnavailable: for OUTAGE_S the server does not answer, or not soundly; or it refuses.
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
        if error.code in NO_SUCH_OBJECT:
            raise
        raise StoreUnavailable(
            "store_refused", f"S3 at {endpoint}, bucket {bucket}: {error.code}", transient=True
        ) from error
    except (urllib3.exceptions.HTTPError, MinioException, ParseError, OSError) as error:
        raise StoreUnavailable(
            "store_unavailable", f"S3 at {endpoint} does not answer as it should: {error}", transient=True
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
    if isinstance(error, S3Error):  # some answer RequestTimeout as 400
        return error.response.status in PASSING or error.code == "RequestTimeout"
    # Half of an answer may be XML that can't be parsed.
    return isinstance(error, urllib3.exceptions.HTTPError | MinioException | ConnectionError | ParseError)


def _name(digest: str) -> str:
    return f"sha256/{digest[:2]}/{digest}"


def _etag(path: Path, part_size: int) -> str:
    """The ETag that S3 gives to a file: its MD5, or that of the MD5s of its parts with their number."""
    digests: list[bytes] = []
    with path.open("rb") as file:
        while (part := file.read(part_size)) or not digests:
            digests.append(hashlib.md5(part, usedforsecurity=False).digest())
    if len(digests) == 1:
        return digests[0].hex()
    whole = hashlib.md5(b"".join(digests), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(digests)}"


def _size(path: Path) -> int | None:
    """Bytes of a file; None when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _protect(path: Path) -> None:
    """Takes the right to write from an object that an earlier version left, and so from releases that link to it."""
    with suppress(PermissionError):  # another user's, in a store that is shared
        if path.stat().st_mode & 0o222:
            path.chmod(READ_ONLY)


def _move(path: Path, target: Path, temporary: Path) -> None:
    handle, name = tempfile.mkstemp(dir=temporary)
    copy = Path(name)
    try:
        with os.fdopen(handle, "wb") as out, path.open("rb") as source:
            while chunk := source.read(CHUNK):
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        copy.chmod(READ_ONLY)
        copy.replace(target)
    finally:
        copy.unlink(missing_ok=True)
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
