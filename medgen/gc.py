"""Sweeps what killed processes left behind: objects without a record, and scratch files."""

import shutil
import time
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.catalog import Artifact
from medgen.ledger import Ledger


@dataclass(frozen=True)
class Sweep:
    """What was, or would be, removed."""

    objects: int
    scratch_files: int
    bytes: int


def collect_garbage(ledger: Ledger, *, grace_s: float, dry_run: bool = False) -> Sweep:
    """Removes unreferenced objects and scratch files that are older than `grace_s` seconds.

    The grace protects work in progress: outputs reach the store before their record does.
    """
    limit = time.time() - grace_s
    objects = scratch = size = 0
    with Session(ledger.engine) as session:
        known = set(session.scalars(select(Artifact.sha256)))
    for digest, written, length in ledger.store.digests():
        if digest not in known and written < limit:
            objects, size = objects + 1, size + length
            if not dry_run:
                ledger.store.remove(digest)
    for path in ledger.store.temporary.iterdir():
        if path.lstat().st_mtime < limit:
            scratch += 1
            size += path.lstat().st_size
            if dry_run:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return Sweep(objects, scratch, size)
