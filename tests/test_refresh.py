"""The whole refresh, as its users run it: once, again, killed, on S3 and Postgres, with other thresholds and models."""

import csv
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest

from medgen.postgres import embedded_url
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from tasks.curation.steps import STEP_NAMES
from tests import loaders
from tests.conftest import (
    S3Server,
    demo_corpus,
    forked,
    frame_number,
    medgen,
    medgen_here,
    medgen_running,
    numbered_video,
)
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real and broken videos, small enough to go through several times."""
    folder = tmp_path_factory.mktemp("source") / "corpus"
    folder.mkdir()
    for name in ("echo-sector.mp4", "echo-subtitled.mp4", "echo-still.mp4", "echo-between.mp4", "bikes.mp4"):
        shutil.copyfile(demo_corpus() / name, folder / name)
    numbered_video(folder / "numbered.mp4", 200, cuts=(30,))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video")
    (folder / "notes.txt").write_text("no video at all")
    return folder


def refresh(corpus: Path, home: Path, *settings: str, inline: bool = True, **environment: str) -> dict[str, Any]:
    """Runs the refresh to its end and gives its summary; see `medgen`."""
    pairs = [part for setting in settings for part in ("--set", setting)]
    done = medgen("refresh", "--source", str(corpus), "--json", *pairs, home=home, inline=inline, **environment)
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def reference(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """An undisturbed run: its installation and summary."""
    home = tmp_path_factory.mktemp("reference") / "home"
    yield home, refresh(corpus, home, inline=False, MEDGEN_WORKERS="2")


def test_every_item_gets_a_verdict_and_the_release_holds_what_it_says(
    corpus: Path, reference: tuple[Path, dict[str, Any]]
) -> None:
    home, summary = reference
    items = json.loads(medgen_here("status", "--all", "--json", home=home).stdout)["items"]
    assert len(items) == len(list(corpus.iterdir()))
    verdicts = {item["url"].rsplit("/")[-1] if item["url"] else item["message"]: item for item in items}
    assert verdicts["echo-sector.mp4"]["clips"] >= 1
    assert verdicts["bikes.mp4"]["status"] == "rejected" and verdicts["bikes.mp4"]["clips"] == 0
    assert verdicts["echo-subtitled.mp4"]["reason"] == "overlay_text"
    assert verdicts["echo-still.mp4"]["reason"] == "still_picture"
    assert (verdicts["empty.mp4"]["status"], verdicts["empty.mp4"]["reason"]) == ("failed", "empty_file")
    assert (verdicts["text.mp4"]["status"], verdicts["text.mp4"]["reason"]) == ("failed", "not_a_video")
    folder = Path(summary["folder"])
    rows = pq.read_table(folder / "metadata.parquet").to_pylist()
    assert len(rows) == summary["clips"] == len(list((folder / "clips").glob("*.mp4"))) >= 1
    for row in rows:
        frames = sum(1 for _ in pictures(folder / row["file_name"], Limits()))
        assert frames == row["end_frame"] - row["start_frame"] and 6 <= row["duration"] <= 10
        assert row["brief_caption"] and row["detailed_caption"] and row["category"] != "non-medical"
        story = json.loads(medgen_here("show", row["clip_id"], "--json", home=home).stdout)
        steps = [step["step"] for step in story["steps"]]
        assert steps == list(STEP_NAMES)
        assert [release["name"] for release in story["releases"]] == [summary["release"]]
    assert (folder / "funnel.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "funnel.json").read_text()) == summary["funnel"]


def test_the_release_loads_in_the_tools_of_others(reference: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """As it lies: Hugging Face's `datasets`, WebDataset after an export, Croissant, and two video readers."""
    home, summary = reference
    shards = tmp_path / "shards"
    medgen_here("release", "export", summary["release"], str(shards), "--format", "webdataset", home=home)
    loaders.check_all(Path(summary["folder"]), shards, tmp_path)


def test_again_does_nothing_and_is_clean(corpus: Path, reference: tuple[Path, dict[str, Any]]) -> None:
    home, summary = reference
    done = medgen("refresh", "--source", str(corpus), home=home)
    lines = done.stdout.strip().splitlines()
    assert lines[-2] == f"executed 0, reused {summary['executed']}"
    assert lines[-1] == f"release {summary['release']} {summary['digest']}"
    assert json.loads(medgen_here("verify", "--json", home=home).stdout) == {"clean": True, "faults": []}
    clip = next((Path(summary["folder"]) / "clips").glob("*.mp4"))
    original = clip.read_bytes()
    clip.write_bytes(original[:-1] + b"!")  # a hard link: the store's copy changes too
    found = medgen_here("verify", "--json", home=home, check=False)
    clip.write_bytes(original)
    assert found.returncode == 1
    assert {fault.split(":")[0].split()[0] for fault in json.loads(found.stdout)["faults"]} == {"artifact", "release"}


def test_a_sample_of_a_step_is_labelled_and_judged(
    corpus: Path, reference: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The check of 200 samples a stage: laid out by `sample`, labelled by a person, scored by `judge`."""
    home, summary = reference
    folder = tmp_path / "check"
    medgen_here("sample", "decide", "--n", "4", "--out", str(folder), home=home)
    with (folder / "MANIFEST.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    verdicts = {row["verdict"] for row in rows}
    assert verdicts == {"kept", "rejected"} and 2 <= len(rows) <= 4
    assert {row["step"] for row in rows} == {"decide"}
    for row in rows:
        assert sum(1 for _ in pictures(folder / row["file"], Limits())) > 0
        assert row["reason"] or row["verdict"] == "kept"
    rejected = [row for row in rows if row["verdict"] == "rejected"]
    for row in rows:
        row["correct"] = "no" if row is rejected[0] else "yes"
    with (folder / "MANIFEST.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    arguments = ("judge", str(folder), "--set", "dissolves=false", "--json")
    answers = json.loads(medgen_here(*arguments, home=tmp_path / "other").stdout)
    told = {(group["step"], group["verdict"]): group for group in answers["sampled"]}
    assert told["decide", "rejected"]["wrong"] == [rejected[0]["file"]]
    assert told["decide", "kept"]["right"] == told["decide", "kept"]["judged"] == len(rows) - len(rejected)
    assert medgen_here("sample", "decide", "--out", str(folder), home=home, check=False).returncode == 1
    assert summary["release"] in (folder / "sample.json").read_text()


def test_other_thresholds_decode_nothing(corpus: Path, reference: tuple[Path, dict[str, Any]]) -> None:
    home, summary = reference
    changed = refresh(corpus, home, "max_overlay_words=100000")
    steps = {entry["step"]: entry for entry in changed["funnel"]}
    assert changed["decodes"] == 0 and changed["digest"] != summary["digest"]
    before = {entry["step"]: entry for entry in summary["funnel"]}
    assert steps["decide"]["kept"] > before["decide"]["kept"]
    # The newly kept clips go on through steps that only look at records; which copy stays may change with them.
    later = sum(steps[step]["in"] for step in ("deduplicate", "privacy", "caption"))
    assert steps["decide"]["in"] < changed["executed"] <= steps["decide"]["in"] + later + 1


def test_another_frame_model_reruns_classify_and_what_depends_on_it(
    corpus: Path, reference: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from models.segmentation.frames import DEFAULT_HEAD

    home, _ = reference
    with safe_open(DEFAULT_HEAD, "numpy") as packaged:
        head = {name: packaged.get_tensor(name) for name in packaged.keys()}  # noqa: SIM118  (no mapping)
        head["bias"] = head["bias"] + np.float32(1e-3) * np.arange(len(head["bias"]), dtype=np.float32)
        save_file(head, tmp_path / "head.safetensors", packaged.metadata())
    shutil.copyfile(DEFAULT_HEAD.with_suffix(".json"), tmp_path / "head.json")
    changed = refresh(corpus, home, f"frame_head={tmp_path / 'head.safetensors'}")
    steps = {entry["step"]: entry for entry in changed["funnel"]}
    # The clips are the same, so that cut, quality and decide are reused; captions see new probabilities.
    assert changed["decodes"] == 0
    assert steps["classify"]["in"] + 1 <= changed["executed"] <= steps["classify"]["in"] + steps["caption"]["in"] + 1


def test_on_s3_and_a_given_postgres_with_an_outage_nothing_is_lost(
    corpus: Path, reference: tuple[Path, dict[str, Any]], tmp_path: Path, s3: S3Server
) -> None:
    url = embedded_url(tmp_path / "pg" / "data")
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE DATABASE given")
    given = url.replace("/postgres?", "/given?")
    environment = s3.environment | {"MEDGEN_DATABASE_URL": given, "MEDGEN_WORKERS": "1"}
    home = tmp_path / "home"
    command = ("refresh", "--source", str(corpus), "--json")
    with medgen_running(*command, home=home, **environment, **forked("apps.cli")) as process:
        wait_until(lambda: _step_runs(given) >= 8 or process.poll() is not None, "no steps are run", every_s=0.2)
        s3.kill()
        time.sleep(4)
        s3.start()
        output, _ = process.communicate()
    assert process.returncode == 0, output
    shutil.rmtree(home / "store")  # only a cache
    summary = refresh(corpus, home, **environment)
    assert summary["executed"] == 0 and summary["digest"] == reference[1]["digest"]
    assert not (home / "postgres").exists()
    assert json.loads(medgen("verify", "--json", home=home, **environment).stdout)["clean"]


def test_clips_never_cross_a_cut_and_start_and_end_with_the_promised_frames(corpus: Path, tmp_path: Path) -> None:
    """Everything passes for medical here: the numbered video has a cut at frame 30, so its clip starts there."""
    source = tmp_path / "numbered"
    source.mkdir()
    shutil.copyfile(corpus / "numbered.mp4", source / "numbered.mp4")
    loose = (
        "medical_threshold=0",
        "frame_similarity=-1",
        "still_below=0",
        "technical_threshold=100",
        "max_freeze_share=1",
        "min_short_side=0",
        "min_sharpness=0",
        "max_overlay_share=1",
    )
    # Its plain scene looks like a border, which is not what this is about.
    summary = refresh(source, tmp_path / "home", *loose, "crop_borders=false", "keep_uncropped_borders=true")
    folder = Path(summary["folder"])
    (row,) = pq.read_table(folder / "metadata.parquet").to_pylist()
    numbers = [frame_number(picture.rgb()) for picture in pictures(folder / row["file_name"], Limits())]
    assert (row["start_frame"], row["end_frame"]) == (30, 200)
    assert numbers == list(range(30, 200))


def _step_runs(url: str) -> int:
    """How many a database has, 0 while there is none."""
    with suppress(psycopg.Error), psycopg.connect(url.replace("+psycopg", "")) as connection:
        return connection.execute("SELECT count(*) FROM step_run").fetchone()[0]
    return 0
