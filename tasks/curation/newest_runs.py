"""The newest word of every step on every subject, of all that is on record."""

from sqlalchemy import CompoundSelect, Select, case, func, select

from medgen.catalog import SourceIdentity, StepRun


def newest_runs() -> CompoundSelect[tuple[int]]:
    """A query for `id`: of each step and subject the newest step run that stands; releases are left out."""
    others = (
        select(func.max(StepRun.id).label("id"))
        .where(~StepRun.superseded, StepRun.step.not_in(["discover", "release"]))
        .group_by(StepRun.step, StepRun.subject)
    )
    return others.union_all(newest_discovered())


def newest_discovered() -> Select[tuple[int]]:
    """A query for `id`: of each shard the newest run of discover that stands.

    A source's shards were read where it lies now, or where it lay before it was moved. What else was read under its
    name is of others that were called the same, before each had a name of its own, and does not hide the source's.
    """
    elsewhere = case((StepRun.detail["uri"].astext != SourceIdentity.uri, 1), else_=0)
    newest = (
        select(StepRun.id)
        .outerjoin(SourceIdentity, SourceIdentity.name == StepRun.detail["source"].astext)
        .where(~StepRun.superseded, StepRun.step == "discover")
        .distinct(StepRun.subject)
        .order_by(StepRun.subject, elsewhere, StepRun.id.desc())
        .subquery()
    )
    return select(newest.c.id)
