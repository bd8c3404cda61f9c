"""Runs of flows: their names, what the catalog keeps of them, and a night that nobody gave sources."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.logging import disable_run_logger
from sqlalchemy.orm import Session

from flows import refresh, run_name, run_record
from flows.run_record import on_record
from medgen.catalog import FlowRun, open_catalog


def flow_runs() -> dict[str, tuple[str, str | None, bool]]:
    """Id → name, outcome, and whether it has an end."""
    with Session(open_catalog()) as session:
        return {row.id: (row.name, row.outcome, row.ended_at is not None) for row in session.query(FlowRun)}


def test_a_run_is_on_record_while_it_lasts_and_how_it_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(id="r1", name="refresh-medgen-2026-11-29")
    monkeypatch.setattr(run_record, "FlowRunContext", SimpleNamespace(get=lambda: SimpleNamespace(flow_run=run)))
    with on_record("refresh"):
        assert flow_runs() == {"r1": (run.name, None, False)}
    assert flow_runs() == {"r1": (run.name, "completed", True)}
    with pytest.raises(KeyError), on_record("refresh"):  # it is tried again
        assert flow_runs() == {"r1": (run.name, None, False)}
        raise KeyError
    assert flow_runs() == {"r1": (run.name, "failed", True)}
    monkeypatch.setattr(run_record, "FlowRunContext", SimpleNamespace(get=lambda: None))
    with on_record("refresh"):  # a function that is called, no run
        assert len(flow_runs()) == 1


def test_names_say_what_runs_on_what_and_when(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "release_prefix": "night",
        "sources": ("films=/data/a/", "https://example.org/feed?key=secret", "/x/list.csv"),
    }
    monkeypatch.setattr(run_name, "flow_run", SimpleNamespace(parameters=given))
    name = run_name.run_name("refresh", "release_prefix", "sources")()
    assert name.startswith("refresh-night+films+example.org/feed+list.csv-20") and len(name.rpartition("-")[2]) == 2
    given["sources"] = ("x" * 300,)
    assert len(run_name.run_name("refresh", "release_prefix", "sources")()) == run_name.LONGEST


def test_a_night_without_sources_completes_and_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(refresh, "create_markdown_artifact", lambda text, **_: shown.append(text))
    with disable_run_logger():
        summary = refresh._refresh(refresh.RefreshParameters())
    assert summary["release"] == "" and summary["executed"] == 0 and summary["funnel"] == []
    assert "No sources are set" in shown[0] and "nothing to do" in shown[0]
