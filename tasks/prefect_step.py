"""How steps appear in Prefect: one task run per shard and step, with tags, names, retries and progress."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from prefect.tasks import Task

from medgen.ledger import Record, Work
from medgen.shard import Item, ShardFailed, ShardResult, Step, run_shard

PROGRESS_EVERY_S = 2.0

# Called with (step, items done since the last call, items newly known); for faces that show progress.
watchers: list[Callable[[str, int, int], None]] = []


def step_task(name: str, tag: Literal["network", "cpu", "gpu"]) -> Callable[[Callable[..., Any]], Task[..., Any]]:
    """Makes a Prefect task of a step's shard function.

    The ledger is the memory, so Prefect's cache and result storage stay off. Retries bridge outages of
    Postgres or S3; a shard that fails for its items' sake is not retried.
    """
    return task(
        name=name,
        tags=[tag],
        task_run_name=f"{name}-{{label}}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=10,
        retry_condition_fn=lambda _task, _run, state: not isinstance(state.result(raise_on_failure=False), ShardFailed),
    )


def run_in_prefect(
    step: Step,
    items: Sequence[Item],
    work_of: Callable[[Item, Mapping[str, Record]], Work],
    *,
    retry_quarantined: bool,
    follow: Callable[[Item, Record], Iterable[Item]] | None = None,
) -> ShardResult:
    """`run_shard` with the flow run on record and progress in the UI. Outside Prefect it is just `run_shard`."""
    return run_shard(
        step,
        items,
        work_of,
        follow=follow,
        flow_run_id=flow_run.id,
        progress=StepProgress(step.identity.name) if TaskRunContext.get() else None,
        retry_quarantined=retry_quarantined,
    )


class StepProgress:
    """Called with (done, total): a progress artifact that is made when there is work and touched at most every two
    seconds, and word to the watchers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.artifact: UUID | None = None
        self.last = 0.0
        self.done = self.total = 0

    def __call__(self, done: int, total: int) -> None:
        for watcher in watchers:
            watcher(self.name, done - self.done, total - self.total)
        self.done, self.total = done, total
        percent = 100.0 * done / total if total else 100.0
        if self.artifact is None:
            if done < total:
                self.artifact = create_progress_artifact(percent, description=f"{self.name}: items of the shard done")
        elif done == total or time.monotonic() - self.last > PROGRESS_EVERY_S:
            update_progress_artifact(self.artifact, percent)
            self.last = time.monotonic()
