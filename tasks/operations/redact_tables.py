"""Redaction of tables that name many videos: copies without the rows, or the words, of those that were taken down.

Such tables are what discover and imports read and judged (Parquet), and what a release holds (Parquet, and JSON of its
content). Of a release the whole row goes; of verdicts the row stays and says only that its video was taken down.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.among import among
from medgen.canonical import canonical_json
from medgen.catalog import Artifact as ArtifactRow
from medgen.catalog import Score, StepInput, StepRun, now
from medgen.ledger import Ledger, Outcome, StepIdentity, Work
from medgen.store import Artifact, Store
from medgen.takedown import IMPORT_LIST, TAKEN_DOWN

NAMED_BY = ("video_id", "subject", "url")  # the first of these columns that a table has says which video a row is about
DESCRIPTION = "application/ld+json"
STAYS = frozenset(["row", "video_id", "url", "licence", "published", "external_id"])  # of a row of discover


@dataclass
class RedactedTable:
    """A table that named videos which were taken down.

    Args:
        copy: the table without their rows or words.
        rows: video id → ``VERDICT REASON`` of each of its rows, as discover counts them; empty where rows have none.
    """

    copy: Artifact
    rows: dict[str, list[str]] = field(default_factory=dict)


def redact_table(store: Store, step: str, artifact: Artifact, owner: Mapping[str, str]) -> RedactedTable | None:
    """Puts a copy of a table into the store, without the rows or words of videos; None when it names none of them.

    Args:
        step: that made the table: list, discover, import_list or release.
        owner: id of a video that was taken down, its URL or the id of a clip of it → id of the video.

    Raises:
        ArtifactLost: the table is in no store.
        StoreUnavailable: see `medgen.store`.
    """
    if artifact.media_type == "application/vnd.apache.parquet":
        return _redact_rows(store, step, artifact, owner)
    if artifact.media_type == "application/json":
        return _redact_content(store, artifact, owner)
    return None


def videos_named(store: Store, artifact: Artifact, owner: Mapping[str, str]) -> set[str]:
    """Ids of the videos that `redact_table` would take out of a table. Arguments and errors as there."""
    if artifact.media_type == "application/vnd.apache.parquet":
        return _named_in_rows(store, artifact, owner)
    if artifact.media_type == "application/json":
        content = _content(store, artifact, owner)
        return _named_in(content, owner) if content else set()
    return set()


def tables_described(store: Store, artifact: Artifact, digests: Collection[str]) -> set[str]:
    """Those of `digests` that a release's description for other tools (Croissant, JSON-LD) names; none of what is no
    such description. Raises as `redact_table`."""
    if artifact.media_type != DESCRIPTION:
        return set()
    text = store.read(artifact.sha256).decode()
    return {digest for digest in digests if digest in text}


def redact_description(store: Store, artifact: Artifact, redacted: Mapping[str, RedactedTable]) -> RedactedTable | None:
    """A release's description that names the copies of its tables in their place; None when it names none of them.

    Args:
        redacted: sha256 of a table → its redaction.
    """
    named = tables_described(store, artifact, redacted)
    if not named:
        return None
    text = store.read(artifact.sha256).decode()
    for digest in named:
        text = text.replace(digest, redacted[digest].copy.sha256)
    videos = {video_id for digest in named for video_id in redacted[digest].rows}
    return RedactedTable(store.put_bytes(text.encode(), DESCRIPTION), {video_id: [] for video_id in sorted(videos)})


def _named_in_rows(store: Store, artifact: Artifact, owner: Mapping[str, str]) -> set[str]:
    names = pa.array(sorted(owner), pa.string())
    named: set[str] = set()
    with pq.ParquetFile(store.path(artifact.sha256)) as file:
        column, searched = _searched(file)
        if column is None:
            return named
        for batch in file.iter_batches(batch_size=1 << 16, columns=searched):
            about = batch.filter(_rows_about(batch, column, names))[column]
            named |= {owner[_video_part(value, column)] for value in about.unique().to_pylist()}
    return named


def _searched(file: pq.ParquetFile) -> tuple[str | None, list[str]]:
    """(the column that says which video a row is about, None without one; all columns that are looked at)."""
    present = file.schema_arrow.names
    column = next((name for name in NAMED_BY if name in present), None)
    return column, [name for name in (column, "reason", "title", "description") if name and name in present]


def _video_part(value: str, column: str) -> str:
    return value if column == "url" else value.partition("/")[0]


def _content(store: Store, artifact: Artifact, owner: Mapping[str, str]) -> dict[str, Any] | None:
    """The JSON content of a release, if it names any of `owner`."""
    data = store.read(artifact.sha256)
    if not any(name.encode() in data for name in owner):
        return None
    content = json.loads(data)
    return content if isinstance(content, dict) and {"clips", "rejected"} <= content.keys() else None


def _named_in(content: Mapping[str, Any], owner: Mapping[str, str]) -> set[str]:
    subjects = [row["clip_id"] for row in content["clips"]]
    subjects += [row["subject"].partition("/")[0] for row in content["rejected"]]
    return {owner[subject] for subject in subjects if subject in owner}


def _redact_content(store: Store, artifact: Artifact, owner: Mapping[str, str]) -> RedactedTable | None:
    """The JSON content of a release, without its kept and rejected rows of these videos."""
    content = _content(store, artifact, owner)
    named = _named_in(content, owner) if content else set()
    if content is None or not named:
        return None
    content["clips"] = [row for row in content["clips"] if row["clip_id"] not in owner]
    content["rejected"] = [row for row in content["rejected"] if row["subject"].partition("/")[0] not in owner]
    copy = store.put_bytes(canonical_json(content), artifact.media_type)
    return RedactedTable(copy, {video_id: [] for video_id in sorted(named)})


def _redact_rows(store: Store, step: str, artifact: Artifact, owner: Mapping[str, str]) -> RedactedTable | None:
    path = store.path(artifact.sha256)
    names = pa.array(sorted(owner), pa.string())
    with pq.ParquetFile(path) as file:
        column, searched = _searched(file)
        batches = file.iter_batches(batch_size=1 << 16, columns=searched)
        if column is None or not any(pc.any(_rows_about(batch, column, names)).as_py() for batch in batches):
            return None
        # Every listed row keeps its verdict; what was kept of the video is kept no more.
        drop = step == "release" or (step in ("discover", IMPORT_LIST) and "status" not in file.schema_arrow.names)
        verdicts: dict[str, list[str]] = {}
        scratch = store.scratch(".parquet")
        try:
            with pq.ParquetWriter(scratch, file.schema_arrow, compression="zstd") as writer:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    mask = _rows_about(table, column, names)
                    for row in table.filter(mask).to_pylist():
                        of_video = verdicts.setdefault(owner[_video_part(row[column], column)], [])
                        if "status" in row:
                            of_video.append(f"{row['status'] or ''} {row['reason'] or ''}".strip())
                    writer.write_table(table.filter(pc.invert(mask)) if drop else _blank_rows(table, mask))
            return RedactedTable(store.put_file(scratch, artifact.media_type), verdicts)
        finally:
            scratch.unlink(missing_ok=True)


def _rows_about(rows: pa.Table | pa.RecordBatch, column: str, names: pa.Array) -> Any:
    """A mask of the rows about one of `names` or a stretch of one that were not blanked before; it has no nulls."""
    about = pc.fill_null(rows[column], "")
    if column != "url":
        about = pc.list_element(pc.split_pattern(about, "/", max_splits=1), 0)
    mask = pc.is_in(about, value_set=names)
    present = rows.schema.names
    if "reason" in present:
        mask = pc.and_(mask, pc.not_equal(pc.fill_null(rows["reason"], ""), TAKEN_DOWN))
    elif {"title", "description"} <= {*present}:  # a row without words was blanked before
        words = pc.binary_join_element_wise(*(pc.fill_null(rows[name], "") for name in ("title", "description")), "")
        mask = pc.and_(mask, pc.not_equal(words, ""))
    return mask


def _blank_rows(table: pa.Table, mask: Any) -> pa.Table:
    """The table, in which rows under `mask` say only which video they are about, and that it was taken down."""
    verdict = {"status": "rejected", "reason": TAKEN_DOWN, "message": "taken down"}
    for place, column in enumerate(table.schema):
        if column.name in STAYS:
            continue
        if pa.types.is_list(column.type):
            blank: Any = pa.scalar([], column.type)
        else:
            blank = pa.scalar(verdict.get(column.name), column.type)
        table = table.set_column(place, column, pc.if_else(mask, blank, table[column.name]))
    return table


def supersede(ledger: Ledger, run_id: int, redacted: Mapping[str, RedactedTable]) -> None:
    """Writes a step run again with the copies as outputs: the same work with the same key, as after a loss of bytes.

    Args:
        redacted: sha256 of a table → its redaction; outputs that are not in it stay as they are.
    """
    earlier = ledger.load([run_id])[run_id]
    with Session(ledger.engine) as session:
        run = session.get_one(StepRun, run_id)
        inputs = session.scalars(select(StepInput).where(StepInput.step_run_id == run_id)).all()
        scores = session.scalars(select(Score).where(Score.step_run_id == run_id)).all()
        rows = session.scalars(select(ArtifactRow).where(among(ArtifactRow.sha256, earlier.outputs.values())))
        artifacts = {row.sha256: Artifact(row.sha256, row.media_type, row.bytes) for row in rows}
    tables = [redacted[digest] for digest in earlier.outputs.values() if digest in redacted]
    videos = {video_id for table in tables for video_id in table.rows}
    detail = run.detail | {"taken_down": sorted({*run.detail.get("taken_down", ()), *videos})}
    if "counts" in detail:
        counts: Counter[str] = Counter(detail["counts"])
        for verdicts in (verdicts for table in tables for verdicts in table.rows.values()):
            counts.subtract(verdicts)
            counts[f"rejected {TAKEN_DOWN}"] += len(verdicts)
        detail["counts"] = {verdict: count for verdict, count in counts.items() if count > 0}
    outcome = Outcome(
        earlier.status if earlier.status != "failed" else "rejected",
        run.reason,
        detail=detail,
        scores={score.metric: score.value for score in scores},
        score_models={score.metric: score.model_digest for score in scores if score.model_digest},
        outputs={
            role: redacted[digest].copy if digest in redacted else artifacts[digest]
            for role, digest in earlier.outputs.items()
        },
        clip_id=next((score.clip_id for score in scores), None),
    )
    work = Work(
        run.subject,
        inputs={row.role: row.artifact_sha256 for row in inputs if row.artifact_sha256},
        context=run.context,
        parents={row.role: row.parent_id for row in inputs if row.parent_id},
    )
    identity = StepIdentity(run.step, run.version, run.params, run.models)
    ledger.write(identity, work, outcome, started_at=now(), flow_run_id=None, earlier=earlier)
