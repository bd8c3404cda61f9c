"""The pages of a study: instructions and consent, pairs, thanks.

A rater is known by the token in their links and by nothing else: no cookie, no account. The pages name no system, no
other rater and no other answer; videos go out under the number of the pair and their side. Everything comes from this
server, and the pages work without their script too, but for the keys.
"""

import math
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from unicodedata import category

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException as StarletteHTTPException

from apps.form_site import posted_form, with_headers
from apps.study.answers import (
    MAX_COMMENT,
    MAX_SECONDS,
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
from tasks.evaluation.study import ERRORS, LEVEL, PAIRS

router = APIRouter()

POSITION = re.compile(r"[1-9][0-9]{0,5}")
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
LEVEL_QUESTIONS = {
    LEVEL: (
        "Worst error",
        "How bad is the worst medical or physical error in the video: in anatomy, instruments, technique, order of "
        "steps, in how things move, or in what the description asks for?",
    )
}
# As in the rubric by which a multimodal LLM judges (models/prompts/medical_judge_v1.txt).
LEVEL_WORDS = (
    ("No error", "none seen"),
    ("Slight", "noticed only on close inspection; would not mislead a learner"),
    ("Clear", "a trained person notices it at once; would teach something wrong in detail"),
    ("Grave", "absurd, dangerous if imitated, or nothing can be recognised"),
)


class _Video(FileResponse):
    """A file without the headers that tell when it was stored or which other file it equals."""

    def set_stat_headers(self, stat_result: Any) -> None:
        self.headers.setdefault("content-length", str(stat_result.st_size))


@dataclass(frozen=True)
class _Site:
    """What all pages need: the ledger, the study that is served, and the templates."""

    ledger: Ledger
    study: str
    templates: Environment

    def page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A template, filled in. The answer is not to be stored."""
        kind = getattr(values.get("rater"), "kind", PAIRS)
        html = self.templates.get_template(f"{name}.html.jinja").render(
            questions=LEVEL_QUESTIONS if kind == ERRORS else QUESTIONS, levels=LEVEL_WORDS, kind=kind,
            item="Video" if kind == ERRORS else "Pair", **values,
        )  # fmt: skip
        return HTMLResponse(html, status, {"Cache-Control": "no-store"})


def study_site(ledger: Ledger, study: str) -> FastAPI:
    """The application that serves one study."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, title="study")
    templates = Environment(
        loader=PackageLoader("apps.study", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    app.state.site = _Site(ledger, study, templates)
    app.include_router(router)
    app.middleware("http")(with_headers)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(ItemFailed, _broken)
    return app


def _site_of(request: Request) -> _Site:
    site: _Site = request.app.state.site
    return site


def _rater(token: str, request: Request) -> Rater:
    site = _site_of(request)
    rater = rater_of(site.ledger.engine, site.study, token)
    if rater is None:
        raise HTTPException(404)
    return rater


def _position(position: str, rater: Annotated[Rater, Depends(_rater)]) -> int:
    if not POSITION.fullmatch(position) or not 1 <= int(position) <= rater.total:
        raise HTTPException(404)
    return int(position)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return _site_of(request).page("refused", error.status_code, code=error.status_code)


def _broken(request: Request, error: Exception) -> Response:
    return _site_of(request).page("refused", 503, code=503)


RaterOfToken = Annotated[Rater, Depends(_rater)]
Position = Annotated[int, Depends(_position)]
Form = Annotated[dict[str, str], Depends(posted_form)]


@router.get("/")
def front(request: Request) -> Response:
    """Names no study: raters have a link of their own."""
    return _site_of(request).page("refused", 200, code=200)


@router.get("/static/{name}")
def static(name: str) -> Response:
    """Style, script and icon."""
    if name not in STATIC:
        raise HTTPException(404)
    content = (files("apps.study") / "static" / name).read_bytes()
    return Response(content, media_type=STATIC[name], headers={"Cache-Control": "no-cache"})


@router.get("/r/{token}")
def start(token: str, rater: RaterOfToken, request: Request) -> Response:
    """Where a rater's link leads: the instructions, then the next pair."""
    if not rater.consented:
        return _site_of(request).page("instructions", token=token, rater=rater, missing=False)
    return _to(token, rater.next or "done")


@router.get("/r/{token}/instructions")
def instructions(token: str, rater: RaterOfToken, request: Request) -> Response:
    """The instructions, again too."""
    return _site_of(request).page("instructions", token=token, rater=rater, missing=False)


@router.post("/r/{token}/consent")
def consent(token: str, rater: RaterOfToken, form: Form, request: Request) -> Response:
    """Records the rater's consent."""
    site = _site_of(request)
    if not rater.consented and form.get("agree") != "yes":
        return site.page("instructions", 422, token=token, rater=rater, missing=True)
    agree(site.ledger.engine, rater)
    return _to(token, rater.next or "done")


@router.get("/r/{token}/done")
def done(token: str, rater: RaterOfToken, request: Request) -> Response:
    """Thanks, when all pairs are answered."""
    if rater.next is not None or not rater.consented:
        return _to(token)
    return _site_of(request).page("done", token=token, rater=rater)


@router.get("/r/{token}/{position}")
def pair(token: str, rater: RaterOfToken, position: Position, request: Request) -> Response:
    """The page of a pair, with the answer so far."""
    if not rater.consented or position > rater.reachable:
        return _to(token)
    site = _site_of(request)
    given = answer_at(site.ledger.engine, rater, position)
    return _pair_page(site, token, rater, position, given or Given({}, ""), [], revising=given is not None)


@router.post("/r/{token}/{position}")
def answer(token: str, rater: RaterOfToken, position: Position, form: Form, request: Request) -> Response:
    """Records the answer to a pair; asks again for axes without one."""
    if not rater.consented or position > rater.reachable:
        return _to(token)
    site = _site_of(request)
    sides = {question: form[question] for question, known in rater.choices.items() if form.get(question) in known}
    given = Given(sides, _text(form.get("comment", "")))
    missing = [question for question in rater.choices if question not in sides]
    if missing:
        return _pair_page(site, token, rater, position, given, missing, status=422)
    save(site.ledger.engine, rater, position, given, _seconds(form.get("seconds", "")))
    left = [p for p in range(1, rater.total + 1) if p not in rater.answered and p != position]
    return _to(token, left[0] if left else "done")


@router.api_route("/r/{token}/{position}/{side}.mp4", methods=["GET", "HEAD"])
def video(token: str, side: str, rater: RaterOfToken, position: Position, request: Request) -> Response:
    """One video of a pair."""
    if side not in ("left", "right") or not rater.consented or position > rater.reachable:
        raise HTTPException(404)
    ledger = _site_of(request).ledger
    path: Path = ledger.store.path(video_at(ledger.engine, rater, position, side))
    return _Video(path, media_type="video/mp4", headers={"Cache-Control": "private, max-age=3600"})


def _pair_page(
    site: _Site,
    token: str,
    rater: Rater,
    position: int,
    given: Given,
    missing: list[str],
    *,
    status: int = 200,
    revising: bool = False,
) -> HTMLResponse:
    return site.page(
        "pair", status, token=token, rater=rater, position=position, given=given, missing=missing,
        prompt=prompt_at(site.ledger.engine, rater, position), revising=revising, max_comment=MAX_COMMENT,
    )  # fmt: skip


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
