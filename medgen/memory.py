"""Memory that was freed goes back to the system, not only to the allocator."""

import ctypes
from functools import cache

import pyarrow as pa


def trim_heap() -> None:
    """Gives freed memory of Arrow's pool and of the C heap back.

    For workers that live long: else each keeps the most that a shard, or the making of a model, ever took. Compiling
    the medical dictionary leaves 150 MiB behind. A C library without `malloc_trim` keeps what it likes.
    """
    pa.default_memory_pool().release_unused()
    if trim := _trim():
        trim(0)


@cache
def _trim() -> "ctypes._NamedFuncPointer | None":
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
