"""Creations as they are on record: what they hold, and who approved them. Read without loading what makes them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.catalog import StepRun
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Ledger, Record
from models.storyboards.personas import Balance
from models.storyboards.storyboard import Storyboard

if TYPE_CHECKING:
    from tasks.evaluation.mllm_judge import VoteRow
    from tasks.evaluation.resemblance import NearCopies

CREATE_STEP = "create"
APPROVE_STEP = "approve_creation"


class CandidateRow(TypedDict):
    """One video of a shot; see `Candidate`."""

    subject: str
    sha256: str
    seed: int
    score: float | None
    scores: dict[str, float]
    faults: list[str]
    nearest: dict[str, Any] | None
    votes: list["VoteRow"]
    error: str | None


class ShotRow(TypedDict):
    """One shot: its place in the storyboard, the video that it got, and all that were made. None: it got none."""

    place: int
    title: str
    narration: str
    prompt: str
    persona: dict[str, str] | None
    chosen: CandidateRow | None
    candidates: list[CandidateRow]


class StatementRow(TypedDict):
    """Something to be confirmed. `of`: who asks: the storyboard, or what was found while it was made."""

    text: str
    of: str


class SourceRow(TypedDict):
    """A release that the model learned from: its clips, and how many of its videos stand under each licence."""

    name: str
    digest: str
    clips: int
    licences: dict[str, int]


class ModelRow(TypedDict):
    """What made the shots."""

    name: str
    digest: str
    on_record: bool
    settings: dict[str, Any]


class LevelRow(TypedDict):
    """Personas of one level of an attribute.

    Args:
        asked, made: how many were asked for, and have a video.
        score: mean score of their videos.
        face: how many of the videos show a face on at least half of the frames looked at.
        skin_angle: mean of these faces' individual typology angles, degrees; lighter skin has the larger one.
    """

    attribute: str
    level: str
    asked: int
    made: int
    score: float | None
    face: int
    skin_angle: float | None


class BalanceReport(TypedDict):
    """Balance of the grid as asked for and of what was made of it."""

    asked: Balance
    made: Balance
    levels: list[LevelRow]


class Content(TypedDict):
    """All of a creation as JSON: the same work gives the same bytes."""

    format: int
    storyboard: dict[str, Any]
    model: ModelRow
    policy: dict[str, Any]
    near_copies: list["NearCopies"]
    sources: list[SourceRow]
    shots: list[ShotRow]
    statements: list[StatementRow]
    balance: BalanceReport | None


class CreateDetail(TypedDict):
    """Detail of the record of a creation."""

    use: str
    topic: str
    language: str
    patient_facing: bool
    model: str
    model_name: str
    releases: list[str]
    writer: str
    shots: int
    made: int
    weak: int
    videos: int
    statements: list[str]


class CreateOutputs(TypedDict):
    """Outputs of the record, role → sha256."""

    content: str


CREATE: Handover[CreateDetail, CreateOutputs] = Handover(CREATE_STEP)


@dataclass(frozen=True)
class Creation:
    """A creation on record."""

    name: str
    record: Record
    content: Content
    storyboard: Storyboard


class ApproveCreationDetail(TypedDict):
    """Detail of the record: who confirmed which statements."""

    by: str
    note: str
    statements: list[str]


APPROVE_CREATION: Handover[ApproveCreationDetail] = Handover(APPROVE_STEP)


def creation_on_record(ledger: Ledger, name: str) -> Creation:
    """The creation of that name, or whose name begins so, if one alone does. Raises ItemFailed: unknown_creation."""
    rows = _rows(ledger, name)
    exact = [row for row in rows if row.subject == name]
    names = {row.subject for row in exact or rows}
    if len(names) != 1:
        told = "see `medgen creation list`" if not names else f"it could be {', '.join(sorted(names)[:5])}"
        raise ItemFailed("unknown_creation", f"no creation goes by {name[:100]!r}; {told}")
    run_id = (exact or rows)[0].id
    record = ledger.load([run_id])[run_id]
    content: Content = json.loads(ledger.store.read(CREATE.outputs(record)["content"]))
    return Creation(record.subject, record, content, Storyboard.model_validate(content["storyboard"]))


def creation_rows(ledger: Ledger, limit: int = 1_000) -> list[dict[str, Any]]:
    """The creations on record, newest first: name, when it was made, and the detail of its record."""
    return [
        {"name": row.subject, "created_at": row.finished_at, "step_run": row.id, **row.detail}
        for row in _rows(ledger, "", limit)
    ]


def approval_of(ledger: Ledger, creation: Creation) -> Record | None:
    """The first approval of a creation on record; None when nobody approved it."""
    query = (
        select(StepRun.id)
        .where(
            StepRun.step == APPROVE_STEP,
            StepRun.subject == creation.name,
            StepRun.status == "kept",
            ~StepRun.superseded,
        )
        .order_by(StepRun.id)
        .limit(1)
    )
    with Session(ledger.engine) as session:
        run_id = session.scalar(query)
    return ledger.load([run_id])[run_id] if run_id is not None else None


def approved_names(ledger: Ledger) -> set[str]:
    """Names of the creations that somebody approved."""
    query = select(StepRun.subject).where(StepRun.step == APPROVE_STEP, StepRun.status == "kept", ~StepRun.superseded)
    with Session(ledger.engine) as session:
        return set(session.scalars(query.distinct()))


def _rows(ledger: Ledger, begins: str, limit: int = 20) -> Sequence[Any]:
    query = (
        select(StepRun.id, StepRun.subject, StepRun.detail, StepRun.finished_at)
        .where(StepRun.step == CREATE_STEP, StepRun.status == "kept", ~StepRun.superseded)
        .where(StepRun.subject.startswith(begins, autoescape=True))
        .order_by(StepRun.id.desc())
        .limit(limit)
    )
    with Session(ledger.engine) as session:
        return session.execute(query).all()
