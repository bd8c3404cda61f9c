"""Discover: which listed videos are worth downloading, by their words and their meaning.

Subject: a shard of a source. Stage 1 looks up medical terms in title, description and tags; what passes is judged in
stage 2 by a text classifier. Rows stay Arrow columns until they have passed both, so a shard of half a million rows
takes seconds and its size does not matter to memory. Two Parquet artifacts tell what became of it: `verdicts` has
every row with its scores, `hits` has the kept rows in full, with the terms that were found. A folder's files have been
chosen by whoever made the folder, and file names are no titles: they pass without the filters, which the record says.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, lru_cache, partial
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from medgen.canonical import rounded
from medgen.catalog import Source, Video, open_catalog
from medgen.errors import ItemFailed, SourceUnreadable
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.listings.read import batches
from medgen.listings.rows import LISTING, Batch, Listed, column_mapping, parse_row
from medgen.listings.shard_file import Shard
from medgen.memory import trim_heap
from medgen.parameters import Parameters
from medgen.shard import Item, Step
from medgen.shard_results import ShardReference
from medgen.store import Artifact, Store, open_store
from medgen.takedown import TAKEN_DOWN, taken_down_urls
from models.relevance.classifier import DEFAULT_MODEL, TextClassifier, load_text_classifier, text_classifier_digest
from models.relevance.dictionary import (
    STRONG_WEIGHT,
    THRESHOLD,
    Judgement,
    MedicalDictionary,
    dictionary_digest,
    load_medical_dictionary,
)
from tasks.curation.curation_step import CurationStep
from tasks.curation.discover_record import DISCOVER, DiscoverDetail
from tasks.curation.list_sources import Listing
from tasks.prefect_step import run_stored_in_prefect, step_task

PARQUET = "application/vnd.apache.parquet"
VERDICTS = pa.schema(
    [
        ("row", pa.int64()),
        ("url", pa.string()),
        ("title", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("word_score", pa.float32()),
        ("text_probability", pa.float32()),
    ]
)
HITS = pa.schema(
    [
        ("row", pa.int64()),
        ("video_id", pa.string()),
        *((field.name, field.type) for field in LISTING),
        ("terms", pa.list_(pa.string())),
        ("word_score", pa.float32()),
        ("text_probability", pa.float32()),
    ]
)


class DiscoverParams(Parameters):
    """Parameters of discover."""

    former_names = MappingProxyType(
        {
            "word_filter": "keyword_filter",
            "word_threshold": "keyword_threshold",
            "meaning_filter": "text_classifier",
            "meaning_model": "text_encoder",
            "meaning_head": "text_head",
            "meaning_threshold": "text_threshold",
        }
    )

    keyword_filter: Literal["listings", "off"] = Field("listings", description="Which sources the dictionary judges.")
    keyword_threshold: float = Field(
        THRESHOLD, gt=0, le=1e9, description="Weight of medical terms that a listing must reach."
    )
    text_classifier: Literal["listings", "off"] = Field(
        "listings", description="Which sources the text classifier judges."
    )
    text_encoder: str = Field(
        DEFAULT_MODEL, description="Text encoder: minilm_int8, minilm, wordllama, or a hub name or folder."
    )
    text_head: str = Field("", description="Head trained by `medgen train-text`; empty: the one that comes along.")
    text_threshold: float = Field(
        0.0, ge=0, lt=1, description="Probability that a listing must reach; 0: the head's own operating point."
    )


def video_id(url: str) -> str:
    """Stable id of a video: the same URL is the same video, whoever lists it."""
    return "v" + hashlib.sha256(url.encode()).hexdigest()[:16]


def discover(work: Work, store: Store, params: DiscoverParams) -> Outcome:
    """Judges every row of a shard.

    Raises:
        SourceUnreadable: the shard as a whole can't be read.
    """
    if "unreadable" in work.context:
        raise SourceUnreadable(*work.context["unreadable"].split(": ", 1), transient=work.context["passing"])
    shard = Shard(**work.access["shard"])
    classifier = ListingClassifier(
        params,
        by_hand=shard.kind == "folder",
        by_words=work.context.get("by_words", True),
        forgotten=work.access["forgotten"],
    )
    hits: list[dict[str, Any]] = []
    scratch = store.scratch(".parquet")
    try:
        with pq.ParquetWriter(scratch, VERDICTS, compression="zstd", use_dictionary=["status", "reason"]) as writer:
            for batch in batches(shard, column_mapping(work.context.get("columns", ()))):
                verdicts, kept = classifier(batch)
                writer.write_batch(verdicts)
                hits += kept
        outputs = {"verdicts": store.put_file(scratch, PARQUET), "hits": _stored(hits, store)}
    finally:
        scratch.unlink(missing_ok=True)
        trim_heap()
    detail: DiscoverDetail = {
        "source": shard.source,
        "kind": shard.kind,
        "uri": work.access["uri"],
        "counts": dict(sorted(classifier.counts.items())),
        "keyword_filter": "dictionary" if classifier.dictionary else "none",
        "text_classifier": classifier.classifier.name if classifier.classifier else "none",
    }
    return Outcome(
        "kept",
        detail=detail,
        outputs=outputs,
        rows=[
            Source(name=shard.source, kind=shard.kind, uri=work.access["uri"]),
            *(_video(shard.source, row) for row in hits),
        ],
    )


class ListingClassifier:
    """Judges batch after batch of one shard; counts its verdicts.

    `counts` maps "kept", "rejected REASON" and "failed REASON" to numbers of rows.

    Args:
        by_hand: the rows are files of a folder, which no filter judges.
        by_words: the dictionary judges before the classifier does.
        forgotten: URLs of videos that were taken down: of these rows no words go on record.
    """

    def __init__(
        self, params: DiscoverParams, *, by_hand: bool, by_words: bool, forgotten: Collection[str] = ()
    ) -> None:
        self.by_hand = by_hand
        self.forgotten = pa.array(sorted(forgotten), pa.string())
        self._forgotten_ids = {video_id(url) for url in forgotten}
        words = by_words and not by_hand and params.keyword_filter == "listings"
        text = not by_hand and params.text_classifier == "listings"
        self.dictionary = _dictionary() if words else None
        self.classifier: TextClassifier | None = None
        self.text_threshold = 0.0
        if text:
            self.classifier, self.text_threshold = classifier_of(params)
        trim_heap()  # loading models leaves as much as they need
        self.keyword_threshold = params.keyword_threshold
        self.counts: Counter[str] = Counter()
        self._seen: dict[str, int] = {}

    def __call__(self, batch: Batch) -> tuple[pa.RecordBatch, list[dict[str, Any]]]:
        """(a row of VERDICTS for every row, a row of HITS for every kept one)."""
        rows = batch.rows
        ends = _Ends(rows.num_rows)
        for number, failure in batch.failures.items():
            # A file that is no video is not at fault; a row that can't be read is.
            status = "rejected" if failure.reason == "not_a_video_name" else "failed"
            ends.end(number - batch.first, status, failure.reason, failure.message)
        gone = np.array(pc.is_in(rows["url"], value_set=self.forgotten))  # a null URL is in no set
        ends.end_all(gone, TAKEN_DOWN)
        tags = pc.fill_null(pc.binary_join(rows["tags"], "\n"), "")
        words = np.full(rows.num_rows, np.nan, np.float32)
        meaning = np.full(rows.num_rows, np.nan, np.float32)
        judgement = None
        if self.dictionary:
            judgement = self.dictionary.judge(rows["title"], rows["description"], tags)
            words = judgement.score
            ends.end_all(words <= 0, "no_medical_term")
            ends.end_all(words < self.keyword_threshold, "weak_medical_terms")
        left = ends.open()
        if self.classifier and len(left):
            meaning[left] = self.classifier.probability(
                _texts(rows["title"], left),
                _texts(rows["description"], left),
                _texts(tags, left),
                closely=words[left] >= STRONG_WEIGHT if self.dictionary else None,
            )
            ends.end_all(meaning < self.text_threshold, "not_medical_by_text")
        hits = []
        for index, row in zip(left := ends.open(), rows.take(pa.array(left)).to_pylist(), strict=True):
            number = batch.first + int(index)
            try:
                listed = Listed(**{**row, "tags": ()}) if self.by_hand else parse_row(row)
            except ItemFailed as failure:
                ends.end(index, "failed", failure.reason, failure.message)
                continue
            if video_id(listed.url) in self._forgotten_ids:  # its URL is written a little differently
                ends.end(index, "rejected", TAKEN_DOWN, "taken down")
                gone[index] = True
                continue
            if listed.url in self._seen:
                ends.end(index, "rejected", "listed_before", f"as row {self._seen[listed.url]}")
                continue
            self._seen[listed.url] = number
            hits.append(_hit(number, listed, judgement, int(index), words[index], meaning[index]))
        self.counts.update(ends.counts())
        numbers = np.arange(batch.first, batch.first + rows.num_rows)
        words[gone] = meaning[gone] = np.nan
        titles = pc.if_else(pa.array(gone), "", rows["title"]) if gone.any() else rows["title"]
        columns = [numbers, rows["url"], titles, *ends.columns(), words, meaning]
        return pa.record_batch(
            [_nullable(column, field.type) for column, field in zip(columns, VERDICTS, strict=True)], VERDICTS
        ), hits


class _Ends:
    """How the rows of a batch ended. A row ends once: what is said of it later does not count."""

    def __init__(self, count: int) -> None:
        self._codes = np.zeros(count, np.int16)
        self._verdicts: list[tuple[str, str | None]] = [("kept", None)]
        self._messages: dict[int, str] = {}

    def end(self, index: int, status: str, reason: str, message: str) -> None:
        if not self._codes[index]:
            self._codes[index] = self._code(status, reason)
            self._messages[int(index)] = message

    def end_all(self, where: np.ndarray, reason: str) -> None:
        """Rejects the rows where the boolean array `where` is set."""
        self._codes[where & (self._codes == 0)] = self._code("rejected", reason)

    def open(self) -> np.ndarray:
        """Indices of the rows that have not ended, in order."""
        return np.flatnonzero(self._codes == 0)

    def counts(self) -> dict[str, int]:
        rows_of = np.bincount(self._codes, minlength=len(self._verdicts))
        return {" ".join(filter(None, v)): int(n) for v, n in zip(self._verdicts, rows_of, strict=True) if n}

    def columns(self) -> tuple[pa.Array, pa.Array, pa.Array]:
        """status, reason and message of every row."""
        messages = pa.nulls(len(self._codes), pa.string())
        if self._messages:
            where = np.zeros(len(self._codes), bool)
            where[list(self._messages)] = True
            in_order = pa.array([self._messages[i] for i in sorted(self._messages)], pa.string())
            messages = pc.replace_with_mask(messages, pa.array(where), in_order)
        statuses, reasons = (pa.array(column, pa.string()) for column in zip(*self._verdicts, strict=True))
        return statuses.take(pa.array(self._codes)), reasons.take(pa.array(self._codes)), messages

    def _code(self, status: str, reason: str) -> int:
        if (status, reason) not in self._verdicts:
            self._verdicts.append((status, reason))
        return self._verdicts.index((status, reason))


def _texts(column: pa.Array, indices: np.ndarray) -> list[str]:
    texts: list[str] = pc.fill_null(column.take(pa.array(indices)), "").to_pylist()
    return texts


def _nullable(column: Any, kind: pa.DataType) -> pa.Array:
    """A column as Arrow has it; NaN, which means not measured, becomes null."""
    return column if isinstance(column, pa.Array) else pa.array(column, kind, from_pandas=True)


def _hit(
    number: int, row: Listed, judgement: Judgement | None, index: int, words: float, meaning: float
) -> dict[str, Any]:
    return {
        **vars(row),
        "row": number,
        "video_id": video_id(row.url),
        "tags": list(row.tags),
        "terms": judgement.terms(index) if judgement else [],
        "word_score": None if np.isnan(words) else rounded(words),
        "text_probability": None if np.isnan(meaning) else rounded(meaning),
    }


def _stored(hits: Sequence[dict[str, Any]], store: Store) -> Artifact:
    scratch = store.scratch(".parquet")
    try:
        pq.write_table(pa.Table.from_pylist(hits, HITS), scratch, compression="zstd")
        return store.put_file(scratch, PARQUET)
    finally:
        scratch.unlink(missing_ok=True)


def _video(source: str, row: Mapping[str, Any]) -> Video:
    return Video(
        id=row["video_id"],
        source_name=source,
        external_id=row["external_id"],
        **{
            name: row[name]
            for name in (
                "url", "title", "description", "tags", "channel", "channel_url", "licence", "published", "duration_s",
            )
        },
    )  # fmt: skip


@lru_cache(maxsize=4)
def listed(hits: str) -> dict[str, dict[str, Any]]:
    """video id → row of a hits artifact, in listing order."""
    return {row["video_id"]: row for row in pq.read_table(open_store().path(hits)).to_pylist()}


@cache
def _dictionary() -> MedicalDictionary:
    return load_medical_dictionary()


def classifier_of(params: DiscoverParams) -> tuple[TextClassifier, float]:
    """The text classifier that parameters name, loaded once a process, and the probability that a row must reach."""
    classifier = _classifier(params.text_encoder, params.text_head)
    return classifier, params.text_threshold or classifier.threshold


@lru_cache(maxsize=2)
def _classifier(model: str, head: str) -> TextClassifier:
    return load_text_classifier(model, head, served=True)


def step(params: DiscoverParams) -> Step:
    """Discover, ready to run. Raises ModelUnavailable."""
    models = {"dictionary": dictionary_digest()} if params.keyword_filter != "off" else {}
    if params.text_classifier != "off":
        models["text_classifier"] = text_classifier_digest(params.text_encoder, params.text_head)
    return Step(
        StepIdentity("discover", 4, params.model_dump(mode="json"), models),
        partial(discover, params=params),
        fan_out=videos_of,
    )


def works_of(listing: Listing, columns: Sequence[str], forgotten: Collection[str]) -> list[Work]:
    """A work for each shard of a listing; one for a source that can't be read, so that its error goes on record.

    Args:
        forgotten: URLs of videos that were taken down.
    """
    works = []
    for subject in listing.shards or ([listing.source] if listing.error else []):
        shard = listing.shards.get(subject)
        if shard is None or shard.fault:
            error = {"unreadable": shard.fault if shard else listing.error, "passing": listing.transient}
            works.append(Work(subject, context=error))
            continue
        content: dict[str, Any] = {name: getattr(shard, name) for name in ("source", "kind", "digest", "row_groups")}
        if shard.kind == "folder":
            content["location"] = shard.location  # where its videos are copied from
        else:
            content |= {"columns": sorted(columns), "by_words": listing.by_words}
        access = {"shard": vars(shard), "uri": listing.uri or shard.source, "forgotten": forgotten}
        works.append(Work(subject, context=content, access=access))
    return works


def videos_of(item: Item, record: Record) -> Iterable[Item]:
    """The kept videos of a shard."""
    kept = pq.read_table(open_store().path(DISCOVER.outputs(record)["hits"]), columns=["video_id"])
    return [Item(identity, item.lineage) for identity in dict.fromkeys(kept["video_id"].to_pylist())]


STEP = CurationStep("discover", DiscoverParams, step)


@step_task("discover", "cpu")
def discover_shards(
    label: str, listing: Listing, params: DiscoverParams, columns: Sequence[str] = (), retry_quarantined: bool = False
) -> ShardReference:
    """Discovers shards of one source; gives a reference to their kept videos."""
    works = works_of(listing, columns, taken_down_urls(open_catalog()))
    return run_stored_in_prefect(step(params), works, retry_quarantined=retry_quarantined)
