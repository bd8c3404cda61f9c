"""Which videos their sources no longer have, as `tasks.operations.recheck` recorded it."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, aliased

from medgen.among import among
from medgen.catalog import StepRun, Tombstone
from medgen.takedown import TAKEN_DOWN

RECHECK = "recheck"


def vanished(engine: Engine, video_ids: Collection[str] | None = None) -> dict[str, datetime]:
    """Video id → when its source was first found to have it no longer; it has not been seen there since.

    Of all videos, or of some. Those that were taken down are left out.
    """
    again = aliased(StepRun)
    seen_since = select(again.id).where(
        again.step == RECHECK,
        again.subject == StepRun.subject,
        again.status == "kept",
        again.id > StepRun.id,
        ~again.superseded,
    )
    query = (
        select(StepRun.subject, func.min(StepRun.finished_at))
        .outerjoin(Tombstone, Tombstone.video_id == StepRun.subject)
        .where(StepRun.step == RECHECK, StepRun.status == "rejected", ~StepRun.superseded, StepRun.reason != TAKEN_DOWN)
        .where(Tombstone.video_id.is_(None), ~seen_since.exists())
        .group_by(StepRun.subject)
    )
    if video_ids is not None:
        query = query.where(among(StepRun.subject, video_ids))
    with Session(engine) as session:
        return {subject: when for subject, when in session.execute(query)}
