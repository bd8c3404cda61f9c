"""Python imports this first of all where a test has put this folder on PYTHONPATH.

A process that somebody starts as `python -m MODULE` spends seconds of a CPU on imports. Where the test names the module
it asks the process of `tests.warm_process`, which has imported everything, for a fork that is the module in its stead,
passes signals on to that and ends as it ends. Who started it sees no difference. Killed, it takes the fork with it.
"""

import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path

PROCESS = "MEDGEN_TESTS_WARM_PROCESS"  # path of its socket
MODULES = "MEDGEN_TESTS_WARM_MODULES"  # with commas between them


def asked_for() -> tuple[str, list[str]] | None:
    """(module, its arguments), where it is one of them."""
    words = sys.orig_argv[1:]
    if words[:1] == ["-u"]:
        del words[0]
    modules = os.environ.get(MODULES, "").split(",")
    return (words[1], words[2:]) if words[:1] == ["-m"] and words[1:] and words[1] in modules else None


def run_elsewhere(module: str, arguments: list[str]) -> None:
    """Is a fork of that process, to all who look on. Never returns."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(os.environ[PROCESS])
        environment = dict(os.environ)
        request = {"module": module, "arguments": arguments, "environment": environment, "folder": str(Path.cwd())}
        asking.sendall(b"f")
        socket.send_fds(asking, [json.dumps(request).encode()], [0, 1, 2])
        (fork,) = struct.unpack("i", asking.recv(4))
        for passed_on in (signal.SIGTERM, signal.SIGINT):
            signal.signal(passed_on, lambda number, _: os.kill(fork, number))
        (code,) = struct.unpack("i", asking.recv(4))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if (found := asked_for()) is not None:
    run_elsewhere(*found)
