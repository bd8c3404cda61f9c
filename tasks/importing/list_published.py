"""Import, first step: which clips a published set says that there are.

Subject: a file of the set that describes clips, a table or a shard. Two Parquet artifacts tell what became of its rows:
`verdicts` has every one, `rows` those that were taken, checked and under our names. No video is opened here.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from medgen.among import pages
from medgen.catalog import Base, Source, Video, declare_item_step, open_catalog
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.listings.rows import storable_text
from medgen.listings.shards import KnownFiles
from medgen.published.fields import PUBLISHED_SCHEME, PublishedRow, field_mapping, published_row
from medgen.published.layout import PublishedFile
from medgen.published.raw_rows import RawRow, raw_rows
from medgen.shard import Step
from medgen.shard_results import ShardReference
from medgen.store import Store, file_digest
from medgen.takedown import IMPORT_LIST, TAKEN_DOWN, taken_down_urls
from tasks.curation.discover import PARQUET, video_id
from tasks.importing.import_params import ImportParams
from tasks.prefect_step import run_stored_in_prefect, step_task

KIND = "published set"  # of such a source
PAGE_ROWS = 256  # of a row group of `rows`, which are imported in one task run
TIME_LIMIT_S = 6 * 3600.0
VERDICTS = pa.schema(
    [
        ("row", pa.int64()),
        ("video_id", pa.string()),
        ("file", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)
TEXTS = (
    "file", "brief", "detailed", "category", "licence", "split", "title", "channel", "published", "camera_motion",
    "captioner", "captioner_kind", "aesthetic_model", "technical_model", "sha256",
)  # fmt: skip
ROWS = pa.schema(
    [
        ("row", pa.int64()),
        ("video_id", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        *((name, pa.string()) for name in TEXTS),
        ("start_s", pa.float64()),
        ("scores", pa.string()),  # JSON, as the next two
        ("claims", pa.string()),
        ("columns", pa.string()),
        ("place", pa.string()),
    ]
)


class ListDetail(TypedDict):
    """What is on record of a file of a set: whose it is, its digest, and verdict → number of rows."""

    source: str
    file: str
    kind: str
    digest: str
    counts: dict[str, int]


class ListOutputs(TypedDict):
    """Tables of all rows and of those that were taken."""

    verdicts: str
    rows: str


LISTED: Handover[ListDetail, ListOutputs] = Handover(IMPORT_LIST)


def list_published(work: Work, store: Store, params: ImportParams) -> Outcome:
    """Reads a file of a set.

    Raises:
        SourceUnreadable: the file as a whole can't be read.
    """
    file = PublishedFile(**{**work.access["file"], "path": Path(work.access["file"]["path"])})
    reader = _Reader(work.context["source"], file, params, work.access["forgotten"])
    verdicts, rows = store.scratch(".parquet"), store.scratch(".parquet")
    with (
        pq.ParquetWriter(verdicts, VERDICTS, compression="zstd") as of_all,
        pq.ParquetWriter(rows, ROWS, compression="zstd") as of_taken,
    ):
        taken: list[dict[str, Any]] = []
        for page in pages(raw_rows(file), PAGE_ROWS):
            judged = [reader.judge(raw) for raw in page]
            of_all.write_table(pa.Table.from_pylist([verdict for verdict, _ in judged], VERDICTS))
            taken += [row for _, row in judged if row]
            while len(taken) >= PAGE_ROWS:
                of_taken.write_table(pa.Table.from_pylist(taken[:PAGE_ROWS], ROWS))
                taken = taken[PAGE_ROWS:]
        if taken:
            of_taken.write_table(pa.Table.from_pylist(taken, ROWS))
    outputs = {"verdicts": store.put_file(verdicts, PARQUET), "rows": store.put_file(rows, PARQUET)}
    detail: ListDetail = {
        "source": work.context["source"],
        "file": file.name,
        "kind": file.kind,
        "digest": work.context["digest"],
        "counts": dict(sorted(reader.counts.items())),
    }
    source = Source(name=work.context["source"], kind=KIND, uri=work.access["uri"])
    return Outcome(
        "kept", detail=detail, outputs=outputs, rows=_CatalogRows(source, store.path(outputs["rows"].sha256))
    )


@dataclass(frozen=True)
class _CatalogRows:
    """The source and its videos as rows of the catalog, made while they are read."""

    source: Source
    rows: Path

    def __iter__(self) -> Iterator[Base]:
        yield self.source
        columns = ["video_id", "url", "title", "channel", "licence", "published"]
        known: set[str] = set()
        with pq.ParquetFile(self.rows) as file:
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    if row["video_id"] in known:
                        continue
                    known.add(row["video_id"])
                    yield Video(
                        id=row["video_id"], source_name=self.source.name, external_id=None, url=row["url"],
                        title=row["title"] or "", description="", tags=[], channel=row["channel"], channel_url=None,
                        licence=row["licence"], published=row["published"], duration_s=None,
                    )  # fmt: skip


class _Reader:
    """Judges the rows of a file, one after the other, and counts the verdicts."""

    def __init__(self, source: str, file: PublishedFile, params: ImportParams, forgotten: Collection[str]) -> None:
        self.source, self.file, self.params = source, file, params
        self.mapping = field_mapping(params.columns)
        self.pattern = re.compile(params.video_pattern) if params.video_pattern else None
        self.forgotten = {video_id(url) for url in forgotten}
        self.counts: Counter[str] = Counter()
        self._seen: dict[str, int] = {}

    def judge(self, raw: RawRow) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """(a row of VERDICTS, a row of ROWS if it was taken)."""
        verdict: dict[str, Any] = {"row": raw.number, "status": "kept"}
        row: dict[str, Any] | None = None
        try:
            if raw.failure:
                raise raw.failure
            row = self._row(raw, published_row(self._values(raw), self.mapping))
            verdict |= {"video_id": row["video_id"], "file": row["file"]}
            if row["video_id"] in self.forgotten:
                verdict, row = {**verdict, "file": None, "status": "rejected", "reason": TAKEN_DOWN}, None
            elif not row["brief"] or not row["detailed"]:
                verdict |= {"status": "rejected", "reason": "caption_missing", "message": self._lacks(row)}
                row = None
            elif (before := self._seen.setdefault(row["key"], raw.number)) != raw.number:
                verdict |= {"status": "rejected", "reason": "listed_before", "message": f"as row {before}"}
                row = None
        except ItemFailed as failure:
            verdict |= {"status": "failed", "reason": failure.reason, "message": failure.message}
            row = None
        self.counts[" ".join(filter(None, (verdict["status"], verdict.get("reason"))))] += 1
        return verdict, row

    def _values(self, raw: RawRow) -> Mapping[str, Any]:
        """The row; of a video that lies inside Parquet with a name: the last part of its own, or its place."""
        if raw.place is None or "member" in raw.place:
            return raw.values
        own = PurePosixPath(storable_text(raw.values.get("file_name") or "").replace("\\", "/")).name
        return {**raw.values, "file_name": own or f"{PurePosixPath(self.file.name).name}-{raw.number}"}

    def _lacks(self, row: Mapping[str, Any]) -> str:
        missing = [kind for kind in ("brief", "detailed") if not row[kind]]
        return f"no {' and no '.join(missing)} caption: name its column, for example columns=detailed=NAME"

    def _row(self, raw: RawRow, row: PublishedRow) -> dict[str, Any]:
        params = self.params
        brief, detailed = row.brief, row.detailed
        columns = {name: row.columns[name] for name in ("brief", "detailed") if name in row.columns}
        if params.single_caption == "both" and bool(brief) != bool(detailed):
            brief = detailed = brief or detailed
            columns = dict.fromkeys(("brief", "detailed"), next(iter(columns.values())))
        # What lies in a file is known by that; a file beside a table by its path, whichever table lists it.
        key = self._path(row.file) if raw.place is None else f"{self.file.name}#{raw.place.get('member', raw.number)}"
        url = row.url or self._url(row, key)
        texts = {name: getattr(row, name) or None for name in TEXTS}
        return {
            **texts,
            "row": raw.number,
            "video_id": video_id(url),
            "url": url,
            "key": hashlib.sha256(key.encode()).hexdigest()[:16],
            "file": row.file,
            "brief": brief,
            "detailed": detailed,
            "licence": row.licence or params.licence or None,
            "split": row.split or self.file.split or None,
            "captioner": row.captioner or params.captioner or None,
            "captioner_kind": row.captioner_kind or params.captioner_kind,
            "start_s": row.start_s,
            "scores": json.dumps(row.scores),
            "claims": json.dumps(row.claims),
            "columns": json.dumps(columns),
            "place": json.dumps(raw.place) if raw.place else None,
        }

    def _path(self, file: str) -> str:
        folder = PurePosixPath(self.file.name).parent
        return str(folder / file)

    def _url(self, row: PublishedRow, key: str) -> str:
        """An address of our own for a source video that has none: by its publisher's name for it, else by the clip."""
        found = self.pattern.search(PurePosixPath(row.file).name) if self.pattern else None
        video = (found and found[1]) or row.source_video
        return f"{PUBLISHED_SCHEME}{quote(self.source)}/{quote(f'video/{video}' if video else key)}"


def step(params: ImportParams) -> Step:
    """The reading of a set's files, ready to run."""
    identity = StepIdentity(IMPORT_LIST, 1, _reading(params), {})
    return Step(identity, partial(list_published, params=params), time_limit_s=TIME_LIMIT_S)


def _reading(params: ImportParams) -> dict[str, Any]:
    """The parameters that decide on rows."""
    names = {"columns", "single_caption", "captioner", "captioner_kind", "licence", "video_pattern"}
    return params.model_dump(mode="json", include=names)


def works_of(source: str, uri: str, files: Iterable[PublishedFile], forgotten: Collection[str]) -> list[Work]:
    """A work for each file of a set; one that bears the mark of a digest on record is not read for it."""
    known = KnownFiles(open_catalog())
    works = []
    for some in pages(files):
        digests = known.find({str(file.path): file.mark for file in some})
        for file in some:
            digest = digests.get(str(file.path))
            if digest is None:
                digest, _ = file_digest(file.path)
                known.remember(str(file.path), file.mark, digest)
            context = {"source": source, "digest": digest, "kind": file.kind, "split": file.split}
            access = {"file": {**vars(file), "path": str(file.path)}, "uri": uri, "forgotten": forgotten}
            works.append(Work(f"{source}/{file.name}", context=context, access=access))
    return works


@step_task(IMPORT_LIST, "cpu")
def list_files(
    label: str, source: str, uri: str, files: Sequence[PublishedFile], params: ImportParams, retry_quarantined: bool
) -> ShardReference:
    """Reads files of a set."""
    declare_item_step(open_catalog(), "import")
    works = works_of(source, uri, files, taken_down_urls(open_catalog()))
    return run_stored_in_prefect(step(params), works, retry_quarantined=retry_quarantined)
