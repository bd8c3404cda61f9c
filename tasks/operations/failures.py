"""What failed and why: counts by reason, whether it will be tried again, and an example of each."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from medgen.among import among
from medgen.catalog import StepRun
from medgen.ledger import Ledger, Record
from tasks.curation.discover_record import DISCOVER
from tasks.curation.newest_runs import newest_runs
from tasks.curation.steps import STEP_NAMES, UNITS


def failures(ledger: Ledger, runs: Select[tuple[int]] | Collection[int] | None = None) -> list[dict[str, Any]]:
    """One entry for every step and reason, in the order of the steps, most frequent first.

    An entry has step, unit, reason, count, retried (whether the next refresh tries it again), example (subject or
    URL) and message (of the example).

    Args:
        runs: ids of the step runs to look at, or a query for them; by default the newest of every step and subject.
    """
    if isinstance(runs, Collection):
        runs = select(StepRun.id).where(among(StepRun.id, runs))
    chosen = (newest_runs() if runs is None else runs).subquery()
    url = StepRun.context["url"].astext
    with Session(ledger.engine) as session:
        groups = session.execute(
            select(StepRun.step, StepRun.reason, StepRun.transient, func.count(), func.max(StepRun.id))
            .join(chosen, chosen.c.id == StepRun.id)
            .where(StepRun.status == "failed")
            .group_by(StepRun.step, StepRun.reason, StepRun.transient)
        ).all()
        examples = {
            run_id: (url_ or subject, message)
            for run_id, url_, subject, message in session.execute(
                select(StepRun.id, url, StepRun.subject, StepRun.detail["message"].astext).where(
                    StepRun.id.in_([group[-1] for group in groups])
                )
            )
        }
        discovered = session.scalars(
            select(StepRun.id)
            .join(chosen, chosen.c.id == StepRun.id)
            .where(StepRun.step == "discover", StepRun.status == "kept")
        ).all()
    entries = [
        _entry(step, reason, transient, count, *examples[run_id]) for step, reason, transient, count, run_id in groups
    ]
    entries += _bad_rows(ledger, ledger.load(discovered).values())
    place = {step: number for number, step in enumerate(STEP_NAMES)}
    return sorted(entries, key=lambda e: (place.get(e["step"], len(place)), -e["count"], e["reason"]))


def _bad_rows(ledger: Ledger, discovered: Iterable[Record]) -> list[dict[str, Any]]:
    """Entries for rows of listings that could not be read: a record of discover counts many of them."""
    entries: dict[str, dict[str, Any]] = {}
    for record in discovered:
        for verdict, count in record.detail.get("counts", {}).items():
            status, _, reason = verdict.partition(" ")
            if status != "failed":
                continue
            if reason not in entries:
                entries[reason] = _entry("discover", reason, False, 0, *_bad_row(ledger, record, reason))
            entries[reason]["count"] += count
    return list(entries.values())


def _bad_row(ledger: Ledger, record: Record, reason: str) -> tuple[str, str]:
    columns = ["row", "status", "reason", "message"]
    with pq.ParquetFile(ledger.store.path(DISCOVER.outputs(record)["verdicts"])) as file:
        for batch in file.iter_batches(columns=columns):
            mask = pc.and_(pc.equal(batch["status"], "failed"), pc.equal(batch["reason"], reason))
            if chosen := batch.filter(mask).slice(0, 1).to_pylist():
                return f"{record.subject} row {chosen[0]['row']}", chosen[0]["message"]
    return record.subject, ""


def _entry(step: str, reason: str, retried: bool, count: int, example: str, message: str | None) -> dict[str, Any]:
    return {
        "step": step,
        "unit": UNITS.get(step, ""),
        "reason": reason,
        "count": count,
        "retried": retried,
        "example": example,
        "message": message or "",
    }


def table_rows(report: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`failures` with one flat row per reason, for people."""
    return [
        {
            "step": entry["step"],
            "reason": entry["reason"],
            "count": entry["count"],
            "tried again": "next run" if entry["retried"] else "no",
            "example": f"{entry['example']}: {entry['message']}"[:300],
        }
        for entry in report
    ]
