"""Where things stand: the funnel over all that is on record, and the verdict on every listed item."""

from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from medgen.catalog import StepInput, StepRun, Tombstone
from medgen.ledger import Ledger, Record
from medgen.takedown import stamp
from tasks.curation.funnel import funnel
from tasks.curation.newest_runs import newest_runs
from tasks.curation.steps import STEP_NAMES
from tasks.curation.vanished import vanished

CLIP_STEPS = STEP_NAMES[STEP_NAMES.index("classify") :]


def newest(ledger: Ledger) -> list[Record]:
    """The newest standing step run of every step and subject; releases are left out."""
    with Session(ledger.engine) as session:
        ids = session.scalars(newest_runs()).all()
    return list(ledger.load(ids).values())


def totals(ledger: Ledger) -> list[dict[str, Any]]:
    """The funnel of the newest verdicts."""
    return funnel(ledger, newest_runs())


def missing(ledger: Ledger) -> dict[str, Any]:
    """taken_down: how many videos were; vanished: video id → when its source was found to have it no longer."""
    with Session(ledger.engine) as session:
        tombstones = session.scalar(select(func.count()).select_from(Tombstone)) or 0
    vanished_at = {video_id: stamp(when) for video_id, when in sorted(vanished(ledger.engine).items())}
    return {"taken_down": tombstones, "vanished": vanished_at}


def verdicts(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """One entry for every row of every source: source, row, title, url, step, status, reason, message, clips kept.

    A video with clips counts as kept when at least one clip is; otherwise the verdict on its last clip is shown.
    """
    records = newest(ledger)
    by_id = {record.id: record for record in records}
    children = _children(ledger, by_id)
    last: dict[str, Record] = {}
    for record in sorted(records, key=lambda r: r.id):
        if record.step in ("download", "segment", "classify"):
            last[record.subject] = record
    discovered = sorted((r for r in records if r.step == "discover"), key=lambda r: r.subject)
    read = {record.detail.get("source") for record in discovered}
    for record in discovered:
        if record.status == "failed":
            if record.subject in read:
                continue  # a feed that was down and has come back
            yield {
                "source": record.subject, "row": 0, "title": record.subject, "url": None, "step": "discover",
                "status": "failed", "reason": record.reason, "message": record.detail["message"], "clips": 0,
            }  # fmt: skip
            continue
        hits = pq.read_table(ledger.store.path(record.outputs["hits"]), columns=["row", "video_id"])
        videos = dict(zip(*hits.to_pydict().values(), strict=True))
        for row in pq.read_table(ledger.store.path(record.outputs["verdicts"])).to_pylist():
            entry = {"source": record.subject} | {name: row[name] for name in ("row", "title", "url")}
            own = last.get(videos[row["row"]]) if row["status"] == "kept" else None
            if own is None:
                message = row["message"] or _reached(row)
                yield entry | {
                    "step": "discover",
                    **{n: row[n] for n in ("status", "reason")},
                    "message": message,
                    "clips": 0,
                }
            else:
                yield entry | _ending(own, children)


def _reached(row: dict[str, Any]) -> str:
    """How far the words and the meaning of a row took it."""
    if row["status"] == "kept":
        return "not downloaded yet"
    if row["text_probability"] is not None:
        return f"probability {row['text_probability']:.2f} by its text"
    return f"words weigh {row['word_score'] or 0:.2f}"


def _ending(own: Record, children: dict[int, list[Record]]) -> dict[str, Any]:
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


def _leaves(record: Record, children: dict[int, list[Record]]) -> list[Record]:
    following = CLIP_STEPS[CLIP_STEPS.index(record.step) + 1] if record.step != CLIP_STEPS[-1] else None
    below = [child for child in children.get(record.id, []) if child.step == following]
    return [leaf for child in below for leaf in _leaves(child, children)] if below else [record]


def _children(ledger: Ledger, records: dict[int, Record]) -> dict[int, list[Record]]:
    parent = aliased(StepRun)
    children: dict[int, list[Record]] = {}
    with Session(ledger.engine) as session:
        pairs = session.execute(
            select(StepInput.parent_id, StepInput.step_run_id)
            .join(parent, parent.id == StepInput.parent_id)
            .where(parent.step.in_(CLIP_STEPS[:-1]))
            .order_by(StepInput.step_run_id)
        )
        for parent_id, child_id in pairs:
            if parent_id is not None and child_id in records:
                children.setdefault(parent_id, []).append(records[child_id])
    return children
