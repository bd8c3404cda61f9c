"""Folders for downloads under way, each locked while its process lives: so what a killed process left is known."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medgen.store import Store

_PREFIX = "download-"


@contextmanager
def workplace(store: Store) -> Iterator[Path]:
    """A folder for one download, which goes when the block ends."""
    with _locked(store.temporary, fcntl.LOCK_SH):  # not between the folder's making and its locking
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=store.temporary))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def workplaces(store: Store) -> list[Path]:
    """All such folders, those that were left behind included."""
    return list(store.temporary.glob(f"{_PREFIX}*"))


@contextmanager
def none_begins(store: Store) -> Iterator[None]:
    """No download begins inside the block, so that what is not `in_use` stays so."""
    with _locked(store.temporary, fcntl.LOCK_EX):
        yield


def in_use(path: Path) -> bool:
    """Whether a living process works in this folder. False of what is no workplace."""
    if not path.name.startswith(_PREFIX):
        return False
    try:
        with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False


def sweep(store: Store) -> None:
    """Removes what downloads of killed processes left."""
    with none_begins(store):
        for folder in workplaces(store):
            if not in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)
