"""CONTRIBUTING's step is added as it says there, by one new file and one new line, and shows wherever steps show."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, clean_environment, numbered_video, shared_prefect

PACKAGES = ("medgen", "models", "tasks", "flows", "apps")
LOOSE = (
    "medical_threshold=0", "frame_similarity=-1", "still_below=0", "technical_threshold=100", "max_freeze_share=1",
    "min_short_side=0", "min_height=0", "min_sharpness=0", "max_overlay_share=1", "crop_borders=false",
    "keep_uncropped_borders=true", "near_duplicates=keep",
    "min_duration_s=2", "min_clip_s=2", "dissolves=false",
)  # fmt: skip
# Commands, and what a visitor of the audit site sees, in one process of the changed sources: each would import all.
RUNS = """
import json, sys
import pytest
from typer.testing import CliRunner
from apps.cli import app
from tests.conftest import inline

told = []
with pytest.MonkeyPatch.context() as patch:
    inline(patch)
    for words in json.load(sys.stdin):
        if words[0] == "visit":
            from starlette.testclient import TestClient
            from apps.audit.application import create_site

            told.append(TestClient(create_site(), base_url="http://127.0.0.1").get(words[1]).text)
            continue
        done = CliRunner().invoke(app, words)
        if done.exit_code:
            raise SystemExit(done.output)
        told.append(done.stdout)
print("\\n" + json.dumps(told))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the step of CONTRIBUTING.md added."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    words = (ROOT / "CONTRIBUTING.md").read_text()
    words = words[words.index("## Add a step") : words.index("## Add a model")]
    (code,) = re.findall(r"```python\n(.*?)```", words, re.DOTALL)
    (folder / "tasks/curation/brightness.py").write_text(textwrap.dedent(code))
    steps = folder / "tasks/curation/steps.py"
    (new, after) = re.search(r"the line `(.*?)` after `(.*?)`", words).groups()
    listed = steps.read_text()
    assert listed.count(f"    {after}\n") == 1
    steps.write_text(listed.replace(f"    {after}\n", f"    {after}\n    {new}\n"))
    return folder


def darkened(source: Path, target: Path) -> None:
    """The same video with a sixth of its light."""
    with av.open(str(source)) as video, av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for frame in video.decode(video=0):
            dark = frame.to_ndarray(format="rgb24") // 6
            out.mux(stream.encode(av.VideoFrame.from_ndarray(dark, format="rgb24")))
        out.mux(stream.encode(None))


def run(checkout: Path, home: Path, *commands: tuple[str, ...]) -> list[str]:
    """What commands print, and pages of the audit site (`visit`, address) hold."""
    paths = f"{checkout}:{ROOT}"  # the changed sources first, then the tests
    done = subprocess.run(
        [sys.executable, "-c", RUNS],
        cwd=checkout,
        env=clean_environment() | shared_prefect() | {"MEDGEN_HOME": str(home), "PYTHONPATH": paths},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: list[str] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def refreshed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any, str]:
    """(home, summary of a refresh of a video and of the same in the dark, summary of the same again, parameters)."""
    source, home = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("installation") / "home"
    darkened(numbered_video(source / "bright.mp4", 75), source / "dark.mp4")
    settings = [part for setting in (*LOOSE, "min_brightness=40") for part in ("--set", setting)]
    command = ("refresh", "--source", str(source), *settings, "--json")
    first, again, parameters = run(checkout, home, command, command, ("parameters",))
    return home, json.loads(first), json.loads(again), parameters


def test_the_step_is_part_of_the_pipeline(refreshed: Any) -> None:
    _, summary, again, parameters = refreshed
    assert "min_brightness" in parameters
    (entry,) = [entry for entry in summary["funnel"] if entry["step"] == "brightness"]
    assert (entry["unit"], entry["in"], entry["kept"], entry["rejected"]) == ("clips", 2, 1, {"too_dark": 1})
    steps = [entry["step"] for entry in summary["funnel"]]
    assert steps.index("quality") + 1 == steps.index("brightness") == steps.index("decide") - 1
    assert again["executed"] == 0 and again["release"] == summary["release"]


def test_releases_records_and_the_audit_site_know_it(checkout: Path, refreshed: Any) -> None:
    home, summary, _, _ = refreshed
    (row,) = pq.read_table(Path(summary["folder"]) / "metadata.parquet").to_pylist()
    (dropped,) = pq.read_table(Path(summary["folder"]) / "rejected.parquet").to_pylist()
    assert (dropped["step"], dropped["reason"], dropped["metric"]) == ("brightness", "too_dark", "brightness")
    assert dropped["score"] < dropped["threshold"] == 40
    clip = dropped["subject"]
    addresses = ["/items?step=brightness", "/items?reason=too_dark", "/items?step=quality", f"/clips/{clip}"]
    visits = [("visit", address) for address in addresses]
    history, verified, *pages = run(checkout, home, ("show", row["clip_id"], "--json"), ("verify", "--json"), *visits)
    (step,) = [step for step in json.loads(history)["steps"] if step["step"] == "brightness"]
    assert step["key"] == row["brightness_key"] and json.loads(verified)["clean"]
    of_step, of_reason, of_quality, of_clip = pages
    assert clip in of_step and clip in of_reason and clip not in of_quality
    assert 'value="brightness"' in of_quality  # it can be chosen in the form
    assert "too dark" in of_clip and "brightness" in of_clip
