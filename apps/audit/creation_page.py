"""Videos made for a use: their storyboards, shots, checklists, approvals, and the records behind them."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from sqlalchemy import Connection, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from apps.audit.site import site_of
from apps.history import Unknown
from medgen.catalog import ModelVersion, StepInput, StepRun
from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from medgen.verify import record_faults
from tasks.creation.on_record import APPROVE_STEP, CREATE_STEP, approved_names, creation_on_record, creation_rows

router = APIRouter()

SHOWN = 500
# What a creation passes after it was put on record, in order.
STEPS = (CREATE_STEP, "compose", APPROVE_STEP, "credentials")


@router.get("/creations")
def creations(request: Request) -> Response:
    """All videos that were made for a use, newest first."""
    site = site_of(request)
    rows = creation_rows(site.ledger, SHOWN)
    return site.page("creations.html", creations=rows, approved=approved_names(site.ledger))


@router.get("/creations/{name}")
def creation(request: Request, name: Annotated[str, Path(max_length=200)]) -> Response:
    """The page of one of them."""
    site = site_of(request)
    try:
        found = creation_on_record(site.ledger, name)
    except ItemFailed as error:
        if error.reason != "unknown_creation":
            raise
        raise Unknown(f"there is no creation {name[:80]}") from error
    with Session(site.engine) as session:
        runs = _runs(session, found.name)
        faults = {run.id: record_faults(session, [run.id]) for run in runs}
        model = _model(session.connection(), found.content["model"]["digest"])
        shots = _shots(session, found.record.id)
    approval = next((run.detail for run in runs if run.step == APPROVE_STEP), None)
    signed = next((run for run in reversed(runs) if run.step == "credentials"), None)
    return site.page(
        "creation.html", creation=found, content=found.content, board=found.storyboard, runs=runs, faults=faults,
        model=model, shots=shots, approval=approval, signed=signed,
    )  # fmt: skip


def creations_of(ledger: Ledger, model: str) -> list[dict[str, Any]]:
    """The videos that were made for a use with a model, newest first."""
    return [row for row in creation_rows(ledger, SHOWN) if row["model"] == model]


def _runs(session: Session, name: str) -> Sequence[StepRun]:
    """The step runs of a creation, oldest first."""
    query = select(StepRun).where(StepRun.subject == name, ~StepRun.superseded).order_by(StepRun.id).limit(100)
    return [run for run in session.scalars(query) if run.step in STEPS]


def _model(connection: Connection, digest: str) -> Any:
    query = select(ModelVersion.digest, ModelVersion.name, ModelVersion.release_name)
    return connection.execute(query.where(ModelVersion.digest == digest)).first()


def _shots(session: Session, run_id: int) -> dict[str, int]:
    """Subject of a generated video → the step run that made it."""
    query = (
        select(StepRun.subject, StepRun.id)
        .join(StepInput, StepInput.parent_id == StepRun.id)
        .where(StepInput.step_run_id == run_id, StepRun.step == "generate")
    )
    return {subject: made for subject, made in session.execute(query)}
