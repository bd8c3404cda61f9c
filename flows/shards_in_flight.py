"""Sends shards through steps: what stands is passed over, and only so many shards are under way at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from prefect.exceptions import UnfinishedRun
from prefect.futures import PrefectFuture
from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_exponential

from flows.flow_signature import subset
from medgen.canonical import digest_of
from medgen.ledger import open_ledger
from medgen.parameters import Parameters
from medgen.settings import current
from medgen.shard import Item, ShardResult
from medgen.shard_results import ShardReference, ShardResults, on_record, standing
from tasks.curation.curation_step import CurationStep
from tasks.curation.list_sources import Listing
from tasks.progress import step_listener

MOST_SENT = 3  # times that a shard's tasks are submitted; what was done by then is found on record
OUTAGE_S = 90.0  # a restarted Postgres is back within a minute or so

P = ParamSpec("P")
R = TypeVar("R")


def bridging_outages(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function of the flow itself outlive a restart of Postgres, as tasks do by their retries."""
    return retry(
        retry=retry_if_exception_type(OperationalError),
        stop=stop_after_delay(OUTAGE_S),
        wait=wait_exponential(max=5),
        reraise=True,
    )(function)


@dataclass
class _Chain:
    """A shard on its way.

    Args:
        results: of the steps that it has passed.
        steps: that are left.
        items: for the first of them.
        sent: how often its tasks were submitted.
        step_by_step: what the first of the steps made is on record but for some items; what it makes of these seldom
            changes anything for the steps after it, which are looked up then and not submitted yet.
    """

    label: str
    items: Sequence[Item]
    steps: Sequence[CurationStep[Any]]
    results: list[ShardReference] = field(default_factory=list)
    sent: int = 1
    step_by_step: bool = False


class ShardsInFlight:
    """Shards under way.

    Args:
        parameters: of the flow; each step takes its own.
        retry_quarantined: work again on items that failed for good.

    Attributes:
        results: references to what the steps made of all shards so far.
        errors: the first cause of each chain that broke.
    """

    def __init__(self, parameters: Parameters, *, retry_quarantined: bool) -> None:
        self.parameters, self.retry_quarantined = parameters, retry_quarantined
        self.results: list[ShardReference] = []
        self.errors: list[str] = []
        settings = current()
        self._most = 2 * (settings.workers + settings.download_workers)
        self._under_way: deque[tuple[_Chain, list[PrefectFuture[Any]]]] = deque()

    def send(self, shards: Iterable[tuple[str, Sequence[Item]]], steps: Sequence[CurationStep[Any]]) -> None:
        """Sends labelled shards through steps over shards, one step after the other. Waits while many are under way."""
        chains = [_Chain(label, items, steps) for label, items in shards]
        self._pass_over(chains)
        for chain in chains:
            self.results += chain.results
            if not chain.steps or not chain.items:
                continue
            while len(self._under_way) >= self._most:
                self._collect()
            self._under_way.append((chain, self._submitted(chain)))

    def send_together(self, shards: Sequence[ShardReference], step: CurationStep[Any]) -> list[ShardReference]:
        """Sends shards through a step over the dataset; gives a result a shard, none when it failed."""
        future = self._submit(step, "all", shards)
        made = future.result(raise_on_failure=False)
        if not isinstance(made, list):
            self.errors.append(in_a_line(made))
            return []
        self.results += made
        return made

    def finish(self) -> None:
        """Waits for all shards."""
        while self._under_way:
            self._collect()

    def _pass_over(self, chains: Sequence[_Chain]) -> None:
        """Takes the chains past the steps whose results stand."""
        todo = list(chains)
        while todo := [chain for chain in todo if chain.items and chain.steps]:
            step = todo[0].steps[0]
            stand = bridging_outages(standing)(
                step.step(subset(self.parameters, step.params)),
                [chain.items for chain in todo],
                retry_quarantined=self.retry_quarantined,
            )
            onward, halted = [], []
            for chain, result in zip(todo, stand, strict=True):
                if result is None:
                    halted.append(chain)
                    continue
                reference, chain.items = result
                chain.results.append(reference)
                chain.steps = chain.steps[1:]
                onward.append(chain)
                if listener := step_listener():
                    listener(step.name, reference.records, reference.records)
            if halted:
                known = bridging_outages(on_record)(
                    step.step(subset(self.parameters, step.params)), [chain.items for chain in halted]
                )
                for chain, is_known in zip(halted, known, strict=True):
                    chain.step_by_step = is_known
            todo = onward

    def _submitted(self, chain: _Chain) -> list[PrefectFuture[Any]]:
        upstream: Any = chain.results[-1] if chain.results else self._kept(chain.items)
        futures = []
        for step in chain.steps[:1] if chain.step_by_step else chain.steps:
            upstream = self._submit(step, chain.label, upstream)
            futures.append(upstream)
        return futures

    @bridging_outages
    def _kept(self, items: Sequence[Item]) -> ShardReference:
        """Keeps the items of a new shard where tasks find them."""
        result = ShardResult("discover", tuple(items))
        return ShardResults(open_ledger()).put(
            digest_of([[i.subject, sorted(i.lineage.items())] for i in items]), result
        )

    def _submit(self, step: CurationStep[Any], label: str, upstream: Any) -> PrefectFuture[Any]:
        return step.task.submit(label, upstream, subset(self.parameters, step.params), self.retry_quarantined)

    def _collect(self) -> None:
        """Waits for the shard that was sent first."""
        chain, futures = self._under_way.popleft()
        try:
            results, errors = gather(futures)
        except UnfinishedRun:  # a machine of a cluster died as one of the tasks was about to begin
            if chain.sent == MOST_SENT:
                raise
            chain.sent += 1
            self._under_way.append((chain, self._submitted(chain)))
            return
        self.results += results
        self.errors += errors
        if chain.step_by_step and results and not errors:
            self._go_on(chain, results[0])

    def _go_on(self, chain: _Chain, done: ShardReference) -> None:
        """Takes a chain on whose first step has been done by itself."""
        chain.results, chain.steps, chain.step_by_step = [done], chain.steps[1:], False
        if not chain.steps or not done.kept:
            return
        chain.items = bridging_outages(ShardResults(open_ledger()).items)(done)
        self._pass_over([chain])
        self.results += chain.results[1:]
        if chain.steps and chain.items:
            self._under_way.append((chain, self._submitted(chain)))


def gather(futures: Iterable[PrefectFuture[Any]]) -> tuple[list[ShardReference], list[str]]:
    """Results of tasks, and the first cause of each chain of them that broke."""
    results, errors = [], []
    for future in futures:
        future.wait()
        result = future.result(raise_on_failure=False)
        if isinstance(result, ShardReference):
            results.append(result)
        elif not isinstance(result, Listing) and future.state.name != "NotReady":
            errors.append(in_a_line(result))  # NotReady only means that an earlier step broke
    return results, errors


def in_a_line(error: Any) -> str:
    """What broke, without what SQLAlchemy adds to it: the statement, its values and where to read on."""
    return str(error.orig).strip().partition("\n")[0] if isinstance(error, DBAPIError) else str(error)
