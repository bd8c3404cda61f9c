"""What a release says: its clips, what it leaves out and why, the funnel; from the records behind them.

Tables of the database hold what is in question meanwhile, and files what was settled: the memory that it takes does not
grow with the release.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    Connection,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    cast,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from medgen.among import among, pages
from medgen.canonical import canonical_json
from medgen.catalog import Caption, Clip, StepRun, Tombstone
from medgen.ledger import Ledger, Record, Told
from medgen.shard_results import ShardReference, ShardResults, runs_of
from medgen.store import Artifact, Store
from medgen.takedown import BLOCKED, TAKEN_DOWN
from models.captioning.captioner import captioner_kind
from models.captioning.checks import MOST_VIDEOS, caption_words
from tasks.curation.caption import CAPTION
from tasks.curation.classify import CLASSIFY
from tasks.curation.curation_step import SHARDS_AT_ONCE
from tasks.curation.decide import DECIDE
from tasks.curation.discover_record import DISCOVER
from tasks.curation.download import DOWNLOAD
from tasks.curation.funnel import funnel
from tasks.curation.privacy import PRIVACY
from tasks.curation.quality import QUALITY
from tasks.curation.steps import STEP_NAMES
from tasks.curation.takedown_block import BlockedBy, blocked_clips
from tasks.curation.vanished import vanished

_T = TypeVar("_T")
_R = TypeVar("_R")

LINEAGE = (*STEP_NAMES, "release")
# The steps whose keys stand in a clip's row: those that looked at pictures.
KEYED_STEPS = tuple(name for name in STEP_NAMES if name not in ("discover", "download"))
# What a clip's row, or that of what is left out, has of the records behind it.
OF_A_CLIP = {
    "discover": Told(("source",)),
    "download": Told(("metadata",), outputs=True),
    "classify": Told(("clips",)),
    "quality": Told(("aesthetic_model", "technical_model"), ("aesthetic", "technical", "overlay_words")),
    "decide": Told(("motion_type",)),
    "privacy": Told(("clip", "bytes", "bit_rate")),
    "caption": Told(("captioner", "category")),
}
MEASURED = ("metric", "score", "threshold", "duplicate_of")
OF_A_REJECTION = dict.fromkeys(LINEAGE, Told(MEASURED)) | {
    "download": Told((*MEASURED, "metadata"), outputs=True),
    "cut": Told(MEASURED, outputs=True),
}
CLIPS_AT_ONCE = 500  # whose records are in memory together
ROWS_AT_ONCE = 10_000  # of a row group of the tables
PARQUET = "application/vnd.apache.parquet"
REJECTED = pa.schema(
    [
        ("step", pa.string()),
        ("subject", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("metric", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("duplicate_of", pa.string()),
        ("title", pa.string()),
        ("url", pa.string()),
        ("sha256", pa.string()),
        ("key", pa.string()),
    ]
)
METADATA = pa.schema(
    [
        ("name", pa.string()),
        ("file_name", pa.string()),  # as Hugging Face's videofolder wants it
        ("resolution", pa.string()),
        ("bit_rate", pa.int64()),
        ("aesthetic_score", pa.float64()),
        ("aesthetic_model", pa.string()),
        ("technical_score", pa.float64()),
        ("technical_model", pa.string()),
        ("duration", pa.float64()),
        ("fps", pa.float64()),
        ("camera_motion", pa.string()),
        ("category", pa.string()),
        ("category_probability", pa.float64()),
        ("medical_probability", pa.float64()),
        ("overlay_words", pa.int64()),
        ("brief_caption", pa.string()),
        ("detailed_caption", pa.string()),
        ("captioner", pa.string()),
        ("captioner_kind", pa.string()),
        ("clip_id", pa.string()),
        ("clip_sha256", pa.string()),
        ("video_id", pa.string()),
        ("video_sha256", pa.string()),
        ("source", pa.string()),
        ("url", pa.string()),
        ("title", pa.string()),
        ("channel", pa.string()),
        ("licence", pa.string()),
        ("published", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        *((f"{step}_key", pa.string()) for step in KEYED_STEPS),
        ("models", pa.string()),
    ]
)


UNPUBLISHED = ("bytes", "step_run_id")
CLIPS = pa.schema([*METADATA, *((name, pa.int64()) for name in UNPUBLISHED)])
"""A clip's row as release reads it: what the metadata says, its bytes, and the step run that its life ended with."""

_temporary = MetaData()
_candidate = Table(  # kept by all steps
    "release_candidate",
    _temporary,
    Column("clip", Text(collation="C")),
    Column("ids", ARRAY(BigInteger)),  # of the lineage
    Column("lineage", JSONB),
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)
_dropped = Table(
    "release_dropped",
    _temporary,
    Column("step", Integer),  # its place in LINEAGE
    Column("run", BigInteger),  # that dropped it
    Column("lineage", JSONB),
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)
_settled = Table(
    "release_settled",
    _temporary,
    Column("clip", Text(collation="C")),
    Column("video", Text),
    Column("words", Text),  # digest of the words of its caption
    Column("content", JSONB),
    Column("left_out", JSONB),  # its row among the rejected, if it is left out
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)


@dataclass(frozen=True)
class ReleaseContent:
    """What release makes a release of.

    Args:
        clips: table (CLIPS) of the clips, by clip id.
        rejected: table (REJECTED) of what is left out, by step, subject and key.
        facts: JSON of policy, funnel, record_root, and the number of videos.
    """

    clips: Artifact
    rejected: Artifact
    facts: Artifact


def release_content(
    ledger: Ledger, results: Sequence[ShardReference], policy: Mapping[str, Any], *, drop_vanished: bool
) -> ReleaseContent:
    """All that the release says, from the records behind it, in an order of its own.

    Of videos that were taken down while the refresh went on it only counts the clips; clips that show the same are left
    out.

    Args:
        results: of all steps on all shards of the refresh.
    """
    with ledger.engine.connect() as connection, connection.begin():
        _temporary.create_all(connection, checkfirst=False)
        _collect(connection, ShardResults(ledger), results)
        clips = connection.scalar(select(func.count(_candidate.c.clip.distinct()))) or 0
        _settle(connection, ledger, drop_vanished=drop_vanished)
        _leave_out_repeated(connection)
        kept = select(_settled).where(_settled.c.left_out.is_(None))
        rows = (row.content for row in streamed(connection, kept.order_by(_settled.c.clip)))
        clip_table = table(ledger.store, CLIPS, rows)
        rejected_table = table(ledger.store, REJECTED, _rejected_rows(connection, ledger))
        settled, left_out, videos = connection.execute(
            select(
                func.count(),
                func.count(_settled.c.left_out),
                func.count(_settled.c.video.distinct()).filter(_settled.c.left_out.is_(None)),
            )
        ).one()
        reason = _settled.c.left_out["reason"].astext
        reasons: dict[str, int] = {
            name: count
            for name, count in connection.execute(
                select(reason, func.count()).where(_settled.c.left_out.is_not(None)).group_by(reason)
            )
        }
    if settled < clips:
        reasons[TAKEN_DOWN] = clips - settled
    released = {"step": "release", "unit": "clips", "in": clips, "kept": settled - left_out}
    facts = {
        "policy": dict(policy),
        "funnel": [
            *funnel(ledger, runs_of(results)),
            released | {"rejected": dict(sorted(reasons.items())), "failed": {}},
        ],
        "record_root": record_root(ledger, runs_of(results)),
        "videos": videos,
    }
    return ReleaseContent(clip_table, rejected_table, ledger.store.put_bytes(canonical_json(facts), "application/json"))


def _collect(connection: Connection, results: ShardResults, references: Sequence[ShardReference]) -> None:
    """Fills the tables of what all steps kept, and of what any dropped."""
    for page in pages(references, SHARDS_AT_ONCE):
        found = results.get(reference.key for reference in page if reference.step == STEP_NAMES[-1])
        whole = [item for r in page if r.key in found for item in found[r.key].kept]
        dropped = results.dropped(reference.key for reference in page if reference.ended)
        with copied(connection, _candidate) as copy:
            for item in whole:
                copy.write_row(
                    (item.subject, [item.lineage[step] for step in sorted(item.lineage)], _json(item.lineage))
                )
        with copied(connection, _dropped) as copy:
            for lineage in (lineage for reference in page for lineage in dropped.get(reference.key, ())):
                last = max(lineage, key=LINEAGE.index)
                copy.write_row((LINEAGE.index(last), lineage[last], _json(lineage)))
    # Nobody else does it to temporary tables, and plans made in the dark may take any time and memory.
    connection.execute(text("ANALYZE release_candidate, release_dropped"))


def _settle(connection: Connection, ledger: Ledger, *, drop_vanished: bool) -> None:
    """Makes the row of every clip, and says of those that are left out why, but for repeated captions."""
    # The same clip may come by two lineages when two sources list a video: it is released once.
    once = select(_candidate.c.clip, _candidate.c.lineage).distinct(_candidate.c.clip)
    living = once.order_by(_candidate.c.clip, _candidate.c.ids).subquery()
    not_taken_down = (
        select(living.c.clip, living.c.lineage)
        .outerjoin(Clip, Clip.id == living.c.clip)
        .outerjoin(Tombstone, Tombstone.video_id == Clip.video_id)
        .where(Tombstone.video_id.is_(None))
        .order_by(living.c.clip)
    )
    blocked = blocked_clips(ledger.engine, _measured(connection, not_taken_down))

    def read(page: list[Any]) -> tuple[dict[int, Record], dict[tuple[int, str], Caption]]:
        return (
            ledger.load({run_id for _, lineage in page for run_id in lineage.values()}, told=OF_A_CLIP),
            captions_of(ledger, [lineage["caption"] for _, lineage in page]),
        )

    for page, (records, captions) in read_ahead(pages(streamed(connection, not_taken_down), CLIPS_AT_ONCE), read):
        pasts = {clip: {step: records[run_id] for step, run_id in lineage.items()} for clip, lineage in page}
        rows = {clip: _row(clip, past, captions) for clip, past in pasts.items()}
        gone_from_source = vanished(ledger.engine, {row["video_id"] for row in rows.values()}) if drop_vanished else {}
        # After the loads: what a takedown has blanked since is no longer needed.
        gone = ledger.forgotten(rows)
        with copied(connection, _settled) as copy:
            for clip, row in rows.items():
                if clip in gone:
                    continue
                left_out: dict[str, Any] | None = None
                if row["video_id"] in gone_from_source:
                    left_out = _left_out(row, "source_vanished")
                elif (measured := pasts[clip]["quality"].subject) in blocked:
                    left_out = _near_duplicate(row, blocked[measured])
                words = hashlib.sha256(caption_words(row["detailed_caption"]).encode()).hexdigest()
                copy.write_row((clip, row["video_id"], words, _json(row), _json(left_out) if left_out else None))
    connection.execute(text("CREATE INDEX ON release_settled (clip)"))
    connection.execute(text("ANALYZE release_settled"))


def _measured(connection: Connection, living: Select[Any]) -> Iterator[tuple[int, str]]:
    """(id of quality's step run, clip that it measured) of clips with their lineages: a blurred clip stands in the
    place of the one that was measured."""
    clips = living.subquery()
    run_id = cast(clips.c.lineage["quality"].astext, BigInteger)
    for row in streamed(connection, select(StepRun.id, StepRun.subject).join(clips, StepRun.id == run_id)):
        yield row.id, row.subject


def _leave_out_repeated(connection: Connection) -> None:
    """Leaves out clips whose caption also stands under clips of more than MOST_VIDEOS different videos.

    A text that fits so many says nothing about any of them. Which ones these are shows only here; clips of one video
    may share a caption.
    """
    spread = (
        select(_settled.c.words, func.count(_settled.c.video.distinct()).label("videos"))
        .where(_settled.c.left_out.is_(None))
        .group_by(_settled.c.words)
        .having(func.count(_settled.c.video.distinct()) > MOST_VIDEOS)
        .subquery()
    )
    repeated = select(_settled.c.clip, _settled.c.content, spread.c.videos).join(
        spread, spread.c.words == _settled.c.words
    )
    for page in pages(streamed(connection, repeated.where(_settled.c.left_out.is_(None))), CLIPS_AT_ONCE):
        connection.execute(
            text("UPDATE release_settled SET left_out = CAST(:row AS jsonb) WHERE clip = :clip"),
            [{"clip": clip, "row": _json(_repeated(row, videos))} for clip, row, videos in page],
        )


def _rejected_rows(connection: Connection, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Rows of what steps dropped, but for what was taken down, and then of the clips that are left out here."""
    subject = func.split_part(StepRun.subject, "/", 1)
    dropped = (
        select(_dropped.c.lineage, _dropped.c.step)
        .join(StepRun, StepRun.id == _dropped.c.run)
        .outerjoin(Clip, Clip.id == StepRun.subject)
        .outerjoin(Tombstone, Tombstone.video_id == func.coalesce(Clip.video_id, subject))
        .where(Tombstone.video_id.is_(None))
        .order_by(_dropped.c.step, StepRun.subject.collate("C"), StepRun.key.collate("C"))
    )

    def read(page: list[Any]) -> list[dict[str, Record]]:
        needed = [(lineage, [*{LINEAGE[step], "download", "cut"} & lineage.keys()]) for lineage, step in page]
        records = ledger.load({lineage[step] for lineage, steps in needed for step in steps}, told=OF_A_REJECTION)
        return [{step: records[lineage[step]] for step in steps} for lineage, steps in needed]

    for _, pasts in read_ahead(pages(streamed(connection, dropped), CLIPS_AT_ONCE), read):
        gone = ledger.forgotten(_last(past).subject for past in pasts)
        yield from (_rejected(past) for past in pasts if _last(past).subject not in gone)
    left_out = select(_settled.c.left_out).where(_settled.c.left_out.is_not(None)).order_by(_settled.c.clip)
    yield from (row.left_out for row in streamed(connection, left_out))


def table(store: Store, schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> Artifact:
    """Rows as a Parquet table in the store."""
    with store.tidy():
        scratch = store.scratch(".parquet")
        with pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
            empty = True
            for page in pages(rows, ROWS_AT_ONCE):
                writer.write_table(pa.Table.from_pylist(page, schema))
                empty = False
            if empty:
                writer.write_table(schema.empty_table())
        return store.put_file(scratch, PARQUET)


def record_root(ledger: Ledger, runs: Select[tuple[int]]) -> str:
    """sha256 of the canonical JSON of the sorted list of record hashes."""
    of_release = runs.subquery()
    hashes = select(StepRun.record_hash).join(of_release, of_release.c.id == StepRun.id)
    digest = hashlib.sha256(b"[")
    with ledger.engine.connect() as connection:
        ordered = connection.execution_options(yield_per=ROWS_AT_ONCE).scalars(
            hashes.order_by(StepRun.record_hash.collate("C"))
        )
        for number, record_hash in enumerate(ordered):
            digest.update((b"," if number else b"") + canonical_json(record_hash))
    digest.update(b"]")
    return digest.hexdigest()


def read_ahead(given: Iterable[_T], read: Callable[[_T], _R]) -> Iterator[tuple[_T, _R]]:
    """Each of what is given with what `read` makes of it. The next is read meanwhile: Postgres is another process."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        under_way: tuple[_T, Future[_R]] | None = None
        for one in given:
            following = (one, thread.submit(read, one))
            if under_way:
                yield under_way[0], under_way[1].result()
            under_way = following
        if under_way:
            yield under_way[0], under_way[1].result()


def streamed(connection: Connection, query: Select[Any]) -> Any:
    """Rows of a query, some at a time, while the connection does other things too."""
    return connection.execute(query, execution_options={"yield_per": CLIPS_AT_ONCE})


@contextmanager
def copied(connection: Connection, table: Table) -> Iterator[Any]:
    """Takes rows for a table by `write_row`."""
    columns = ", ".join(column.name for column in table.columns)
    with connection.connection.cursor().copy(f"COPY {table.name} ({columns}) FROM STDIN") as copy:
        yield copy


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def captions_of(ledger: Ledger, run_ids: Sequence[int]) -> dict[tuple[int, str], Caption]:
    """(id of the step run, kind) → caption."""
    with Session(ledger.engine) as session:
        rows = session.scalars(select(Caption).where(among(Caption.step_run_id, run_ids)))
        return {(row.step_run_id, row.kind): row for row in rows}


def _last(past: Mapping[str, Record]) -> Record:
    return past[max(past, key=LINEAGE.index)]


def _rejected(past: Mapping[str, Record]) -> dict[str, Any]:
    """One video or clip that a step turned down or failed on, with the file that it was about."""
    last = _last(past)
    metadata = (past["download"].detail.get("metadata") if "download" in past else None) or {}
    file = past["download"].outputs.get("video") if "download" in past else None
    if "cut" in past:
        file = past["cut"].outputs.get("clip", file)
    return {
        "step": last.step,
        "subject": last.subject,
        "verdict": last.status,
        "reason": last.reason,
        **{name: last.detail.get(name) for name in MEASURED},
        **{name: metadata.get(name) for name in ("title", "url")},
        "sha256": file,
        "key": last.key,
    }


def _near_duplicate(row: Mapping[str, Any], of: BlockedBy) -> dict[str, Any]:
    """A clip that is left out because it shows the same as what was taken down."""
    measured = {"metric": "duplicate_similarity", "score": of["similarity"], "threshold": of["threshold"]}
    return _left_out(row, BLOCKED) | measured | {"duplicate_of": of["clip"]}


def _repeated(row: Mapping[str, Any], videos: int) -> dict[str, Any]:
    """A clip that is left out because its caption stands under `videos` videos."""
    measured = {"metric": "videos_with_this_caption", "score": float(videos), "threshold": float(MOST_VIDEOS)}
    return _left_out(row, "caption_repeated") | measured


def _left_out(row: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """A captioned clip that is not released."""
    return {
        "step": "release",
        "subject": row["clip_id"],
        "verdict": "rejected",
        "reason": reason,
        "title": row["title"],
        "url": row["url"],
        "sha256": row["clip_sha256"],
        "key": row["caption_key"],
    }


def _row(clip_id: str, past: Mapping[str, Record], captions: Mapping[tuple[int, str], Caption]) -> dict[str, Any]:
    published, scores, measured = PRIVACY.detail(past), QUALITY.scores(past), QUALITY.detail(past)
    clip, metadata = published["clip"], DOWNLOAD.detail(past)["metadata"]
    classified = next(c for c in CLASSIFY.detail(past)["clips"] if c["start_frame"] == clip["start_frame"])
    asked = CAPTION.detail(past).get("category")  # of a model that was asked, which gives no probability
    brief, detailed = (captions[past["caption"].id, kind] for kind in ("brief", "detailed"))
    seconds = clip["end_s"] - clip["start_s"]
    return {
        "name": clip_id,
        "file_name": f"clips/{clip_id}.mp4",
        "resolution": f"{clip['width']}x{clip['height']}",
        "bit_rate": published["bit_rate"],
        "aesthetic_score": scores["aesthetic"],
        "aesthetic_model": measured["aesthetic_model"],
        "technical_score": scores["technical"],
        "technical_model": measured["technical_model"],
        "duration": round(seconds, 4),
        "fps": clip["fps"],
        "camera_motion": DECIDE.detail(past)["motion_type"],
        "category": asked or classified["category"],
        "category_probability": None if asked else classified["category_probability"],
        "medical_probability": classified["medical"],
        "overlay_words": int(scores["overlay_words"]),
        "brief_caption": brief.text,
        "detailed_caption": detailed.text,
        "captioner": brief.model,
        "captioner_kind": captioner_kind(CAPTION.detail(past)["captioner"]),
        "clip_id": clip_id,
        "clip_sha256": clip["digest"],
        "video_id": clip["video_id"],
        "video_sha256": DOWNLOAD.outputs(past)["video"],
        "source": DISCOVER.detail(past)["source"],
        "url": metadata["url"],
        "title": metadata["title"],
        "channel": metadata["channel"],
        "licence": metadata["licence"],
        "published": metadata["published"],
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "start_frame": clip["start_frame"],
        "end_frame": clip["end_frame"],
        **{f"{step}_key": past[step].key for step in KEYED_STEPS},
        "models": json.dumps(past["quality"].models | past["classify"].models, sort_keys=True),
        "bytes": published["bytes"],
        "step_run_id": past["caption"].id,
    }
