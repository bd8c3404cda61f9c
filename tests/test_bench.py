"""Every script of bench/ runs to its end on the smallest input."""

import subprocess
import sys
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import ROOT, clean_environment

NO_SCRIPTS = {
    "listings",
    "made_up_listing",
    "made_up_steps",
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


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_runs_on_the_smallest_input(script: str) -> None:
    with TemporaryDirectory(prefix="mb-") as scratch:  # short: a socket's address has room for 107 bytes
        done = subprocess.run(
            [sys.executable, "-m", f"bench.{script}", "--smoke"],
            cwd=ROOT,
            env=clean_environment() | {"MEDGEN_HOME": f"{scratch}/home", "TMPDIR": scratch},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
