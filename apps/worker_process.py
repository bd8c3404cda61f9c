"""Prefect's worker, which ends with who started it.

python -m apps.worker_process PARENT POOL LIMIT
"""

import os
import runpy
import sys
import threading
import time

from apps.worker import FAMILY, end_family

LOOK_S = 1.0


def end_with(parent: int) -> None:
    """Ends this process and its runs once its parent is gone, which was killed if it did not end them."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    end_family(os.environ[FAMILY])
    os._exit(1)


def main() -> None:
    """Runs the worker."""
    parent, pool, limit = sys.argv[1:]
    threading.Thread(target=end_with, args=(int(parent),), daemon=True).start()
    sys.argv = ["prefect", "--no-prompt", "worker", "start", "--pool", pool, "--limit", limit]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
