"""What steps made of whole shards: what did not change is not looked at item by item, and flows hold references.

A result is known by all that decides on it: the step with its parameters and models, and the items with their lineages.
It says again what the step runs say, and counts for an item only while its step run stands: not superseded, not failed
for a cause that may pass, none of its outputs lost, its video not taken down. The other items are run anew, one by one.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import ARRAY, Select, Text, bindparam, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from medgen.among import among
from medgen.canonical import canonical_json, digest_of
from medgen.catalog import ShardResult as Row
from medgen.catalog import now
from medgen.ledger import Ledger, StepIdentity, Work, open_ledger
from medgen.shard import Item, ShardResult, Step, run_shard
from medgen.takedown import TAKEN_DOWN

KEPT_FOR = timedelta(days=30)  # without use

Facts = Mapping[str, Mapping[str, Any]]
"""Subject → what `Step.compare` found of it."""

_STALE = text(
    """
    SELECT stored.key, run.id
    FROM shard_result AS stored CROSS JOIN unnest(stored.runs) AS of_item (id) JOIN step_run AS run USING (id)
    WHERE stored.key = ANY(:keys) AND (
      run.superseded
      OR run.status = 'failed' AND (run.transient OR :retry_quarantined OR EXISTS (
        SELECT FROM retry_request AS asked
        WHERE asked.reason = run.reason AND asked.step IN ('', run.step) AND asked.asked_at > run.finished_at))
      OR EXISTS (SELECT FROM step_output JOIN lost_artifact ON sha256 = artifact_sha256 WHERE step_run_id = run.id)
      OR run.reason IS DISTINCT FROM :taken_down AND (
        split_part(run.subject, '/', 1) IN (SELECT video_id FROM tombstone)
        OR run.subject IN (SELECT clip.id FROM clip JOIN tombstone USING (video_id))
      )
    )
    """
).bindparams(bindparam("keys", type_=ARRAY(Text)))


@dataclass(frozen=True)
class ShardReference:
    """A step's result on a shard that lies in the catalog under `key`, and how much it is.

    Args:
        kept: items for the next step.
        records: step runs.
        ended: those of them that rejected or failed.
        executed, reused, decodes: as of `ShardResult`, in this run.
    """

    step: str
    key: str
    kept: int
    records: int
    ended: int
    executed: int = 0
    reused: int = 0
    decodes: int = 0


def runs_of(references: Iterable[ShardReference]) -> Select[tuple[int]]:
    """A query for `id`: of the step runs of all items of shards, each once."""
    keys = among(Row.key, (reference.key for reference in references))
    return select(func.unnest(Row.runs).label("id")).where(keys).distinct()


def shard_key(step: StepIdentity, items: Sequence[Item | Work], facts: Facts | None = None) -> str:
    """sha256 over all that decides on the result of a step on a shard."""
    seen = [
        step.key(item) if isinstance(item, Work) else [item.subject, sorted(item.lineage.items())] for item in items
    ]
    own = {item.subject: facts[item.subject] for item in items if item.subject in facts} if facts else {}
    return digest_of(
        {
            "step": step.name,
            "version": step.version,
            "params": step.params,
            "models": step.models,
            "items": seen,
            "facts": own,
        }
    )


class ShardResults:
    """Reads and writes them. Safe for any number of threads and processes."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.engine = ledger.engine

    def get(self, keys: Iterable[str]) -> dict[str, ShardResult]:
        """key → result, of those that there are. Nothing was executed for it in this run."""
        query = select(Row.key, Row.step, Row.content).where(among(Row.key, keys))
        with self.engine.connect() as connection:
            return {key: _read(step, content) for key, step, content in connection.execute(query)}

    def dropped(self, keys: Iterable[str]) -> dict[str, list[Mapping[str, int]]]:
        """key → lineages that ended with the result, of those that there are."""
        query = select(Row.key, Row.content).where(among(Row.key, keys))
        with self.engine.connect() as connection:
            return {key: json.loads(zlib.decompress(content))["dropped"] for key, content in connection.execute(query)}

    def items(self, reference: ShardReference) -> tuple[Item, ...]:
        """What a step kept of a shard. Raises KeyError: it is no longer there."""
        return self.get([reference.key])[reference.key].kept

    def result(self, reference: ShardReference) -> ShardResult:
        """The result behind a reference, with the figures of the run that made the reference. Raises as `items`."""
        result = self.get([reference.key])[reference.key]
        return replace(result, executed=reference.executed, reused=reference.reused, decodes=reference.decodes)

    def put(self, key: str, result: ShardResult) -> ShardReference:
        """Keeps a result."""
        self._put(key, result.step, _written(result), result.records)
        return _reference(key, result)

    def stale(self, keys: Sequence[str], *, retry_quarantined: bool = False) -> dict[str, set[int]]:
        """key → step runs that no longer stand for their items; only of results that have such."""
        values = {"keys": list(keys), "retry_quarantined": retry_quarantined, "taken_down": TAKEN_DOWN}
        stale: dict[str, set[int]] = {}
        with self.engine.connect() as connection:
            for key, run_id in connection.execute(_STALE, values):
                stale.setdefault(key, set()).add(run_id)
        return stale

    def facts(self, key: str) -> Facts | None:
        """What was found when all items were compared that `key` stands for."""
        query = select(Row.content).where(Row.key == key)
        with self.engine.connect() as connection:
            content = connection.scalar(query)
        if content is None:
            return None
        self.used([key])
        facts: Facts = json.loads(zlib.decompress(content))
        return facts

    def put_facts(self, key: str, step: str, facts: Facts) -> None:
        """Keeps what a comparison of all items found."""
        self._put(key, step, zlib.compress(canonical_json(facts), 1), ())

    def used(self, keys: Iterable[str]) -> None:
        """Notes that results were of use, to the day."""
        old = Row.used_at < now() - timedelta(days=1)
        with self.engine.begin() as connection:
            connection.execute(update(Row).where(among(Row.key, keys), old).values(used_at=now()))

    def forget_unused(self) -> int:
        """Deletes what has not been of use for long; gives how many there were."""
        with self.engine.begin() as connection:
            return connection.execute(delete(Row).where(Row.used_at < now() - KEPT_FOR)).rowcount

    def _put(self, key: str, step: str, content: bytes, runs: Sequence[int]) -> None:
        values = {"step": step, "content": content, "runs": list(runs), "used_at": now()}
        statement = insert(Row).values(key=key, **values)
        with self.engine.begin() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=values))


def standing(
    step: Step,
    shards: Sequence[Sequence[Item]],
    *,
    facts: Facts | None = None,
    retry_quarantined: bool = False,
    results: ShardResults | None = None,
) -> list[tuple[ShardReference, tuple[Item, ...]] | None]:
    """Of every shard the result that stands with all its items, and what it kept; None where there is work to do."""
    results = results or ShardResults(open_ledger())
    keys = [shard_key(step.identity, items, facts) for items in shards]
    found = results.get(keys)
    stale = results.stale(list(found), retry_quarantined=retry_quarantined) if found else {}
    whole = {key: result for key, result in found.items() if key not in stale}
    results.used(whole)
    return [
        (_reference(key, replace(whole[key], reused=len(whole[key].records))), whole[key].kept)
        if key in whole
        else None
        for key in keys
    ]


def on_record(step: Step, shards: Sequence[Sequence[Item]], *, results: ShardResults | None = None) -> list[bool]:
    """Of every shard, whether a result is on record, be it that some of its items must be run anew."""
    results = results or ShardResults(open_ledger())
    keys = [shard_key(step.identity, items) for items in shards]
    with results.engine.connect() as connection:
        known = set(connection.scalars(select(Row.key).where(among(Row.key, keys))))
    return [key in known for key in keys]


def run_stored(
    step: Step,
    items: Sequence[Item | Work],
    *,
    facts: Facts | None = None,
    flow_run_id: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    retry_quarantined: bool = False,
    results: ShardResults | None = None,
) -> ShardReference:
    """As `run_shard`, of which only the items run that no result stands for; keeps the result.

    Args:
        facts: what `step.compare` found, when it has looked at more than this shard.
    """
    results = results or ShardResults(open_ledger())
    if facts is not None:
        step = replace(step, compare=lambda _: facts)
    key = shard_key(step.identity, items, facts)
    stood = results.get([key]).get(key)
    stale = results.stale([key], retry_quarantined=retry_quarantined).get(key, set()) if stood else set()
    if stood and not stale:
        results.used([key])
        return _reference(key, replace(stood, reused=len(stood.records)))
    again = [item for item, run in zip(items, stood.records, strict=True) if run in stale] if stood else items
    made = run_shard(
        step,
        again,
        flow_run_id=flow_run_id,
        progress=progress,
        retry_quarantined=retry_quarantined,
        ledger=results.ledger,
    )
    if stood:
        made = _merged(stood, made, stale)
    if step.looks_outside and step.looks_outside(items):
        key = digest_of([key, str(uuid4())])  # nobody else will come upon it
    return results.put(key, made)


def _merged(stood: ShardResult, made: ShardResult, stale: set[int]) -> ShardResult:
    """The result with those items that were run anew in their places."""
    new = iter(made.records)
    records = tuple(next(new) if run in stale else run for run in stood.records)
    kept: dict[int, list[Item]] = {}
    dropped: dict[int, list[Mapping[str, int]]] = {}
    for result, gone in ((stood, stale), (made, set())):  # what ran anew may have got its old step run back
        for item in result.kept:
            if (run := item.lineage[stood.step]) not in gone:
                kept.setdefault(run, []).append(item)
        for lineage in result.dropped:
            if (run := lineage[stood.step]) not in gone:
                dropped.setdefault(run, []).append(lineage)
    once = dict.fromkeys(records)
    return replace(
        made,
        kept=tuple(item for run in once for item in kept.get(run, ())),
        dropped=tuple(lineage for run in once for lineage in dropped.get(run, ())),
        reused=made.reused + len(stood.records) - len(made.records),
        records=records,
    )


def _reference(key: str, result: ShardResult) -> ShardReference:
    return ShardReference(
        result.step,
        key,
        len(result.kept),
        len(result.records),
        len(result.dropped),
        result.executed,
        result.reused,
        result.decodes,
    )


def _written(result: ShardResult) -> bytes:
    content = {
        "kept": [[item.subject, item.lineage] for item in result.kept],
        "dropped": result.dropped,
        "records": result.records,
    }
    return zlib.compress(canonical_json(content), 1)


def _read(step: str, content: bytes) -> ShardResult:
    value = json.loads(zlib.decompress(content))
    kept = tuple(Item(subject, lineage) for subject, lineage in value["kept"])
    return ShardResult(step, kept, tuple(value["dropped"]), records=tuple(value["records"]))
