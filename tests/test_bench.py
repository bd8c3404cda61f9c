"""Every script of bench/ runs to its end on the smallest input."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import ROOT, clean_environment, forked, shared_prefect, warm_process, with_prefect_database

NO_SCRIPTS = {
    "listings",
    "made_borders",
    "made_shots",
    "made_texts",
    "made_up_listing",
    "made_up_steps",
    "picture_pool",
    "process_costs",
    "rehearsal",  # tests/test_rehearsal.py runs it
    "rehearsal_kills",
    "rehearsal_report",
    "rehearsal_work",
    "rehearsed_installation",
    "search_in_memory",
    "smallest",
    "through_cut",
}  # with those of `bench.judgement`'s sections, see there
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "bench").glob("*.py")
    if path.stem not in NO_SCRIPTS and not path.stem.startswith("judge_")
)


IN_ONE_PROCESS = ("curate", "judgement", "peers", "rates", "train_gpu")  # models take longer to load than to ask
# They run flows in processes of their own → the installation, in their scratch folder.
FLOWS = {"discover": "home", "kill": "home", "first_hour": "place/.medgen"}


class Runner:
    """Runs scripts in a process that it keeps, see tests/bench_runs.py."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, script: str) -> tuple[int, str]:
        """(exit code, output)"""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench_runs"],
                cwd=ROOT,
                env=clean_environment() | shared_prefect() | forked("tests.bench_runs") | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{script}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            return self._process.wait() or 1, "the process ended"
        code, output = json.loads(answer)
        return code, output

    def end(self) -> None:
        """Lets the process go."""
        if self._process:
            self._process.communicate()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """Started by the first who asks."""
    kept = Runner()
    yield kept
    kept.end()


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_runs_on_the_smallest_input(script: str, runner: Runner) -> None:
    code, output = runner.run(script) if script in IN_ONE_PROCESS else run_apart(script)
    assert code == 0, output


def run_apart(script: str) -> tuple[int, str]:
    """(exit code, output) of a script in a process of its own, a fork of one that has imported what costs."""
    with TemporaryDirectory(prefix="mb-") as scratch:  # short: a socket's address has room for 107 bytes
        server: dict[str, str] = {}
        arguments = ["--folder", f"{scratch}/place"] if script == "first_hour" else []
        if script in FLOWS:
            with_prefect_database(Path(scratch) / FLOWS[script])
            server = shared_prefect()
        commands = () if script == "kill" else ("apps.cli",)
        environment = clean_environment() | server | forked(f"bench.{script}", *commands)
        environment |= {"MEDGEN_HOME": f"{scratch}/home", "TMPDIR": scratch}
        code, told, complained = warm_process().run_module(
            f"bench.{script}", ["--smoke", *arguments], environment, Path(scratch)
        )
    return code, f"{told[-3000:]}\n{complained[-5000:]}"
