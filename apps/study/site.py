"""The pages of a study: instructions and consent, pairs, thanks.

A rater is known by the token in their links and by nothing else: no cookie, no account. The pages name no system, no
other rater and no other answer; videos go out under the number of the pair and their side. Everything comes from this
server, and the pages work without their script too, but for the keys.
"""

import math
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from unicodedata import category
from urllib.parse import parse_qs

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException as StarletteHTTPException

from apps.study.answers import (
    MAX_COMMENT,
    MAX_SECONDS,
    SIDES,
    Given,
    Rater,
    agree,
    answer_at,
    prompt_at,
    rater_of,
    save,
    video_at,
)
from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from tasks.evaluation.study import AXES

MAX_BODY = 64 << 10  # bytes of a form
POSITION = re.compile(r"[1-9][0-9]{0,5}")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # links hold the token
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "X-Robots-Tag": "noindex, nofollow",
}
STATIC = {"study.css": "text/css", "study.js": "text/javascript", "icon.svg": "image/svg+xml"}

# axis → question and what it means, in the order of the page.
QUESTIONS = {
    "text_alignment": ("Text alignment", "Which video shows better what the description asks for?"),
    "medical_accuracy": (
        "Medical accuracy",
        "Which video is more correct in anatomy, instruments, technique and order of steps?",
    ),
    "visual_quality": ("Visual quality", "Which video looks better: sharp, steady, without flaws of the picture?"),
}


class _Video(FileResponse):
    """A file without the headers that tell when it was stored or which other file it equals."""

    def set_stat_headers(self, stat_result: Any) -> None:
        self.headers.setdefault("content-length", str(stat_result.st_size))


def study_site(ledger: Ledger, study: str) -> FastAPI:
    """The application that serves one study."""
    engine = ledger.engine
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, title="study")
    pages = Environment(
        loader=PackageLoader("apps.study", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip

    def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
        html = pages.get_template(f"{name}.html.jinja").render(questions=QUESTIONS, **values)
        return HTMLResponse(html, status, {"Cache-Control": "no-store"})

    def rater(token: str) -> Rater:
        found = rater_of(engine, study, token)
        if found is None:
            raise HTTPException(404)
        return found

    def position(position: str, rater: Rater = Depends(rater)) -> int:
        if not POSITION.fullmatch(position) or not 1 <= int(position) <= rater.total:
            raise HTTPException(404)
        return int(position)

    @app.middleware("http")
    async def headers(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await go_on(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.exception_handler(StarletteHTTPException)
    def refused(request: Request, error: StarletteHTTPException) -> HTMLResponse:
        return page("refused", error.status_code, code=error.status_code)

    @app.exception_handler(ItemFailed)
    def broken(request: Request, error: ItemFailed) -> HTMLResponse:
        return page("refused", 503, code=503)

    @app.get("/")
    def front() -> HTMLResponse:
        return page("refused", 200, code=200)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404)
        content = (files("apps.study") / "static" / name).read_bytes()
        return Response(content, media_type=STATIC[name], headers={"Cache-Control": "no-cache"})

    @app.get("/r/{token}")
    def start(token: str, rater: Rater = Depends(rater)) -> Response:
        if not rater.consented:
            return page("instructions", token=token, rater=rater, missing=False)
        return _to(token, rater.next or "done")

    @app.get("/r/{token}/instructions")
    def instructions(token: str, rater: Rater = Depends(rater)) -> Response:
        return page("instructions", token=token, rater=rater, missing=False)

    @app.post("/r/{token}/consent")
    def consent(token: str, rater: Rater = Depends(rater), form: dict[str, str] = Depends(_form)) -> Response:
        if not rater.consented and form.get("agree") != "yes":
            return page("instructions", 422, token=token, rater=rater, missing=True)
        agree(engine, rater)
        return _to(token, rater.next or "done")

    @app.get("/r/{token}/done")
    def done(token: str, rater: Rater = Depends(rater)) -> Response:
        if rater.next is not None or not rater.consented:
            return _to(token)
        return page("done", token=token, rater=rater)

    @app.get("/r/{token}/{position}")
    def pair(token: str, rater: Rater = Depends(rater), position: int = Depends(position)) -> Response:
        if not rater.consented or position > rater.reachable:
            return _to(token)
        given = answer_at(engine, rater, position)
        return show_pair(token, rater, position, given or Given({}, ""), [], revising=given is not None)

    @app.post("/r/{token}/{position}")
    def answer(
        token: str,
        rater: Rater = Depends(rater),
        position: int = Depends(position),
        form: dict[str, str] = Depends(_form),
    ) -> Response:
        if not rater.consented or position > rater.reachable:
            return _to(token)
        sides = {axis: form[axis] for axis in AXES if form.get(axis) in SIDES}
        given = Given(sides, _text(form.get("comment", "")))
        missing = [axis for axis in AXES if axis not in sides]
        if missing:
            return show_pair(token, rater, position, given, missing, status=422)
        save(engine, rater, position, given, _seconds(form.get("seconds", "")))
        left = [p for p in range(1, rater.total + 1) if p not in rater.answered and p != position]
        return _to(token, left[0] if left else "done")

    @app.api_route("/r/{token}/{position}/{side}.mp4", methods=["GET", "HEAD"])
    def video(
        token: str, side: str, request: Request, rater: Rater = Depends(rater), position: int = Depends(position)
    ) -> Response:
        if side not in ("left", "right") or not rater.consented or position > rater.reachable:
            raise HTTPException(404)
        path: Path = ledger.store.path(video_at(engine, rater, position, side))
        return _Video(path, media_type="video/mp4", headers={"Cache-Control": "private, max-age=3600"})

    def show_pair(
        token: str,
        rater: Rater,
        position: int,
        given: Given,
        missing: list[str],
        *,
        status: int = 200,
        revising: bool = False,
    ) -> HTMLResponse:
        return page(
            "pair", status, token=token, rater=rater, position=position, given=given, missing=missing,
            prompt=prompt_at(engine, rater, position), revising=revising, max_comment=MAX_COMMENT,
        )  # fmt: skip

    return app


async def _form(request: Request) -> dict[str, str]:
    """The last value of each field of an urlencoded form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415)
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise HTTPException(413)
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, errors="replace", max_num_fields=20)
    except ValueError as error:
        raise HTTPException(400) from error
    return {name: values[-1] for name, values in fields.items()}


def _to(token: str, *where: object) -> RedirectResponse:
    return RedirectResponse("/".join(["/r", token, *map(str, where)]), 303, {"Cache-Control": "no-store"})


def _text(text: str) -> str:
    """A comment as it can be stored: bounded, line ends as \\n, without control characters."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = "".join(c if c in "\n\t" or category(c) not in ("Cc", "Cs") else "\ufffd" for c in lines)
    return kept.strip()[:MAX_COMMENT]


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS else None
