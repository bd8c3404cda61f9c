"""Maps a step's function over the items of a shard: the one loop that every step shares.

Items that the ledger knows are reused without touching their bytes; those of videos that were taken down end here.
The others run in worker processes, which a decoder may crash and limits of time and memory may end without hurting
anything else. What ended goes on record a few items at a time; a kill costs no more than these. One bad item is
recorded and the rest go on; a shard that fails mostly for one transient cause raises, because then the fault is not
the items'.
"""

import errno
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import Any, Literal

from pebble import ProcessExpired, ProcessPool

from medgen.catalog import now
from medgen.claims import Claims, claims
from medgen.devices import devices
from medgen.download_slots import download_slot
from medgen.errors import ItemFailed
from medgen.inference import ask, close_inference
from medgen.inference_process import Loaded, Served
from medgen.ledger import Ended, Ledger, Outcome, Record, StepIdentity, Work, open_ledger
from medgen.settings import current
from medgen.step_processes import close_step_processes, step_processes
from medgen.store import Store, open_store
from medgen.takedown import TAKEN_DOWN
from medgen.worker_processes import MEMORY_LIMIT, close_decoders, failure_of, pool_broke

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # of one item within one run, when its failure may pass
BACKOFF_S = 1.0  # doubled at each attempt
MANY_FAILURES = 8  # fewer than this many never fail a shard
# What ended and is not on record yet: at most so many items, with so many rows, for so long.
UNWRITTEN_ITEMS = 64
UNWRITTEN_ROWS = 5_000
UNWRITTEN_S = 2.0
# What took as long to make goes on record at once: to make it again costs a hundred times what a transaction does.
WRITTEN_AT_ONCE_S = 1.0


@dataclass(frozen=True)
class Item:
    """A subject on its way through the steps.

    Args:
        subject: what the next step is about.
        lineage: step name → id of the step run that the subject passed.
    """

    subject: str
    lineage: Mapping[str, int] = field(default_factory=dict)


Past = Mapping[str, Record]
"""The records of an item's lineage: step name → record."""


@dataclass(frozen=True)
class Step:
    """A step, ready to run: `run_shard(step, items)`.

    Args:
        identity: name, version, parameters, models.
        function: (work, store) → outcome; a module-level function or a `functools.partial` of one, because it
            travels to worker processes. Raises `ItemFailed` for bad items.
        work_of: (item, records of its lineage) → what the function sees. A step that is given its works needs none.
        fan_out: (item, its kept record) → items for the next step; by default the same subject.
        compare: (items, each looked at once) → subject → facts that join the context of its work, for a step that must
            know all items at once. Loads what it needs of them itself; subjects without facts may be left out.
        prepare: called once before any item is worked on.
        looks_outside: whether the work on these items depends on more than what is on record, such as files that
            people may change. What was made of them is looked at anew each time.
        runs_in: worker processes (decoding, small models), the inference processes of the devices (one work at a time
            on each), threads (waiting for a network or for a model) or inline (arithmetic).
        time_limit_s: an item that takes longer is killed (processes, device) and quarantined.
        queue_key: what a work has to queue for, such as a host. Works with different keys are taken up in turn, so
            that a slow host does not keep all workers waiting.
    """

    identity: StepIdentity
    function: Callable[[Work, Store], Outcome]
    work_of: Callable[[Item, Past], Work] | None = None
    fan_out: Callable[[Item, Record], Iterable[Item]] | None = None
    compare: Callable[[Iterable[Item]], Mapping[str, Mapping[str, Any]]] | None = None
    prepare: Callable[[Store], None] | None = None
    looks_outside: "Callable[[Sequence[Item | Work]], bool] | None" = None
    runs_in: Literal["processes", "device", "threads", "inline"] = "processes"
    time_limit_s: float | None = None
    queue_key: Callable[[Work], str] | None = None


@dataclass(frozen=True)
class ShardResult:
    """What a step made of a shard.

    Args:
        step: name of the step.
        kept: items for the next step.
        dropped: lineages of the items that were rejected or failed here, this step included.
        executed, reused: number of items worked on and found in the ledger.
        decodes: number of video files opened for decoding in this run.
        records: ids of the step runs of all items.
    """

    step: str
    kept: tuple[Item, ...] = ()
    dropped: tuple[Mapping[str, int], ...] = ()
    executed: int = 0
    reused: int = 0
    decodes: int = 0
    records: tuple[int, ...] = ()


class ShardFailed(RuntimeError):
    """Most items of a shard failed for the same transient reason."""


def run_shard(
    step: Step,
    items: Sequence[Item | Work],
    *,
    flow_run_id: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    retry_quarantined: bool = False,
    ledger: Ledger | None = None,
) -> ShardResult:
    """Runs `step` on every item that the ledger has no standing record of.

    Args:
        items: items on their way through the steps, or works whose facts are known already.
        progress: called with (done, total).
        retry_quarantined: work again on items that failed for good.

    Raises:
        ShardFailed: see above.
    """
    ledger = ledger or open_ledger()
    if step.prepare:
        step.prepare(ledger.store)
    on_the_way = [Item(item.subject) if isinstance(item, Work) else item for item in items]
    works, gone = _works(step, items, on_the_way, ledger)
    keys = [step.identity.key(work) for work in works]
    known = ledger.find(keys)
    records = ledger.done(known)
    if retry_quarantined:
        records = {key: record for key, record in records.items() if record.status != "failed"}
    todo = {key: work for key, work in zip(keys, works, strict=True) if key not in records}
    if step.queue_key:
        todo = _in_turn(todo, step.queue_key)
    if progress:
        progress(len(keys) - len(todo), len(keys))
    causes: Counter[str] = Counter()
    executed = decodes = 0
    written = _Written(ledger, step.identity, flow_run_id, records, len(keys), progress)
    with claims(ledger.engine) as claim:
        for mine in _not_done_by_others(claim, todo, ledger, known, records):
            executed += len(mine)
            decodes += _work_off(step, mine, ledger.store, gone, known, written, causes)
    for reason, count in causes.most_common(1):
        if count >= MANY_FAILURES and count > len(items) / 2:
            raise ShardFailed(
                f"{step.identity.name}: {count} of {len(items)} items failed with {reason}; run again when it is mended"
            )
    kept, dropped = _kept_and_dropped(step, on_the_way, [records[key] for key in keys])
    return ShardResult(
        step.identity.name,
        kept,
        dropped,
        executed,
        len(keys) - executed,
        decodes,
        tuple(records[key].id for key in keys),
    )


def _not_done_by_others(
    claim: Claims, todo: Mapping[str, Work], ledger: Ledger, known: dict[str, Record], records: dict[str, Record]
) -> Iterator[dict[str, Work]]:
    """What is left of `todo`, in groups, each claimed while it is worked on. What other runs do meanwhile joins `known`
    and, where it stands, `records`."""
    for keys in claim.in_turn(todo):
        found = ledger.find(keys)
        records |= ledger.done({k: r for k, r in found.items() if k not in known or known[k].id != r.id})
        known |= found
        yield {key: todo[key] for key in keys if key not in records}


def _work_off(
    step: Step,
    todo: Mapping[str, Work],
    store: Store,
    gone: set[str],
    known: Mapping[str, Record],
    written: "_Written",
    causes: Counter[str],
) -> int:
    """Works on all of `todo`, what may pass several times, and puts it on record. Reasons of failures join `causes`.

    Returns:
        The number of video files opened for decoding.
    """
    decodes = 0
    for attempt in range(1, MAX_ATTEMPTS + 1):
        again: dict[str, Work] = {}
        for ending in _outcomes(step, todo, store, gone):
            if ending is None:
                written.put_down_in_time()
                continue
            key, outcome = ending.key, ending.outcome
            if isinstance(outcome, ItemFailed):
                # What did not work in an earlier run either is tried once a run: seconds are not what it needs.
                transient = outcome.transient and not outcome.later and key not in known
                # A worker may hold what earlier items left: only who asks too much twice is at fault.
                unlucky = outcome.reason == MEMORY_LIMIT and attempt == 1
                if (transient and attempt < MAX_ATTEMPTS) or unlucky:
                    again[key] = todo[key]
                    continue
                causes[outcome.reason] += outcome.transient and not outcome.later
                log.warning("%s %s: %s", step.identity.name, todo[key].subject, outcome)
            else:
                decodes += outcome.decodes
            written.add(key, Ended(todo[key], outcome, ending.started_at, now(), known.get(key)))
        written.put_down()
        todo = again
        if not todo:
            break
        time.sleep(BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # shards must not come back in step
    return decodes


class _Written:
    """Puts on record what ended, some items at a time. Records join `records`, whose number of `total` is told."""

    def __init__(
        self,
        ledger: Ledger,
        step: StepIdentity,
        flow_run_id: str | None,
        records: dict[str, Record],
        total: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.ledger, self.step, self.flow_run_id, self.records = ledger, step, flow_run_id, records
        self.total, self.progress = total, progress
        self.ended: dict[str, Ended] = {}
        self.rows = 0
        self.since = time.monotonic()

    def add(self, key: str, ended: Ended) -> None:
        """Takes what ended, and puts all down when it is much, took long or has waited."""
        if not self.ended:
            self.since = time.monotonic()
        self.ended[key] = ended
        if isinstance(ended.outcome, Outcome) and isinstance(ended.outcome.rows, Sequence):
            self.rows += len(ended.outcome.rows)
        took_long = (ended.finished_at - ended.started_at).total_seconds() >= WRITTEN_AT_ONCE_S
        if took_long or len(self.ended) >= UNWRITTEN_ITEMS or self.rows >= UNWRITTEN_ROWS:
            self.put_down()
        else:
            self.put_down_in_time()

    def put_down_in_time(self) -> None:
        """Puts all down when it has waited long enough."""
        if time.monotonic() - self.since >= UNWRITTEN_S:
            self.put_down()

    def put_down(self) -> None:
        """Puts all on record."""
        if not self.ended:
            return
        self.records |= self.ledger.write_all(self.step, self.ended, flow_run_id=self.flow_run_id)
        self.ended, self.rows = {}, 0
        if self.progress:
            self.progress(len(self.records), self.total)


class _Pasts:
    """Records of the lineages of items. Those of a step are loaded for all items when the first is asked for: no step
    looks at all that were before it."""

    def __init__(self, ledger: Ledger, items: Sequence[Item]) -> None:
        self._ledger, self._items = ledger, items
        self._records: dict[str, dict[int, Record]] = {}

    def of(self, item: Item) -> Past:
        """step → record of one item."""
        return _Past(self, item.lineage)

    def record(self, step: str, run_id: int) -> Record:
        """A record of the step `step`."""
        if step not in self._records:
            ids = {item.lineage[step] for item in self._items if step in item.lineage}
            self._records[step] = self._ledger.load(ids)
        return self._records[step][run_id]


class _Past(Mapping[str, Record]):
    def __init__(self, pasts: _Pasts, lineage: Mapping[str, int]) -> None:
        self._pasts, self._lineage = pasts, lineage

    def __getitem__(self, step: str) -> Record:
        return self._pasts.record(step, self._lineage[step])

    def __iter__(self) -> Iterator[str]:
        return iter(self._lineage)

    def __len__(self) -> int:
        return len(self._lineage)


def _works(
    step: Step, given: Sequence[Item | Work], items: Sequence[Item], ledger: Ledger
) -> tuple[list[Work], set[str]]:
    """(the work of every item, with its lineage as parents; subjects that were taken down)."""
    gone = ledger.forgotten(item.subject for item in items)
    compared = step.compare(item for item in items if item.subject not in gone) if step.compare else {}
    pasts = _Pasts(ledger, items)
    works = []
    for item_or_work, item in zip(given, items, strict=True):
        if item.subject in gone:
            works.append(Work(item.subject))
        elif isinstance(item_or_work, Work):
            works.append(item_or_work)
        elif step.work_of:
            try:
                work = step.work_of(item, pasts.of(item))
            except Exception:
                if item.subject not in ledger.forgotten([item.subject]):
                    raise
                work = Work(item.subject)  # a takedown has blanked its records meanwhile
            works.append(replace(work, context={**work.context, **compared.get(item.subject, {})}))
        else:
            raise TypeError(f"{step.identity.name} has no work_of: it takes works, not items")
    # Again, after the loads: of a record that was blanked before it was loaded, this knows.
    gone |= ledger.forgotten(item.subject for item in items)
    parents = [item.parents if isinstance(item, Work) else {} for item in given]
    return [
        replace(Work(item.subject) if item.subject in gone else work, parents={**item.lineage, **work.parents, **own})
        for work, item, own in zip(works, items, parents, strict=True)
    ], gone


def _kept_and_dropped(
    step: Step, items: Sequence[Item], records: Sequence[Record]
) -> tuple[tuple[Item, ...], tuple[Mapping[str, int], ...]]:
    """(items for the next step, lineages that end here)."""
    kept: list[Item] = []
    dropped: list[Mapping[str, int]] = []
    for item, record in zip(items, records, strict=True):
        lineage = {**item.lineage, step.identity.name: record.id}
        if record.status != "kept":
            dropped.append(lineage)
            continue
        here = Item(record.subject, lineage)
        kept.extend(step.fan_out(here, record) if step.fan_out else [here])
    return tuple(kept), tuple(dropped)


def _in_turn(todo: Mapping[str, Work], queue_key: Callable[[Work], str]) -> dict[str, Work]:
    """The first work of each queue, then the second of each, and so on."""
    before: Counter[str] = Counter()
    turns: list[tuple[int, str]] = []
    for key, work in todo.items():
        queue = queue_key(work)
        turns.append((before[queue], key))
        before[queue] += 1
    return {key: todo[key] for _, key in sorted(turns, key=lambda turn: turn[0])}


_Running = Future[tuple[Outcome | ItemFailed, datetime]]


@dataclass(frozen=True)
class _Ending:
    """How the work of a key ended."""

    key: str
    outcome: Outcome | ItemFailed
    started_at: datetime


def _outcomes(step: Step, todo: Mapping[str, Work], store: Store, gone: set[str]) -> Iterator[_Ending | None]:
    """As `_execute`; subjects that were taken down are refused unseen."""
    for key, work in todo.items():
        if work.subject in gone:
            yield _Ending(key, Outcome("rejected", TAKEN_DOWN), now())
    yield from _execute(step, {k: work for k, work in todo.items() if work.subject not in gone}, store)


def _execute(step: Step, todo: Mapping[str, Work], store: Store) -> Iterator[_Ending | None]:
    """Yields how works end, as they end, and None where none has for a while."""
    if step.runs_in == "inline":
        for key, work in todo.items():
            started = now()
            yield _Ending(key, _attempt(partial(_tidied, step.function, work, store)), started)
        return
    if todo and step.runs_in == "threads":
        with _starting:
            threads = _threads()
        yield from _as_they_end(step, {threads.submit(_timed_in_turn, step.function, w): k for k, w in todo.items()})
    elif todo and step.runs_in == "device":
        with _starting:
            askers = _device_threads()
        limit = step.time_limit_s
        yield from _as_they_end(
            step, {askers.submit(_timed_on_device, step.function, w, limit): k for k, w in todo.items()}
        )
    elif todo:
        with step_processes() as pool:
            jobs = {_scheduled(pool, step, work): key for key, work in todo.items()}
            yield from _as_they_end(step, jobs, lambda: pool.active)


def _scheduled(pool: ProcessPool, step: Step, work: Work) -> _Running:
    try:
        scheduled: _Running = pool.schedule(_timed, args=(step.function, work), timeout=step.time_limit_s)
    except RuntimeError:  # the pool has just broken
        scheduled = Future()
        scheduled.set_exception(pool_broke())
    return scheduled


def _as_they_end(
    step: Step, futures: dict[_Running, str], go_on: Callable[[], bool] = lambda: True
) -> Iterator[_Ending | None]:
    """As `_execute`, of what runs. What has not begun when nobody asks any more never will.

    `go_on` says whether any of it may still end: a pool that broke tells nobody.
    """
    ended: SimpleQueue[_Running] = SimpleQueue()
    for future in list(futures):
        future.add_done_callback(ended.put)
    try:
        while futures:
            try:
                future = ended.get(timeout=UNWRITTEN_S)
            except Empty:
                if not go_on():
                    for key in [futures.pop(future) for future in list(futures) if not future.done()]:
                        yield _Ending(key, pool_broke(), now())
                yield None
                continue
            key, started = futures.pop(future), now()  # what ended is not held: an outcome may have thousands of rows

            def result(future: _Running = future) -> Outcome | ItemFailed:
                nonlocal started
                outcome, started = future.result()
                return outcome

            outcome = _attempt(result, step.time_limit_s)
            del future
            yield _Ending(key, outcome, started)
    finally:
        for future in futures:
            future.cancel()


def _attempt(call: Callable[[], Outcome | ItemFailed], time_limit_s: float | None = None) -> Outcome | ItemFailed:
    """The outcome of `call`, any error turned into the failure of that item."""
    try:
        return call()
    except ItemFailed as failure:
        return failure
    except (MemoryError, OSError) as error:
        if isinstance(error, ProcessExpired) or (isinstance(error, TimeoutError) and time_limit_s is not None):
            return failure_of(error, time_limit_s)
        return _lack(error)
    except Exception as error:
        log.exception("unforeseen error in an item")
        # The program's fault more likely than the item's: a mended program must try again.
        return ItemFailed("unforeseen_error", f"{type(error).__name__}: {error}", transient=True)


def _timed(function: Callable[[Work, Store], Outcome], work: Work) -> tuple[Outcome | ItemFailed, datetime]:
    """What workers run."""
    started = now()
    try:
        return _tidied(function, work, open_store()), started
    except ItemFailed as failure:
        return failure, started
    except (MemoryError, OSError) as error:  # said here: not every library's error can travel between processes
        return _lack(error), started


def _timed_in_turn(function: Callable[[Work, Store], Outcome], work: Work) -> tuple[Outcome | ItemFailed, datetime]:
    """What threads run."""
    with download_slot():
        return _timed(function, work)


def _timed_on_device(
    function: Callable[[Work, Store], Outcome], work: Work, time_limit_s: float | None
) -> tuple[Outcome | ItemFailed, datetime]:
    """What the threads of devices run: each waits for one."""
    ended: tuple[Outcome | ItemFailed, datetime] = ask(
        WORKS, [(function, work)], device=_thread.device, limit_s=time_limit_s
    )[0]
    return ended


def _works_done(_device: str) -> Loaded:
    return Loaded(lambda works: [_timed(function, work) for function, work in works])


WORKS = Served(_works_done)
"""Stands for the functions of steps, which load what they need."""


def _tidied(function: Callable[[Work, Store], Outcome], work: Work, store: Store) -> Outcome:
    """Calls a step's function. Work that fails leaves no scratch files, which would fill the disk further."""
    with store.tidy():
        return function(work, store)


def _lack(error: MemoryError | OSError) -> ItemFailed:
    """What an item failed of that found no room, no memory or no handle: nothing that is wrong with the item."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ItemFailed("disk_full", f"there is no room left on the disk: {error}", transient=True)
    return ItemFailed("resources", f"{type(error).__name__}: {error}", transient=True)


_starting = threading.Lock()  # `cache` calls a function twice when two threads come first


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(current().download_workers, thread_name_prefix="medgen-download")


_thread = threading.local()


@cache
def _device_threads() -> ThreadPoolExecutor:
    """A thread for each device, so that the next work goes to the one that is free."""
    names: SimpleQueue[str] = SimpleQueue()
    for device in devices():
        names.put(device)

    def take() -> None:
        _thread.device = names.get()

    return ThreadPoolExecutor(len(devices()), thread_name_prefix="medgen-device", initializer=take)


def close_pools() -> None:
    """Ends the worker processes, inference processes and threads of this process, if there are any."""
    close_step_processes()
    close_decoders()
    close_inference()
    for pool in (_threads, _device_threads):
        if pool.cache_info().currsize:
            pool().shutdown(wait=False, cancel_futures=True)
            pool.cache_clear()
