"""The augmentation experiment: fair splits, honest figures, videos that are bad, and a run that is done only once."""

import csv
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score
from sqlalchemy.orm import Session

from medgen.canonical import digest_of
from medgen.catalog import Artifact, Clip, ModelVersion, Release, ReleaseClip, Source, StepInput, StepRun, Video, now
from medgen.errors import ItemFailed, SourceUnreadable
from medgen.ledger import open_ledger
from models import ModelUnavailable
from models.classifiers.augmentation import Arm, CannotCompare, Sample, figures, headline, quotas, split, training_set
from models.classifiers.clip_sample import sample_clip
from models.classifiers.frozen_classifier import fit_frozen
from models.classifiers.whole_classifier import FullTraining, find_network, fit_whole
from models.encoders import load_encoder
from tasks.augmentation import embed_video, fit_classifier
from tasks.augmentation import read_labelled as reading
from tasks.augmentation.generator_lineage import embedded_model, training_sources, with_lineage
from tasks.augmentation.labelled_videos import CannotAugment, fit_for_experiment
from tasks.augmentation.read_labelled import LabelParams, read_labelled
from tasks.training.released import ReleasedClip
from tests.conftest import medgen

CORNERS = {"triangle": 3, "square": 4, "hexagon": 6}


def moving_shape(path: Path, label: str, seed: int, *, frames: int = 8) -> Path:
    """A coloured polygon that moves and turns over a cluttered ground, 96 × 72 pixels: the class is the number of its
    corners, all else is chance."""
    chance = np.random.default_rng(seed)
    clutter = chance.integers(0, 256, (9, 12, 3)).astype(np.float32)
    ground = cv2.resize(clutter, (96, 72), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    ink, size = chance.integers(0, 256, 3).tolist(), chance.uniform(16, 26)
    start, speed, turn = chance.uniform((30, 26), (66, 46)), chance.uniform(-2, 2, 2), chance.uniform(-0.1, 0.1)
    angles = 2 * np.pi * np.arange(CORNERS[label]) / CORNERS[label] + chance.uniform(0, 2 * np.pi)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=8, options={"crf": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        for index in range(frames):
            turned = angles + index * turn
            corners = start + index * speed + size * np.stack([np.cos(turned), np.sin(turned)], axis=1)
            picture = cv2.fillPoly(ground.copy(), [corners.round().astype(np.int32)], ink)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path


QUICK = {
    "clip_frames": 4, "clip_variants": 1, "ratios": [4.0], "seeds": 2, "folds": 2, "temporal_head": "statistics",
    "head_steps": 60, "bootstrap_draws": 300,
}  # fmt: skip


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with real.csv (scarce: 6 sources a class) and synthetic.csv (of the same distribution)."""
    folder = tmp_path_factory.mktemp("videos")
    for name, first, count in (("real", 0, 6), ("synthetic", 300, 12)):
        rows = []
        for c, label in enumerate(CORNERS):
            for number in range(first, first + count):
                path = moving_shape(folder / name / f"{label}-{number}.mp4", label, 1000 * c + number)
                rows.append({"path": f"{name}/{path.name}", "label": label, "source": f"source {label} {number}"})
        write_csv(folder / f"{name}.csv", rows)
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The flow in this process, with Prefect left out: its tasks are called straight."""
    from flows import augment as module

    def direct(task: Any) -> SimpleNamespace:
        return SimpleNamespace(submit=lambda *arguments: SimpleNamespace(result=lambda: task.fn(*arguments)))

    for name, step in (("embed_shard", embed_video), ("fit_shard", fit_classifier)):
        monkeypatch.setattr(module, name, direct(getattr(module, name)))
        # Worker processes would import torch for each test; the command's test has them.
        monkeypatch.setattr(step, "step", lambda *a, made=step.step: replace(made(*a), runs_in="inline"))
    monkeypatch.setattr(module.generate, "generate_shard", direct(module.generate.generate_shard))
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(module, "show_experiment", lambda result, plot: None)
    return lambda **arguments: module._augment(module.AugmentParameters(**(QUICK | arguments)))


samples_of = st.lists(
    st.builds(
        Sample,
        label=st.sampled_from("abc"),
        source=st.integers(0, 7).map(lambda n: f"s{n}"),
        synthetic=st.booleans(),
    ),
    min_size=4,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(samples_of, st.integers(2, 5), st.integers(0, 99), st.sets(st.integers(0, 7).map(lambda n: f"s{n}"), max_size=3))
def test_no_source_is_both_trained_on_and_tested_and_nothing_synthetic_is_tested(samples, folds, seed, kept_out):
    try:
        made = split(samples, folds, seed, frozenset(kept_out))
    except CannotCompare:
        assume(False)
    real = [n for n, sample in enumerate(samples) if not sample.synthetic]
    tested = [n for fold in made for n in fold.test]
    assert sorted(tested) == [n for n in real if samples[n].source not in kept_out]
    assert made == split(samples, folds, seed, frozenset(kept_out))
    for fold in made:
        held_out = {samples[n].source for n in fold.test}
        assert sorted([*fold.train, *fold.test]) == real
        assert not any(samples[n].synthetic for n in fold.test)
        for ratio in (0.5, 2.0):
            added = sum(quotas(samples, fold, ratio).values())
            for kind in ("synthetic", "oversampled", "standard"):
                chosen = training_set(samples, fold, Arm(kind, ratio), seed, variants=3)
                assert not any(samples[n].source in held_out and not samples[n].synthetic for n, _ in chosen)
                assert len(chosen) == len(fold.train) + added  # arms of one ratio are of one size
                assert all(samples[n].synthetic == (kind == "synthetic") for n, _ in chosen[len(fold.train) :])
                assert all((variant > 0) == (kind == "standard") for _, variant in chosen[len(fold.train) :])
                if kind == "synthetic":
                    assert len(set(chosen)) == len(chosen)  # no synthetic video twice
                    smaller = training_set(samples, fold, Arm(kind, ratio / 2), seed, variants=3)
                    assert set(smaller) <= set(chosen)


def test_figures_are_those_of_scikit_learn_and_intervals_tell_gain_from_noise():
    chance = np.random.default_rng(5)
    truth = chance.integers(0, 3, 120)
    sources = [f"s{n // 2}" for n in range(120)]

    def right(share: float) -> np.ndarray:
        wrong = (truth + chance.integers(1, 3, (5, 120))) % 3
        return np.where(chance.random((5, 120)) < share, truth, wrong)

    arms = [Arm("real"), *(Arm(kind, 1.0) for kind in ("synthetic", "oversampled", "standard"))]
    base = right(0.6)
    predicted = np.stack([base, right(0.85), base, right(0.4)])
    found = figures(predicted, truth.tolist(), sources, arms, ("a", "b", "c"), draws=500)
    for row, own in zip(found["arms"], predicted, strict=True):
        assert row["accuracy"]["value"] == pytest.approx(np.mean([accuracy_score(truth, p) for p in own]), abs=1e-4)
        macro = np.mean([f1_score(truth, p, average="macro") for p in own])
        assert row["macro_f1"]["value"] == pytest.approx(macro, abs=1e-4)
        for c, name in enumerate("abc"):
            recall = np.mean([recall_score(truth, p, labels=[c], average="macro") for p in own])
            assert row["recall"][name]["value"] == pytest.approx(recall, abs=1e-4)
        assert row["accuracy"]["low"] < row["accuracy"]["value"] < row["accuracy"]["high"]
    better, same, worse = found["arms"][1:]
    assert better["verdict"].startswith("measurable gain: difference +0.2")
    assert same["verdict"] == "no measurable gain: difference +0.00 [+0.00, +0.00]"
    assert worse["verdict"].startswith("measurable loss: difference -0.")
    assert "also beats oversampling" in headline(found, 0, 60) and "Mind the leak" not in headline(found, 0, 60)
    assert "trained on 4 of the 60 tested sources" in headline(found, 4, 60)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Two arms that are equally good: the interval of their difference leaves out 0 in few of 120 experiments."""
    chance = np.random.default_rng(1)
    missed = 0
    for _ in range(120):
        hard = np.clip(chance.normal(0.6, 0.25, 30), 0.05, 0.95).repeat(2)  # a source's two videos are equally hard
        predicted = (chance.random((2, 5, 60)) < hard).astype(int)
        arms = [Arm("real"), Arm("synthetic", 1.0)]
        found = figures(predicted, [1] * 60, [f"s{n // 2}" for n in range(60)], arms, ("x", "y"), draws=200)
        difference = found["arms"][1]["difference"]["accuracy"]
        missed += not difference["low"] <= 0 <= difference["high"]
    assert missed <= 0.1 * 120


def test_heads_learn_and_the_same_seed_gives_the_same_head(videos):
    encoder = load_encoder("mobilenet_v2")

    def embedded(name: str) -> tuple[np.ndarray, list[int]]:
        rows = list(csv.DictReader((videos / f"{name}.csv").open()))
        clips = [sample_clip(videos / row["path"], 4, 0, "")[0] for row in rows]
        return np.stack([encoder.embed(list(c)) for c in clips]), [[*CORNERS].index(row["label"]) for row in rows]

    (train, labels), (test, truth) = embedded("synthetic"), embedded("real")
    for head in ("statistics", "attention", "gru"):
        chances = fit_frozen(train, labels, test, 3, head=head, steps=150, seed=0)
        again = fit_frozen(train, labels, test, 3, head=head, steps=150, seed=0)
        assert np.array_equal(chances, again) and chances.sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert (chances.argmax(axis=1) == truth).mean() >= 0.75, head


def test_variants_are_other_pictures_of_one_size_and_repeatable(tmp_path):
    path = moving_shape(tmp_path / "a.mp4", "square", 1, frames=300)
    plain, *variants = sample_clip(path, 5, 3, "name")
    assert plain.shape == (5, 72, 96, 3) and all(v.shape == plain.shape and v.dtype == np.uint8 for v in variants)
    assert len({v.tobytes() for v in [plain, *variants]}) == 4
    again = sample_clip(path, 5, 3, "name")
    assert all(np.array_equal(a, b) for a, b in zip(again, [plain, *variants], strict=True))
    with pytest.raises(ItemFailed, match="too_short"):
        sample_clip(moving_shape(tmp_path / "b.mp4", "square", 1, frames=1), 5, 0, "name")


def test_help_is_seen_harm_is_not_sold_as_help_and_nothing_is_done_twice(videos, run, home, tmp_path):
    rows = list(csv.DictReader((videos / "real.csv").open()))
    (videos / "broken.mp4").write_bytes(b"no video at all")
    bad = [
        {"path": "broken.mp4", "label": "square", "source": "x"},
        {"path": "gone.mp4", "label": "square", "source": "x"},
    ]
    real = str(write_csv(videos / "with_bad.csv", [*rows, *bad]))
    helped = run(labelled=real, synthetic=str(videos / "synthetic.csv"))
    result = helped["result"]
    alone, synthetic = result["arms"][0], result["arms"][1]
    assert (alone["kind"], synthetic["kind"], synthetic["ratio"]) == ("real", "synthetic", 4.0)
    assert synthetic["accuracy"]["value"] > 0.8  # chance is 1/3
    assert synthetic["verdict"].startswith("measurable gain: difference +")
    assert {one["reason"] for one in result["left_out"]} == {"not_a_video", "missing_file"}
    assert all("with_bad.csv row" in one["name"] for one in result["left_out"])
    assert result["videos"]["square"] == {"real": 6, "sources": 6, "synthetic": 12}
    assert any("lineage unknown" in note for note in result["notes"])
    record = open_ledger().store.read(helped["artifacts"]["report"]).decode()
    assert result["headline"].split(":")[0] in record and "broken.mp4" in record and str(videos) not in record

    again = run(labelled=real, synthetic=str(videos / "synthetic.csv"))
    assert (again["executed"], again["decodes"], again["result"]) == (0, 0, result)

    # The same videos under wrong labels: no gain is found, and no video is embedded again.
    order = [*CORNERS]
    wrong = [
        {**row, "path": row["path"], "label": order[(order.index(row["label"]) + 1) % 3]}
        for row in csv.DictReader((videos / "synthetic.csv").open())
    ]
    harmed = run(labelled=real, synthetic=str(write_csv(videos / "wrong.csv", wrong)))
    assert harmed["decodes"] == 0
    spoilt = harmed["result"]["arms"][1]
    assert spoilt["difference"]["accuracy"]["value"] < 0 and not spoilt["verdict"].startswith("measurable gain")
    assert spoilt["verdict"].split(":")[0] in harmed["result"]["headline"]
    assert harmed["result"]["arms"][0] == alone

    # The command, with a real Prefect and worker processes, adds a seed: nothing but that seed is worked on.
    pairs = [f"--set={name}={value}" for name, value in QUICK.items() if name not in ("ratios", "seeds", "folds")]
    done = medgen(
        "augment", real, "--synthetic", str(videos / "synthetic.csv"), "--ratio", "4", "--seeds", "3", "--folds", "2",
        *pairs, "--out", str(tmp_path / "out"), "--json", home=home, MEDGEN_WORKERS="1",
        MEDGEN_DATABASE_URL=os.environ["MEDGEN_DATABASE_URL"],
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert (told["executed"], told["decodes"]) == (4 * 2 + 1, 0) and told["result"]["seeds"] == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "data_list.json", "plot.png", "report.md", "result.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == told["result"]


def tiny_videomae(folder: Path) -> Path:
    """A random VideoMAE of one layer, saved as its real siblings are."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    config = VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, tubelet_size=2, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32, num_labels=7,
    )  # fmt: skip
    VideoMAEForVideoClassification(config).save_pretrained(folder, safe_serialization=True)
    return folder


def test_a_video_classifier_of_transformers_is_trained_whole(videos, run, tmp_path):
    name = str(tiny_videomae(tmp_path / "tiny-videomae"))
    found = run(
        labelled=str(videos / "real.csv"), synthetic=str(videos / "synthetic.csv"), classifier=name,
        classifier_training="whole", ratios=[1.0], seeds=1, folds=2, tune_steps=2, tune_batch=2,
    )  # fmt: skip
    settings_ = found["result"]["settings"]
    assert (settings_["classifier"], settings_["clip_frames"]) == ("tiny-videomae", 4)
    assert len(found["result"]["arms"]) == 4 and found["executed"] == 54 + 8 + 1

    chance = np.random.default_rng(0)
    dark, bright = (chance.integers(low, low + 60, (4, 4, 32, 32, 3), dtype=np.uint8) for low in (0, 180))
    clips, truth = np.concatenate([dark, bright]), [0] * 4 + [1] * 4
    for whole, frames, steps, rate in ((name, 4, 40, 3e-3), ("mobilenet_v2", 1, 12, 1e-3)):
        network = find_network(whole)
        training = FullTraining(steps, 4, rate)
        steps_done: list[int] = []
        arguments = (network, lambda n, f=frames: clips[n, :f], truth, lambda n, f=frames: clips[n, :f], 8, 2)
        chances = fit_whole(
            *arguments, training=training, seed=3, progress=lambda done, _, s=steps_done: s.append(done)
        )
        assert np.array_equal(chances, fit_whole(*arguments, training=training, seed=3)) and steps_done[-1] == steps
        assert (chances.argmax(axis=1) == truth).all(), whole


def test_what_cannot_be_a_classifier_is_refused_by_name(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPModel(CLIPConfig(text_config={**small, "vocab_size": 9}, vision_config=small)).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match="is no video classifier of transformers"):
        find_network(str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    find_network.cache_clear()
    with pytest.raises(ModelUnavailable, match="or safetensors weights"):
        find_network(str(tmp_path) + "/.")


@pytest.mark.parametrize(
    ("rows", "synthetic", "said"),
    [
        ([{"path": "real/square-0.mp4", "label": "square"}], True, "has no column source"),
        (
            [{"path": "real/square-0.mp4", "label": "square", "source": "a"}],
            True,
            r"0 class\(es\).*square \(1 sources\)",
        ),
        ("one class", True, "1 class"),
        ("real", False, "no synthetic video of any class"),
        ("other classes", True, r"no synthetic video of any class.*36 unknown_class"),
    ],
)
def test_bad_data_are_refused_with_what_to_do(videos, rows, synthetic, said, tmp_path):
    every = list(csv.DictReader((videos / "real.csv").open()))
    made = list(csv.DictReader((videos / "synthetic.csv").open()))
    if rows == "one class":
        rows = [row for row in every if row["label"] == "square"]
    elif rows == "other classes":
        rows, made = every, [{**row, "label": "circle"} for row in made]
    elif rows == "real":
        rows = every
    real = write_csv(videos / "data.csv", rows)
    with pytest.raises(SourceUnreadable, match=said):
        read = read_labelled(None, str(real))
        if synthetic:
            read += read_labelled(None, str(write_csv(videos / "made.csv", made)), synthetic=True)
        fit_for_experiment(read, 2)


def test_single_bad_videos_are_named_and_left_out(videos, tmp_path):
    every = list(csv.DictReader((videos / "real.csv").open()))
    made = list(csv.DictReader((videos / "synthetic.csv").open()))
    odd = [
        {"path": "real/square-0.mp4", "label": "", "source": "a"},
        {"path": "real/square-1.mp4", "label": "square", "source": ""},
        {"path": "", "label": "square", "source": "a"},
        {"path": "real/square-0.mp4", "label": "square", "source": "another"},
        {"path": "real/hexagon-0.mp4", "label": "square", "source": "another"},
        {"path": "real/square-2.mp4", "label": "square", "source": "a", "synthetic": "perhaps"},
        {"path": "real/square-3.mp4", "label": "square", "source": "", "synthetic": "1"},
    ]
    read = read_labelled(None, str(write_csv(videos / "odd.csv", [*every, *odd])))
    found = fit_for_experiment(
        read + read_labelled(None, str(write_csv(videos / "made.csv", made[:24])), synthetic=True), 2
    )
    assert sorted(one.reason for one in found.left_out) == sorted(
        ["no_label", "no_source", "no_path", "bad_synthetic_mark", "copy", "copy", "two_labels", "two_labels"]
    )
    assert any("real one's copy" in one.message for one in found.left_out)
    assert any("class 'hexagon' has no synthetic video" in note for note in found.notes)
    folder = tmp_path / "folder"
    for place in ("square/a.mp4", "square/b.mp4", "disc/patient/a.mp4", "disc/patient/b.mp4", "loose.mp4"):
        moving_shape(folder / place, "square", len(place) + ord(place[-5]), frames=2)
    (folder / "disc" / "link.mp4").symlink_to(folder / "square" / "a.mp4")
    read = read_labelled(None, str(folder))
    assert {(v.label, v.source) for v in read.videos} == {
        ("square", "square/a.mp4"), ("square", "square/b.mp4"), ("disc", "disc/patient"),
    }  # fmt: skip
    assert {one.reason for one in read.left_out} == {"no_label", "no_ordinary_file"}
    assert "sources of their own" in read.notes[0] and "disc/patient: 2 video(s)" in read.notes[1]

    moving_shape(folder / "disc" / "clinic" / "patient" / "a.mp4", "square", 9, frames=2)
    with pytest.raises(SourceUnreadable, match=r"nested_folders: disc/clinic/patient/a.mp4 lies in 3 levels"):
        read_labelled(None, str(folder))
    nested = read_labelled(None, str(folder), LabelParams(label_depth=2))
    assert {(v.label, v.source) for v in nested.videos} == {
        ("disc/patient", "disc/patient/a.mp4"), ("disc/patient", "disc/patient/b.mp4"),
        ("disc/clinic", "disc/clinic/patient"),
    }  # fmt: skip
    assert {one.reason for one in nested.left_out} == {"no_label", "no_ordinary_file"}


def test_labels_of_a_release(monkeypatch):
    def clip(number: int, category: str, title: str) -> ReleasedClip:
        return ReleasedClip(
            f"c{number}", f"{number:064}", f"v{number // 2}", category, "", "", title, 4, 4, 25, 4, number
        )

    clips = [clip(0, "imaging", "A Cardiac echo"), clip(1, "", "liver echo"), clip(2, "imaging", "Liver, cardiac")]
    monkeypatch.setattr(reading, "released_clips", lambda ledger, name: (clips, None))
    by_category = read_labelled(None, "demo-1")
    assert [(v.subject, v.label, v.source) for v in by_category.videos] == [
        ("c0", "imaging", "v0"), ("c2", "imaging", "v1"),
    ]  # fmt: skip
    by_title = read_labelled(None, "release:demo-1", LabelParams(label_from="title", title_words=("cardiac", "liver")))
    assert [(v.subject, v.label) for v in by_title.videos] == [("c0", "cardiac"), ("c1", "liver")]
    assert "names 2 of the words" in by_title.left_out[0].message
    with pytest.raises(SourceUnreadable, match="at least two title words"):
        read_labelled(None, "demo-1", LabelParams(label_from="title", title_words=("cardiac",)))

    def unknown(ledger: Any, name: str) -> Any:
        raise ItemFailed("unknown_release", "no")

    monkeypatch.setattr(reading, "released_clips", unknown)
    with pytest.raises(SourceUnreadable, match="no folder, no CSV file and no release"):
        read_labelled(None, "nothing-like-that")


def test_a_generator_that_saw_tested_sources_is_found_out(home, videos, run, tmp_path):
    """By the record in the file, through the catalog, from a fine-tune to its base, to the very bytes tested."""
    base, tuned = "b" * 64, "c" * 64
    every = list(csv.DictReader((videos / "real.csv").open()))
    squares = [row for row in every if row["label"] == "square"]
    trained = [video for video in read_labelled(None, str(videos / "real.csv")).videos if video.label == "square"]
    ledger = open_ledger()
    with Session(ledger.engine) as session, session.begin():
        session.add(Source(name="s", kind="folder", uri="x"))
        for sha in {base, tuned, *(v.sha256 for v in trained)}:
            session.add(Artifact(sha256=sha, media_type="video/mp4", bytes=1))
        session.flush()
        run_ = StepRun(
            key=digest_of("k"), step="train", version=1, subject="t", status="kept", detail={}, params={}, context={},
            models={}, code_version="0", started_at=now(), finished_at=now(), record_hash="0" * 64,
        )  # fmt: skip
        session.add(run_)
        session.flush()
        session.add(Release(name="r", digest="0" * 64, policy={}, clips=1, record_root="0" * 64, step_run_id=run_.id))
        for number, video in enumerate(trained):
            session.add(Video(id=f"v{number}", source_name="s", url="u", title="", description="", tags=[]))
            session.flush()
            session.add(
                Clip(id=f"clip{number}", video_id=f"v{number}", step_run_id=run_.id, start_frame=0, end_frame=1,
                     start_s=0, end_s=1, width=1, height=1, fps=1, digest=video.sha256)
            )  # fmt: skip
            session.flush()
            session.add(ReleaseClip(release_name="r", clip_id=f"clip{number}", step_run_id=run_.id))
        session.add(ModelVersion(digest=base, name="base", kind="text_to_video", release_name="r", step_run_id=run_.id))
        session.add(ModelVersion(digest=tuned, name="tuned", kind="text_to_video", step_run_id=run_.id))
        session.add(StepInput(step_run_id=run_.id, role="base", artifact_sha256=base))
    assert training_sources(ledger, tuned) == {f"v{n}" for n in range(6)} and training_sources(ledger, "d" * 64) is None

    made = []
    for row in csv.DictReader((videos / "synthetic.csv").open()):
        path = tmp_path / Path(row["path"]).name
        with av.open(str(videos / row["path"])) as source, av.open(str(path), "w") as out:
            out.metadata["comment"] = json.dumps({"model": tuned, "synthetic": True})
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
        made.append({"path": path.name, "label": row["label"]})
    assert embedded_model(path) == tuned
    real, synthetic = str(videos / "real.csv"), str(write_csv(tmp_path / "made.csv", made))
    read = fit_for_experiment(read_labelled(ledger, real) + read_labelled(ledger, synthetic, synthetic=True), 2)
    marked, leaks = with_lineage(ledger, read.videos)
    assert leaks.leaked == {row["source"] for row in squares} and (leaks.checked, leaks.unknown) == (36, 0)
    assert all(video.trained_on == leaks.leaked for video in marked if video.synthetic)
    with pytest.raises(CannotAugment, match="trained on 6 of the real sources"):
        run(labelled=real, synthetic=synthetic, leakage="refuse")
    quick = {"labelled": real, "synthetic": synthetic, "seeds": 1, "folds": 2, "head_steps": 2}
    assert "Mind the leak" in run(**quick)["result"]["headline"]
    dropped = run(**quick, leakage="drop")["result"]
    assert "Mind the leak" not in dropped["headline"] and dropped["sources"] == 12
    assert dropped["arms"][0]["recall"]["square"] is None and any("not tested" in note for note in dropped["notes"])


def test_a_model_makes_the_synthetic_videos_of_labelled_prompts(videos, run, tmp_path):
    from models.training.nano import save_untrained

    name = str(save_untrained(tmp_path / "nano", seed=1))
    prompts = [{"text": f"a {label}, number {n}", "category": label} for n, label in enumerate([*CORNERS, "circle"])]
    arguments = {
        "labelled": str(videos / "real.csv"), "model": name,
        "prompts": str(write_csv(tmp_path / "prompts.csv", prompts)), "num_inference_steps": 1, "num_frames": 5,
        "guidance_scale": 1.0, "ratios": [0.25], "seeds": 1, "folds": 2, "head_steps": 2,
    }  # fmt: skip
    found = run(**arguments)["result"]
    assert {label: row["synthetic"] for label, row in found["videos"].items()} == dict.fromkeys(CORNERS, 1)
    assert any("lineage unknown" in note for note in found["notes"])
    assert run(**arguments)["executed"] == 0
    with pytest.raises(CannotAugment, match="both a model and a file of prompts"):
        run(**{**arguments, "prompts": ""})
    other = write_csv(tmp_path / "other.csv", [{"text": "a heart", "category": "imaging"}])
    with pytest.raises(CannotAugment, match="labels are hexagon, square, triangle; categories imaging"):
        run(**{**arguments, "prompts": str(other)})


def lay_out_medvidcl(folder: Path, shapes: Path) -> None:
    """The lists as the authors' scripts write them; the videos where they download to; a part without a file, one that
    two lists call differently, one label that the set has not."""
    labels = ("Medical Instructional", "Medical Non-instructional", "Non-medical")
    records: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for c, shape in enumerate(CORNERS):
        for number in range(6):
            video_id = f"-{shape[:3]}_{number:06d}"
            copy(shapes / "real" / f"{shape}-{number}.mp4", folder / "data" / "videos" / "medvidcl" / f"{video_id}.avi")
            row = {"video_id": video_id, "video_title": "How to", "video_sub_title": "so", "label": labels[c]}
            records[("train", "val", "test")[number % 3]].append(row)
    records["train"] += [
        {"video_id": "vanished_01", "label": labels[0]},
        {"video_id": "../etc/pass", "label": labels[0]},
    ]
    records["test"] += [{"video_id": records["train"][0]["video_id"], "label": "Non-medical"}]
    records["val"] += [{"video_id": "-squ_000001", "label": "Dentistry"}]
    for part, rows in records.items():
        (folder / f"{part}.json").write_text(json.dumps(rows))


def lay_out_hyperkvasir(folder: Path, shapes: Path) -> None:
    """The whole set's folder: images beside the videos, the tree of three levels, the CSV by semicolons with a second
    finding, a row without a video, and one that contradicts the tree."""
    places = {
        "triangle": "lower-gi-tract/pathological-findings/polyps",
        "square": "lower-gi-tract/quality-of-mucosal-view/BBPS-2-3",
        "hexagon": "upper-gi-tract/pathological-findings/cancer",
    }
    rows = []
    for shape, place in places.items():
        for number in range(6):
            name = f"{shape}-4f1e-{number:04d}"
            copy(shapes / "real" / f"{shape}-{number}.mp4", folder / "labeled-videos" / place / f"{name}.avi")
            organ, classification, finding = place.split("/")
            second = ("polyp", "Pathological findings") if number == 1 else ("", "")
            words = classification.replace("-", " ").capitalize() + "s" * (classification[-1] != "s")
            rows.append((name, f"{organ[:5].capitalize()} GI", f"{finding} ", words, "", *second))
    rows[-1] = (rows[-1][0], "Lower GI", *rows[-1][2:])
    rows.append(("0729435b-e613", "Lower GI", "cecum", "Anatomical landmarks", "", "", ""))
    head = "Video file;Organ;Finding 1;Classification 1;Detailed description of finding;Finding 2;Classification 2"
    lines = [head, *(";".join(row) for row in rows)]
    (folder / "labeled-videos" / "video-labels.csv").write_text("\n".join(lines))
    (folder / "labeled-images" / "lower-gi-tract" / "polyps").mkdir(parents=True)


def lay_out_surgvisdom(folder: Path, shapes: Path) -> None:
    """Both domains, whose videos have the same names; frames that somebody extracted; the test set."""
    tasks = {"triangle": ("Dissection", "DS"), "square": ("Knot_Tying", "KT"), "hexagon": ("Needle_Driving", "ND")}
    for shape, (task, short) in tasks.items():
        for number in range(6):
            domain = folder / "train_1" / ("Porcine", "VR")[number % 2] / task
            copy(shapes / "real" / f"{shape}-{number}.mp4", domain / f"{short}_{1 + number // 2:04d}.mp4")
    (domain / "ND_0001").mkdir()
    (domain / "ND_0001" / "frame_0.png").write_bytes(b"")
    (folder / "test").mkdir()
    (folder / "test" / "testing_set_video_metadata.csv").write_text("vid_name,total_num_frames\nvideo_1,9\n")


def copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())


SETS = {
    "medvidcl": (
        lay_out_medvidcl,
        ["Medical Instructional", "Medical Non-instructional", "Non-medical"],
        {"missing_file", "no_video_id", "two_labels", "unknown_label"},
        "read as MedVidCL: 17 of the 18 videos of train, val, test",
    ),
    "hyperkvasir": (
        lay_out_hyperkvasir,
        ["BBPS-2-3", "cancer", "polyps"],
        {"missing_file", "two_labels"},
        "3 videos show a second finding",
    ),
    "surgvisdom": (
        lay_out_surgvisdom,
        ["Dissection", "Knot_Tying", "Needle_Driving"],
        set(),
        "label for each frame and none for a video",
    ),
}


def test_the_published_sets_are_run_as_they_come(videos, run, tmp_path):
    for name, (lay_out, classes, left_out, note) in SETS.items():
        lay_out(tmp_path / name, videos)
        made = [
            {"path": str(videos / "synthetic" / f"{shape}-{300 + n}.mp4"), "label": label}
            for shape, label in zip(CORNERS, classes, strict=True)
            for n in range(2)
        ]
        synthetic = str(write_csv(tmp_path / f"{name}.csv", made))
        found = run(labelled=str(tmp_path / name), synthetic=synthetic, seeds=1, ratios=[0.5], head_steps=2)
        result = found["result"]
        assert result["classes"] == sorted(classes) and len(result["arms"]) == 4, name
        assert sum(row["real"] for row in result["videos"].values()) == 18 - (name != "surgvisdom")
        assert all(row["real"] == row["sources"] for row in result["videos"].values())
        assert {video["reason"] for video in result["left_out"]} == left_out
        assert any(note in told for told in result["notes"]), name


def test_a_set_that_is_laid_out_otherwise_is_refused_and_parts_and_levels_are_chosen(videos, tmp_path):
    for name, (lay_out, *_) in SETS.items():
        lay_out(tmp_path / name, videos)

    def labels(name: str, **chosen: Any) -> list[str]:
        return sorted(
            {video.label for video in read_labelled(None, str(tmp_path / name), LabelParams(**chosen)).videos}
        )

    assert labels("hyperkvasir", label_level="organ") == ["lower-gi-tract", "upper-gi-tract"]
    # A name that stands in two places of the tree goes by its path.
    assert labels("hyperkvasir", label_level="classification") == [
        "lower-gi-tract/pathological-findings", "quality-of-mucosal-view", "upper-gi-tract/pathological-findings",
    ]  # fmt: skip
    assert labels("hyperkvasir", parts=["upper-gi-tract"]) == ["cancer"]
    vr = read_labelled(None, str(tmp_path / "surgvisdom"), LabelParams(parts=("VR",)))
    assert len(vr.videos) == 9 and all("/VR/" in video.source for video in vr.videos)
    one_list = read_labelled(None, str(tmp_path / "medvidcl" / "val.json"))
    assert len(one_list.videos) == 6 and {video.source[-1] for video in one_list.videos} == {"1", "4"}
    assert labels("surgvisdom", label_depth=3)[0] == "train_1/Porcine/Dissection"

    flat = tmp_path / "flat"
    tree = tmp_path / "hyperkvasir" / "labeled-videos"
    for path in [*tree.rglob("*.avi"), tree / "video-labels.csv"]:
        copy(path, flat / path.name)
    assert labels("flat") == [
        "bbps-2-3", "lower gi/pathological findings/cancer", "polyps", "upper gi/pathological findings/cancer",
    ]  # fmt: skip

    def refused(name: str, said: str, **chosen: Any) -> None:
        with pytest.raises(SourceUnreadable, match=said):
            labels(name, **chosen)

    refused("surgvisdom", "unknown_part: .* has Porcine and VR, not Pig", parts=["Pig"])
    refused("flat", "not_surgvisdom", layout="surgvisdom")
    refused("flat", "no_lists", layout="medvidcl")
    refused("medvidcl", "not_hyperkvasir", layout="hyperkvasir")
    refused("medvidcl", "no_video_folder: .*video_folder", video_folder=str(tmp_path / "nowhere"))
    copy(next(tree.rglob("*.avi")), flat / "lower-gi-tract" / "a" / "b" / "c.avi")
    refused("flat", "one finding would be two classes")
    copy(next(tree.rglob("*.avi")), tree / "lower-gi-tract" / "polyps" / "a.avi")
    refused("hyperkvasir", "not_hyperkvasir: lower-gi-tract/polyps/a.avi lies where HyperKvasir has none")
    copy(next(tree.rglob("*.avi")), tmp_path / "surgvisdom" / "train_1" / "VR" / "Suturing" / "a.mp4")
    refused("surgvisdom", "not_surgvisdom: train_1/VR/Suturing/a.mp4 lies")
    (tree / "video-labels.csv").write_text("Video file;Finding\n")
    refused("hyperkvasir", "no column organ and no column classification 1")
    lists = tmp_path / "medvidcl"
    (lists / "train.json").write_text('[{"video_id": "abcdefghijk", "level_2_category_labels": ["a", "b"]}]')
    refused("medvidcl", "several_labels: .*Med-Instr-Hierarchical")
    (lists / "train.json").write_text('{"video_id": 1}')
    refused("medvidcl", "unreadable_json: train.json is no list of records")
