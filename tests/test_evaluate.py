"""Evaluation as its users run it, and its statistics against scipy."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from scipy import stats
from sqlalchemy.orm import Session

from apps.evaluate import print_evaluation
from apps.run_flow import without_expected_errors
from flows.evaluate import EvaluateParameters, plan_of
from medgen.catalog import Evaluation
from medgen.errors import ItemFailed, RunStopped
from medgen.ledger import open_ledger
from medgen.verify import verify
from models.generation.prompt_set import Prompt
from models.metrics.descriptor import Nearest
from models.metrics.statistics import (
    Estimate,
    grouped_interval,
    holm,
    mean_interval,
    paired,
    share_interval,
    sign_flip_p,
)
from models.metrics.terms import TERM_MEAN
from tasks.evaluation import mllm_judge
from tasks.evaluation.evaluate import put_on_record
from tasks.evaluation.evaluate import report as evaluation_report
from tasks.evaluation.evaluation_report import page
from tasks.evaluation.leaderboard import compare, metric_family, with_terms
from tasks.evaluation.measure_video import MeasureParams, Video, measure_shard, unpacked
from tasks.evaluation.measured import Measured, System, measured_videos
from tasks.evaluation.sampling import sampling_of
from tasks.evaluation.video_folders import folder_videos, named_folder
from tests.clip_release import Made, moving_clip, put_release
from tests.conftest import forget_installation, medgen
from tests.test_captioner import chat_server
from tests.test_video_metrics import moved, scene, tiny_video_score, vote  # noqa: F401  (a fixture)

HOSTILE = '<script>alert("x")</script> & $\\frac{1}{2}$'


def write(path: Path, frames: list[np.ndarray], fps: int = 16) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def pan(seed: int) -> list[np.ndarray]:
    return [moved(scene(seed), step) for step in range(12)]


def shaken(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    moves = [moved(scene(seed), shift) for shift in rng.integers(-9, 10, 12)]
    return [np.clip(frame + rng.normal(0, 12, frame.shape), 0, 255).astype(np.uint8) for frame in moves]


# --- statistics


def test_intervals_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 1, 60)
    found = mean_interval(values.tolist())
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=0.03)
    assert mean_interval(values.tolist()) == found
    assert mean_interval([0.25]) == Estimate(0.25, None, None, 1)
    for right, asked in ((0, 5), (3, 7), (40, 40)):
        expected = stats.binomtest(right, asked).proportion_ci(method="wilson")
        share = share_interval(right, asked)
        assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("n", [6, 11, 40])
def test_the_paired_test_agrees_with_scipys_permutations(n: int) -> None:
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
    expected = stats.permutation_test(
        (ours - theirs,), np.mean, permutation_type="samples", n_resamples=20_000 if n > 13 else np.inf, rng=0
    )
    found = paired(ours.tolist(), theirs.tolist())
    assert found.p == pytest.approx(expected.pvalue, abs=0.015 if n > 13 else 1e-12)
    assert found.difference.mean == pytest.approx((ours - theirs).mean())
    assert sign_flip_p(np.zeros(5)) == 1 and sign_flip_p(np.ones(1)) is None


def test_videos_of_one_prompt_are_drawn_together_and_tests_are_adjusted() -> None:
    values = [0.0, 1.0, 0.2, 0.8, 0.4]
    alone = mean_interval(values)
    twice = grouped_interval([[value, value] for value in values])
    assert (twice.low, twice.high, twice.n) == (alone.low, alone.high, 10)
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


# --- leaderboard


def measured(system: str, prompt: str, **scores: float) -> Measured:
    video = Video(system, f"video-{system}{prompt}", f"{prompt}.mp4", "0" * 64, prompt)
    return Measured(video, scores, {}, None if scores else "measure_video: broken", {}, [], None, None, (1,))


def test_the_leaderboard_averages_videos_and_tests_against_the_baseline() -> None:
    metric = {"imaging_quality[x]": 0.0, "subject_consistency[y]": 0.0}
    rows = [measured("good", f"p{at}", **{name: 0.8 + at / 100 for name in metric}) for at in range(8)]
    rows += [measured("plain", f"p{at}", **{name: 0.6 + at / 100 for name in metric}) for at in range(1, 9)]
    rows += [measured("plain", "p9"), measured("good", "p0", **{name: 0.4 for name in metric})]
    board, tests = compare([System("plain"), System("good", "d" * 64)], rows, "plain", 0)
    assert [row["system"] for row in board] == ["good", "plain"]
    good, plain = board
    assert good["values"]["imaging_quality[x]"]["mean"] == pytest.approx((8 * 0.835 + 0.4) / 9, abs=1e-6)
    assert (good["videos"], plain["videos"], plain["failed"]) == (9, 8, 1)
    assert good["paper_total"] is None and good["terms"] == sorted(metric)
    assert {test["metric"] for test in tests} == {*metric, TERM_MEAN}
    assert all(test["difference"]["n"] == 7 and test["system"] == "good" for test in tests)
    assert all(test["difference"]["mean"] == pytest.approx(0.2) for test in tests)
    assert all(test["p"] == pytest.approx(2 / 2**7) and test["adjusted_p"] == pytest.approx(6 / 2**7) for test in tests)


def test_the_papers_total_is_five_terms_over_six() -> None:
    # MedGen's row of the paper's table; 38.5 is its share of wrong videos.
    scores = {
        "imaging_quality[a]": 0.7250, "subject_consistency[b]": 0.9441, "background_consistency[c]": 0.9739,
        "motion_smoothness[d]": 0.9976, "medical_accuracy[e]": 1 - 0.385, "dynamic_degree[f]": 1.0,
    }  # fmt: skip
    board, _ = compare([System("MedGen")], [measured("MedGen", "p", **scores)], "", 0)
    assert board[0]["paper_total"] == pytest.approx(70.93, abs=0.01)
    assert with_terms(scores)[TERM_MEAN] == pytest.approx(70.93 / 100 * 6 / 5, abs=1e-4)
    assert metric_family("videoscore/visual_quality[x]") == "videoscore/visual_quality"


# --- folders of videos


def test_folders_of_any_system_and_which_prompt_each_file_has(tmp_path: Path) -> None:
    folder = tmp_path / "sora=2"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.mp4", "p1.mp4", "p2-seed3.mp4", "deep/b.webm"):
        (folder / name).write_bytes(name.encode())
    (folder / "notes.txt").write_text("x")
    (folder / "prompts.csv").write_text('file,prompt,category\ndeep/b.webm,"A heart, beating",imaging\n')
    assert named_folder(str(folder)) == ("sora=2", folder)
    assert named_folder(f"Sora={folder}") == ("Sora", folder)
    found = {v.name: v for v in folder_videos("Sora", folder, [Prompt("p1", "One."), Prompt("p2", "Two.")])}
    assert {name: video.prompt for name, video in found.items()} == {
        "a.mp4": "", "p1.mp4": "One.", "p2-seed3.mp4": "Two.", "deep/b.webm": "A heart, beating"
    }  # fmt: skip
    assert found["a.mp4"].prompt_id == "a" and found["deep/b.webm"].prompt_id.startswith("p-")
    assert found["deep/b.webm"].category == "imaging"
    for bad, told in (("file,prompt\nnone.mp4,x\n", "not in the folder"), ("file\na.mp4\n", "filled in")):
        (folder / "prompts.csv").write_text(bad)
        with pytest.raises(RunStopped, match=told):
            folder_videos("Sora", folder, [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunStopped, match="no video"):
        folder_videos("E", tmp_path / "empty", [])
    with pytest.raises(RunStopped, match="no such folder"):
        named_folder("Sora=/nowhere")


# --- on record


def test_each_video_is_measured_once_and_bad_ones_get_a_reason(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    write(folder / "good.mp4", pan(0))
    write(folder / "single.mp4", pan(0)[:1])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    videos = folder_videos("S", folder, [])
    result = measure_shard.fn("s", videos, MeasureParams())
    ledger = open_ledger()
    records = {v.name: ledger.load([run])[run] for v, run in zip(videos, result.records, strict=True)}
    assert {name: (r.status, r.reason) for name, r in records.items()} == {
        "good.mp4": ("kept", None),
        "single.mp4": ("rejected", "too_few_frames"),
        "empty.mp4": ("failed", "empty_file"),
        "text.mp4": ("failed", "not_a_video"),
    }
    good = records["good.mp4"]
    assert good.detail == {"frames": 12, "fps": 16.0, "width": 128, "height": 96}
    assert all(np.isfinite(value) for value in good.scores.values()) and len(good.scores) == 8
    assert result.decodes == 2 and good.decodes == 1
    assert len(unpacked(ledger.store.path(good.outputs["trace"])).features) == 8
    again = measure_shard.fn("s", videos, MeasureParams())
    assert (again.executed, again.reused, again.records) == (0, 4, result.records)
    (folder / "good.mp4").rename(folder / "other.mp4")  # the bytes are the subject, not the name
    renamed = [v for v in folder_videos("T", folder, []) if v.name == "other.mp4"]
    assert measure_shard.fn("s", renamed, MeasureParams()).reused == 1

    found = measured_videos(ledger, videos, {"measure_video": result.records})
    assert (
        sorted(video.error for video in found if video.error)[0] == "measure_video: empty_file (the file has 0 bytes)"
    )
    prompts = {"name": "x", "version": "", "digest": "d", "origin": "", "prompts": 4, "of": 4}
    sampling = sampling_of("same", [System("S")], {}, found)
    assert sampling["systems"][0]["size"] == ["128x96"] and sampling["systems"][0]["steps"] is None
    content = evaluation_report(
        [System("S")], found, prompts=prompts, sampling=sampling, baseline="", seed=0, against="", copies=None, clips=[]
    )
    for known in (False, True):
        record, reused = put_on_record(ledger, [System("S")], found, content)["S"]
        assert reused is known and record.scores.keys() == content["leaderboard"][0]["values"].keys()
    with Session(ledger.engine) as session:
        rows = session.query(Evaluation).all()
        assert {row.metric for row in rows} == record.scores.keys() and rows[0].detail["system"] == "S"
    assert verify(ledger, tmp_path) == []


def test_the_judge_is_on_record_and_asked_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = folder_videos("S", write(tmp_path / "p1.mp4", pan(0)).parent, [Prompt("p1", "A liver.")])[0]
    with chat_server(vote(0), vote(2, "anatomy"), vote(0), vote(3, "physics")) as (url, requests):
        monkeypatch.setenv("MEDGEN_CAPTION_BASE_URL", url)
        monkeypatch.setenv("MEDGEN_CAPTION_API_KEY", "sk-secret")
        forget_installation()
        mllm_judge._chat.cache_clear()
        params = mllm_judge.MllmJudgeParams(judge_model="openai:m")
        result = mllm_judge.mllm_judge_shard.fn("s", [(video, 12)], params)
        asked = len(requests)
        assert mllm_judge.mllm_judge_shard.fn("s", [(video, 12)], params).reused == 1
        assert len(requests) == asked == 4  # the first to see whether anybody answers
    record = open_ledger().load(result.records)[result.records[0]]
    assert record.scores == {"medical_accuracy[m]": 0, "medical_error_level[m]": 2}
    assert [vote["level"] for vote in record.detail["votes"]] == [2, 0, 3]
    mllm_judge._chat.cache_clear()
    with pytest.raises(ValueError, match="no majority"):
        mllm_judge.MllmJudgeParams(judge_votes=2)


def test_videoscore_is_on_record(home: Path, tmp_path: Path, tiny_video_score: Path) -> None:  # noqa: F811
    video = folder_videos("S", write(tmp_path / "p1.mp4", pan(0)).parent, [Prompt("p1", "A liver.")])[0]
    params = mllm_judge.MllmJudgeParams(video_score_model=str(tiny_video_score))
    result = mllm_judge.video_score_shard.fn("s", [(video, 12)], params)
    assert mllm_judge.video_score_shard.fn("s", [(video, 12)], params).records == result.records
    record = open_ledger().load(result.records)[result.records[0]]
    assert len(record.scores) == 5 and "videoscore/visual_quality[videoscore]" in record.scores
    assert str(tiny_video_score) not in json.dumps(vars(record))


def test_the_page_escapes_whatever_strangers_wrote() -> None:
    value = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 2}
    metric = "imaging_quality[x]"
    content: dict[str, Any] = {
        "prompts": {"name": HOSTILE, "version": "", "digest": "d", "origin": HOSTILE, "prompts": 1, "of": 2},
        "sampling": {
            "rule": "own",
            "differ": [],
            "systems": [
                {
                    "system": HOSTILE, "generated": True, "steps": 4, "guidance": 1.5, "shift": 3.0,
                    "negative_prompt": HOSTILE, "size": ["4x5"], "frames": [3], "fps": [8.0],
                }
            ],
        },
        "baseline": "",
        "seed": 0,
        "metrics": {metric: {"model": None, "meaning": HOSTILE}},
        "leaderboard": [
            {
                "system": HOSTILE, "model": None, "videos": 1, "failed": 1, "values": {metric: value, TERM_MEAN: value},
                "terms": [metric], "paper_total": None, "near_copies": 1,
            }
        ],
        "paired": [],
        "against": HOSTILE,
        "near_copies": {"threshold": 0.9, "reference": None, "clips": 3},
        "retrieval": {},
        "frechet": [
            {
                "system": HOSTILE, "metric": "fid[x]", "model": "d", "value": 1.5, "videos": 1, "clips": 2, "ours": 8,
                "theirs": 16, "dimensions": 4,
            }
        ],
        "videos": [
            {
                "system": HOSTILE, "file": HOSTILE, "prompt_id": "p", "prompt": HOSTILE, "category": HOSTILE,
                "procedure": HOSTILE, "frames": 3, "width": 4, "height": 5, "scores": {metric: 0.5}, "trouble": HOSTILE,
                "votes": [{"level": 1, "reason": HOSTILE}],
                "nearest": vars(Nearest(HOSTILE, 0.95, 0.9, None, True)),
            }
        ],
    }  # fmt: skip
    html = page(content, [{"row": content["videos"][0], "player": None, "poster": None}], {})
    assert "<script" not in html and html.count("&lt;script&gt;") >= 8
    assert not re.search(r"https?://", html)


# --- the whole flow, by the command line


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two systems that answered the same four prompts, one badly and with a broken file."""
    root = tmp_path_factory.mktemp("systems")
    strange = HOSTILE.replace('"', "")
    lines = "".join(f"\np{at}.mp4,Prompt {at} {strange},{'ab'[at % 2]}" for at in range(4))
    for name, make in (("calm", pan), ("shaken", shaken)):
        (root / name).mkdir()
        (root / name / "prompts.csv").write_text("file,prompt,category" + lines + "\n")
        for at in range(4):
            write(root / name / f"p{at}.mp4", make(at))
    (root / "shaken" / "broken.mp4").write_text("nothing")
    return root


def test_the_command_compares_systems_and_a_second_run_does_nothing(
    systems: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = {f"c{at}": Made(moving_clip(tmp_path, at), f"v{at % 2}", 3.0, "ab"[at % 2]) for at in range(4)}
    clips["copied"] = Made((systems / "calm" / "p1.mp4").read_bytes(), "v9", 0.75, "b")
    put_release(open_ledger(), clips)
    database = {"MEDGEN_DATABASE_URL": os.environ["MEDGEN_DATABASE_URL"]}
    report = tmp_path / "out" / "report.html"
    calls = ["--videos", f"Calm={systems / 'calm'}", "--videos", f"shaken={systems / 'shaken'}", "--baseline", "shaken"]
    calls += ["--against", "made-1", "--report", str(report), "--json", "--set", "metric_fid=mobilenet_v2"]
    first = json.loads(medgen("evaluate", *calls, home=home, inline=True, **database).stdout)
    content, html = report.with_suffix(".json").read_bytes(), report.read_text()
    again = json.loads(medgen("evaluate", *calls, home=home, inline=True, **database).stdout)
    assert again["executed"] == 0 and again["reused"] == first["executed"] + first["reused"] > 0
    assert report.with_suffix(".json").read_bytes() == content and report.read_text() == html

    assert [row["system"] for row in first["leaderboard"]] == ["Calm", "shaken"]
    assert [(row["videos"], row["failed"]) for row in first["leaderboard"]] == [(4, 0), (4, 1)]
    (failure,) = first["failures"]
    assert failure["file"] == "broken.mp4" and "no video container" in failure["why"]
    tests = {test["metric"]: test for test in first["paired"]}
    smooth = tests["motion_smoothness[dis_flow]"]
    assert smooth["difference"]["mean"] > 0 and smooth["difference"]["low"] > 0 and smooth["difference"]["n"] == 4
    rows = {(row["system"], row["file"]): row for row in json.loads(content)["videos"]}
    near = rows["Calm", "p1.mp4"]["nearest"]
    assert (near["clip"], near["near_copy"], near["copied"] is not None) == ("copied", True, True)
    assert first["leaderboard"][0]["near_copies"] >= 1
    assert first["retrieval"]["Calm"]["videos"] == 4 and first["retrieval"]["Calm"]["chance"] == 0.5
    assert html.count("<video") >= 8 and "near copy" in html and "<script" not in html
    distance = {row["system"]: row for row in first["frechet"]}
    assert distance["Calm"]["value"] > 0 and distance["shaken"]["value"] > 0
    assert (distance["Calm"]["videos"], distance["Calm"]["clips"], distance["Calm"]["ours"]) == (4, 5, 32)
    assert "fid[mobilenet_v2]" in html and "fewer features than a feature has numbers" in html
    assert first["sampling"]["differ"] == [] and first["prompts"]["origin"] == "come with the videos"
    assert "128x96, 12 frames, 16 fps" in html and "How the videos of Calm, shaken were sampled is not known" in html
    print_evaluation(first)
    told = capsys.readouterr()
    assert "Leaderboard" in told.out and str(report) in told.out and "broken.mp4" in told.err


def test_an_expected_error_leaves_no_traceback_on_the_console() -> None:
    def record(error: Exception) -> logging.LogRecord:
        return logging.LogRecord("prefect.flow_runs", logging.ERROR, "", 0, "", (), (type(error), error, None))

    assert not without_expected_errors(record(RunStopped("the disk is full")))
    assert not without_expected_errors(record(ItemFailed("unknown_release", "no such release")))
    assert without_expected_errors(record(KeyError("x")))


def test_what_can_not_work_is_said_before_any_work(systems: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    calm = f"Calm={systems / 'calm'}"
    for arguments, told in (
        ({}, "nothing to evaluate"),
        ({"videos": [f"x={tmp_path / 'none'}"]}, "no video"),
        ({"videos": [calm], "against": "no-release"}, "no release goes by"),
        ({"videos": [calm], "baseline": "medgen:none"}, "no text-to-video model"),
        ({"videos": [calm], "prompts": str(tmp_path / "p.txt")}, "no such file"),
        ({"videos": [calm], "metric_flow": "lucas"}, "optical flow is"),
        ({"videos": [calm], "judge_model": "gpt"}, "a judge is named"),
        ({"videos": [calm], "metric_fid": "inception"}, "name one with against"),
        ({"videos": [calm], "metric_fid": "vgg", "against": "x"}, "FID's features are of"),
    ):
        with pytest.raises((RunStopped, ItemFailed), match=told):
            plan_of(open_ledger(), EvaluateParameters(**arguments))
