"""Runs: what one flow run did, and single step runs as they are on record."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import ColumnElement, func, literal, select, text, tuple_
from sqlalchemy.orm import Session, aliased
from starlette.responses import Response

from apps.audit.decisions import describe_steps
from apps.audit.site import site_of
from apps.history import Unknown
from medgen.catalog import Artifact, Clip, FlowRun, Release, Score, StepInput, StepOutput, StepRun, Video
from medgen.verify import record_faults

router = APIRouter()

COUNTED = 20_000  # newest step runs of a flow run that are counted
LISTED = 60

FLOWS = text(
    """
    WITH RECURSIVE jump AS (
      (SELECT flow_run_id FROM step_run WHERE flow_run_id IS NOT NULL ORDER BY flow_run_id LIMIT 1)
      UNION ALL
      SELECT (SELECT flow_run_id FROM step_run WHERE flow_run_id > jump.flow_run_id ORDER BY flow_run_id LIMIT 1)
      FROM jump WHERE jump.flow_run_id IS NOT NULL
    )
    SELECT flow.flow_run_id, began.started_at, ended.finished_at, ended.id AS last_id,
      (SELECT name FROM flow_run WHERE id = flow.flow_run_id) AS name,
      (SELECT outcome FROM flow_run WHERE id = flow.flow_run_id) AS outcome
    FROM (SELECT flow_run_id FROM jump WHERE flow_run_id IS NOT NULL LIMIT 3000) AS flow,
    -- Pairs are compared, not the name alone: else the planner goes through all records in the order of their ids.
    LATERAL (SELECT started_at FROM step_run
             WHERE flow_run_id IS NOT NULL AND (flow_run_id, id) > (flow.flow_run_id, 0)
             ORDER BY flow_run_id, id LIMIT 1) AS began,
    LATERAL (SELECT id, finished_at FROM step_run
             WHERE flow_run_id IS NOT NULL AND (flow_run_id, id) < (flow.flow_run_id, 9223372036854775807)
             ORDER BY flow_run_id DESC, id DESC LIMIT 1) AS ended
    ORDER BY ended.id DESC LIMIT 200
    """
)


@router.get("/runs")
def runs(request: Request) -> Response:
    """Flow runs that left records, newest first."""
    site = site_of(request)
    with site.engine.connect() as connection:
        rows = connection.execute(FLOWS).all()
    return site.page("runs.html", runs=rows)


@router.get("/runs/{flow_run_id}")
def run(
    request: Request,
    flow_run_id: Annotated[str, Path(max_length=200)],
    before: Annotated[int, Query(ge=1, lt=2**62)] = 2**61,
    status: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    """What one flow run did: numbers by step and verdict, and its step runs, newest first."""
    site = site_of(request)
    with site.engine.connect() as connection:
        some = (
            select(StepRun.step, StepRun.status, StepRun.reason)
            .where(*_of_flow(flow_run_id, 2**61))
            .order_by(StepRun.flow_run_id.desc(), StepRun.id.desc())
            .limit(COUNTED)
            .subquery()
        )
        counted = connection.execute(
            select(some.c.step, some.c.status, some.c.reason, func.count().label("rows"))
            .group_by(some.c.step, some.c.status, some.c.reason)
            .order_by(func.count().desc())
        ).all()
        if not counted:
            raise Unknown(f"no record names the flow run {flow_run_id[:80]}")
        query = (
            select(
                StepRun.id, StepRun.step, StepRun.subject, StepRun.status, StepRun.reason, StepRun.finished_at,
                StepRun.superseded,
            )
            .where(*_of_flow(flow_run_id, before))
            .order_by(StepRun.flow_run_id.desc(), StepRun.id.desc())
            .limit(LISTED)
        )  # fmt: skip
        if status in ("kept", "rejected", "failed"):
            query = query.where(StepRun.status == status)
        rows = connection.execute(query).all()
        releases = connection.scalars(
            select(Release.name)
            .join(StepRun, StepRun.id == Release.step_run_id)
            .where(StepRun.flow_run_id == flow_run_id)
        ).all()
        known = connection.execute(select(FlowRun.name, FlowRun.outcome).where(FlowRun.id == flow_run_id)).first()
    total = sum(row.rows for row in counted)
    steps: dict[str, dict[str, Any]] = {}
    for row in counted:
        entry = steps.setdefault(row.step, {"kept": 0, "rejected": 0, "failed": 0, "reasons": []})
        entry[row.status] += row.rows
        if row.reason:
            entry["reasons"].append((row.reason, row.rows, row.status))
    return site.page(
        "run.html", flow_run_id=flow_run_id, known=known, steps=steps, rows=rows, releases=releases, total=total,
        complete=total < COUNTED, status=status, last=rows[-1].id if len(rows) == LISTED else None,
    )  # fmt: skip


def _of_flow(flow_run_id: str, before: int) -> tuple[ColumnElement[bool], ...]:
    """Step runs of a flow run older than `before`, put so that the index of both is used (see `FLOWS`)."""
    pair = tuple_(StepRun.flow_run_id, StepRun.id) < tuple_(literal(flow_run_id), literal(before))
    return pair, StepRun.flow_run_id >= flow_run_id


@router.get("/steps/{step_run_id}")
def step(request: Request, step_run_id: Annotated[int, Path(ge=1, lt=2**62)]) -> Response:
    """One step run, all of it: what it saw, what it decided, with which code and models."""
    site = site_of(request)
    with Session(site.engine) as session:
        run = session.get(StepRun, step_run_id)
        if run is None:
            raise Unknown(f"there is no step run {step_run_id}")
        faults = record_faults(session, [run.id])
        parent = aliased(StepRun)
        inputs = session.execute(
            select(StepInput.role, StepInput.artifact_sha256, StepInput.parent_id, parent.step, parent.subject)
            .outerjoin(parent, parent.id == StepInput.parent_id)
            .where(StepInput.step_run_id == run.id)
            .order_by(StepInput.role)
            .limit(500)
        ).all()
        outputs = session.execute(
            select(StepOutput.role, StepOutput.artifact_sha256, Artifact.media_type, Artifact.bytes)
            .join(Artifact, Artifact.sha256 == StepOutput.artifact_sha256)
            .where(StepOutput.step_run_id == run.id)
            .order_by(StepOutput.role)
            .limit(500)
        ).all()
        following = session.execute(
            select(StepRun.id, StepRun.step, StepRun.subject, StepRun.status)
            .join(StepInput, StepInput.step_run_id == StepRun.id)
            .where(StepInput.parent_id == run.id)
            .order_by(StepRun.id)
            .limit(60)
        ).all()
        scores = session.execute(
            select(Score.metric, Score.value, Score.model_digest).where(Score.step_run_id == run.id)
        ).all()
        about = ""
        if session.get(Clip, run.subject):
            about = "clips"
        elif session.get(Video, run.subject):
            about = "videos"
        facts = {column.name: getattr(run, column.name) for column in StepRun.__table__.columns}
    facts |= {
        "scores": [{"metric": s.metric, "value": s.value, "model": s.model_digest} for s in scores],
        "outputs": [],
    }
    describe_steps([facts], faults)
    in_full = {
        name: json.dumps(facts[name], indent=1, sort_keys=True, ensure_ascii=False)
        for name in ("detail", "params", "context", "models")
    }
    return site.page(
        "step.html",
        run=facts,
        inputs=inputs,
        outputs=outputs,
        following=following,
        in_full=in_full,
        faults=faults,
        about=about,
    )
