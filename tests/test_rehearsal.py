"""Rehearsed nights: everything of medgen but the work on pictures and on the network, at a small size.

The sizes that matter take too long for a test. What would break at them shows here already: no statement may take more
parameters for more items.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.conftest import ROOT, clean_environment, shared_prefect

MOST_PARAMETERS = 64  # of one statement: several hundred items go through each


@pytest.fixture(scope="module")
def phases() -> Iterator[dict[str, dict[str, Any]]]:
    """Phase → its figures, of the smallest rehearsal."""
    with TemporaryDirectory(prefix="mr-") as scratch:  # short: a socket's address has room for 107 bytes
        done = subprocess.run(
            [sys.executable, "-m", "bench.rehearsal", "--smoke", "--home", f"{scratch}/home", "--json"],
            cwd=ROOT,
            env=clean_environment() | shared_prefect() | {"TMPDIR": scratch},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        yield {phase["phase"]: phase for phase in json.loads(done.stdout)["phases"]}


def test_a_second_night_does_nothing_but_what_passing_failures_left(phases: dict[str, dict[str, Any]]) -> None:
    first, quiet = phases["first"], phases["quiet"]
    assert first["reused"] == 0
    assert quiet["executed"] <= first["items"] // 100
    assert (quiet["digest"], quiet["clips"]) == (first["digest"], first["clips"])
    assert first["clips"] > 40


def test_no_statement_takes_a_parameter_for_each_item(phases: dict[str, dict[str, Any]]) -> None:
    counted = {
        phase: (facts["most_parameters"], facts["statement"])
        for phase, facts in phases.items()
        if facts.get("statements")
    }
    assert {"first", "quiet", "takedown", "verify", "gc", "status", "training"} <= counted.keys()
    assert {phase: most for phase, most in counted.items() if most[0] > MOST_PARAMETERS} == {}


def test_a_night_after_a_takedown_makes_a_release_without_its_clips(phases: dict[str, dict[str, Any]]) -> None:
    assert phases["takedown"]["clips"] > 0
    assert 0 < phases["after"]["clips"] < phases["first"]["clips"]


def test_everything_is_as_it_was_written(phases: dict[str, dict[str, Any]]) -> None:
    assert phases["verify"]["clean"]
    assert phases["gc"]["removed"] == 0
