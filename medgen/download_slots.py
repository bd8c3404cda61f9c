"""Downloads at once: at most `MEDGEN_DOWNLOAD_WORKERS` on a machine, however many processes run tasks there."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from medgen.settings import current
from medgen.step_processes import in_cluster, machine_lock

POLL_S = 0.2


@contextmanager
def download_slot() -> Iterator[None]:
    """The right to one download; may have to wait. A lone process needs none: its threads are no more than may be."""
    if not in_cluster():
        yield
        return
    slots = [
        FileLock(machine_lock(f"-download-{number}"), thread_local=False)
        for number in range(current().download_workers)
    ]
    slot = _free(slots)
    while slot is None:
        time.sleep(POLL_S)
        slot = _free(slots)
    try:
        yield
    finally:
        slot.release()


def _free(slots: list[FileLock]) -> FileLock | None:
    """The first that nobody has, taken."""
    for slot in slots:
        try:
            slot.acquire(blocking=False)
        except Timeout:
            continue
        return slot
    return None
