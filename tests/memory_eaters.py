"""What tests run in worker processes: functions that take memory, crash, hang or tell. It imports little."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medgen.errors import ItemFailed

if TYPE_CHECKING:
    from medgen.ledger import Outcome, Work
    from medgen.store import Store

kept: list[np.ndarray] = []


def take(mebibytes: int) -> None:
    """Memory that stays."""
    for _ in range(mebibytes // 16):
        kept.append(np.ones(16 << 20, np.uint8))
        time.sleep(0.01)  # nobody has to be fast


def grow(work: Work, store: Store) -> Outcome:
    """A step: takes as much memory as its subject says, and gives nothing back."""
    from medgen.ledger import Outcome

    take(int(work.subject.partition(" ")[0]))
    return Outcome("kept")


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


def held(modules: tuple[str, ...]) -> set[str]:
    """Those of the modules that its process has imported."""
    return sys.modules.keys() & set(modules)


def stop_once(work: Work, store: Store) -> Outcome:
    """A step: the first time it makes the file that its subject names, and hangs; then it is done at once."""
    from medgen.ledger import Outcome

    begun = Path(work.subject)
    if not begun.exists():
        begun.touch()
        time.sleep(600)
    return Outcome("kept")
