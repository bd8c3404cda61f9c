"""The overview: how much is on record, what was dropped and why, the newest releases and models."""

from fastapi import APIRouter, Request
from sqlalchemy import select
from starlette.responses import PlainTextResponse, Response

from apps.audit import charts, facets, search
from apps.audit.estimates import rows_of
from apps.audit.search import Filters
from apps.audit.site import query, site_of
from medgen.catalog import ModelVersion, Release

router = APIRouter()


@router.get("/")
def home(request: Request) -> Response:
    """The overview."""
    site = site_of(request)
    with site.engine.connect() as connection:
        kinds = {c.value: c for c in facets.counts(connection, "kind")}
        reasons = {
            status: [c for c in facets.counts(connection, "reason", status=status)][:12]
            for status in ("rejected", "failed")
        }
        categories = facets.counts(connection, "category", kind="clip")
        releases = connection.execute(
            select(Release.name, Release.clips, Release.created_at).order_by(Release.created_at.desc()).limit(6)
        ).all()
        models = connection.execute(
            select(ModelVersion.digest, ModelVersion.name, ModelVersion.release_name, ModelVersion.created_at)
            .order_by(ModelVersion.created_at.desc())
            .limit(6)
        ).all()
        runs = rows_of(connection, "step_run")
        newest = search.search(connection, Filters(), size=6).rows
    return site.page(
        "home.html",
        kinds=kinds,
        runs=runs,
        reasons={status: _bars(counts, "reason", status=status) for status, counts in reasons.items()},
        categories=_bars(categories, "category", kind="clip"),
        releases=releases,
        models=models,
        newest=newest,
        exact=all(c.exact for c in kinds.values()),
    )


@router.get("/robots.txt")
def robots(request: Request) -> Response:
    """Nothing here is for search engines."""
    return PlainTextResponse("User-agent: *\nDisallow: /\n")


def _bars(counts: list[facets.Count], column: str, **more: str) -> list[dict[str, object]]:
    rows = charts.shares({c.value: c.rows for c in counts})
    known = {c.value for c in counts}
    for row in rows:
        row["href"] = "/items" + query({column: row["value"]}, **more) if row["value"] in known else ""
    return rows
