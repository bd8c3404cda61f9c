"""What a command costs: processor time and peak memory of its processes, by kind.

Kinds are `main` (the command itself), `workers` (processes that it started), `prefect` (the installation's Prefect
server) and `postgres` (its embedded Postgres, all backends).
"""

import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

KINDS = ("main", "workers", "postgres", "prefect")
LOOK_S = 0.25  # between two readings of what is known: the last ones of a process are lost
SEARCH_S = 1.0  # between two searches for new processes, which read all of /proc


@dataclass
class Costs:
    """Processor time in seconds, and the most memory that one process ever had resident in MiB, by kind.

    Of Postgres's backends the latter counts the buffers that all of them share. `statements` is what the command itself
    counted of its SQL, if it did.
    """

    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    peak_mib: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    statements: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Known:
    kind: str
    cpu_s: float = 0.0
    before_s: float = 0.0  # of a server that ran before the command, with its backends that ended


class ProcessCosts:
    """Watches a command from its start on, in a thread, until `end`."""

    def __init__(self, process: subprocess.Popen[str], home: Path) -> None:
        self._home = home
        self._costs = Costs()
        self._root = psutil.Process(process.pid)
        self._known = {self._root: _Known("main")}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> Costs:
        """What it cost. To be called when the command has ended."""
        self._ended.set()
        self._thread.join()
        for kind in KINDS:
            if kind != "postgres":
                self._costs.cpu_s[kind] = sum(known.cpu_s for known in self._known.values() if known.kind == kind)
        return self._costs

    def _watch(self) -> None:
        looks = 0
        while True:
            if looks % round(SEARCH_S / LOOK_S) == 0:
                self._search()
            looks += 1
            self._look()
            if self._ended.wait(LOOK_S):
                return

    def _search(self) -> None:
        found: list[psutil.Process] = []
        with suppress(psutil.Error):
            found += self._root.children(recursive=True)
        for pid_file in self._home.glob("postgres*/postmaster.pid"):
            with suppress(psutil.Error, OSError, ValueError):
                server = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
                found += [server, *server.children()]
        for process in found:
            with suppress(psutil.Error):
                # Younger ones may still be copies of their parent, on their way to another program.
                if time.time() - process.create_time() > LOOK_S and process not in self._known:
                    known = self._known[process] = _Known(self._kind(process))
                    if process.create_time() < self._root.create_time():
                        known.before_s = sum(process.cpu_times()[:4])

    def _kind(self, process: psutil.Process) -> str:
        if process.name().startswith("postgres"):
            return "postgres"
        return "prefect" if "apps.prefect_app" in process.cmdline() else "workers"

    def _look(self) -> None:
        postgres_s = 0.0
        for process, known in self._known.items():
            with suppress(psutil.Error, OSError):
                if not process.is_running():  # its number may be another's by now
                    continue
                times = process.cpu_times()
                known.cpu_s = times.user + times.system
                if known.kind == "postgres":  # a backend that ended has left its time to the server
                    postgres_s += known.cpu_s + times.children_user + times.children_system - known.before_s
                peak = _peak_mib(process.pid)
                self._costs.peak_mib[known.kind] = max(self._costs.peak_mib[known.kind], peak)
        self._costs.cpu_s["postgres"] = max(self._costs.cpu_s["postgres"], postgres_s)


def _peak_mib(pid: int) -> float:
    """The most memory that a process ever had resident."""
    with Path(f"/proc/{pid}/status").open(encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
