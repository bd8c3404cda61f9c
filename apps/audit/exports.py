"""What can be carried away: lists as CSV and Parquet, lineage as PROV and OpenLineage, a release as Croissant."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import APIRouter, Path, Request
from sqlalchemy import select
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from apps.audit import openlineage, prov, search
from apps.audit.lineage import clip_lineage
from apps.audit.releases import described, outputs_of, release_of
from apps.audit.search_page import filters_of
from apps.audit.site import Site, site_of
from apps.history import Unknown
from medgen.catalog import StepRun
from tasks.curation.croissant import croissant

router = APIRouter()

MOST = 2_000_000  # rows of an export
COLUMNS = (
    "id", "kind", "video_id", "title", "channel", "licence", "category", "source_name", "step", "status", "reason",
    "decided_at", "run_id",
)  # fmt: skip
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in COLUMNS[:-2]),
        ("decided_at", pa.timestamp("us", "UTC")),
        ("run_id", pa.int64()),
        ("value", pa.float64()),
    ]
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")

Id = Annotated[str, Path(max_length=200)]


@router.get("/items.csv")
def items_csv(request: Request) -> Response:
    """The rows of a search as CSV. Cells that a spreadsheet would take for a formula begin with an apostrophe."""
    site = site_of(request)
    filters, _ = filters_of(request)
    return StreamingResponse(_csv(site, filters), media_type="text/csv; charset=utf-8", headers=_named("items.csv"))


@router.get("/items.parquet")
def items_parquet(request: Request) -> Response:
    """The rows of a search as Parquet, exactly as they are on record."""
    site = site_of(request)
    filters, _ = filters_of(request)
    path = site.store.scratch(".parquet")
    try:
        with site.engine.connect() as connection, pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
            for batch in _batches(search.every(connection, filters, MOST)):
                writer.write_table(
                    pa.Table.from_pylist([{n: row.get(n) for n in SCHEMA.names} for row in batch], SCHEMA)
                )
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return FileResponse(
        path,
        media_type="application/vnd.apache.parquet",
        headers=_named("items.parquet"),
        background=BackgroundTask(FilePath(path).unlink, missing_ok=True),
    )


@router.get("/clips/{clip_id}/prov.json")
def clip_prov(request: Request, clip_id: Id) -> Response:
    """A clip's lineage as PROV-JSON."""
    document = prov.clip_document(clip_lineage(site_of(request).ledger, clip_id))
    return JSONResponse(document, headers=_named(f"{clip_id}.prov.json"))


@router.get("/clips/{clip_id}/openlineage.json")
def clip_openlineage(request: Request, clip_id: Id) -> Response:
    """A clip's lineage as OpenLineage events."""
    events = openlineage.clip_events(clip_lineage(site_of(request).ledger, clip_id))
    return JSONResponse(events, headers=_named(f"{clip_id}.openlineage.json"))


@router.get("/releases/{name}/prov.json")
def release_prov(request: Request, name: Id) -> Response:
    """A release's lineage as PROV-JSON."""
    site = site_of(request)
    release, run, _ = _release(site, name)
    pieces = prov.release_document(site.ledger, release, run)
    return StreamingResponse(pieces, media_type="application/json", headers=_named(f"{name}.prov.json"))


@router.get("/releases/{name}/openlineage.json")
def release_openlineage(request: Request, name: Id) -> Response:
    """The events of the run that made a release."""
    site = site_of(request)
    release, run, _ = _release(site, name)
    pieces = openlineage.release_events(site.ledger, release, run)
    return StreamingResponse(pieces, media_type="application/json", headers=_named(f"{name}.openlineage.json"))


@router.get("/releases/{name}/croissant.json")
def release_croissant(request: Request, name: Id) -> Response:
    """A release's metadata as Croissant."""
    site = site_of(request)
    release, _, outputs = _release(site, name)
    schema = pq.read_schema(site.store.path(outputs["metadata"])) if "metadata" in outputs else None
    licences = described(site.store, outputs.get("metadata")).kinds.get("licence", {})
    date = release["created_at"].date().isoformat()
    about = croissant(name, outputs, schema, licences, digest=release["digest"], published=date)
    return JSONResponse(about, headers=_named(f"{name}.croissant.json"))


@router.get("/releases/{name}/{file}")
def release_file(request: Request, name: Id, file: Annotated[str, Path(max_length=40)]) -> Response:
    """The dataset card, the metadata table or the table of rejected ones."""
    files = {
        "README.md": ("card", "text/markdown; charset=utf-8"),
        "card.md": ("card", "text/markdown; charset=utf-8"),
        "metadata.parquet": ("metadata", "application/vnd.apache.parquet"),
        "rejected.parquet": ("rejected", "application/vnd.apache.parquet"),
        "funnel.json": ("funnel", "application/json"),
        "manifest.json": ("manifest", "application/json"),
    }
    site = site_of(request)
    if file not in files:
        raise Unknown("a release has no such file here")
    role, media_type = files[file]
    _, _, outputs = _release(site, name)
    if role not in outputs:
        raise Unknown(f"release {name[:80]} has no {file}")
    return FileResponse(site.store.path(outputs[role]), media_type=media_type, headers=_named(f"{name}-{file}"))


def _release(site: Site, name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    with site.engine.connect() as connection:
        release = release_of(connection, name)
        run = connection.execute(select(StepRun.__table__).where(StepRun.id == release["step_run_id"])).mappings().one()
        return release, dict(run), outputs_of(connection, release["step_run_id"])


def _csv(site: Site, filters: search.Filters) -> Iterator[str]:
    columns = [*COLUMNS, *(["value"] if filters.metric else [])]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(columns)
    with site.engine.connect() as connection:
        for batch in _batches(search.every(connection, filters, MOST)):
            writer.writerows([_cell(row.get(name)) for name in columns] for row in batch)
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _cell(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return "'" + value if isinstance(value, str) and value.startswith(FORMULA) else value


def _batches(rows: Iterator[Mapping[str, Any]], size: int = 5000) -> Iterator[Sequence[Mapping[str, Any]]]:
    some: list[Mapping[str, Any]] = []
    for row in rows:
        some.append(row)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def _named(name: str) -> dict[str, str]:
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    return {"Content-Disposition": f'attachment; filename="{safe}"'}


def as_json(value: Any) -> str:
    """JSON for people."""
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)
