"""The site as a FastAPI application: all pages, what they share, and the answers to errors."""

import logging
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from sqlalchemy.exc import DataError, OperationalError, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from apps.audit import (
    charts,
    clip_page,
    compare_page,
    creation_page,
    exports,
    home_page,
    leaderboard_page,
    lineage_page,
    listed_page,
    media,
    model_page,
    release_page,
    run_page,
    search_page,
    shown_text,
    similar_page,
    takedown_page,
    video_page,
)
from apps.audit.access import Access, Visitors
from apps.audit.reading import TooSlow, read_only_engine
from apps.audit.reasons import in_words
from apps.audit.search_page import within
from apps.audit.site import Site, query, site_of
from apps.history import Unknown
from apps.host_check import HostCheck
from medgen import __version__
from medgen.counted import counted
from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from medgen.store import open_store
from tasks.curation.clip_search import Encoders

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
PAGES = (
    home_page, search_page, listed_page, similar_page, clip_page, video_page, release_page, compare_page, model_page,
    leaderboard_page, creation_page, run_page, lineage_page, takedown_page, exports, media,
)  # fmt: skip


def create_site(
    visitors: Visitors | None = None,
    *,
    listening: str = "127.0.0.1",
    allowed: Iterable[str] = (),
    encoders: Encoders | None = None,
) -> FastAPI:
    """The site over this installation's catalog and store.

    Args:
        visitors: who may look.
        listening, allowed: as `HostCheck`.
        encoders: by which words that are searched for are embedded.
    """
    pc.equal(pa.array(["a"]), "a")  # pyarrow's first comparison loads pandas: now, not while somebody waits
    app = FastAPI(title="medgen audit", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.site = Site(Ledger(read_only_engine(), open_store()), _templates(), encoders or Encoders())
    for page in PAGES:
        for route in page.router.routes:
            if isinstance(route, APIRoute) and route.methods:
                route.methods.add("HEAD")  # the server sends the head of the same answer
        app.include_router(page.router)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"))
    app.add_exception_handler(Unknown, _unknown)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(TooSlow, _too_slow)
    app.add_exception_handler(SQLAlchemyError, _catalog_error)
    app.add_exception_handler(ItemFailed, _store_error)
    app.add_middleware(Access, visitors=visitors or Visitors())
    app.add_middleware(HostCheck, listening=listening, allowed=allowed)
    return app


def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "words": shown_text.words,
        "plain": shown_text.plain,
        "number": shown_text.number,
        "moment": shown_text.moment,
        "size": shown_text.size,
        "clock": shown_text.clock,
        "in_words": in_words,
        "address": shown_text.address,
        "segment": lambda value: quote(str(value), safe=""),
    }
    templates.globals |= {"version": __version__, "charts": charts}
    templates.globals |= {"query": query, "within": within, "counted": counted}
    return templates


def _error_page(request: Request, status: int, title: str, message: str) -> Response:
    if request.url.path.endswith((".json", ".csv", ".parquet", ".jsonl", ".jpg", ".mp4")):
        return PlainTextResponse(f"{title}: {message}", status)
    return site_of(request).page("error.html", status, title=title, message=message)


async def _unknown(request: Request, error: Exception) -> Response:
    return _error_page(request, 404, "Not on record", str(error))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    titles = {404: "Not on record", 405: "This site only shows"}
    message = "There is nothing at this address." if error.detail == "Not Found" else str(error.detail)
    return _error_page(request, error.status_code, titles.get(error.status_code, "That can't be shown"), message)


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    message = "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in error.errors()[:5])
    return _error_page(request, 422, "The question can't be understood", message)


async def _too_slow(request: Request, error: Exception) -> Response:
    return _error_page(
        request, 503, "That took too long", "Ask for less at once: set another filter, or a range of days."
    )


async def _catalog_error(request: Request, error: Exception) -> Response:
    if isinstance(error, DataError):
        return _error_page(request, 400, "The question can't be understood", "The catalog can't hold such a value.")
    if isinstance(error, OperationalError) and "statement timeout" in str(error.orig):
        return await _too_slow(request, error)
    log.error("the catalog: %s", error)
    return _error_page(request, 503, "The catalog does not answer", "Try again; the log of `medgen audit` says more.")


async def _store_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ItemFailed)
    lost = error.reason == "artifact_lost"
    return _error_page(request, 404 if lost else 503, "The file can't be had", error.message)
