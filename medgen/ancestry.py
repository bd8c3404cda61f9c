"""The step runs before a step run, as far back as they are on record."""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.among import among
from medgen.catalog import StepInput, StepRun


def ancestry(session: Session, ids: Iterable[int]) -> list[StepRun]:
    """Step runs and those before them, oldest first."""
    wanted, known = set(ids), set[int]()
    while fresh := wanted - known:
        known |= fresh
        parents = session.scalars(select(StepInput.parent_id).where(among(StepInput.step_run_id, fresh)))
        wanted |= {parent for parent in parents if parent is not None}
    return list(session.scalars(select(StepRun).where(among(StepRun.id, known)).order_by(StepRun.id)))
