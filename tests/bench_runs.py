"""Runs benchmarks with `--smoke` in one process, which imports PyTorch and loads each model once.

Reads names of scripts, one a line; answers each with a line of JSON: [exit code, output]. Each finds an installation of
its own, its database on one server. What needs worker, decoder or inference processes finds them here.
"""

import contextlib
import json
import os
import pickle
import runpy
import sys
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import forget_installation, inline


class PoolHere:
    """As a pool of worker processes, for what needs no more than its answers."""

    def schedule(self, function: Any, args: tuple[Any, ...], timeout: float) -> "Future[Any]":
        """Done when it returns. Arguments and answer must be fit for a process of its own all the same."""
        done: Future[Any] = Future()
        function, args = pickle.loads(pickle.dumps((function, args)))
        done.set_result(pickle.loads(pickle.dumps(function(*args))))
        return done


@contextlib.contextmanager
def pool_here(workers: int) -> Iterator[PoolHere]:
    """In place of `medgen.worker_processes.worker_pool`."""
    yield PoolHere()


def run(script: str, database_url: str) -> tuple[int, str]:
    """(exit code, output) of a script."""
    import psycopg

    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{script}"')
    with (
        tempfile.TemporaryDirectory(prefix="mb-") as scratch,
        (Path(scratch) / "output").open("w+", encoding="utf-8") as output,
        pytest.MonkeyPatch.context() as patch,
    ):
        before = dict(os.environ)
        patch.setenv("MEDGEN_HOME", f"{scratch}/home")
        patch.setenv("MEDGEN_DATABASE_URL", database_url.replace("/postgres?", f"/{script}?"))
        patch.setattr(tempfile, "tempdir", scratch)
        patch.setattr(sys, "argv", [script, "--smoke"])
        forget_installation()
        code: Any = 0
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                runpy.run_path(f"bench/{script}.py", run_name="__main__")
            except SystemExit as end:
                code = end.code
            except Exception:  # noqa: BLE001 the caller tells it
                code = 1
                traceback.print_exc()
        forget_installation()
        os.environ.clear()
        os.environ.update(before)
        output.seek(0)
        told = output.read()
    if not isinstance(code, int | None):
        code, told = 1, f"{told}{code}\n"
    return code or 0, told


def main() -> None:
    """See above."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    from apps.judge import folder
    from medgen.postgres import embedded_url

    with tempfile.TemporaryDirectory(prefix="mb-") as database, pytest.MonkeyPatch.context() as patch:
        inline(patch)
        patch.setattr(folder, "worker_pool", pool_here)
        url = embedded_url(Path(database) / "data")
        for line in sys.stdin:
            answers.write(json.dumps(run(line.strip(), url)) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
