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
# What a visitor of the audit site sees.
VISIT = """
import json, sys
from starlette.testclient import TestClient
from apps.audit.application import create_site

client = TestClient(create_site(token=None), base_url="http://127.0.0.1")
print(json.dumps({address: client.get(address).text for address in sys.argv[1:]}))
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


def run(checkout: Path, home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=clean_environment() | shared_prefect() | {"MEDGEN_HOME": str(home), "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def refreshed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(home, summary of a refresh of a video and of the same in the dark, summary of the same again)."""
    source, home = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("installation") / "home"
    darkened(numbered_video(source / "bright.mp4", 75), source / "dark.mp4")
    settings = [part for setting in (*LOOSE, "min_brightness=40") for part in ("--set", setting)]
    command = ("-m", "apps.cli", "refresh", "--source", str(source), *settings, "--json")
    return home, *(json.loads(run(checkout, home, *command)) for _ in range(2))  # type: ignore[return-value]


def test_the_step_is_part_of_the_pipeline(checkout: Path, refreshed: Any) -> None:
    home, summary, again = refreshed
    assert "min_brightness" in run(checkout, home, "-m", "apps.cli", "parameters")
    (entry,) = [entry for entry in summary["funnel"] if entry["step"] == "brightness"]
    assert (entry["unit"], entry["in"], entry["kept"], entry["rejected"]) == ("clips", 2, 1, {"too_dark": 1})
    steps = [entry["step"] for entry in summary["funnel"]]
    assert steps.index("quality") + 1 == steps.index("brightness") == steps.index("decide") - 1
    assert again["executed"] == 0 and again["release"] == summary["release"]


def test_releases_and_records_know_it(checkout: Path, refreshed: Any) -> None:
    home, summary, _ = refreshed
    (row,) = pq.read_table(Path(summary["folder"]) / "metadata.parquet").to_pylist()
    history = json.loads(run(checkout, home, "-m", "apps.cli", "show", row["clip_id"], "--json"))
    (step,) = [step for step in history["steps"] if step["step"] == "brightness"]
    assert step["key"] == row["brightness_key"]
    (dropped,) = pq.read_table(Path(summary["folder"]) / "rejected.parquet").to_pylist()
    assert (dropped["step"], dropped["reason"], dropped["metric"]) == ("brightness", "too_dark", "brightness")
    assert dropped["score"] < dropped["threshold"] == 40
    assert json.loads(run(checkout, home, "-m", "apps.cli", "verify", "--json"))["clean"]


def test_the_audit_site_finds_and_shows_it(checkout: Path, refreshed: Any) -> None:
    home, summary, _ = refreshed
    (dropped,) = pq.read_table(Path(summary["folder"]) / "rejected.parquet").to_pylist()
    clip = dropped["subject"]
    addresses = ["/items?step=brightness", "/items?reason=too_dark", "/items?step=quality", f"/clips/{clip}"]
    pages = json.loads(run(checkout, home, "-c", VISIT, *addresses))
    assert clip in pages["/items?step=brightness"] and clip in pages["/items?reason=too_dark"]
    assert clip not in pages["/items?step=quality"]
    assert 'value="brightness"' in pages["/items?step=quality"]  # it can be chosen in the form
    assert "too dark" in pages[f"/clips/{clip}"] and "brightness" in pages[f"/clips/{clip}"]
