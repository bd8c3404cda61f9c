"""Takedowns: what was removed, what stayed, and who has to be told."""

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import Connection, literal, select, text, tuple_
from starlette.responses import JSONResponse, Response

from apps.audit.site import site_of
from apps.history import Unknown
from medgen.catalog import Tombstone
from medgen.takedown import BLOCKED, stamp

router = APIRouter()

PAGE = 100


@router.get("/takedowns")
def takedowns(request: Request, after: Annotated[str, Query(max_length=700)] = "") -> Response:
    """All takedowns, newest first."""
    site = site_of(request)
    query = (
        select(Tombstone.video_id, Tombstone.url, Tombstone.reason, Tombstone.forgotten_at)
        .order_by(Tombstone.forgotten_at.desc(), Tombstone.video_id.desc())
        .limit(PAGE + 1)
    )
    if start := _parse(after):
        query = query.where(
            tuple_(Tombstone.forgotten_at, Tombstone.video_id) < tuple_(literal(start[0]), literal(start[1]))
        )
    with site.engine.connect() as connection:
        rows = connection.execute(query).all()
    more = None
    if len(rows) > PAGE:
        rows = rows[:PAGE]
        key = json.dumps([stamp(rows[-1].forgotten_at), rows[-1].video_id])
        more = base64.urlsafe_b64encode(key.encode()).decode()
    return site.page("takedowns.html", rows=rows, more=more)


@router.get("/takedowns/{video_id}.json")
def report(request: Request, video_id: Annotated[str, Path(max_length=200)]) -> Response:
    """The report of a takedown, for machines."""
    with site_of(request).engine.connect() as connection:
        return JSONResponse(takedown_report(connection, video_id))


@router.get("/takedowns/{video_id}")
def takedown(request: Request, video_id: Annotated[str, Path(max_length=200)]) -> Response:
    """The report of a takedown, for people."""
    site = site_of(request)
    with site.engine.connect() as connection:
        return site.page("takedown.html", report=takedown_report(connection, video_id))


def takedown_report(connection: Connection, video_id: str) -> dict[str, Any]:
    """What a takedown removed and touched. Raises `Unknown`.

    Releases and models that held the video are named: copies that were handed on are to be recalled by people.
    """
    row = connection.execute(select(Tombstone.__table__).where(Tombstone.video_id == video_id)).mappings().first()
    if row is None:
        raise Unknown(f"no video {video_id[:80]} was taken down")
    detail = row["detail"]
    return {
        "video_id": row["video_id"],
        "url": row["url"],
        "reason": row["reason"],
        "forgotten_at": stamp(row["forgotten_at"]),
        "finished": "artifacts" in detail,
        "artifacts_removed": detail.get("artifacts", 0),
        "bytes_removed": detail.get("bytes", 0),
        "records_redacted": len(detail.get("sealed", {})),
        "records_altered_before": detail.get("altered", []),
        "kept_for_others": detail.get("kept_for_others", {}),
        "clips": detail.get("clips", []),
        "releases": detail.get("releases", {}),
        "models": detail.get("models", []),
        "creations": detail.get("creations", []),
        "removed": detail.get("removed", []),
        "copies": detail.get("copies"),
        "copy_of": detail.get("copy_of", []),
        "blocking": detail.get("blocking"),
        "stopped": _stopped(connection, detail.get("clips", [])),
    }


def _stopped(connection: Connection, clips: Sequence[str]) -> list[dict[str, Any]]:
    """Clips that deduplicate stopped since, because they show the same as one of `clips`; the first ones on record."""
    # As words, for only so does the index of this very expression serve. Ordered afterwards, as in `clip_page`.
    query = text(
        "WITH found AS MATERIALIZED (SELECT id, subject, detail, finished_at FROM step_run WHERE step = 'deduplicate' "
        "AND NOT superseded AND detail ->> 'duplicate_of' = ANY(:clips) AND reason = :reason LIMIT :most) "
        "SELECT * FROM found ORDER BY id"
    )
    rows = connection.execute(query, {"clips": list(clips), "reason": BLOCKED, "most": PAGE})
    return [
        {
            "clip": row.subject,
            "copy_of": row.detail["duplicate_of"],
            "similarity": row.detail.get("score"),
            "threshold": row.detail.get("threshold"),
            "overlap_s": row.detail.get("overlap_s"),
            "stopped_at": stamp(row.finished_at),
        }
        for row in rows
    ]


def _parse(after: str) -> tuple[datetime, str] | None:
    try:
        when, video_id = json.loads(base64.urlsafe_b64decode(after)) if after else (None, None)
        moment = datetime.fromisoformat(when) if when else None
    except (ValueError, TypeError):
        return None
    if moment is None or moment.tzinfo is None or not isinstance(video_id, str) or not video_id.isprintable():
        return None
    return moment, video_id
