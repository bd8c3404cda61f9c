"""What the catalog keeps of a flow run: its name, when it began, how it ended. So the runs on record have names for
people, and metrics tell how the last one went, also without Prefect's server."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.context import FlowRunContext
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from medgen.catalog import CatalogUnreachable, FlowRun, now, open_catalog

log = logging.getLogger(__name__)


@contextmanager
def on_record(flow: str) -> Iterator[None]:
    """While it lasts, the flow run of this context is on record as under way; then as completed, or as failed when an
    error left it. What a killed run left has no end.

    A catalog that can't be had stops no run here: the run's own work says so better.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    run_id, name = str(context.flow_run.id), context.flow_run.name
    _begin(run_id, flow, name)
    try:
        yield
    except BaseException:
        _end(run_id, "failed")
        raise
    _end(run_id, "completed")


def _begin(run_id: str, flow: str, name: str) -> None:
    values = {"flow": flow, "name": name, "started_at": now(), "ended_at": None, "outcome": None}
    row = insert(FlowRun).values(id=run_id, **values)
    try:
        with Session(open_catalog()) as session, session.begin():  # one that is tried again begins anew
            session.execute(row.on_conflict_do_update(index_elements=[FlowRun.id], set_=values))
    except (SQLAlchemyError, CatalogUnreachable) as error:
        log.info("the run %s is not on record: %s", name, error)


def _end(run_id: str, outcome: str) -> None:
    try:
        with Session(open_catalog()) as session, session.begin():
            session.execute(update(FlowRun).where(FlowRun.id == run_id).values(ended_at=now(), outcome=outcome))
    except (SQLAlchemyError, CatalogUnreachable) as error:
        log.info("the end of run %s is not on record: %s", run_id, error)
