"""Approve creation: a person confirms each statement and says that the video may be used. On record like every step."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.catalog import StepRun
from medgen.errors import ItemFailed
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.shard import run_shard
from tasks.creation.compose import ComposeParams, compose_work
from tasks.creation.compose import step as compose_step
from tasks.creation.credentials import ApprovalFacts, sign_video
from tasks.creation.lay_out import Finished, lay_out
from tasks.creation.on_record import (
    APPROVE_CREATION,
    APPROVE_STEP,
    ApproveCreationDetail,
    Creation,
    approval_of,
    creation_on_record,
)


@dataclass(frozen=True)
class Approved:
    """An approval: its record, and the folder in which the finished video lies."""

    record: Record
    folder: Path
    video: Path


def approve_creation(
    ledger: Ledger,
    name: str,
    by: str,
    ticked: Collection[int],
    note: str = "",
    *,
    flow_run_id: str | None = None,
) -> Approved:
    """Puts the approval on record, makes the finished video and lays it out. Repeating it changes nothing.

    Args:
        ticked: numbers, from 1, of the statements that the person confirms. All of them are needed.

    Raises:
        ItemFailed: unknown_creation; no_approver when `by` is empty; statements_open names those that were not ticked;
            unknown_statement.
        CannotSign: as `sign_video`.
    """
    if not by.strip():
        raise ItemFailed("no_approver", "an approval needs the name of who approves")
    creation = creation_on_record(ledger, name)
    statements = [statement["text"] for statement in creation.content["statements"]]
    _check_ticked(creation.name, statements, ticked)
    detail: ApproveCreationDetail = {"by": by.strip(), "note": note, "statements": statements}
    work = Work(
        creation.name,
        {"content": creation.record.outputs["content"]},
        {"by": by.strip(), "note": note},
        {"create": creation.record.id},
    )
    outcome = Outcome("kept", detail=dict(detail))
    ledger.once(StepIdentity(APPROVE_STEP, 1, {}, {}), work, lambda: outcome, flow_run_id=flow_run_id)
    record = approval_of(ledger, creation)
    assert record is not None  # it was just written
    finished = finish(ledger, creation, record, flow_run_id=flow_run_id)
    folder = lay_out(ledger, creation, finished)
    return Approved(record, folder, folder / f"{creation.name}.mp4")


def ticked_numbers(ledger: Ledger, name: str, ticked: Sequence[str]) -> list[int]:
    """Numbers of statements as a person gives them; `all` stands for each of the creation's.

    Raises:
        ItemFailed: unknown_creation; unknown_statement when one is no number.
    """
    count = len(creation_on_record(ledger, name).content["statements"])
    if "all" in ticked:
        return list(range(1, count + 1))
    if bad := [text for text in ticked if not (text.isascii() and text.isdigit() and len(text) < 6)]:
        raise ItemFailed("unknown_statement", f"{bad[0][:40]!r} is no number of a statement: 1 to {count}, or `all`")
    return [int(text) for text in ticked]


def finish(
    ledger: Ledger,
    creation: Creation,
    approval: Record | None,
    *,
    flow_run_id: str | None,
    parameters: ComposeParams | None = None,
) -> Finished:
    """The composed and signed video of a creation: finished with an approval, a draft without.

    Args:
        parameters: of compose; by default those that the draft was composed with.

    Raises:
        ItemFailed: not_composed, with the reason; as `sign_video`.
    """
    params = parameters or _composed_with(ledger, creation)
    work = compose_work(creation, approval is not None, {"approve_creation": approval.id} if approval else {})
    result = run_shard(compose_step(params), [work], flow_run_id=flow_run_id, ledger=ledger)
    composed = ledger.load(result.records)[result.records[0]]
    if composed.status != "kept":
        why = composed.detail.get("message") or composed.reason
        raise ItemFailed("not_composed", f"{creation.name} can't be put together: {why}", transient=composed.transient)
    facts: ApprovalFacts | None = None
    if approval:
        detail = APPROVE_CREATION.detail(approval)
        facts = {"by": detail["by"], "statements": len(detail["statements"]), "record": approval.record_hash}
    signed, stood = sign_video(ledger, creation, composed, facts, flow_run_id=flow_run_id)
    return Finished(composed, signed, approval, result.executed + (not stood), result.reused + stood)


def _composed_with(ledger: Ledger, creation: Creation) -> ComposeParams:
    query = (
        select(StepRun.params)
        .where(StepRun.step == "compose", StepRun.subject == creation.name, ~StepRun.superseded)
        .order_by(StepRun.id.desc())
        .limit(1)
    )
    with Session(ledger.engine) as session:
        return ComposeParams(**(session.scalar(query) or {}))


def _check_ticked(name: str, statements: Sequence[str], ticked: Collection[int]) -> None:
    if unknown := sorted(number for number in ticked if not 1 <= number <= len(statements)):
        raise ItemFailed("unknown_statement", f"{name} has statements 1 to {len(statements)}, none {unknown[0]}")
    if still := [number for number in range(1, len(statements) + 1) if number not in ticked]:
        listed = "\n".join(f"  {number}. {statements[number - 1]}" for number in still)
        raise ItemFailed(
            "statements_open",
            f"{name} is not approved: {len(still)} of {len(statements)} statements not ticked\n{listed}",
        )
