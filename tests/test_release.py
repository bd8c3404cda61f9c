"""Release: the same content gives the same digest, and the manifest lists every file."""

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from medgen.canonical import canonical_json
from medgen.ledger import Outcome, Work
from medgen.settings import Settings
from medgen.store import Store, open_store
from tasks.curation.release import ReleaseParams, release
from tasks.curation.release_content import CLIPS, REJECTED, table
from tasks.curation.release_files import materialize


@pytest.fixture
def store(tmp_path):
    return Store(Settings(home=tmp_path))


def clip(name: str, **facts: Any) -> dict[str, Any]:
    return {
        "name": name, "clip_id": name, "file_name": f"clips/{name}.mp4", "clip_sha256": name[-1] * 64, "bytes": 1000,
        "duration": 7.2, "licence": "CC0", "category": "medical_imaging", "captioner": "evidence_template",
        "captioner_kind": "template", "technical_model": "piqe", "aesthetic_model": "entropy_stand_in",
        "video_id": "v1", "step_run_id": 1,
    } | facts  # fmt: skip


def released(store: Store, clips: list[dict[str, Any]], **params: Any) -> Outcome:
    facts = {
        "funnel": [
            {"step": "release", "unit": "clips", "in": len(clips), "kept": len(clips), "rejected": {}, "failed": {}}
        ],
        "policy": {"max_overlay_words": 20},
        "record_root": "a" * 64,
        "videos": 1,
    }  # fmt: skip
    dropped = [{"step": "decide", "subject": "c9", "verdict": "rejected", "reason": "overlay_text", "key": "k"}]
    content = {
        "content": table(store, CLIPS, clips),
        "rejected": table(store, REJECTED, dropped),
        "facts": store.put_bytes(canonical_json(facts), "application/json"),
    }
    work = Work(
        "release",
        inputs={role: artifact.sha256 for role, artifact in content.items()},
        context={"bytes": {role: artifact.bytes for role, artifact in content.items()}},
    )
    return release(work, store, ReleaseParams(**params))


SEEN = clip("cb", captioner="openai:model", captioner_kind="vision_language_model")


def test_the_manifest_lists_every_file_and_is_the_digest(store):
    outcome = released(store, [clip("ca"), SEEN], release_prefix="trial")
    manifest = json.loads(store.read(outcome.outputs["manifest"].sha256))
    assert outcome.detail == {
        "name": f"trial-{outcome.outputs['manifest'].sha256[:12]}",
        "digest": outcome.outputs["manifest"].sha256,
        "clips": 2,
        "captioner_kinds": {"template": 1, "vision_language_model": 1},
    }
    files = {file["path"]: file["sha256"] for file in manifest["files"]}
    assert list(files) == sorted(files)
    assert "**1 of 2 clips have captions whose" in store.read(outcome.outputs["card"].sha256).decode()
    assert files["clips/ca.mp4"] == "a" * 64 and files["README.md"] == outcome.outputs["card"].sha256
    assert {"metadata.parquet", "rejected.parquet", "funnel.json", "funnel.png"} < files.keys()
    assert manifest["policy"] == {"max_overlay_words": 20}


def test_the_same_content_gives_the_same_digest_and_another_clip_another(store):
    first = released(store, [clip("ca")]).detail["digest"]
    assert released(store, [clip("ca")]).detail["digest"] == first
    assert released(store, [clip("ca", licence="CC-BY")]).detail["digest"] != first


def test_tables_hold_what_was_released_and_what_was_not(store):
    outcome = released(store, [clip("ca"), clip("cb")])
    kept = pq.read_table(store.path(outcome.outputs["metadata"].sha256))
    rejected = pq.read_table(store.path(outcome.outputs["rejected"].sha256)).to_pylist()
    assert kept["clip_id"].to_pylist() == ["ca", "cb"] and "bytes" not in kept.column_names
    assert [(row["subject"], row["reason"]) for row in rejected] == [("c9", "overlay_text")]
    card = store.read(outcome.outputs["card"].sha256).decode()
    assert "2 clips" in card and "| CC0 | 2 |" in card


@pytest.mark.parametrize("links", [True, False])
def test_its_files_are_read_only(home: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """A clip is the store's own object: who appends to it must be refused. Removing the folder must be easy."""

    def elsewhere(*paths: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    if not links:
        monkeypatch.setattr("tasks.curation.release_files.os.link", elsewhere)
    store = open_store()
    film = store.put_bytes(b"film", "video/mp4").sha256
    manifest = released(store, [clip("ca", clip_sha256=film)]).outputs["manifest"].sha256
    folder = materialize(store, "trial", manifest)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} > {"ca.mp4", "manifest.json", "README.md"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o444}
    assert (folder / "clips" / "ca.mp4").samefile(store.path(film)) == links
    shutil.rmtree(folder)
    assert materialize(store, "trial", manifest) == folder


def test_an_empty_release_is_a_release(store):
    assert released(store, []).detail["clips"] == 0
