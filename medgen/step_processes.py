"""The processes that steps run in: at most `MEDGEN_WORKERS` on a machine, however many processes run tasks there.

The tasks of one process share its pool. A cluster (Dask, Ray) may have several processes on a machine: they take turns,
so that one of them at a time has a pool. It keeps it while it has work or no other waits for it, so that models are
loaded once where a machine has one process that runs tasks. A home is a machine: of two homes each has its bound.
"""

import fcntl
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from pebble import ProcessPool

from medgen.home import private_home
from medgen.inference import own_inference
from medgen.settings import current
from medgen.worker_processes import worker_pool

IDLE_S = 2.0  # before it goes to who waits for it: a start costs more, its processes load their models anew
POLL_S = 0.2


class _Pool:
    """The pool of this process, made when it is needed."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._pool: ProcessPool | None = None
        self._turn: FileLock | None = None
        self._users = self._uses = 0

    @contextmanager
    def used(self) -> Iterator[ProcessPool]:
        """The pool, which stays until all its users have left. May have to wait for this process's turn."""
        own_inference()  # the run may have ended the inference processes since the pool was made
        with self._guard:
            if self._pool is not None and not self._pool.active:
                self._end()  # what forks them was killed, and asked for another at that very moment
            if self._pool is None:
                if self._turn is None and in_cluster():
                    self._turn = _turn()
                    with _waiting():
                        self._turn.acquire(poll_interval=POLL_S)
                self._pool = worker_pool(current().workers)
            pool = self._pool
            self._users, self._uses = self._users + 1, self._uses + 1
        try:
            yield pool
        finally:
            with self._guard:
                self._users -= 1
                if self._turn and not self._users:
                    self._look_later()

    def close(self) -> None:
        """Ends the processes, if there are any."""
        with self._guard:
            self._close()

    def _look_later(self) -> None:
        timer = threading.Timer(IDLE_S, self._hand_over, (self._uses,))
        timer.daemon = True
        timer.start()

    def _hand_over(self, since: int) -> None:
        with self._guard:
            if self._uses == since and not self._users and self._turn:
                if _wanted():
                    self._close()
                else:
                    self._look_later()

    def _end(self) -> None:
        if self._pool:
            self._pool.stop()  # type: ignore[no-untyped-call]  # pebble says so itself
            self._pool.join()
            self._pool = None

    def _close(self) -> None:
        self._end()
        if self._turn:
            self._turn.release()
            self._turn = None


_pool = _Pool()
step_processes = _pool.used
close_step_processes = _pool.close


def in_cluster() -> bool:
    """Whether this process may be one of several of a cluster on a machine."""
    return current().runner != "thread" or bool({"distributed.worker", "ray"} & sys.modules.keys())


def machine_lock(name: str) -> Path:
    """A file for locks between the processes of this machine, also where several machines share the home's disk."""
    folder = private_home(current().home) / "locks"
    folder.mkdir(exist_ok=True)
    return folder / f"{platform.node()}{name}.lock"


def _turn() -> FileLock:
    # Not thread-local: the thread that waits for a turn is not the one that ends it.
    return FileLock(machine_lock(""), thread_local=False)


@contextmanager
def _waiting() -> Iterator[None]:
    """Lets who has the turn know that it is waited for."""
    handle = os.open(machine_lock("-waiting"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _wanted() -> bool:
    """Whether a process waits for its turn."""
    handle = os.open(machine_lock("-waiting"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
