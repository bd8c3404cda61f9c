"""The Python API, as a researcher uses it: a release, a clip's frames, the way to the models that learned from it."""

import itertools
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from sqlalchemy.orm import Session

import medgen
from medgen import LearnedModel, list_releases, open_release
from medgen.catalog import ModelVersion, Video
from medgen.errors import ItemFailed
from medgen.ledger import Outcome, open_ledger
from medgen.model_lineage import LATENTS, TRAIN
from tasks.curation.since_last import markdown, since_last
from tasks.operations.takedown import take_down
from tests.conftest import ROOT, numbered_video
from tests.recorded import Recorder


@pytest.fixture
def clips(home: Path, tmp_path: Path) -> list[str]:
    """Clips of two videos, one of them in two releases; a model was trained on the second release, on one clip."""
    ledger = open_ledger()
    recorder = Recorder(ledger)
    clip_file = ledger.store.put_file(numbered_video(tmp_path / "clip.mp4", 30), "video/mp4")
    videos = [{"url": f"https://example.org/{n}", "title": "A heart"} for n in range(2)]
    found = recorder.discover("list", videos)
    kept = {}
    for video in videos:
        _, [(clip, lineage)] = recorder.cut(video["url"], clip_file, found)
        _, lineage = recorder.judge(clip, lineage)
        kept[clip] = recorder.caption(clip, lineage, f"A caption of {clip}.")
    recorder.release("medgen-000000000001", dict(list(kept.items())[:1]), {})
    made = recorder.release("medgen-000000000002", kept, {"max_overlay_words": 20})
    weights = ledger.store.put_bytes(b"weights", "application/octet-stream")
    (first, *_) = sorted(kept)
    version = ModelVersion(
        digest=weights.sha256, name="nano-1", kind="text_to_video", checkpoint_sha256=weights.sha256,
        release_name="medgen-000000000002",
    )  # fmt: skip
    detail = {"held_out_videos": [], "quarantined": {}}
    outcome = Outcome("kept", detail=detail, outputs={"model": weights}, rows=[version])
    recorder.step(TRAIN, "nano-1", outcome, {"release": made}, {LATENTS + first: clip_file.sha256})
    return sorted(kept)


def test_the_lines_of_the_handbook_run(clips: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "researchers.md").read_text()
    (code,) = (block for block in text.split("```python\n")[1:] if block.startswith("from medgen import open_release"))
    lines = code.partition("```")[0]
    assert len(lines.strip().splitlines()) <= 10
    exec(compile(lines, "researchers.md", "exec"), {})
    told = capsys.readouterr().out
    assert all(clip in told for clip in clips) and "'quality', 'decide'" in told and "nano-1" not in told
    exec(compile(lines.replace("for clip in release:", "for clip in list(release)[:1]:"), "researchers.md", "exec"), {})
    assert "['nano-1']" in capsys.readouterr().out


def test_the_notebook_runs_as_it_stands(clips: list[str]) -> None:
    notebook = nbformat.read(ROOT / "docs" / "release.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells)  # none is kept: they are those of an installation
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT}})
    done = client.execute()
    shown = [output for cell in done.cells for output in cell.get("outputs", ())]
    told = "".join(output.get("text", "") for output in shown)
    assert clips[0] in told and "A clip, c" in told and "nano-1 trained_on medgen-000000000002" in told
    assert "caption      kept" in told and sum("image/png" in output.get("data", {}) for output in shown) == 2


def test_ten_lines_read_a_release_play_a_clip_and_walk_to_the_models(clips: list[str]) -> None:
    release = open_release("latest")
    table = release.table()
    assert table["clip_id"].to_pylist() == clips == [clip.id for clip in release] and len(release) == 2
    clip = release[clips[0]]
    frames = list(clip.frames(long_side=320))
    assert len(frames) == 30 and frames[0].shape == (240, 320, 3) and frames[0].dtype == np.uint8
    assert [step.name for step in clip.lineage()][-1] == "caption"
    (model,) = clip.models()
    assert (model.name, model.part, model.release) == ("nano-1", "trained_on", release.name)
    # What else it says.
    assert release[clips[1]].models() == []
    assert [found.name for found in release.models()] == ["nano-1"] and isinstance(model, LearnedModel)
    assert clip.licence == "CC0" and clip.path.read_bytes()[4:8] == b"ftyp"
    steps = {step.name: step for step in clip.lineage()}
    assert steps["quality"].scores["aesthetic"] == 4.2 and next(iter(steps)) == "discover"
    assert steps["decide"].detail["checks"] and all(step.status == "kept" for step in steps.values())
    assert len(next(itertools.islice(clip.frames(), 1)).shape) == 3


def test_releases_go_by_their_names_and_by_the_first_part_of_them(clips: list[str]) -> None:
    assert [release.name for release in list_releases()] == ["medgen-000000000002", "medgen-000000000001"]
    assert open_release("medgen").name == open_release("medgen-000000000002").name == open_release().name
    assert open_release("medgen-000000000001").policy == {}
    with pytest.raises(ItemFailed, match="did you mean medgen-000000000001"):
        open_release("medgen-00000000001")
    with pytest.raises(ItemFailed, match="unknown_release: no release goes by 'med'"):
        open_release("med")
    with pytest.raises(KeyError, match="holds no clip"):
        open_release()["c0"]
    assert {"open_release", "Clip"} <= {*dir(medgen)} and not hasattr(medgen, "no_such_name")


def test_what_was_taken_down_is_no_part_of_it(clips: list[str]) -> None:
    release = open_release("medgen-000000000002")
    row = release[clips[1]].row
    with Session(open_ledger().engine) as session:
        url = session.get_one(Video, row["video_id"]).url
    take_down(open_ledger(), {row["video_id"]: url}, "asked")
    left = open_release("medgen-000000000002")
    assert [clip.id for clip in left] == clips[:1] == left.table()["clip_id"].to_pylist() and clips[1] not in left


def test_a_release_is_told_against_the_one_before(clips: list[str]) -> None:
    funnel = [
        {"step": "decide", "unit": "clips", "in": 9, "kept": 5, "rejected": {"overlay_text": 3}, "failed": {"lost": 1}},
        {"step": "release", "unit": "clips", "in": 5, "kept": 5, "rejected": {}, "failed": {}},
    ]
    change = since_last(open_ledger(), "medgen-000000000002", funnel)
    assert change == {
        "before": "medgen-000000000001", "came": 1, "went": 0,
        "steps": [{"step": "decide", "before": 7, "now": 5, "reasons": {"lost": 1, "overlay_text": 1}}],
    }  # fmt: skip
    told = markdown(change)
    assert "1 clip came, 0 went" in told and "| decide | 7 | 5 | -2 | lost +1, overlay_text +1 |" in told
    assert since_last(open_ledger(), "medgen-000000000001", funnel) is None and markdown(None) == ""
