"""Rows of listings with their verdicts, also those that no item on record came of: what words or meaning turned down.

Discover keeps a table of all rows of a shard. No index holds them, for there may be millions: they are looked through
shard by shard, and where the time is up the next look goes on.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import collate, select
from sqlalchemy.orm import Session

from medgen.catalog import StepOutput, StepRun
from medgen.ledger import Ledger
from medgen.store import ArtifactLost
from tasks.curation.newest_runs import newest_discovered

COLUMNS = ["row", "url", "title", "status", "reason", "message", "word_score", "text_probability"]
AT_ONCE = 1 << 16  # rows of a table in memory


@dataclass(frozen=True)
class WantedRows:
    """Which rows are looked for. Empty means: any.

    Args:
        text: that the title holds, in any case, or the whole URL.
        status: kept, rejected or failed.
        source: name of a source.
    """

    text: str = ""
    status: str = ""
    reason: str = ""
    source: str = ""


@dataclass(frozen=True)
class ListedRows:
    """Rows in order of their shards.

    Args:
        rows: columns of the table of verdicts; with source, shard, step_run_id, and the thresholds of that time.
        after: (shard, row) to go on from; None: there is no more.
    """

    rows: list[dict[str, Any]]
    after: tuple[str, int] | None


def listed_rows(
    ledger: Ledger, wanted: WantedRows, *, most: int, seconds: float, after: tuple[str, int] | None = None
) -> ListedRows:
    """Looks for rows in what discover last read of each shard.

    Args:
        most: rows at most.
        seconds: after which the look ends, with what it has.
        after: where an earlier look ended.
    """
    deadline = time.monotonic() + seconds
    found: list[dict[str, Any]] = []
    start_shard, start_row = after or ("", -1)
    for run in _shards(ledger, wanted, start_shard):
        first = start_row if run["subject"] == start_shard else -1
        for batch in _batches(ledger, run["verdicts"]):
            seen_to = batch["row"][-1].as_py() if batch.num_rows else first
            if seen_to <= first:
                continue
            for row in batch.filter(_mask(batch, wanted, first)).to_pylist():
                found.append(row | run["about"])
                if len(found) == most:
                    return ListedRows(found, (run["subject"], row["row"]))
            if time.monotonic() > deadline:
                return ListedRows(found, (run["subject"], seen_to))
    return ListedRows(found, None)


def _shards(ledger: Ledger, wanted: WantedRows, start: str) -> Iterator[dict[str, Any]]:
    """Shards that can hold such rows, from one on, in order."""
    chosen = newest_discovered().subquery()
    query = (
        select(
            StepRun.id, StepRun.subject, StepRun.detail["source"].astext.label("source"), StepRun.detail["counts"],
            StepRun.params, StepOutput.artifact_sha256,
        )
        .join(chosen, chosen.c.id == StepRun.id)
        .join(StepOutput, (StepOutput.step_run_id == StepRun.id) & (StepOutput.role == "verdicts"))
        .where(collate(StepRun.subject, "C") >= start)
        .order_by(collate(StepRun.subject, "C"))
    )  # fmt: skip
    if wanted.source:
        query = query.where(StepRun.detail["source"].astext == wanted.source)
    with Session(ledger.engine) as session:
        for run_id, subject, source, counts, params, verdicts in session.execute(query.execution_options(yield_per=50)):
            if not _may_hold(counts or {}, wanted):
                continue
            # A text_threshold of 0 stands for the head's own, which only the head knows.
            limits = {name: params.get(name) or None for name in ("keyword_threshold", "text_threshold")}
            about = {"source": source, "shard": subject, "step_run_id": run_id, **limits}
            yield {"subject": subject, "verdicts": verdicts, "about": about}


def _may_hold(counts: Mapping[str, int], wanted: WantedRows) -> bool:
    """Whether a shard with these numbers of rows, by verdict and reason, can hold such a row."""
    return any(
        verdict.partition(" ")[0] in (wanted.status or verdict.partition(" ")[0])
        and verdict.partition(" ")[2] == (wanted.reason or verdict.partition(" ")[2])
        for verdict in counts
    )


def _batches(ledger: Ledger, digest: str) -> Iterator[pa.RecordBatch]:
    try:
        path = ledger.store.path(digest)
    except ArtifactLost:
        return
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=AT_ONCE, columns=COLUMNS)


def _mask(batch: pa.RecordBatch, wanted: WantedRows, after: int) -> Any:
    mask = pc.greater(batch["row"], after)
    for name in ("status", "reason"):
        if value := getattr(wanted, name):
            mask = pc.and_(mask, pc.fill_null(pc.equal(batch[name], value), False))
    if wanted.text:
        title = pc.fill_null(pc.match_substring(batch["title"], wanted.text, ignore_case=True), False)
        mask = pc.and_(mask, pc.or_(title, pc.fill_null(pc.equal(batch["url"], wanted.text), False)))
    return mask
