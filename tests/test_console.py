"""What the command line prints: tables whole, versions, names given twice, and the way on after a run."""

import json
from pathlib import Path

import pytest
from rich.table import Table
from typer.testing import CliRunner

from apps import console, parameter_table, refresh, train
from apps.cli import app
from apps.show import print_history
from medgen import __version__
from medgen.ledger import open_ledger
from medgen.parameters import Parameters
from tests.recorded import Recorder

DIGEST = "a1b2c3d4" * 8


def test_tables_that_go_to_a_file_cut_no_digest_and_wrap_no_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table("name", "digest", "why")
    table.add_row("medgen-000000000001", DIGEST, "because " * 40)
    monkeypatch.setattr(console.out, "_width", 80)
    console.out.print(table)
    console.out.print("plain text goes on as before")
    rows = [line for line in capsys.readouterr().out.splitlines() if "medgen-0" in line]
    assert len(rows) == 1 and DIGEST in rows[0] and rows[0].count("because") == 40
    assert console.out.width == 80
    # In a terminal nothing is cut short either: it goes on in the next line.
    monkeypatch.setattr(console.out, "_force_terminal", True)
    console.out.print(table)
    told = capsys.readouterr().out
    assert "…" not in told and sum(told.count(piece) for piece in ("a1b2", "c3d4")) >= 8


def test_the_version_is_told_alone() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"{__version__}\n")


def test_a_name_given_twice_is_refused_and_given_once_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def run_flow(flow: str, arguments: dict[str, object], **_: object) -> dict[str, object]:
        asked.append(arguments)
        return {}

    monkeypatch.setattr(refresh, "run_flow", run_flow)
    monkeypatch.setattr(refresh, "print_json", lambda summary: None)
    ask = ["refresh", "--source", "x", "--json"]
    assert CliRunner().invoke(app, [*ask, "--set", "release_prefix=night"]).exit_code == 0
    assert CliRunner().invoke(app, [*ask, "--name", "day"]).exit_code == 0
    assert CliRunner().invoke(app, ask).exit_code == 0
    assert [arguments.get("release_prefix") for arguments in asked] == ["night", "day", None]
    done = CliRunner().invoke(app, [*ask, "--name", "day", "--set", "release_prefix=night"])
    assert done.exit_code == 2 and len(asked) == 3 and "differ" in done.output


def test_a_refresh_says_where_its_release_lies_and_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {
        "funnel": [], "stages": [], "decodes": 0, "executed": 3, "reused": 0, "release": "medgen-1", "digest": DIGEST,
        "folder": "/home/releases/medgen-1", "departures": [], "awaits_approval": False,
    }  # fmt: skip
    refresh.print_summary(summary)
    told = capsys.readouterr().out
    assert "/home/releases/medgen-1" in told and "medgen train medgen-1" in told and "medgen audit" in told
    assert told.strip().splitlines()[-2:] == ["executed 3, reused 0", f"release medgen-1 {DIGEST}"]
    refresh.print_summary(summary | {"release": "", "digest": "", "folder": ""})
    assert "nothing to do" in capsys.readouterr().out


def test_training_on_what_is_not_there_is_refused_before_a_server_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.prefect_server.prefect_server", None)  # would be called
    recorder = Recorder(open_ledger())
    recorder.release("medgen-000000000001", {}, {})
    for asked, told in (
        (["nope"], "no release goes by 'nope'"),
        (["medgen-00000000000"], "did you mean medgen-000000000001?"),
        (["latest", "--set", "learning_rat=1"], "did you mean learning_rate?"),
        (["latest", "--preset", "nono"], "no preset 'nono'"),
    ):
        done = CliRunner().invoke(app, ["train", *asked])
        assert done.exit_code in (1, 2) and told in done.output.replace("\n", " "), done.output
    train._check(["medgen", "latest=2"], "nano", [])  # these are known


def test_what_nobody_failed_with_is_not_tried_again(home: Path) -> None:
    done = CliRunner().invoke(app, ["retry", "--reason", "undecodable"])
    assert done.exit_code == 1 and "nothing failed with 'undecodable'" in done.output


def test_comparisons_that_were_passed_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [
        {"metric": f"m{n}", "score": 10.0 + n, "threshold": 5.0, "passes_when": "at least", "passed": True}
        for n in range(30)
    ]
    flag = {"metric": "flag", "score": 0, "threshold": 0, "passes_when": "at most", "passed": True}
    failed = {"metric": "bad", "score": 9.0, "threshold": 5.0, "passes_when": "at most", "passed": False}
    step = {
        "step": "decide", "version": 1, "finished_at": "2026-11-29T00:00:00", "status": "rejected", "reason": "bad",
        "superseded": False, "scores": [{"metric": "m3", "value": 13.0}], "models": {}, "code_version": "x",
        "record_hash": DIGEST, "detail": {"checks": [*checks, flag, failed], "borders": {"kind": "none", "crop": None}},
    }  # fmt: skip
    video = dict.fromkeys(("title", "url", "channel", "licence", "published", "source_name"), "x") | {"id": "v1"}
    history = {
        "kind": "video", "id": "v1", "forgotten": None, "vanished": None, "video": video, "steps": [step], "clips": [],
    }  # fmt: skip
    print_history(history)
    told = capsys.readouterr().out
    assert "31 comparisons passed, the closest: m0 10, at least 5" in told and "NO  bad 9, at most 5" in told
    assert told.count("m3") == 0 and "borders: none" in told and "{" not in told
    print_history(history, every=True)
    assert capsys.readouterr().out.count("ok  m") == 30


def test_parameters_are_asked_once_and_told_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameter_table, "user_cache_path", lambda name: tmp_path)
    first, again = (CliRunner().invoke(app, ["parameters", "--profile", "paper"]).stdout for _ in range(2))
    assert first == again and "max_overlay_words" in first
    monkeypatch.setattr(parameter_table, "_asked", None)  # not asked a third time
    told = json.loads(CliRunner().invoke(app, ["parameters", "--profile", "paper", "--json"]).stdout)
    assert told["output_size"]["default"] == "720x480" and "value" not in told["output_size"]
    (kept,) = tmp_path.iterdir()
    kept.write_text("{ half a fi")
    monkeypatch.undo()
    monkeypatch.setattr(parameter_table, "user_cache_path", lambda name: tmp_path)
    assert json.loads(CliRunner().invoke(app, ["parameters", "--profile", "paper", "--json"]).stdout) == told
    bad = CliRunner().invoke(app, ["parameters", "--profile", "papre"])
    assert bad.exit_code == 2 and len(list(tmp_path.iterdir())) == 1


def test_one_is_one_clip() -> None:
    from medgen.counted import counted

    assert [counted(n, "clip") for n in (0, 1, 2, 1000)] == ["0 clips", "1 clip", "2 clips", "1,000 clips"]


def test_an_unknown_parameter_gets_the_one_that_may_be_meant() -> None:
    class Some(Parameters):
        max_words: int = 3

    with pytest.raises(ValueError, match=r"did you mean max_words\?"):
        Some(**json.loads('{"max_word": 3}'))
