"""A process that has imported what medgen's commands and flow runs import, and becomes one of them, again and again, by
forking: `python -m tests.warm_process SOCKET`. It ends when nobody holds it any more.

A new process spends seconds of a CPU on imports alone. What a forked one does is all its own: environment, output,
servers, worker processes, exit code.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from medgen.forks import take_over

ROOT = Path(__file__).resolve().parent.parent
HOLD, FORK = b"h", b"f"  # the first byte of a connection
# What flows import once they run; apps.cli imports little by itself, so that `--help` is quick.
IMPORTED = (
    "apps.cli", "flows.refresh", "flows.discover", "flows.evaluate", "flows.train", "flows.augment", "torch",
    "torchvision", "rapidocr.main", "transformers", "diffusers", "pyiqa", "pyarrow.parquet", "matplotlib.pyplot",
    "alembic.command", "graphviz", "medgen.migrations", "pandas", "psycopg", "pygments.lexers",
)  # fmt: skip
# What training and benchmarks import further, and tests.
IMPORTED_TOO = (
    "models.training.preflight", "models.training.trainer", "scipy.signal", "scipy.stats", "tensorboard.summary",
    "tests.conftest", "torch.distributed.fsdp", "torch.utils.tensorboard",
)  # fmt: skip


def main() -> None:
    """Serves as long as there is a connection that holds it."""
    path = sys.argv[1]
    for module in (*IMPORTED, *IMPORTED_TOO):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else the first search for garbage in each fork would copy all pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    holders: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            ready, _, _ = select.select([listening, *holders], [], [])
            if gone := [holder for holder in holders if holder in ready]:
                for holder in gone:
                    holders.remove(holder)
                    holder.close()
                if not holders:
                    return
                continue
            asked, _ = listening.accept()
            if asked.recv(1) == HOLD:
                holders.append(asked)
            elif os.fork() == 0:
                for other in (listening, *holders):
                    other.close()
                break
            else:
                asked.close()
    run(asked)


def run(asked: socket.socket) -> None:
    """Runs one command in a process of its own, and tells that process's id and exit code.

    It is killed when who asked is gone.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, files, _, _ = socket.recv_fds(asked, 1 << 20, 3)
    request: dict[str, Any] = json.loads(data)
    child = os.fork()
    if child:
        for file in files:
            os.close(file)
        with suppress(OSError):
            asked.sendall(struct.pack("i", child))
        ended = os.pidfd_open(child)
        if asked in select.select([asked, ended], [], [])[0]:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        with suppress(OSError):
            asked.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
        os._exit(0)
    asked.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    take_over(request["environment"], 1)
    os.chdir(request["folder"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    tempfile.tempdir = None
    code = 0
    try:
        if "module" in request:
            become_module(request["module"], request["arguments"])
        else:
            become_command(request["arguments"], inline=request["inline"])
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 as Python does at its end
        traceback.print_exc()
        code = 1
    leave(code)


def leave(code: int) -> None:
    """Ends this process as Python does, but for taking apart all that was imported."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def become_module(module: str, arguments: list[str]) -> None:
    """Is `python -m MODULE ARGUMENTS` from here on."""
    from prefect import context
    from prefect.logging import configuration

    from tests.conftest import forget_installation

    forget_installation()
    serve_forks()
    context.refresh_global_settings_context()  # from the environment, as when it is imported
    configuration.PROCESS_LOGGING_CONFIG.clear()
    configuration.setup_logging()
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def become_command(arguments: list[str], *, inline: bool) -> None:
    """Is `medgen ARGUMENTS` from here on."""
    from apps.cli import app
    from tests.conftest import forget_installation
    from tests.conftest import inline as work_here

    forget_installation()
    serve_forks()
    sys.argv = ["medgen", *arguments]
    if not inline:
        app()
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        app()


def serve_forks() -> None:
    """Forks, while this process has one thread, the one whose forks its worker processes become.

    It stands for the one that `multiprocessing` would start, which would import everything once more.
    """
    server = forkserver._forkserver
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(connection.arbitrary_address("AF_UNIX"))
    listening.listen()
    alive, mine = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(mine)
        try:
            forkserver.main(listening.detach(), alive, [])
        finally:
            os._exit(0)
    server._forkserver_address, server._forkserver_alive_fd = listening.getsockname(), mine
    server._forkserver_pid = pid
    os.close(alive)
    listening.close()


class WarmProcess:
    """The process as tests ask it. Test processes share one.

    Args:
        path: of its socket. Who comes first starts it.
        environment: in which it imports, such as the address of Prefect's server, which Prefect reads once.
    """

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        self.path = path
        self._holding = socket.socket(socket.AF_UNIX)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                self._start(environment)
            self._holding.connect(str(path))
            self._holding.sendall(HOLD)

    def _start(self, environment: dict[str, str]) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_process", str(self.path)],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "ready\n"

    def run_command(
        self, arguments: list[str], environment: dict[str, str], folder: Path, *, inline: bool
    ) -> tuple[int, str, str]:
        """(exit code, what it printed, what it complained) of `medgen ARGUMENTS`.

        Args:
            folder: for its output.
            inline: its steps run in the process of the command.
        """
        return self._run({"arguments": arguments, "environment": environment, "inline": inline}, folder)

    def run_module(
        self, module: str, arguments: list[str], environment: dict[str, str], folder: Path
    ) -> tuple[int, str, str]:
        """The same of `python -m MODULE ARGUMENTS`."""
        return self._run({"module": module, "arguments": arguments, "environment": environment}, folder)

    def _run(self, request: dict[str, Any], folder: Path) -> tuple[int, str, str]:
        with (
            Path(os.devnull).open() as nothing,
            (folder / "stdout").open("w+") as out,
            (folder / "stderr").open("w+") as err,
        ):
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(str(self.path))
                asking.sendall(FORK)
                request["folder"] = str(ROOT)
                files = [file.fileno() for file in (nothing, out, err)]
                socket.send_fds(asking, [json.dumps(request).encode()], files)
                answer = asking.recv(8, socket.MSG_WAITALL)
            assert len(answer) == 8, "the command's process is gone without a word"
            _, code = struct.unpack("ii", answer)
            out.seek(0)
            err.seek(0)
            return code, out.read(), err.read()

    def let_go(self) -> None:
        """No longer holds it."""
        self._holding.close()


if __name__ == "__main__":
    main()
