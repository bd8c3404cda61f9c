"""How steps appear in Prefect: one task run per shard and step, with tags, names, retries and progress."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Literal, ParamSpec, TypeVar, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from prefect.tasks import Task
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from medgen.catalog import open_catalog
from medgen.errors import RunStopped
from medgen.ledger import Work
from medgen.settings import current
from medgen.shard import Item, ShardFailed, ShardResult, Step, run_shard
from medgen.shard_results import Facts, ShardReference, run_stored
from tasks.curation.steps import STEP_NAMES
from tasks.operations.time_left import Forecast, duration, told
from tasks.progress import step_listener

PROGRESS_EVERY_S = 2.0
FORECAST_EVERY_S = 60.0  # what is left of the whole pipeline, in the run's log

P = ParamSpec("P")
R = TypeVar("R")


def step_task(name: str, tag: Literal["network", "cpu", "gpu"]) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Makes a Prefect task of a step's shard function.

    The ledger is the memory, so Prefect's cache and result storage stay off. Retries bridge outages of
    Postgres or S3; a shard that fails for its items' sake is not retried.
    """

    def make(function: Callable[P, R]) -> Task[P, R]:
        return task(
            name=name,
            tags=[tag],
            task_run_name=f"{name}-{{label}}",
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=2,
            retry_delay_seconds=10,
            retry_condition_fn=_outage,
        )(function)

    return make


def _outage(_task: Task[..., object], _run: TaskRun, state: State[object]) -> bool:
    return not isinstance(state.result(raise_on_failure=False), ShardFailed | RunStopped)


def run_in_prefect(step: Step, items: Sequence[Item | Work], *, retry_quarantined: bool) -> ShardResult:
    """`run_shard` with the flow run on record and progress in the UI. Outside Prefect it is just `run_shard`."""
    return run_shard(
        step,
        items,
        flow_run_id=flow_run.id,
        progress=StepProgress(step.identity.name) if TaskRunContext.get() else None,
        retry_quarantined=retry_quarantined,
    )


def run_stored_in_prefect(
    step: Step,
    items: Sequence[Item | Work],
    *,
    facts: Facts | None = None,
    retry_quarantined: bool,
    quiet: bool = False,
) -> ShardReference:
    """`run_stored` in the same way. `quiet`: who calls tells the progress."""
    return run_stored(
        step,
        items,
        facts=facts,
        flow_run_id=flow_run.id,
        progress=StepProgress(step.identity.name) if TaskRunContext.get() and not quiet else None,
        retry_quarantined=retry_quarantined,
    )


class StepProgress:
    """Called with (done, total): a progress artifact that is made when there is work and touched at most every two
    seconds, with the time left of the shard, and a call of the step listener. Of steps of the pipeline the run's log is
    told once a minute what is left on record."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.artifact: UUID | None = None
        self.last = 0.0
        self.done = self.total = 0
        self.began: tuple[float, int] | None = None  # when, and how many were done already

    def __call__(self, done: int, total: int) -> None:
        if listener := step_listener():
            listener(self.name, done - self.done, total - self.total)
        self.done, self.total = done, total
        percent = 100.0 * done / total if total else 100.0
        if TaskRunContext.get() is None:
            return
        now = time.monotonic()
        if self.artifact is None:
            if done < total:
                self.began = (now, done)
                description = f"{self.name}: items of the shard done"
                self.artifact = cast(UUID, create_progress_artifact(percent, description=description))
        elif done == total or now - self.last > PROGRESS_EVERY_S:
            update_progress_artifact(self.artifact, percent, description=f"{self.name}: {self._told(now)}")
            self.last = now
            if done < total and self.name in STEP_NAMES:
                _forecast()

    def _told(self, now: float) -> str:
        """How many items of the shard are done, and when the others will be, if they take as long."""
        counted = f"{self.done:,} of {self.total:,} items of the shard done"
        started, before = self.began or (now, self.done)
        if self.done == self.total or self.done == before:
            return counted
        left = (self.total - self.done) * (now - started) / (self.done - before)
        return f"{counted}, about {duration(left)} left"


_forecast_lock = threading.Lock()
_forecast_due = 0.0


def _forecast() -> None:
    """Tells the run's log what is left on record, unless it was told within the last minute."""
    global _forecast_due
    if not _forecast_lock.acquire(blocking=False):
        return
    try:
        if time.monotonic() < _forecast_due:
            return
        with suppress(SQLAlchemyError):  # no run fails for lack of a forecast
            get_run_logger().info(told(_forecast_of(open_catalog()).left()))
        _forecast_due = time.monotonic() + FORECAST_EVERY_S
    finally:
        _forecast_lock.release()


@cache
def _forecast_of(engine: Engine) -> Forecast:
    return Forecast(engine, current().workers, current().download_workers)
