"""A wrong key in what one step hands to the next is an error of the type checker, before anything runs."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

SNIPPET = """
from medgen.shard import Past
from tasks.curation.cut import CUT, CutDetail
from tasks.curation.quality import QUALITY


def right(past: Past) -> float:
    return CUT.detail(past)["clip"]["fps"] * QUALITY.scores(past)["noise"] + len(CUT.outputs(past)["clip"])


def wrong(past: Past) -> None:
    print(CUT.detail(past)["clip"]["frames_per_second"])
    print(CUT.outputs(past)["video"])
    print(QUALITY.scores(past)["loudness"])


def wrongly_made(detail: CutDetail) -> CutDetail:
    return {"clip": detail["clip"], "bytes": 1, "bit_rate": 1, "border": detail["borders"]}
"""


def test_a_wrong_key_is_a_type_error(tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(SNIPPET)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "snippet.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert [error.split("error: ")[1].split("  [")[0] for error in errors] == [
        'TypedDict "ClipFacts" has no key "frames_per_second"',
        'TypedDict "CutOutputs" has no key "video"',
        'TypedDict "QualityScores" has no key "loudness"',
        'Missing keys ("borders", "encoding") for TypedDict "CutDetail"',
        'Extra key "border" for TypedDict "CutDetail"',
    ], done.stdout + done.stderr
