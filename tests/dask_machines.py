"""Dask's workers that stand for machines, each with a home of its own: forks of a process that has imported everything.

python -m tests.dask_machines SCHEDULER HOME... prints their process ids and holds all until its standard input ends.
"""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module

from distributed import Worker

from tests.conftest import forget_installation
from tests.warm_process import IMPORTED, serve_forks

THREADS = 3  # tasks of a machine at once


def main() -> None:
    scheduler, *homes = sys.argv[1:]
    for module in IMPORTED:
        import_module(module)
    machines = [started(scheduler, home) for home in homes]
    sys.stdout.write(json.dumps(machines) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    for machine in machines:
        with suppress(ProcessLookupError):
            os.kill(machine, signal.SIGKILL)


def started(scheduler: str, home: str) -> int:
    """The process id of a machine."""
    machine = os.fork()
    if machine:
        return machine
    os.environ["MEDGEN_HOME"] = home
    forget_installation()
    serve_forks()
    asyncio.run(work(scheduler))
    os._exit(0)


async def work(scheduler: str) -> None:
    """Does what the scheduler hands out."""
    async with Worker(scheduler, nthreads=THREADS, dashboard=False) as worker:
        await worker.finished()


if __name__ == "__main__":
    main()
