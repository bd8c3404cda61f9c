"""What the pipeline knows of one of its steps. All of them, in order: `tasks.curation.steps.steps()`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

from prefect.tasks import Task
from pydantic import BaseModel

from medgen.catalog import declare_item_step, open_catalog
from medgen.shard import ShardResult, Step
from tasks.prefect_step import run_in_prefect, step_task

Params = TypeVar("Params", bound=BaseModel)


@dataclass(frozen=True)
class CurationStep(Generic[Params]):
    """A step of the pipeline from listings to captioned clips.

    Args:
        name: as on record, in the funnel and in the UI.
        params: its parameters, which become parameters of the refresh.
        step: parameters → the step, ready to run. Loads no model; raises ModelUnavailable and ValueError when one
            can't be had.
        resource: tag of its task runs, for limits of concurrency.
        scope: a step over the dataset waits for all shards and sees their items together.
    """

    name: str
    params: type[Params]
    step: Callable[[Params], Step]
    resource: Literal["network", "cpu", "gpu"] = "cpu"
    scope: Literal["shard", "dataset"] = "shard"

    def run(
        self, upstream: ShardResult | Sequence[ShardResult], params: Params, retry_quarantined: bool = False
    ) -> ShardResult:
        """Runs the step on what the step before kept, of one shard or of several together."""
        declare_item_step(open_catalog(), self.name)
        shards = [upstream] if isinstance(upstream, ShardResult) else upstream
        items = [item for shard in shards for item in shard.kept]
        if self.scope == "dataset":  # in an order of its own: the outcome must not depend on that of the shards
            items.sort(key=lambda item: item.subject)
        return run_in_prefect(self.step(params), items, retry_quarantined=retry_quarantined)

    @cached_property
    def task(self) -> Task[..., ShardResult]:
        """The step as a Prefect task: (label, upstream, params, retry_quarantined) → result."""

        def run(
            label: str,
            upstream: ShardResult | Sequence[ShardResult],
            params: Any,
            retry_quarantined: bool = False,
        ) -> ShardResult:
            return self.run(upstream, params, retry_quarantined)

        return step_task(self.name, self.resource)(run)
