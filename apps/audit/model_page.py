"""Models: what trained them, on which release, and how they were evaluated."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import Connection, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from apps.audit.creation_page import creations_of
from apps.audit.models import model_of
from apps.audit.site import site_of
from medgen.catalog import Evaluation, ModelVersion, StepInput, StepOutput, StepRun
from medgen.verify import record_faults

router = APIRouter()


@router.get("/models")
def models(request: Request, name: Annotated[str, Query(max_length=200)] = "") -> Response:
    """All models, newest first."""
    site = site_of(request)
    query = select(
        ModelVersion.digest, ModelVersion.name, ModelVersion.kind, ModelVersion.release_name, ModelVersion.created_at
    ).order_by(ModelVersion.created_at.desc(), ModelVersion.digest)
    if name:
        query = query.where(ModelVersion.name == name)
    with site.engine.connect() as connection:
        rows = connection.execute(query.limit(500)).all()
    return site.page("models.html", models=rows)


@router.get("/models/{digest}")
def model(request: Request, digest: Annotated[str, Path(max_length=200)]) -> Response:
    """The page of a model, by its digest or name."""
    site = site_of(request)
    with Session(site.engine) as session:
        connection = session.connection()
        row = model_of(connection, digest)
        trained = session.get(StepRun, row["step_run_id"]) if row["step_run_id"] else None
        faults = record_faults(session, [trained.id]) if trained else {}
        base = None
        if trained:
            base = connection.execute(
                select(ModelVersion.digest, ModelVersion.name)
                .join(StepInput, StepInput.artifact_sha256 == ModelVersion.checkpoint_sha256)
                .where(StepInput.step_run_id == trained.id, ModelVersion.digest != row["digest"])
            ).first()
        evaluations = connection.execute(
            select(
                Evaluation.metric, Evaluation.value, Evaluation.detail, Evaluation.step_run_id, Evaluation.created_at
            )
            .where(Evaluation.model_digest == row["digest"])
            .order_by(Evaluation.step_run_id.desc(), Evaluation.metric)
            .limit(300)
        ).all()
        generated = _generated(connection, row)
        derived = connection.execute(
            select(ModelVersion.digest, ModelVersion.name)
            .join(StepRun, StepRun.id == ModelVersion.step_run_id)
            .join(StepInput, StepInput.step_run_id == StepRun.id)
            .where(
                StepInput.artifact_sha256 == (row["checkpoint_sha256"] or ""),
                ModelVersion.digest != row["digest"],
            )
            .distinct()
            .limit(50)
        ).all()
    return site.page(
        "model.html", model=row, trained=trained, faults=faults, evaluations=evaluations, generated=generated,
        base=base, derived=derived, creations=creations_of(site.ledger, row["digest"]),
    )  # fmt: skip


def _generated(connection: Connection, model: dict[str, Any]) -> list[dict[str, Any]]:
    """Some videos that the model made: step run, prompt, seed."""
    if not model["checkpoint_sha256"]:
        return []
    rows = connection.execute(
        select(StepRun.id, StepRun.subject, StepRun.detail)
        .join(StepInput, StepInput.step_run_id == StepRun.id)
        .join(StepOutput, (StepOutput.step_run_id == StepRun.id) & (StepOutput.role == "video"))
        .where(StepInput.artifact_sha256 == model["checkpoint_sha256"], StepRun.step == "generate")
        .where(StepRun.status == "kept", ~StepRun.superseded)
        .order_by(StepRun.id.desc())
        .limit(8)
    )
    return [
        {"id": row.id, "subject": row.subject, "prompt": row.detail.get("prompt"), "seed": row.detail.get("seed")}
        for row in rows
    ]
