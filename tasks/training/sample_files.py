"""Encoded clips where training reads them: links to the store's files, or tar archives of about a gibibyte.

Where the store is a folder of the same file system, a link costs nothing. Where it is on a server, or on another file
system, the bytes have to be copied once; of many clips they are packed, so that what one copies, or a network file
system keeps, is hundreds of files and not hundreds of thousands. An archive is whole when its index stands beside it;
whoever starts again fetches only what no whole archive holds.
"""

import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from medgen.store import Store
from models.training.job import Check, Verdict
from models.training.stored_bytes import StoredBytes

PACK_BYTES = 1 << 30
PACK_ABOVE = 2000  # files; fewer are kept one by one
FETCHERS = 16
HEADER = 512  # bytes of an entry of a tar archive in the format of 1988, before its content


def materialize_samples(store: Store, folder: Path, digests: Iterable[str]) -> dict[str, StoredBytes]:
    """Where the bytes of each digest lie now, in `folder`. What is there already is not fetched again.

    Raises:
        ArtifactLost, StoreUnavailable: as `Store.path`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = sorted(set(digests))
    found = {digest: place for digest, place in _packed(folder).items()}
    linked = {entry.name for entry in os.scandir(folder)}
    single = {digest: folder / f"{digest}.safetensors" for digest in wanted if digest not in found}
    found |= {d: StoredBytes(path=path, sha256=d) for d, path in single.items() if path.name in linked}
    missing = [digest for digest in wanted if digest not in found]
    if len(missing) > PACK_ABOVE and must_copy(store, folder):
        found |= _pack(store, folder, missing)
    else:
        for digest, path in _fetched(store, missing):
            _link(path, single[digest])
            found[digest] = StoredBytes(path=single[digest], sha256=digest)
    return {digest: found[digest] for digest in wanted}


def must_copy(store: Store, folder: Path) -> bool:
    """Whether the store's files can't be linked to: its folder is but a cache, or on another file system."""
    return store.remote is not None or store.folder.stat().st_dev != folder.stat().st_dev


def check_room(store: Store, total: int, missing: int) -> Check:
    """Is there room for the encoded clips of a release?

    Args:
        total, missing: bytes of all, and of those that are not encoded yet; see `tasks.training.encode`.
    """
    home = store.temporary.parent
    # A server keeps all; here are its cache and, beside it, what training reads.
    needed = total + min(missing, store.cache_bytes) if must_copy(store, home) else missing
    free = shutil.disk_usage(home).free
    verdict: Verdict = "pass" if free > 1.1 * needed else "warn" if free > needed else "fail"
    advice = f"Free space on the disk of {home}; fewer or smaller buckets take less, mixed_precision=bf16 half of it."
    return Check(
        "encoded_clips",
        f"{free / 2**30:.2f} GiB free",
        f"at least {needed / 2**30:.2f} GiB for encoded clips ({total / 2**30:.2f} GiB in all)",
        verdict,
        "" if verdict == "pass" else advice,
    )


def _fetched(store: Store, digests: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(digest, file) in order; the files of a server are fetched several at a time, few ahead of what is asked for."""
    if store.remote is None:
        yield from ((digest, store.path(digest)) for digest in digests)
        return
    left = iter(digests)
    with ThreadPoolExecutor(FETCHERS, "medgen-fetch") as pool:
        ahead: list[tuple[str, Future[Path]]] = [(d, pool.submit(store.path, d)) for d in islice(left, 2 * FETCHERS)]
        while ahead:
            digest, future = ahead.pop(0)
            yield digest, future.result()
            ahead += [(d, pool.submit(store.path, d)) for d in islice(left, 1)]


def _pack(store: Store, folder: Path, digests: Sequence[str]) -> dict[str, StoredBytes]:
    """Writes archives; each is flushed and renamed before its index tells of it."""
    found: dict[str, StoredBytes] = {}
    files = _fetched(store, digests)
    number = len(list(folder.glob("pack-*.tar")))
    while True:
        name = f"pack-{number:05d}"
        making, target = folder / f".making-{name}.tar", folder / f"{name}.tar"
        index: dict[str, list[int]] = {}
        with tarfile.open(making, "w", format=tarfile.USTAR_FORMAT) as archive:
            for digest, path in files:
                entry = tarfile.TarInfo(f"{digest}.safetensors")
                entry.size = path.stat().st_size
                index[digest] = [archive.offset + HEADER, entry.size]
                with path.open("rb") as content:
                    archive.addfile(entry, content)
                if archive.offset >= PACK_BYTES:
                    break
        if not index:
            making.unlink()
            return found
        with making.open("rb") as written:
            os.fsync(written.fileno())
        making.replace(target)
        index_file = folder / f".making-{name}.json"
        index_file.write_text(json.dumps({"bytes": target.stat().st_size, "entries": index}))
        index_file.replace(folder / f"{name}.json")
        found |= _places(target, index)
        number += 1


def _packed(folder: Path) -> dict[str, StoredBytes]:
    """What the whole archives of a folder hold; one that is not whole is passed over."""
    found: dict[str, StoredBytes] = {}
    for path in sorted(folder.glob("pack-*.json")):
        try:
            facts = json.loads(path.read_text())
            archive = path.with_suffix(".tar")
            if archive.stat().st_size == facts["bytes"]:
                found |= _places(archive, facts["entries"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _places(archive: Path, index: dict[str, list[int]]) -> dict[str, StoredBytes]:
    return {
        digest: StoredBytes(path=archive, sha256=digest, offset=offset, size=size)
        for digest, (offset, size) in index.items()
    }


def _link(source: Path, target: Path) -> None:
    """Links or copies; a file that is there stays."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:  # another file system: never half a copy under the name
        making = target.with_name(f".{target.name}.making")
        shutil.copyfile(source, making)
        making.replace(target)
