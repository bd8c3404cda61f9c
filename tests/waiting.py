"""Waits for what other processes do."""

import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 900.0  # no test depends on how fast the machine is: this only ends one that would wait for ever


def wait_until(found: Callable[[], Any], trouble: str | Callable[[], str], *, every_s: float = 0.05) -> Any:
    """What `found` gives once it is true.

    Args:
        trouble: what to say when it never is.
        every_s: seconds between two looks.
    """
    deadline = time.monotonic() + LIMIT_S
    while not (it := found()):
        assert time.monotonic() < deadline, trouble() if callable(trouble) else trouble
        time.sleep(every_s)
    return it
