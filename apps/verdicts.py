"""Where things stand: the funnel over all that is on record, and the verdict on every listed item."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import collate, func, select
from sqlalchemy.orm import Session, aliased

from medgen.among import among, pages
from medgen.catalog import StepInput, StepRun, Tombstone
from medgen.ledger import Ledger, Record
from medgen.takedown import IMPORT, stamp
from tasks.curation.funnel import funnel
from tasks.curation.newest_runs import newest_discovered, newest_runs
from tasks.curation.steps import STEP_NAMES
from tasks.curation.vanished import vanished

CLIP_STEPS = STEP_NAMES[STEP_NAMES.index("classify") :]
PAGE = 1000  # records, or rows of a listing, in memory at once


def newest(ledger: Ledger) -> Iterator[Record]:
    """The newest standing step run of every step and subject; releases are left out."""
    with Session(ledger.engine) as session:
        for ids in session.scalars(newest_runs().execution_options(yield_per=PAGE)).partitions():
            yield from ledger.load(ids).values()


def totals(ledger: Ledger) -> list[dict[str, Any]]:
    """The funnel of the newest verdicts."""
    return funnel(ledger, newest_runs())


def missing(ledger: Ledger) -> dict[str, Any]:
    """taken_down: how many videos were; vanished: video id → when its source was found to have it no longer."""
    with Session(ledger.engine) as session:
        tombstones = session.scalar(select(func.count()).select_from(Tombstone)) or 0
    vanished_at = {video_id: stamp(when) for video_id, when in sorted(vanished(ledger.engine).items())}
    return {"taken_down": tombstones, "vanished": vanished_at}


def imports(ledger: Ledger) -> list[dict[str, Any]]:
    """Published sets: source, and how many of their clips were kept, rejected and failed; what was taken down is left
    out."""
    source, newest = StepRun.context["source"].astext, newest_runs().subquery()
    count = (func.count().filter(StepRun.status == status).label(status) for status in ("kept", "rejected", "failed"))
    query = (
        select(source.label("source"), *count)
        .join(newest, newest.c.id == StepRun.id)
        .where(StepRun.step == IMPORT, source != "")
        .group_by(source)
        .order_by(source)
    )
    with Session(ledger.engine) as session:
        return [dict(row._mapping) for row in session.execute(query)]


def verdicts(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """One entry for every row of every source: source, row, title, url, step, status, reason, message, clips kept.

    A video with clips counts as kept when at least one clip is; otherwise the verdict on its last clip is shown.
    """
    chosen = newest_discovered().subquery()
    sources = select(StepRun.detail["source"].astext).join(chosen, chosen.c.id == StepRun.id).distinct()
    shards = select(StepRun.id).join(chosen, chosen.c.id == StepRun.id).order_by(collate(StepRun.subject, "C"))
    with Session(ledger.engine) as session:
        read = set(session.scalars(sources))
        for run_id in session.scalars(shards.execution_options(yield_per=PAGE)):
            record = ledger.load([run_id])[run_id]
            if record.status != "failed":
                yield from _of_shard(session, ledger, record)
            elif record.subject not in read:  # else a feed that was down and has come back
                yield {
                    "source": record.subject, "row": 0, "title": record.subject, "url": None, "step": "discover",
                    "status": "failed", "reason": record.reason, "message": record.detail["message"], "clips": 0,
                }  # fmt: skip


def _of_shard(session: Session, ledger: Ledger, record: Record) -> Iterator[dict[str, Any]]:
    """The entries of the rows that one run of discover read."""
    hits = pq.read_table(ledger.store.path(record.outputs["hits"]), columns=["row", "video_id"])
    videos = dict(zip(*hits.to_pydict().values(), strict=True))
    with pq.ParquetFile(ledger.store.path(record.outputs["verdicts"])) as file:
        for batch in file.iter_batches(batch_size=PAGE):
            rows = batch.to_pylist()
            of_row = {row["row"]: videos[row["row"]] for row in rows if row["status"] == "kept"}
            last = _last(session, ledger, of_row.values())
            children = _descendants(session, ledger, last)
            for row in rows:
                entry = {"source": record.subject} | {name: row[name] for name in ("row", "title", "url")}
                own = last.get(of_row.get(row["row"], ""))
                yield entry | (_undecided(row) if own is None else _ending(own, children))


def _undecided(row: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of discover on a row, and how far its words and meaning took it."""
    if row["message"]:
        message = row["message"]
    elif row["status"] == "kept":
        message = "not downloaded yet"
    elif row["text_probability"] is not None:
        message = f"probability {row['text_probability']:.2f} by its text"
    else:
        message = f"words weigh {row['word_score'] or 0:.2f}"
    return {"step": "discover", "status": row["status"], "reason": row["reason"], "message": message, "clips": 0}


def _ending(own: Record, children: Mapping[int, list[Record]]) -> dict[str, Any]:
    ends = _leaves(own, children) if own.step == "classify" and own.status == "kept" else [own]
    kept = [end for end in ends if end.step == CLIP_STEPS[-1] and end.status == "kept"]
    shown = kept[0] if kept else ends[-1]
    detail = shown.detail
    message = detail.get("message", "")
    if "licence" in detail:
        message = f"licence {detail['licence']}"
    if "score" in detail:
        message = f"{detail.get('metric', 'score')} {detail['score']:g}, threshold {detail['threshold']:g}"
    return {
        "step": shown.step,
        "status": shown.status,
        "reason": shown.reason,
        "message": message,
        "clips": len(kept),
    }


def _leaves(record: Record, children: Mapping[int, list[Record]]) -> list[Record]:
    below = children.get(record.id, [])
    return [leaf for child in below for leaf in _leaves(child, children)] if below else [record]


def _last(session: Session, ledger: Ledger, videos: Collection[str]) -> dict[str, Record]:
    """Video id → the last step run about it as a whole."""
    query = (
        select(func.max(StepRun.id))
        .where(~StepRun.superseded, StepRun.step.in_(["download", "segment", "classify"]))
        .where(among(StepRun.subject, videos))
        .group_by(StepRun.subject)
    )
    return {record.subject: record for record in ledger.load(session.scalars(query)).values()}


def _descendants(session: Session, ledger: Ledger, last: Mapping[str, Record]) -> dict[int, list[Record]]:
    """Id of a step run → those of the next step that followed from it, from kept runs of classify down to the last."""
    later = aliased(StepRun)
    superseding = select(later.id).where(
        later.step == StepRun.step, later.subject == StepRun.subject, later.id > StepRun.id, ~later.superseded
    )
    children: dict[int, list[Record]] = {}
    above = [record.id for record in last.values() if record.step == "classify" and record.status == "kept"]
    for step in CLIP_STEPS[1:]:
        query = (
            select(StepInput.parent_id, StepRun.id)
            .join(StepRun, StepRun.id == StepInput.step_run_id)
            .where(StepRun.step == step, ~StepRun.superseded, ~superseding.exists())
            .order_by(StepRun.id)
        )
        pairs = [
            pair for page in pages(above) for pair in session.execute(query.where(among(StepInput.parent_id, page)))
        ]
        records = ledger.load(run_id for _, run_id in pairs)
        for parent_id, run_id in pairs:
            children.setdefault(parent_id, []).append(records[run_id])
        above = [*records]
    return children
