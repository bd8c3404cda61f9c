"""Failures for good that a person wants to be tried again: by their reason, once.

A request stands beside the records and changes none. What failed before it counts as a failure that may pass: the next
run tries it again. What comes of that is written after the request and counts as it is.
"""

from collections.abc import Collection

from sqlalchemy import ColumnElement, Exists, func, or_, select
from sqlalchemy.orm import Session

from medgen.among import among, pages
from medgen.catalog import RetryRequest, StepRun, now


def retry_wanted() -> Exists:
    """A condition on `StepRun`: it failed before somebody asked that what failed so is tried again."""
    return (
        select(RetryRequest.id)
        .where(
            StepRun.status == "failed",
            RetryRequest.reason == StepRun.reason,
            or_(RetryRequest.step == "", RetryRequest.step == StepRun.step),
            RetryRequest.asked_at > StepRun.finished_at,
        )
        .correlate(StepRun)
        .exists()
    )


def wanted_again(session: Session, run_ids: Collection[int]) -> set[int]:
    """Those of step runs that `retry_wanted` holds for."""
    wanted: set[int] = set()
    for page in pages(run_ids):
        wanted.update(session.scalars(select(StepRun.id).where(among(StepRun.id, page), retry_wanted())))
    return wanted


def request_retry(session: Session, reason: str, step: str = "") -> int:
    """Puts a request on record; gives how many step runs that stand it is about. Without any there is no request.

    Args:
        reason: of the failures.
        step: only this step's; any by itself.
    """
    about: list[ColumnElement[bool]] = [StepRun.reason == reason, StepRun.status == "failed", ~StepRun.superseded]
    if step:
        about.append(StepRun.step == step)
    count = session.scalar(select(func.count()).select_from(StepRun).where(*about)) or 0
    if count:
        session.add(RetryRequest(reason=reason, step=step, asked_at=now()))
    return count
