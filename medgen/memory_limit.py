"""How much memory a worker process may take, and what ends it when it takes more.

A limit of the operating system would not do: it makes allocations fail, which libraries report as anything (a decoder
as a broken picture, PyTorch as an abort), and counts what is only reserved, of which CUDA takes hundreds of GiB. So a
worker watches what it really holds.
"""

import os
from contextlib import suppress
from pathlib import Path

import psutil

EXIT_CODE = 87  # of a worker that ended itself for its memory; of no signal and no shell
SHARE = 0.8  # of the machine's memory for all workers together; the rest is for the flow, Postgres and the page cache
# A worker gets so much in any case: PyTorch and the models of a step take up to about 2 GiB.
LEAST_BYTES = 4 << 30


def fair_share(workers: int) -> int:
    """Bytes that each of so many worker processes of this machine may take: a share of its memory, or `LEAST_BYTES`.

    On a machine that has less than `LEAST_BYTES` to give a worker may take all there is.
    """
    all_of_them = int(SHARE * machine_bytes())
    return max(all_of_them // workers, min(LEAST_BYTES, all_of_them))


def machine_bytes(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> int:
    """Memory of this machine, or of the container or service (cgroup version 1 or 2) where that has less."""
    limits = [psutil.virtual_memory().total]
    # In a container its own group is the root of what is mounted; a service's limit stands in a folder of its own.
    folders = [root, root / "memory"]
    with suppress(OSError, ValueError):
        for line in groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            group = root / path.strip("/") if not controllers else root / "memory" / path.strip("/")
            if not controllers or "memory" in controllers.split(","):
                folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
    for file in {folder / name for folder in folders for name in ("memory.max", "memory.limit_in_bytes")}:
        with suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(file.read_text()))
    return min(limit for limit in limits if limit > 0)


def private_bytes() -> int:
    """Memory that this process holds alone. What is mapped from files, such as weights, is not counted."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def leave_if_above(limit: int) -> None:
    """Ends this process, with `EXIT_CODE`, when it holds more than so many bytes."""
    with suppress(psutil.Error, OSError):  # a look that fails is not the last one
        if private_bytes() > limit:
            os._exit(EXIT_CODE)
