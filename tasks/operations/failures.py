"""What failed and why: counts by reason, whether it will be tried again, and an example of each."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import BigInteger, CompoundSelect, Select, cast, func, select, true
from sqlalchemy.orm import Session

from medgen.among import among, pages
from medgen.catalog import StepRun
from medgen.ledger import Ledger, Record
from medgen.retries import retry_wanted
from tasks.curation.newest_runs import newest_runs
from tasks.curation.steps import STEP_NAMES, UNITS

_AGAIN = (StepRun.transient | retry_wanted()).label("again")
# Step, reason, whether it is tried again, count and the newest of all that failed.
_FAILED = (
    select(StepRun.step, StepRun.reason, _AGAIN, func.count(), func.max(StepRun.id))
    .where(StepRun.status == "failed")
    .group_by(StepRun.step, StepRun.reason, _AGAIN)
)
# Step, reason, count and the oldest record, of rows that could not be read: a record counts many.
_VERDICTS = func.jsonb_each_text(StepRun.detail["counts"]).table_valued("verdict", "rows").render_derived()
_REASON = func.substr(_VERDICTS.c.verdict, len("failed ") + 1)
_BAD_ROWS = (
    select(StepRun.step, _REASON, cast(func.sum(cast(_VERDICTS.c.rows, BigInteger)), BigInteger), func.min(StepRun.id))
    .select_from(StepRun)
    .join(_VERDICTS, true())
    .where(
        StepRun.step.in_(["discover", "import_list"]),
        StepRun.status == "kept",
        _VERDICTS.c.verdict.startswith("failed"),
    )
    .group_by(StepRun.step, _REASON)
)


def failures(ledger: Ledger, runs: Select[tuple[int]] | Collection[int] | None = None) -> list[dict[str, Any]]:
    """One entry for every step and reason, in the order of the steps, most frequent first.

    An entry has step, unit, reason, count, retried (whether the next refresh tries it again), example (subject or
    URL) and message (of the example).

    Args:
        runs: ids of the step runs to look at, or a query for them; by default the newest of every step and subject.
    """
    looked_at: Iterable[Select[tuple[int]] | CompoundSelect[tuple[int]]]
    if isinstance(runs, Collection):
        looked_at = (select(StepRun.id).where(among(StepRun.id, page)) for page in pages(runs))
    else:
        looked_at = [newest_runs() if runs is None else runs]
    groups: dict[tuple[str, str, bool], tuple[int, int]] = {}
    rows: dict[tuple[str, str], tuple[int, int]] = {}
    with Session(ledger.engine) as session:
        for query in looked_at:
            chosen = query.subquery()
            for *group, count, last in session.execute(_FAILED.join(chosen, chosen.c.id == StepRun.id)):
                before = groups.get((group[0], group[1], group[2]), (0, 0))
                groups[group[0], group[1], group[2]] = before[0] + count, max(before[1], last)
            for step, reason, count, first in session.execute(_BAD_ROWS.join(chosen, chosen.c.id == StepRun.id)):
                known = rows.get((step, reason), (0, first))
                rows[step, reason] = known[0] + count, min(known[1], first)
        last_ids = [last for _, last in groups.values()]
        example = select(StepRun.id, StepRun.context["url"].astext, StepRun.subject, StepRun.detail["message"].astext)
        examples = {
            run_id: (url or subject, message)
            for run_id, url, subject, message in session.execute(example.where(among(StepRun.id, last_ids)))
        }
    entries = [_entry(*group, count, *examples[last]) for group, (count, last) in groups.items()]
    discovered = ledger.load(first for _, first in rows.values())
    entries += [
        _entry(step, reason, False, count, *_bad_row(ledger, discovered[first], reason))
        for (step, reason), (count, first) in rows.items()
    ]
    place = {step: number for number, step in enumerate(STEP_NAMES)}
    return sorted(entries, key=lambda e: (place.get(e["step"], len(place)), -e["count"], e["reason"]))


def _bad_row(ledger: Ledger, record: Record, reason: str) -> tuple[str, str]:
    columns = ["row", "status", "reason", "message"]
    with pq.ParquetFile(ledger.store.path(record.outputs["verdicts"])) as file:
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
