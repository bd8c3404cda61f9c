"""Another user of this machine, for tests that run as root."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a while")


def as_nobody(action: Callable[[], object]) -> str:
    """What an action of another user of this machine raises; nothing when it succeeds."""
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            action()
        except BaseException as error:  # noqa: BLE001  (it must not go on as a test)
            os.write(write, repr(error).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as said:
        return said.read()


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that all users may walk to, as homes often are, unlike the folders of pytest."""
    with tempfile.TemporaryDirectory(prefix="medgen-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        for pid_file in Path(name).rglob("postmaster.pid"):
            os.kill(int(pid_file.read_text().split("\n")[0]), signal.SIGINT)
            wait_until(lambda pid_file=pid_file: not pid_file.exists(), "the server does not stop")
