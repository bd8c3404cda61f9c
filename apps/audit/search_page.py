"""Search: all videos and clips, narrowed down by what is known of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import APIRouter, Header, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from apps.audit import facets, search
from apps.audit.reading import TooSlow, limited
from apps.audit.search import Filters
from apps.audit.site import Site, query, site_of

router = APIRouter()

LONGEST = 4000  # characters of filters in an address


def filters_of(request: Request) -> tuple[Filters, list[str]]:
    """The filters of a request's query, and what is wrong with those that had to be left out."""
    given = dict(request.query_params)
    try:
        return Filters(**given), []
    except ValidationError as error:
        wrong = {str(e["loc"][0]): e["msg"] for e in error.errors() if e["loc"]}
        rest = {k: v for k, v in given.items() if k not in wrong}
        return Filters(**rest), [f"{name}: {message}" for name, message in sorted(wrong.items())]


def within(filters: Filters) -> str:
    """The part of an item's address that says among which results it was found; empty without filters."""
    return query(within=urlencode(filters.given)) if filters.given else ""


@dataclass(frozen=True)
class Place:
    """Where an item stands among the results that it was found in: addresses of those before and after, and of all."""

    before: str | None
    after: str | None
    results: str


def place_within(site: Site, text: str, identity: str) -> Place | None:
    """The place of an item among results, by what `within` wrote; None where that says nothing or is slow to tell."""
    try:
        filters = Filters(**dict(parse_qsl(text[:LONGEST])))
    except ValidationError:
        return None
    if not filters.given:
        return None
    try:
        with site.engine.connect() as connection, limited(connection, search.DIRECT_S):
            before, after = search.neighbours(connection, filters, identity)
    except TooSlow:
        return None
    return Place(_address(before, filters), _address(after, filters), "/items" + query(filters.given))


def _address(row: Mapping[str, Any] | None, filters: Filters) -> str | None:
    if row is None or row["kind"] == "stretch":
        return None
    kind = "clips" if row["kind"] == "clip" else "videos"
    return f"/{kind}/{quote(row['id'], safe='')}{within(filters)}"


@router.get("/items")
def items(
    request: Request,
    after: Annotated[str, Query(max_length=700)] = "",
    hx_request: Annotated[str | None, Header()] = None,
    hx_target: Annotated[str | None, Header(max_length=40)] = None,
) -> Response:
    """Rows that the filters let through; for HTMX only what changes of the page."""
    site = site_of(request)
    filters, wrong = filters_of(request)
    with site.engine.connect() as connection:
        page = search.search(connection, filters, after or None)
        values = {"filters": filters, "wrong": wrong, "page": page, "after": after}
        if hx_request and hx_target in ("results", "more"):
            template = "_more.html" if hx_target == "more" else "_results.html"
            answer: Response = site.page(template, **values)
        else:
            choices = {name: facets.facets(connection, name) for name in ("step", "reason", "category", "licence")}
            names = facets.metrics(connection)
            answer = site.page("search.html", choices=choices, metrics=names, **values)
    answer.headers["Vary"] = "HX-Request, HX-Target"
    return answer


@router.get("/suggest/{column}")
def suggest(request: Request, column: str, channel: str = "", source: str = "") -> Response:
    """Options of a field with too many values for a list: those that begin like what was typed."""
    column = {"channel": "channel", "source": "source_name"}.get(column, "")
    typed = (channel or source)[:100]
    options: list[str] = []
    if column and typed.isprintable():
        with site_of(request).engine.connect() as connection:
            options = [v for v in facets.facets(connection, column, 20, typed) if v.startswith(typed)]
    return site_of(request).page("_options.html", options=options)
