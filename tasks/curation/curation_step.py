"""What the pipeline knows of one of its steps, and all of them in order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any, Generic, Literal, TypeVar

from prefect.tasks import Task
from pydantic import BaseModel
from sqlalchemy import func, select

from medgen.among import pages
from medgen.canonical import digest_of
from medgen.catalog import Tombstone, declare_item_step, open_catalog
from medgen.ledger import open_ledger
from medgen.shard import Item, ShardResult, Step
from medgen.shard_results import Facts, ShardReference, ShardResults, shard_key, standing
from tasks.curation.steps import STEP_NAMES
from tasks.prefect_step import StepProgress, run_in_prefect, run_stored_in_prefect, step_task

Params = TypeVar("Params", bound=BaseModel)

SHARDS_AT_ONCE = 64  # whose items are in memory together


@dataclass(frozen=True)
class CurationStep(Generic[Params]):
    """A step of the pipeline from listings to captioned clips.

    Args:
        name: as on record, in the funnel and in the UI.
        params: its parameters, which become parameters of the refresh.
        step: parameters → the step, ready to run. Loads no model; raises ModelUnavailable and ValueError when one
            can't be had.
        load_models: loads the models that it will ask for and that are no packages, once a run, before any work.
            Raises ModelUnavailable.
        resource: tag of its task runs, for limits of concurrency.
        scope: a step over the dataset waits for all shards and compares their items.
    """

    name: str
    params: type[Params]
    step: Callable[[Params], Step]
    load_models: Callable[[Params], None] | None = None
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

    def run_shard(self, upstream: ShardReference, params: Params, retry_quarantined: bool = False) -> ShardReference:
        """Runs the step on a shard of which the catalog has what the step before kept, and keeps the result there."""
        declare_item_step(open_catalog(), self.name)
        items = ShardResults(open_ledger()).items(upstream)
        return run_stored_in_prefect(self.step(params), items, retry_quarantined=retry_quarantined)

    def run_together(
        self, upstream: Sequence[ShardReference], params: Params, retry_quarantined: bool = False
    ) -> list[ShardReference]:
        """The same for a step over the dataset: compares the items of all shards, then runs on each shard."""
        declare_item_step(open_catalog(), self.name)
        step, results = self.step(params), ShardResults(open_ledger())
        facts = _compared(step, upstream, results)
        progress = StepProgress(self.name)
        total, done = sum(shard.kept for shard in upstream), 0
        made = []
        for page in pages(upstream, SHARDS_AT_ONCE):
            kept = results.get(shard.key for shard in page)
            shards = [kept[shard.key].kept for shard in page]
            stand = standing(step, shards, facts=facts, retry_quarantined=retry_quarantined, results=results)
            for items, result in zip(shards, stand, strict=True):
                made.append(
                    result[0]
                    if result
                    else run_stored_in_prefect(
                        step, items, facts=facts, retry_quarantined=retry_quarantined, quiet=True
                    )
                )
                done += len(items)
                progress(done, total)
        return made

    @cached_property
    def task(self) -> Task[..., Any]:
        """The step as a Prefect task: (label, upstream, params, retry_quarantined) → reference to the result; of a step
        over the dataset from and to a list of them."""

        def run(
            label: str,
            upstream: ShardReference | Sequence[ShardReference],
            params: Any,
            retry_quarantined: bool = False,
        ) -> ShardReference | list[ShardReference]:
            if isinstance(upstream, ShardReference):
                return self.run_shard(upstream, params, retry_quarantined)
            return self.run_together(upstream, params, retry_quarantined)

        return step_task(self.name, self.resource)(run)


@cache
def steps() -> tuple[CurationStep[Any], ...]:
    """The steps of `tasks.curation.steps`, whose modules are imported at the first call."""
    return tuple(import_module(f"tasks.curation.{name}").STEP for name in STEP_NAMES)


def _compared(step: Step, shards: Sequence[ShardReference], results: ShardResults) -> Facts:
    """What the step finds of the items of all shards, those of videos that were taken down left out.

    It is kept with all that it follows from: the items of the shards, the step, and the takedowns.
    """
    if step.compare is None:
        return {}
    items = digest_of([[shard_key(step.identity, shard) for shard in page] for page in _items(shards, results)])
    takedowns = select(func.count(), func.max(Tombstone.forgotten_at))
    with results.engine.connect() as connection:
        count, newest = connection.execute(takedowns).one()
    key = digest_of(["compared", items, count, newest.isoformat() if newest else None])
    if (known := results.facts(key)) is not None:
        return known
    facts = step.compare(item for page in _items(shards, results) for item in _living(page, results))
    results.put_facts(key, step.identity.name, facts)
    return facts


def _items(shards: Sequence[ShardReference], results: ShardResults) -> Iterator[list[tuple[Item, ...]]]:
    """The items of shards, some shards at a time."""
    for page in pages(shards, SHARDS_AT_ONCE):
        kept = results.get(shard.key for shard in page)
        yield [kept[shard.key].kept for shard in page]


def _living(shards: Sequence[Sequence[Item]], results: ShardResults) -> Iterator[Item]:
    gone = results.ledger.forgotten(item.subject for shard in shards for item in shard)
    yield from (item for shard in shards for item in shard if item.subject not in gone)
