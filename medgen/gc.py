"""Sweeps what killed processes left behind: objects without a record, and scratch files; and what was taken down.

With S3 each machine has a cache of its own, which this sweeps too, so that a takedown reaches all machines that run it.
"""

import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection, select

from medgen.among import among, pages
from medgen.catalog import Artifact
from medgen.ledger import Ledger
from medgen.settings import current
from medgen.shard_results import ShardResults
from medgen.takedown import DELETABLE, deletable_artifacts
from medgen.workplace import in_use, none_begins


@dataclass(frozen=True)
class Sweep:
    """What was, or would be, removed."""

    objects: int
    scratch_files: int
    bytes: int


def collect_garbage(ledger: Ledger, *, grace_s: float, dry_run: bool = False) -> Sweep:
    """Removes unreferenced objects and scratch files that are older than `grace_s` seconds.

    The grace protects work in progress: outputs reach the store before their record does. Downloads under way stay
    however long they take. Objects that were taken down and that something brought back are removed too, and results
    of shards that have been of no use for long.
    """
    limit = time.time() - grace_s
    objects = scratch = size = 0
    with deletable_artifacts(ledger.engine) as connection:
        for page in pages(itertools.chain(ledger.store.digests(), _cached(ledger))):
            on_record = _on_record(connection, [digest for digest, _, _ in page])
            for digest, written, length in page:
                if on_record.get(digest, written < limit):
                    objects, size = objects + 1, size + length
                    if not dry_run:
                        ledger.store.remove(digest)
    if not dry_run:
        ShardResults(ledger).forget_unused()
    with none_begins(ledger.store):
        for path in (*ledger.store.temporary.iterdir(), *current().releases_folder.glob(".making-*")):
            with suppress(FileNotFoundError):  # its process is done with it
                status = path.lstat()
                if status.st_mtime >= limit or in_use(path):
                    continue
                scratch += 1
                size += status.st_size
                if dry_run:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
    return Sweep(objects, scratch, size)


def _on_record(connection: Connection, digests: Sequence[str]) -> dict[str, bool]:
    """Digest → whether it was taken down, of those that are on record."""
    query = (
        select(Artifact.sha256, DELETABLE.c.sha256.is_not(None))
        .outerjoin(DELETABLE, DELETABLE.c.sha256 == Artifact.sha256)
        .where(among(Artifact.sha256, digests))
    )
    found = {digest: removed for digest, removed in connection.execute(query)}
    connection.commit()  # a sweep is long, and no transaction should be
    return found


def _cached(ledger: Ledger) -> Iterator[tuple[str, float, int]]:
    """As `Store.digests`, of this machine's cache in front of S3."""
    if ledger.store.remote:
        for path in ledger.store.folder.glob("??/*"):
            with suppress(FileNotFoundError):  # evicted meanwhile
                status = path.stat()
                yield path.name, status.st_mtime, status.st_size
