"""Dask's profiler, which can stop a worker for good."""


def stop_profiler() -> None:
    """Stops the profiler of the Dask worker that this task runs in. It tells nothing that medgen uses.

    A hundred times a second it calls `sys._current_frames`, in which CPython before 3.11.8 and 3.12.1 can wait for a
    thread that waits for it (python/cpython#106883): the process never does anything again, and looks alive.
    """
    from dask.distributed import get_worker

    worker = get_worker()
    if callback := worker.periodic_callbacks.get("profile"):
        worker.loop.add_callback(callback.stop)
