"""A process that has imported what medgen's commands import, and becomes one of them, again and again, by forking:
`python -m tests.warm_process SOCKET`. It ends when its standard input does.

A new process spends seconds of a CPU on imports alone. What a forked one does is all its own: environment, output,
servers, worker processes, exit code.
"""

import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

import pytest

# What flows import once they run; apps.cli imports little by itself, so that `--help` is quick.
IMPORTED = (
    "apps.cli", "flows.refresh", "flows.discover", "flows.evaluate", "flows.train", "flows.augment", "torch",
    "torchvision", "rapidocr.main", "transformers", "diffusers", "pyiqa", "pyarrow.parquet", "matplotlib.pyplot",
)  # fmt: skip


def main() -> None:
    """Serves until standard input ends."""
    path = sys.argv[1]
    for module in IMPORTED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            ready, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            asked, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                break
            asked.close()
    run(asked)


def run(asked: socket.socket) -> None:
    """Runs one command in a process of its own, and tells its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, files, _, _ = socket.recv_fds(asked, 1 << 20, 2)
    request: dict[str, Any] = json.loads(data)
    child = os.fork()
    if child:
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        with suppress(OSError):
            asked.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
        os._exit(0)
    asked.close()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    become(request["arguments"], inline=request["inline"])


def become(arguments: list[str], *, inline: bool) -> None:
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
    """The process as tests ask it.

    Args:
        environment: in which it imports, such as the address of Prefect's server, which Prefect reads once.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        import subprocess

        self.path = folder / "warm"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_process", str(self.path)],
            cwd=Path(__file__).parent.parent, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"

    def run(
        self, arguments: list[str], environment: dict[str, str], folder: Path, *, inline: bool
    ) -> tuple[int, str, str]:
        """(exit code, what it printed, what it complained) of a command.

        Args:
            folder: for its output.
            inline: its steps run in the process of the command.
        """
        with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as err:
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(str(self.path))
                request = {"arguments": arguments, "environment": environment, "inline": inline}
                socket.send_fds(asking, [json.dumps(request).encode()], [out.fileno(), err.fileno()])
                answer = asking.recv(4)
            assert len(answer) == 4, "the command's process is gone without a word"
            (code,) = struct.unpack("i", answer)
            out.seek(0)
            err.seek(0)
            return code, out.read(), err.read()

    def end(self) -> None:
        """Ends it."""
        self.process.communicate()


if __name__ == "__main__":
    main()
