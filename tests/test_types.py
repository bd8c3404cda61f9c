"""A wrong key in what one step hands to the next is an error of the type checker, before anything runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SNIPPET = """
from typing import TypedDict

from medgen.handover import Handover
from medgen.ledger import Record


class Detail(TypedDict):
    fps: float


DOWNLOAD: Handover[Detail] = Handover("download")


def fps(record: Record) -> float:
    return DOWNLOAD.detail(record)["{key}"]
"""


@pytest.mark.parametrize(("key", "mistakes"), [("fps", 0), ("frames_per_second", 1)])
def test_a_wrong_key_is_a_type_error(tmp_path: Path, key: str, mistakes: int) -> None:
    (tmp_path / "snippet.py").write_text(SNIPPET.replace("{key}", key))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "snippet.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(errors) == mistakes, done.stdout + done.stderr
    assert all(f'TypedDict "Detail" has no key "{key}"' in error for error in errors), errors
