"""Sweeps what killed processes left behind: objects without a record, and scratch files; and what was taken down.

With S3 each machine has a cache of its own, which this sweeps too, so that a takedown reaches all machines that run it.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.catalog import Artifact
from medgen.ledger import Ledger
from medgen.settings import current
from medgen.takedown import deletable
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
    however long they take. Objects that were taken down and that something brought back are removed too.
    """
    limit = time.time() - grace_s
    objects = scratch = size = 0
    with Session(ledger.engine) as session:
        removed = deletable(session)
        known = set(session.scalars(select(Artifact.sha256))) - removed
    for digest, written, length in (*ledger.store.digests(), *_cached(ledger)):
        if digest in removed or (digest not in known and written < limit):
            objects, size = objects + 1, size + length
            if not dry_run:
                ledger.store.remove(digest)
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


def _cached(ledger: Ledger) -> Iterator[tuple[str, float, int]]:
    """As `Store.digests`, of this machine's cache in front of S3."""
    if ledger.store.remote:
        for path in ledger.store.folder.glob("??/*"):
            with suppress(FileNotFoundError):  # evicted meanwhile
                status = path.stat()
                yield path.name, status.st_mtime, status.st_size
