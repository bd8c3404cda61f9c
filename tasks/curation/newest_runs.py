"""The newest word of every step on every subject, of all that is on record."""

from sqlalchemy import CompoundSelect, case, func, select

from medgen.catalog import SourceIdentity, StepRun


def newest_runs() -> CompoundSelect[tuple[int]]:
    """A query for `id`: of each step and subject the newest step run that stands; releases are left out.

    A source's shards were read where it lies now, or where it lay before it was moved. What else was read under its
    name is of others that were called the same, before each had a name of its own, and does not hide the source's.
    """
    standing = ~StepRun.superseded
    others = (
        select(func.max(StepRun.id).label("id"))
        .where(standing, StepRun.step.not_in(["discover", "release"]))
        .group_by(StepRun.step, StepRun.subject)
    )
    elsewhere = case((StepRun.detail["uri"].astext != SourceIdentity.uri, 1), else_=0)
    discovered = (
        select(StepRun.id)
        .outerjoin(SourceIdentity, SourceIdentity.name == StepRun.detail["source"].astext)
        .where(standing, StepRun.step == "discover")
        .distinct(StepRun.subject)
        .order_by(StepRun.subject, elsewhere, StepRun.id.desc())
        .subquery()
    )
    return others.union_all(select(discovered.c.id))
