"""Import, last step: what was imported of a set becomes a release, so that all that reads releases reads it.

Its metadata has the columns of every release, and beside them where each clip came from. What this installation did not
measure is empty; scores stand as given, with who gave them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection, Select, func, select
from sqlalchemy.orm import Session

from medgen.among import among, pages
from medgen.canonical import canonical_json
from medgen.catalog import Clip, Release, StepOutput, StepRun, Tombstone, Video
from medgen.ledger import Ledger, Record, Work, open_ledger
from medgen.releases import awaits_approval
from medgen.shard import run_shard
from medgen.shard_results import ShardReference, runs_of
from medgen.takedown import BLOCKED, IMPORT, IMPORT_LIST, TAKEN_DOWN
from tasks.curation.release import RELEASE, ReleaseParams, step
from tasks.curation.release_content import (
    CLIPS_AT_ONCE,
    METADATA,
    REJECTED,
    UNPUBLISHED,
    captions_of,
    record_root,
    streamed,
    table,
)
from tasks.curation.release_files import materialize
from tasks.curation.takedown_block import BlockedBy, blocked_clips
from tasks.importing.import_clip import IMPORTED
from tasks.prefect_step import step_task

FROM_ELSEWHERE = (
    ("split", pa.string()),
    ("imported_from", pa.string()),
    ("imported_list", pa.string()),
    ("imported_list_sha256", pa.string()),
    ("imported_row", pa.int64()),
    ("imported_file", pa.string()),
    ("imported_file_sha256", pa.string()),
    ("given", pa.string()),  # JSON
    ("import_key", pa.string()),
)
CLIPS = pa.schema([*METADATA, *FROM_ELSEWHERE, *((name, pa.int64()) for name in UNPUBLISHED)])


@step_task("release", "cpu")
def release_imported(
    label: str, results: Sequence[ShardReference], policy: Mapping[str, Any], params: ReleaseParams
) -> tuple[int, Path | None, int, int]:
    """Makes the release of an import and lays it out, unless it awaits approval.

    Args:
        results: of both steps, on all files and groups of rows.

    Returns:
        Id of its record, its folder, and how many steps were executed and reused.
    """
    ledger = open_ledger()
    blocked = blocked_clips(ledger.engine, _measured(ledger, results))
    facts = _facts(ledger, results, policy, len(blocked))
    artifacts = {
        "content": table(ledger.store, CLIPS, _clips(ledger, results, blocked)),
        "rejected": table(ledger.store, REJECTED, _left_out(ledger, results, blocked)),
        "facts": ledger.store.put_bytes(canonical_json(facts), "application/json"),
    }
    work = Work(
        "release",
        inputs={role: artifact.sha256 for role, artifact in artifacts.items()},
        context={"bytes": {role: artifact.bytes for role, artifact in artifacts.items()}},
    )
    made = run_shard(step(params), [work], ledger=ledger)
    record = ledger.load(made.records)[made.records[0]]
    name = RELEASE.detail(record)["name"]
    with Session(ledger.engine) as session:
        waits = awaits_approval(session, session.get_one(Release, name))
    folder = None if waits else materialize(ledger.store, name, RELEASE.outputs(record)["manifest"])
    return record.id, folder, made.executed, made.reused


def counts_of(ledger: Ledger, results: Sequence[ShardReference]) -> list[dict[str, Any]]:
    """The funnel of an import: rows of its files, and clips."""
    of_import = runs_of(results).subquery()
    rows = select(StepRun.detail["counts"]).join(of_import, of_import.c.id == StepRun.id)
    rows = rows.where(StepRun.step == IMPORT_LIST, StepRun.status == "kept")
    clips = (
        select(StepRun.status, StepRun.reason, func.count())
        .join(of_import, of_import.c.id == StepRun.id)
        .where(StepRun.step == IMPORT)
        .group_by(StepRun.status, StepRun.reason)
    )
    listed: dict[tuple[str, str], int] = {}
    with ledger.engine.connect() as connection:
        for counts in connection.execution_options(yield_per=CLIPS_AT_ONCE).scalars(rows):
            for verdict, count in counts.items():
                status, _, reason = verdict.partition(" ")
                listed[status, reason] = listed.get((status, reason), 0) + count
        taken = {(status, reason or ""): count for status, reason, count in connection.execute(clips)}
    return [_stage(IMPORT_LIST, "rows", listed), _stage(IMPORT, "clips", taken)]


def _stage(name: str, unit: str, ends: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    entry: dict[str, Any] = {"step": name, "unit": unit, "in": sum(ends.values()), "kept": ends.get(("kept", ""), 0)}
    for status in ("rejected", "failed"):
        entry[status] = {reason: count for (end, reason), count in sorted(ends.items()) if end == status}
    return entry


def _measured(ledger: Ledger, results: Sequence[ShardReference]) -> Iterator[tuple[int, str]]:
    """(id of the step run, clip) of what is looked at for copies of what was taken down."""
    with ledger.engine.connect() as connection:
        for row in streamed(connection, _living(results)):
            yield row.id, row.clip


def _facts(
    ledger: Ledger, results: Sequence[ShardReference], policy: Mapping[str, Any], blocked: int
) -> dict[str, Any]:
    living = _living(results).subquery()
    with ledger.engine.connect() as connection:
        clips, videos = connection.execute(
            select(func.count(), func.count(living.c.video_id.distinct())).select_from(living)
        ).one()
    funnel = counts_of(ledger, results)
    kept = funnel[-1]["kept"]
    left_out = {"same_clip_or_taken_down": kept - clips, BLOCKED: blocked}
    left_out = {reason: count for reason, count in left_out.items() if count}
    stays = clips - blocked
    released = {"step": "release", "unit": "clips", "in": kept, "kept": stays, "rejected": left_out, "failed": {}}
    return {
        "policy": dict(policy),
        "funnel": [*funnel, released],
        "record_root": record_root(ledger, runs_of(results)),
        "videos": videos,
    }


def _living(results: Sequence[ShardReference]) -> Select[Any]:
    """(id of the step run, clip, its video) of what was imported and not taken down, each clip once, by clip."""
    of_import = runs_of(results).subquery()
    clip = StepRun.detail["clip"]["id"].astext
    return (
        select(StepRun.id, Clip.id.label("clip"), Clip.video_id)
        .join(of_import, of_import.c.id == StepRun.id)
        .join(Clip, Clip.id == clip)
        .outerjoin(Tombstone, Tombstone.video_id == Clip.video_id)
        .where(StepRun.step == IMPORT, StepRun.status == "kept", Tombstone.video_id.is_(None))
        .distinct(Clip.id.collate("C"))
        .order_by(Clip.id.collate("C"), StepRun.id)
    )


def _clips(
    ledger: Ledger, results: Sequence[ShardReference], blocked: Mapping[str, BlockedBy]
) -> Iterator[dict[str, Any]]:
    with ledger.engine.connect() as connection:
        for page in pages(streamed(connection, _living(results)), CLIPS_AT_ONCE):
            ids = [row.id for row in page]
            records, captions = ledger.load(ids), captions_of(ledger, ids)
            videos = _videos(connection, [row.video_id for row in page])
            gone = ledger.forgotten(row.clip for row in page)  # after the loads: what was blanked meanwhile
            for row in page:
                if row.clip not in gone and row.clip not in blocked:
                    texts = {kind: captions[row.id, kind] for kind in ("brief", "detailed")}
                    yield _row(records[row.id], videos[row.video_id], texts)


def _videos(connection: Connection, ids: Sequence[str]) -> dict[str, Video]:
    with Session(connection) as session:
        videos = session.scalars(select(Video).where(among(Video.id, ids)))
        return {video.id: video for video in videos}


def _row(record: Record, video: Video, captions: Mapping[str, Any]) -> dict[str, Any]:
    detail, scores = IMPORTED.detail(record), IMPORTED.scores(record)
    clip, imported, given = detail["clip"], detail["imported"], detail["given"]
    by = f"not stated, given by {imported['set']}"
    aesthetic, technical = scores.get("given_aesthetic"), scores.get("given_dover")
    return {
        "name": clip["id"],
        "file_name": f"clips/{clip['id']}.mp4",
        "resolution": f"{clip['width']}x{clip['height']}",
        "bit_rate": detail["bit_rate"],
        "aesthetic_score": aesthetic,
        "aesthetic_model": None if aesthetic is None else given.get("aesthetic_by", by),
        "technical_score": technical,
        "technical_model": None if technical is None else given.get("technical_by", by),
        "duration": round(clip["end_s"] - clip["start_s"], 4),
        "fps": clip["fps"],
        "camera_motion": given.get("camera_motion"),
        "category": given.get("category", "not_stated"),
        "brief_caption": captions["brief"].text,
        "detailed_caption": captions["detailed"].text,
        "captioner": captions["brief"].model,
        "captioner_kind": detail["captioner_kind"],
        "clip_id": clip["id"],
        "clip_sha256": clip["digest"],
        "video_id": clip["video_id"],
        "source": imported["set"],
        "url": video.url,
        "title": video.title,
        "channel": video.channel,
        "licence": given.get("licence"),
        "published": video.published,
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "start_frame": clip["start_frame"],
        "end_frame": clip["end_frame"],
        "models": "{}",
        "split": given.get("split"),
        "imported_from": imported["set"],
        "imported_list": imported["list"],
        "imported_list_sha256": imported["list_sha256"],
        "imported_row": imported["row"],
        "imported_file": imported["file"],
        "imported_file_sha256": imported["file_sha256"],
        "given": json.dumps({**given, "scores": scores}, sort_keys=True, ensure_ascii=False),
        "import_key": record.key,
        "bytes": detail["bytes"],
        "step_run_id": record.id,
    }


def _left_out(
    ledger: Ledger, results: Sequence[ShardReference], blocked: Mapping[str, BlockedBy]
) -> Iterator[dict[str, Any]]:
    """Rows that can't be used, and then clips, but for what was taken down; last, what shows the same as that."""
    of_import = runs_of(results).subquery()
    tables = (
        select(StepRun.subject, StepRun.key, StepOutput.artifact_sha256)
        .join(of_import, of_import.c.id == StepRun.id)
        .join(StepOutput, StepOutput.step_run_id == StepRun.id)
        .where(StepRun.step == IMPORT_LIST, StepRun.status == "kept", StepOutput.role == "verdicts")
        .order_by(StepRun.subject.collate("C"), StepRun.key)
    )
    clips = (
        select(StepRun.subject, StepRun.key, StepRun.status, StepRun.reason)
        .join(of_import, of_import.c.id == StepRun.id)
        .outerjoin(Tombstone, Tombstone.video_id == func.split_part(StepRun.subject, "/", 1))
        .where(StepRun.step == IMPORT, StepRun.status != "kept", Tombstone.video_id.is_(None))
        .order_by(StepRun.subject.collate("C"), StepRun.key.collate("C"))
    )
    with ledger.engine.connect() as connection:
        for listing in connection.execute(tables).all():
            with pq.ParquetFile(ledger.store.path(listing.artifact_sha256)) as file:
                for batch in file.iter_batches(columns=["row", "status", "reason"]):
                    for row in batch.to_pylist():
                        if row["status"] != "kept" and row["reason"] != TAKEN_DOWN:
                            subject = f"{listing.subject} row {row['row']}"
                            yield _end(IMPORT_LIST, subject, row["status"], row["reason"], listing.key)
        for run in streamed(connection, clips):
            yield _end(IMPORT, run.subject, run.status, run.reason, run.key)
        for page in pages(streamed(connection, _living(results)), CLIPS_AT_ONCE):
            records = ledger.load(row.id for row in page if row.clip in blocked)
            for row in page:
                if of := blocked.get(row.clip):
                    yield _end("release", row.clip, "rejected", BLOCKED, records[row.id].key) | {
                        "metric": "duplicate_similarity", "score": of["similarity"], "threshold": of["threshold"],
                        "duplicate_of": of["clip"],
                    }  # fmt: skip


def _end(step: str, subject: str, verdict: str, reason: str | None, key: str) -> dict[str, Any]:
    return {"step": step, "subject": subject, "verdict": verdict, "reason": reason, "key": key}
