"""Discover: which listed videos are worth downloading, by their words.

Subject: a source. The verdict on every row, with the matched terms, is one Parquet artifact; the kept rows become
videos. A folder's files have been chosen by whoever made the folder, and file names are no titles: they pass
without the word filter, which the record says.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from medgen.catalog import Base, Source, Video, open_catalog
from medgen.errors import ItemFailed, SourceUnreadable
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.listing import Feed, Listed, feed_digest, open_feed, rows, storable_text
from medgen.shard import Item, ShardResult, Step
from medgen.store import Store, open_store
from models.relevance import KeywordDictionary, keyword_digest, load_keyword_dictionary
from tasks.prefect_step import run_in_prefect, step_task

VERDICTS = pa.schema(
    [
        ("row", pa.int64()),
        ("video_id", pa.string()),
        ("url", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("channel", pa.string()),
        ("licence", pa.string()),
        ("published", pa.string()),
        ("duration_s", pa.float64()),
        ("external_id", pa.string()),
        ("subtitles_url", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("terms", pa.list_(pa.string())),
    ]
)
BATCH_ROWS = 10_000


class DiscoverParams(BaseModel):
    """Parameters of discover."""

    model_config = ConfigDict(frozen=True)

    word_filter: Literal["listings", "off"] = Field("listings", description="Which sources the dictionary judges.")


def video_id(url: str) -> str:
    """Stable id of a video: the same URL is the same video, whoever lists it."""
    return "v" + hashlib.sha256(url.encode()).hexdigest()[:16]


def discover(work: Work, store: Store, params: DiscoverParams) -> Outcome:
    """Judges every row of a source.

    Raises:
        SourceUnreadable: the source as a whole can't be read.
    """
    if "unreadable" in work.context:
        raise SourceUnreadable(*work.context["unreadable"].split(": ", 1))
    if work.context["taken_by"]:
        raise SourceUnreadable(
            "source_name_taken",
            f"{work.subject!r} already stands for {work.context['taken_by']}; give this one a name: NAME=PATH",
        )
    feed = Feed(work.subject, work.context["kind"], Path(work.context["path"]))
    dictionary = _dictionary() if params.word_filter == "listings" and feed.kind != "folder" else None
    counts: Counter[str] = Counter()
    catalog_rows: list[Base] = [Source(name=feed.name, kind=feed.kind, uri=str(feed.path))]
    seen: dict[str, int] = {}
    path = store.scratch(".parquet")
    try:
        with pq.ParquetWriter(path, VERDICTS, compression="zstd") as writer:
            batch: list[dict[str, Any]] = []
            for number, row in rows(feed):
                verdict = _verdict(number, row, dictionary, seen)
                counts[f"{verdict['status']} {verdict['reason'] or ''}".strip()] += 1
                if verdict["status"] == "kept":
                    assert isinstance(row, Listed)
                    catalog_rows.append(_video(feed, row, verdict["video_id"]))
                batch.append(verdict)
                if len(batch) == BATCH_ROWS:
                    writer.write_table(pa.Table.from_pylist(batch, VERDICTS))
                    batch.clear()
            writer.write_table(pa.Table.from_pylist(batch, VERDICTS))
        verdicts = store.put_file(path, "application/vnd.apache.parquet")
    finally:
        path.unlink(missing_ok=True)
    return Outcome(
        "kept",
        detail={
            "path": str(feed.path),
            "kind": feed.kind,
            "counts": dict(counts),
            "word_filter": "dictionary" if dictionary else "none",
        },
        outputs={"verdicts": verdicts},
        rows=catalog_rows,
    )


def _verdict(
    number: int, row: Listed | ItemFailed, dictionary: KeywordDictionary | None, seen: dict[str, int]
) -> dict[str, Any]:
    base = dict.fromkeys(VERDICTS.names) | {"row": number, "terms": [], "tags": []}
    if isinstance(row, ItemFailed):
        # A file that is no video is not at fault; a row that can't be read is.
        status = "rejected" if row.reason == "not_a_video_name" else "failed"
        return base | {"status": status, "reason": row.reason, "message": row.message}
    base |= {**vars(row), "tags": list(row.tags), "video_id": video_id(row.url), "status": "kept"}
    if row.url in seen:
        return base | {"status": "rejected", "reason": "listed_before", "message": f"as row {seen[row.url]}"}
    seen[row.url] = number
    if dictionary is not None:
        base["terms"] = dictionary.match("\n".join((row.title, row.description, *row.tags)))
        if not base["terms"]:
            return base | {"status": "rejected", "reason": "no_medical_term", "message": "no term of the dictionary"}
    return base


def _video(feed: Feed, row: Listed, identity: str) -> Video:
    return Video(
        id=identity,
        source_name=feed.name,
        external_id=row.external_id,
        url=row.url,
        title=row.title,
        description=row.description,
        tags=list(row.tags),
        channel=row.channel,
        licence=row.licence,
        published=row.published,
        duration_s=row.duration_s,
    )


@lru_cache(maxsize=8)
def listed(verdicts: str) -> dict[str, dict[str, Any]]:
    """video id → kept row of a verdicts artifact, in listing order."""
    table = pq.read_table(open_store().path(verdicts))
    return {row["video_id"]: row for row in table.to_pylist() if row["status"] == "kept"}


@cache
def _dictionary() -> KeywordDictionary:
    return load_keyword_dictionary()


def step(params: DiscoverParams) -> Step:
    """Discover, ready to run."""
    models = {"dictionary": keyword_digest()} if params.word_filter != "off" else {}
    identity = StepIdentity("discover", 1, params.model_dump(mode="json"), models)
    return Step(identity, partial(discover, params=params), "processes")


def _work(item: Item, past: Mapping[str, Record]) -> Work:
    try:
        feed = open_feed(item.subject)
        context = {"kind": feed.kind, "path": str(feed.path), "listing": feed_digest(feed), "taken_by": _owner(feed)}
        return Work(feed.name, context=context)
    except (SourceUnreadable, OSError) as error:
        return Work(storable_text(item.subject), context={"unreadable": storable_text(error)})


def source_name(text: str) -> str:
    """The name that a source goes by; its text as given when it can't be opened."""
    try:
        return open_feed(text).name
    except SourceUnreadable:
        return text


def _owner(feed: Feed) -> str | None:
    """The other folder that goes by this feed's name. Names are part of a folder's video ids."""
    with Session(open_catalog()) as session:
        known = session.get(Source, feed.name)
    other = known is not None and known.kind == feed.kind == "folder" and known.uri != str(feed.path)
    return known.uri if other and Path(known.uri).exists() else None


def _videos(item: Item, record: Record) -> Iterable[Item]:
    trail = {**item.trail, "discover": record.id}
    return [Item(identity, trail) for identity in listed(record.outputs["verdicts"])]


@step_task("discover", "cpu")
def discover_source(label: str, source: str, params: DiscoverParams, retry_quarantined: bool = False) -> ShardResult:
    """Discovers one source; gives its kept videos."""
    return run_in_prefect(step(params), [Item(source)], _work, follow=_videos, retry_quarantined=retry_quarantined)
