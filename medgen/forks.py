"""Processes that are forks of one which holds the libraries and does nothing else.

This process would not do: it has threads (Prefect's), which a fork would copy in mid-flight.
"""

import logging
import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.util import get_temp_dir

from medgen.native_threads import limit_native_threads

IMPORTS = "medgen.forked_imports"
SOCKET_BYTES = 107  # of the path of a Unix socket, on Linux
NAME_BYTES = len("/listener-12345678")  # as multiprocessing names its own, in its temporary folder

log = logging.getLogger(__name__)


def fork_context() -> ForkServerContext | SpawnContext:
    """Starts processes. The first one waits until the libraries are there.

    Where the temporary folder's path is too long for a socket in it, each process is started from nothing.
    """
    folder = get_temp_dir()
    if len(os.fsencode(folder)) + NAME_BYTES > SOCKET_BYTES:
        log.warning("worker processes start slowly, each from nothing: the path of %s is too long for a socket", folder)
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([IMPORTS])
    return context


def take_over(environment: Mapping[str, str], threads: int, *, overrule: bool = False) -> None:
    """Called first by a fork: what it is forked from may have been started in another environment.

    Args:
        environment: of the process that wanted it.
        threads: of native libraries, those that are loaded included.
        overrule: what the environment says of them, too.
    """
    os.environ.clear()
    os.environ.update(environment)
    limit_native_threads(threads, overrule=overrule)
    if (torch := sys.modules.get("torch")) and (number := _number("OMP_NUM_THREADS")):
        torch.set_num_threads(number)
    if (cv2 := sys.modules.get("cv2")) and (number := _number("OPENCV_FOR_THREADS_NUM")):
        cv2.setNumThreads(number)


def _number(variable: str) -> int:
    """Of threads, as a variable says, for the outermost level; 0: it says nothing, as the libraries read it, too."""
    text = os.environ.get(variable, "").partition(",")[0].strip()
    return int(text) if text.isdecimal() else 0


def parent_ended(forked_by: int, within_s: float) -> bool:
    """Waits for the end of the process that started this one by `multiprocessing`, up to so many seconds.

    Args:
        forked_by: id of the process that this one was a child of at its start. Its end counts, too: to the other it
            looks as if this one had died.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    return bool(wait([parent.sentinel], within_s)) or os.getppid() != forked_by
