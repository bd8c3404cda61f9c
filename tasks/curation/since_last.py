"""What changed from a release to the one after it: clips that came and went, and what each step kept."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from medgen.catalog import Release, ReleaseClip
from medgen.counted import counted
from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from medgen.releases import of_prefix
from tasks.curation.release import RELEASE, read_funnel


class StepChange(TypedDict):
    """How many a step kept in the release before and in this one, and the reasons whose numbers differ most."""

    step: str
    before: int
    now: int
    reasons: dict[str, int]


class Change(TypedDict):
    """From the release `before` of the same prefix: clips that came and went, and step by step."""

    before: str
    came: int
    went: int
    steps: list[StepChange]


MOST_REASONS = 5


def since_last(ledger: Ledger, name: str, funnel: Sequence[Mapping[str, Any]]) -> Change | None:
    """What changed since the release of the same prefix that was made before; None: there is none, or it is lost.

    Args:
        name: of a release on record.
        funnel: its own.
    """
    prefix = name.rpartition("-")[0]
    with Session(ledger.engine) as session:
        release = session.get_one(Release, name)
        before = session.scalars(
            select(Release)
            .where(of_prefix(prefix), Release.name != name)
            .where(Release.created_at <= release.created_at)
            .order_by(Release.created_at.desc())
            .limit(1)
        ).first()
        if before is None:
            return None
        came, went = (_only_in(session, one, other) for one, other in ((name, before.name), (before.name, name)))
        run_id, former = before.step_run_id, before.name
    try:
        record = ledger.load([run_id])[run_id]
        earlier = {row["step"]: row for row in read_funnel(record)} if RELEASE.outputs(record).get("funnel") else {}
    except ItemFailed:
        return None
    steps = [_step(earlier[row["step"]], row) for row in funnel if row["step"] in earlier]
    return {"before": former, "came": came, "went": went, "steps": steps}


def _only_in(session: Session, first: str, second: str) -> int:
    """How many clips only the first release holds."""
    mine, theirs = aliased(ReleaseClip), aliased(ReleaseClip)
    other = (theirs.clip_id == mine.clip_id) & (theirs.release_name == second)
    query = select(func.count()).select_from(mine).outerjoin(theirs, other)
    return session.scalar(query.where(mine.release_name == first, theirs.clip_id.is_(None))) or 0


def _step(before: Mapping[str, Any], now: Mapping[str, Any]) -> StepChange:
    counts = [{**row["rejected"], **row["failed"]} for row in (before, now)]
    differences = {
        reason: counts[1].get(reason, 0) - counts[0].get(reason, 0) for reason in sorted({*counts[0], *counts[1]})
    }
    largest = sorted((d for d in differences.items() if d[1]), key=lambda d: -abs(d[1]))[:MOST_REASONS]
    return {"step": now["step"], "before": before["kept"], "now": now["kept"], "reasons": dict(largest)}


def markdown(change: Change | None) -> str:
    """The change as Markdown, for people who look at the release of a night."""
    if change is None:
        return ""
    lines = [
        f"## Since {change['before']}", "",
        f"{counted(change['came'], 'clip')} came, {change['went']} went.", "",
        "| step | kept before | kept now | difference | reasons that dropped more or fewer |",
        "|---|---:|---:|---:|---|",
    ]  # fmt: skip
    for row in change["steps"]:
        reasons = ", ".join(f"{reason} {difference:+d}" for reason, difference in row["reasons"].items())
        before, after = row["before"], row["now"]
        lines.append(f"| {row['step']} | {before} | {after} | {after - before:+d} | {reasons} |")
    return "\n".join(lines) + "\n"
