"""Worker processes: what crashes, hangs or grows in one hurts the item that it works on, and nothing else.

Foreign files are decoded nowhere else: FFmpeg is large, and they may be made to break it.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import cache
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from medgen.errors import ItemFailed
from medgen.forks import fork_context, parent_ended, take_over
from medgen.inference import never_own, own_inference
from medgen.memory_limit import EXIT_CODE, leave_if_above, private_bytes
from medgen.settings import current

MEMORY_LIMIT = "memory_limit"  # reason of an item that needed more than its worker may take
WATCH_S = 0.1  # between a worker's looks at its parent and its memory
ASK_S = 1.0  # between looks at whether a pool still answers
DECODERS = 1  # processes for what is decoded beside the steps: a file takes some 20 ms to probe

_T = TypeVar("_T")


def worker_pool(workers: int) -> ProcessPool:
    """Worker processes with one thread each for native libraries; they end with this process, or above their memory.

    This process owns the inference processes that they may ask, unless another of the installation does.
    """
    own_inference()
    return ProcessPool(
        max_workers=workers,
        context=fork_context(),
        initializer=_prepare_worker,
        initargs=(dict(os.environ), current().worker_memory_bytes),
    )


def failure_of(end: TimeoutError | ProcessExpired, time_limit_s: float | None) -> ItemFailed:
    """What an item failed of whose worker ended: time_limit, memory_limit, worker_died (transient)."""
    if not isinstance(end, ProcessExpired):
        return ItemFailed("time_limit", f"took longer than {time_limit_s:.0f} s and was stopped")
    if end.exitcode == EXIT_CODE:
        limit = current().worker_memory_bytes / 2**30
        return ItemFailed(
            MEMORY_LIMIT, f"needed more than {limit:.1f} GiB of memory (MEDGEN_WORKER_MEMORY_BYTES) and was stopped"
        )
    return ItemFailed("worker_died", f"the worker process died ({end.exitcode})", transient=True)


def pool_broke() -> ItemFailed:
    """What an item failed of whose pool can start no more workers and gives no more answers."""
    return ItemFailed("worker_died", "what starts the worker processes broke", transient=True)


def decoded_apart(function: Callable[..., _T], *arguments: Any, time_limit_s: float) -> _T:
    """What a function makes of a foreign file, in a worker process: for steps that run in threads or inline.

    Args:
        function: at the level of a module; it, its arguments and what it gives travel between processes.
        time_limit_s: for its running; waiting for a process doesn't count.

    Raises:
        ItemFailed: as `function`; as `failure_of`.
    """
    with _starting:
        if not _decoders().active:  # what forks them was killed, and asked for another at that very moment
            _decoders.cache_clear()
        pool = _decoders()
    try:
        answer: Future[_T] = pool.schedule(function, args=arguments, timeout=time_limit_s)
    except RuntimeError as error:
        raise pool_broke() from error
    while not wait([answer], ASK_S).done:
        if not pool.active:
            raise pool_broke()
    try:
        return answer.result()
    except (TimeoutError, ProcessExpired) as end:
        raise failure_of(end, time_limit_s) from end


_starting = threading.Lock()  # `cache` calls a function twice when two threads come first


@cache
def _decoders() -> ProcessPool:
    """Not those of the steps: a download must not wait until a shard is segmented."""
    return worker_pool(DECODERS)


def close_decoders() -> None:
    """Ends the processes that `decoded_apart` started, if there are any."""
    with _starting:
        if _decoders.cache_info().currsize:
            _decoders().stop()  # type: ignore[no-untyped-call]  # pebble says so itself
            _decoders().join()
            _decoders.cache_clear()


def _prepare_worker(environment: Mapping[str, str], memory_bytes: int) -> None:
    forked_by = os.getppid()
    take_over(environment, 1, overrule=True)
    never_own()
    limit = memory_bytes + private_bytes()  # what was there before the fork is there once for all workers

    def watch() -> None:
        while not parent_ended(forked_by, WATCH_S):
            leave_if_above(limit)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
