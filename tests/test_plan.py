"""The plan: rates from records, what follows from them, and the command."""

import hashlib
import json
import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from apps.cli import app
from apps.metrics import registry
from medgen.catalog import Artifact, Clip, FlowRun, Source, StepRun, Video, now, open_catalog
from tasks.curation.curation_step import steps
from tasks.curation.steps import STEP_NAMES
from tasks.operations.plan import PLACES, STEPS, SUMS, NoPlan, Plan, Scope, plan
from tasks.operations.rates import General, Sourced, StepRate, installation_rates, measured_rates, shipped_rates
from tasks.operations.time_left import Forecast, duration
from tasks.operations.time_left import told as told_of

# Step runs of 200 videos of 10 s, half of which classify keeps with two clips each: step → runs, those kept, seconds of
# a run, detail of a kept one, bytes that each makes.
MADE = {
    "download": (200, 200, 3.0, {"probe": {"duration_s": 10.0}}, 1_000_000),
    "segment": (200, 200, 5.0, {}, 2_000),
    "classify": (200, 100, 2.0, {"clips": [{}, {}]}, 100),
    "cut": (200, 150, 4.0, {}, 500_000),
    "quality": (150, 150, 6.0, {}, 0),
    "decide": (150, 120, 0.001, {}, 0),
    "deduplicate": (120, 110, 0.001, {}, 0),
    "privacy": (110, 110, 0.5, {}, 0),
    "caption": (110, 110, 2.5, {"captioner": "openai:a", "tokens_in": 3000, "tokens_out": 300}, 700),
}
RUN = text(
    """INSERT INTO step_run (key, superseded, step, version, subject, status, transient, detail, params, context,
         models, code_version, attempts, decodes, started_at, finished_at, record_hash)
       SELECT encode(sha256((:step || n)::bytea), 'hex'), false, :step, 1,
              CASE WHEN :of_videos THEN 'v' ELSE :step END || n,
              CASE WHEN n <= :kept THEN 'kept' ELSE 'rejected' END, false,
              CASE WHEN n <= :kept THEN cast(:detail AS jsonb) ELSE '{}' END, '{}', '{}', '{}', '1', 1, 1,
              now() - make_interval(secs => :seconds), now(), repeat('0', 64)
       FROM generate_series(1, :runs) AS n RETURNING id"""
)
STORED = text(
    """INSERT INTO artifact (sha256, media_type, bytes, created_at)
       SELECT encode(sha256(('artifact' || id)::bytea), 'hex'), 'x/y', :bytes, now()
       FROM unnest(cast(:ids AS bigint[])) AS id"""
)
OUTPUTS = text(
    """INSERT INTO step_output (step_run_id, role, artifact_sha256)
       SELECT id, 'made', encode(sha256(('artifact' || id)::bytea), 'hex') FROM unnest(cast(:ids AS bigint[])) AS id"""
)


def make_records() -> None:
    """Puts `MADE` on record, and a shard of 200,000 listed rows that took 40 s, a thousandth of which was kept."""
    with open_catalog().begin() as connection:
        for step, (runs, kept, seconds, detail, size) in MADE.items():
            of_videos = step in ("download", "segment", "classify")
            values = {"step": step, "runs": runs, "kept": kept, "seconds": seconds, "of_videos": of_videos}
            ids = list(connection.scalars(RUN, values | {"detail": json.dumps(detail)}))
            if size:
                connection.execute(STORED, {"ids": ids, "bytes": size})
                connection.execute(OUTPUTS, {"ids": ids})
        counts = {"counts": {"kept": 200, "rejected no_medical_term": 199_800}}
        listed = {"step": "discover", "runs": 1, "kept": 1, "seconds": 40.0, "of_videos": False}
        connection.execute(RUN, listed | {"detail": json.dumps(counts)})


def test_rates_are_those_of_the_records(home: Path) -> None:
    make_records()
    rates = installation_rates(open_catalog())
    assert rates.here >= {"discover", *MADE, "video_seconds", "clips_per_video_second", "tokens_in", "decodes"}
    assert rates.here.isdisjoint({"release", "catalog_bytes", "record_seconds"})  # too few, or in no record
    expected = {
        "discover": (40 / 200_000, 0.001, 0),
        "segment": (0.5, 1.0, 200.0),  # by second of video
        "classify": (0.2, 0.5, 10.0),
        "cut": (4.0, 0.75, 500_000),  # by clip
        "caption": (2.5, 1.0, 700),
    }
    for step, figures in expected.items():
        rate = rates.steps[step]
        assert (rate.seconds, rate.kept, rate.store_bytes) == pytest.approx(figures, rel=1e-3), step
    assert rates.general.clips_per_video_second == pytest.approx(0.2)  # of the videos that are kept
    assert (rates.general.video_seconds, rates.general.tokens_in) == (10.0, 3000.0)
    few = measured_rates(open_catalog(), least_items=151)
    assert set(few.steps) == {"discover", "download", "segment", "classify", "cut"}


def test_a_plan_by_records(home: Path) -> None:
    make_records()
    size = ("--listings", "2000000", "--workers", "4", "--machines", "5", "--mbit", "20", "--hosts", "4")
    made = json.loads(asked(*size, "--caption-price-per-million-tokens", "2", "--json").stdout)
    cost = {row["step"]: row for row in made["steps"]}
    assert [cost[step]["items"] for step in ("discover", "download", "classify", "cut", "quality", "caption")] == (
        pytest.approx([2_000_000, 2000, 2000, 2000, 1500, 1100])
    )
    assert cost["download"]["elapsed_hours"] == pytest.approx(2000 * 1e6 * 8 / 20e6 / 3600, rel=1e-3)  # the line's
    assert cost["segment"]["worker_hours"] == pytest.approx(2000 * 5 / 3600, rel=1e-3)
    assert cost["segment"]["elapsed_hours"] == pytest.approx(2000 * 5 / 3600 / 20, rel=1e-3)
    assert cost["caption"]["cost"] == pytest.approx(1100 * 3300 * 2 / 1e6)
    assert cost["cut"]["rates"] == "measured here on 200 items"
    assert cost["release"]["rates"].startswith("shipped")
    table = asked("--videos", "2000", "--keep", "classify=0.25").stdout
    assert "measured here on 200 items" in table
    assert "shares as asked: classify 0.25" in table
    few = json.loads(asked("--videos", "2000", "--clips-per-video", "0.5", "--json").stdout)
    assert {row["step"]: row["items"] for row in few["steps"]}["cut"] == pytest.approx(2000 * 0.5 * 0.5)


def asked(*arguments: str) -> Result:
    """What the command says in this process, whose installation is the test's."""
    return CliRunner().invoke(app, ["plan", *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "one of them"),
        (("--listings", "5", "--videos", "5"), "one of them"),
        (("--videos", "5", "--keep", "cut=1.5"), "0 to 1"),
        (("--videos", "5", "--keep", "cut=nan"), "0 to 1"),
        (("--videos", "5", "--keep", "sew=0.5"), "no step 'sew'"),
        (("--videos", "5", "--keep", "cut"), "STEP=SHARE"),
        (("--videos", "-5"), "--videos"),
        (("--videos", "5", "--mbit", "nan"), "--mbit"),
        (("--videos", "5", "--mbit", "0"), "--mbit"),
        (("--videos", "5", "--workers", "0"), "--workers"),
        (("--videos", "5", "--caption-price-per-million-tokens", "3"), "tokens"),
    ],
)
def test_nonsense_is_refused(home: Path, arguments: tuple[str, ...], said: str) -> None:
    done = asked(*arguments)
    assert done.exit_code and said in done.output and "Traceback" not in done.output


RATES = st.builds(
    StepRate,
    items=st.integers(1, 10**6),
    seconds=st.floats(0, 1e3),
    kept=st.floats(0, 1),
    store_bytes=st.floats(0, 1e9),
    gpu_seconds=st.just(0.0),
)
SOURCED = st.builds(
    Sourced,
    steps=st.fixed_dictionaries(dict.fromkeys(STEPS, RATES)),
    general=st.builds(
        General,
        video_seconds=st.floats(1, 1e4),
        clips_per_video_second=st.floats(0, 1),
        catalog_bytes=st.floats(0, 1e5),
        record_seconds=st.floats(0, 1),
        tokens_in=st.floats(0, 1e4),
        tokens_out=st.floats(0, 1e4),
    ),
    here=st.just(frozenset[str]()),
    origin=st.just("a test"),
)
SCOPES = st.builds(
    Scope,
    listings=st.integers(1, 10**9),
    workers=st.integers(1, 64),
    download_workers=st.integers(1, 64),
    machines=st.integers(1, 100),
    mbit=st.floats(1, 1e5),
    hosts=st.integers(1, 100),
    request_interval_s=st.floats(0, 10),
    price_in=st.floats(0, 10),
    price_out=st.floats(0, 10),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCOPES, SOURCED)
def test_a_plan_is_in_proportion(scope: Scope, rates: Sourced) -> None:
    one = plan(scope, rates)
    assert all(one.totals[name] == sum(getattr(cost, name) for cost in one.steps) for name in SUMS)
    assert one.least_hours <= one.totals["elapsed_hours"] * (1 + 1e-9)
    twice = plan(replace(scope, listings=2 * (scope.listings or 0)), rates)
    for name in SUMS:
        assert math.isclose(twice.totals[name], 2 * one.totals[name], rel_tol=1e-9, abs_tol=1e-300)
    more = plan(replace(scope, machines=scope.machines + 1), rates)
    assert never_slower(more, one)
    assert more.totals["worker_hours"] == one.totals["worker_hours"]
    for wider in ({"mbit": 2 * scope.mbit}, {"workers": scope.workers + 1}, {"hosts": scope.hosts + 1}):
        assert never_slower(plan(replace(scope, **wider), rates), one)


def never_slower(wider: Plan, made: Plan) -> bool:
    """Step by step and in all."""
    steps = zip(wider.steps, made.steps, strict=True)
    return wider.least_hours <= made.least_hours and all(w.elapsed_hours <= m.elapsed_hours for w, m in steps)


def test_what_comes_along_is_complete() -> None:
    shipped = shipped_rates()
    assert set(shipped.steps) == set(STEPS)
    unmeasured = {name for name in General.model_fields if getattr(shipped.general, name) is None}
    assert unmeasured <= {"tokens_in", "tokens_out"}  # of no captioner that comes along
    made = plan(Scope(listings=10**6), Sourced(shipped.steps, shipped.general, frozenset(), shipped.origin))
    assert made.totals["worker_hours"] > 0
    with pytest.raises(NoPlan):
        plan(Scope(listings=1, price_in=1.0), Sourced(shipped.steps, shipped.general, frozenset(), shipped.origin))


def test_steps_run_where_the_plan_takes_them_to_run() -> None:
    """With the parameters' defaults; of those whose steps load nothing to tell."""
    where = {"processes": "workers", "threads": "network", "inline": "main"}
    told = {step.name: where[step.step(step.params()).runs_in] for step in steps()}
    assert told == {step: PLACES[step] for step in STEP_NAMES}


def test_what_is_left_is_what_waits_for_each_step(home: Path) -> None:
    make_records()
    with Session(open_catalog()) as session, session.begin():
        session.add(Source(name="s", kind="listing", uri="s"))
        session.flush()
        videos = [f"w{number}" for number in range(1, 6)]
        session.add_all(Video(id=v, source_name="s", url=v, title=v, description="", tags=[]) for v in videos)
        session.flush()
        # w1 is listed, w2 downloaded, w3 has three stretches to cut, w4 a clip that quality kept, w5 failed.
        detail = {"classify": {"clips": [{}, {}, {}]}}
        told = [
            ("w2", "download"),
            ("w3", "classify"),
            ("w4", "classify"),
            ("w4/0-1", "cut"),
            ("w4c", "quality"),
            ("w5", "segment"),
        ]
        for subject, step in told:
            run = _run(subject, step, "failed" if subject == "w5" else "kept", detail.get(step, {}))
            session.add(run)
            session.flush()
            if step == "cut":
                session.add(Artifact(sha256="a" * 64, media_type="x/y", bytes=1))
                session.flush()
                session.add(
                    Clip(id="w4c", video_id="w4", step_run_id=run.id, start_frame=0, end_frame=1, start_s=0.0,
                         end_s=1.0, width=2, height=2, fps=1.0, digest="a" * 64)
                )  # fmt: skip
                session.flush()
    left = Forecast(open_catalog(), workers=2, download_workers=4).left()
    waiting = {one.step: one.waiting for one in left if one.waiting}
    assert waiting == {"download": 1, "segment": 1, "cut": 3, "decide": 1}
    by_step = {one.step: one for one in left}
    # One downloaded and the listed one, both of which download and segment keep, of 10 s each, on two workers.
    assert by_step["segment"].expected == pytest.approx(2)
    assert by_step["segment"].seconds == pytest.approx(2 * 5.0 / 2, rel=1e-3)
    assert by_step["cut"].expected == pytest.approx(3 + 2 * 0.5 * 10 * 0.2, rel=0.05)  # these videos tell rates too
    assert all(one.here and one.seconds is not None for one in left)
    sentence = told_of(left)
    assert (
        "download 1 videos, segment 1 videos, cut 3 clips, decide 1 clips" in sentence and "not known" not in sentence
    )
    unknown = [replace(one, here=False, seconds=None if one.step == "download" else one.seconds) for one in left]
    assert "downloads, whose time is not known yet" in told_of(unknown) and "shipped rates: segment" in told_of(unknown)
    runs = [
        FlowRun(id=outcome, flow="refresh", name=outcome, started_at=now() - timedelta(hours=hours),
                ended_at=now() - timedelta(hours=hours - 1), outcome=outcome)
        for hours, outcome in ((30, "completed"), (6, "failed"))
    ]  # fmt: skip
    with Session(open_catalog()) as session, session.begin():
        session.add_all([*runs, FlowRun(id="open", flow="train", name="open", started_at=now())])
    figures = {
        (sample.name, sample.labels.get("step", sample.labels.get("flow", ""))): sample.value
        for family in registry(open_catalog(), str(home.parent)).collect()
        for sample in family.samples
    }
    assert figures["medgen_items_waiting", "cut"] == 3
    assert figures["medgen_seconds_left", "segment"] > 0
    assert figures["medgen_run_ok", "refresh"] == 0 and ("medgen_run_ok", "train") not in figures
    assert figures["medgen_run_duration_seconds", "refresh"] == pytest.approx(3600, abs=5)
    assert figures["medgen_run_open_timestamp_seconds", "train"] == pytest.approx(now().timestamp(), abs=60)
    assert figures["medgen_step_runs_last_hour", "segment"] > 0


def _run(subject: str, step: str, status: str, detail: dict[str, Any]) -> StepRun:
    return StepRun(
        key=hashlib.sha256((subject + step).encode()).hexdigest(), step=step, version=1, subject=subject, status=status,
        transient=status == "failed", detail=detail, params={}, context={}, models={}, code_version="1",
        started_at=now(), finished_at=now(), record_hash="0" * 64,
    )  # fmt: skip


def test_durations_are_rounded_for_people() -> None:
    assert [duration(s) for s in (0, 89, 91, 5400, 12_000)] == ["0 s", "89 s", "2 min", "1 h 30 min", "3 h 20 min"]
