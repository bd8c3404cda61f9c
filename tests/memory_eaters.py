"""What tests run in worker processes: functions that take memory, crash or hang. Imports little, for a quick start."""

import os
import signal
import time

import numpy as np

from medgen.errors import ItemFailed

kept: list[np.ndarray] = []


def take(mebibytes: int) -> None:
    """Memory that stays."""
    for _ in range(mebibytes // 16):
        kept.append(np.ones(16 << 20, np.uint8))
        time.sleep(0.01)  # nobody has to be fast


def end(how: str) -> int:
    """Ends its process by crash, hang, grow or fail, or gives its number."""
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        time.sleep(600)
    if how == "grow":
        take(3000)
    if how == "fail":
        raise ItemFailed("no_such_luck", "as asked for")
    return os.getpid()
