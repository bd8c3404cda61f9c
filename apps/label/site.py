"""The pages of `medgen label`: one file at a time, the model's guess after one's own answer, and how far one is.

Files are asked for by their number in the list, never by a path. The pages work without their script too, but for the
keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import cv2
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException as StarletteHTTPException

from apps.form_site import posted_form, with_headers
from apps.label.answers import CHOICES, IMAGE_SUFFIXES, UNSURE, Answer, Answers, export
from apps.label.guesses import DECODE_LIMIT_S, Guess, Guesses
from apps.label.queue import next_file
from medgen.errors import ItemFailed, SourceUnreadable
from medgen.worker_processes import decoded_apart
from models.segmentation.heads import NON_MEDICAL
from models.segmentation.manifest import MANIFEST
from models.segmentation.training_frames import sampled_frames

router = APIRouter()

# What browsers play; of other videos stills are shown.
PLAYED = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
STILLS = 6
STATIC = {
    "study.css": ("apps.study", "text/css"),
    "icon.svg": ("apps.study", "image/svg+xml"),
    "label.css": ("apps.label", "text/css"),
    "label.js": ("apps.label", "text/javascript"),
}
MEANINGS = {
    "medical teaching": "lectures, demonstrations and training for students and professionals",
    "clinical practice": "patients, staff and procedures as they are, endoscopy and surgery too",
    "popular science": "explained to the public",
    "medical animation": "drawn or rendered",
    "medical imaging": "X-ray, CT, MRI, ultrasound, microscopy, traces",
    NON_MEDICAL: "nothing medical is seen",
    UNSURE: "leave it to others; it gets no label from you",
}


@dataclass(frozen=True)
class _Site:
    folder: Path
    files: list[str]
    by: str
    answers: Answers
    guesses: Guesses | None
    templates: Environment

    def page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A template, filled in. The answer is not to be stored."""
        done = sum(file in self.answers.of(self.by) for file in self.files)
        html = self.templates.get_template(f"{name}.html.jinja").render(
            by=self.by, done=done, total=len(self.files), meanings=MEANINGS, choices=CHOICES, **values
        )
        return HTMLResponse(html, status, {"Cache-Control": "no-store"})

    def known(self) -> Mapping[str, Guess]:
        """What the model has said so far."""
        return self.guesses.known() if self.guesses else {}


def label_site(folder: Path, files: list[str], by: str, answers: Answers, guesses: Guesses | None) -> FastAPI:
    """The application that lets one person label the files of a folder.

    Args:
        files: as `apps.label.answers.files_of` gives them.
        by: the person, as it stands in the answers.
        guesses: None when no model is asked; files then come in a drawn order.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, title="label")
    templates = Environment(
        loader=PackageLoader("apps.label", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    app.state.site = _Site(folder.resolve(), files, by, answers, guesses, templates)
    app.include_router(router)
    app.middleware("http")(with_headers)
    app.add_exception_handler(StarletteHTTPException, _refused)
    return app


def _site_of(request: Request) -> _Site:
    site: _Site = request.app.state.site
    return site


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return _site_of(request).page("refused", error.status_code, detail=error.detail)


def _file(number: int, request: Request) -> str:
    listed = _site_of(request).files
    if not 1 <= number <= len(listed):
        raise HTTPException(404)
    return listed[number - 1]


File = Annotated[str, Depends(_file)]
Form = Annotated[dict[str, str], Depends(posted_form)]


@router.get("/")
def start(request: Request) -> Response:
    """Leads to the next file, or to the end."""
    site = _site_of(request)
    found = next_file(site.files, site.answers.of(site.by).keys(), site.known(), site.by)
    return _to(f"/file/{site.files.index(found[0]) + 1}" if found else "/done")


@router.get("/static/{name}")
def static(name: str) -> Response:
    """Style, script and icon."""
    if name not in STATIC:
        raise HTTPException(404)
    package, kind = STATIC[name]
    content = (files(package) / "static" / name).read_bytes()
    return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


@router.get("/file/{number}")
def ask(number: int, file: File, request: Request) -> Response:
    """A file, and what it may be."""
    site = _site_of(request)
    return site.page("file", number=number, file=file, shown=_shown(file), given=_given(site, file), missing=False)


@router.post("/file/{number}")
def answer(number: int, file: File, form: Form, request: Request) -> Response:
    """Keeps an answer; asks again without one."""
    site = _site_of(request)
    choice = form.get("choice", "")
    if choice not in CHOICES:
        return site.page("file", 422, number=number, file=file, shown=_shown(file), given=None, missing=True)
    known, answered = site.known(), site.answers.of(site.by)
    due = next_file(site.files, answered.keys(), known, site.by)
    because = due[1] if due and due[0] == file else "chosen"
    try:
        site.answers.add(file, site.by, choice, because)
    except OSError as error:
        raise HTTPException(507, f"the answer was not kept: {error}") from error
    return _to(f"/file/{number}/said")


@router.get("/file/{number}/said")
def said(number: int, file: File, request: Request) -> Response:
    """What one said, and only now what the model says."""
    site = _site_of(request)
    given = _given(site, file)
    if given is None:
        return _to(f"/file/{number}")
    return site.page("said", number=number, file=file, given=given, guess=site.known().get(file))


@router.get("/done")
def done(request: Request) -> Response:
    """How far one is, how often the model agreed, and where the manifest can be written."""
    site = _site_of(request)
    return _overview(site, None)


@router.post("/export")
def write(form: Form, request: Request) -> Response:
    """Writes the manifest."""
    site = _site_of(request)
    try:
        return _overview(site, export(site.folder, site.files, Answers(site.folder)))
    except (OSError, SourceUnreadable) as error:
        raise HTTPException(507, f"the manifest was not written: {error}") from error


@router.get("/media/{number}")
def media(number: int, file: File, request: Request) -> Response:
    """A file as it lies there."""
    path = _path(_site_of(request), file)
    kind = PLAYED.get(path.suffix.lower()) or IMAGE_SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise HTTPException(404)
    return FileResponse(path, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})


@router.get("/still/{number}/{place}")
def still(number: int, place: int, file: File, request: Request) -> Response:
    """One of `STILLS` frames of a video that browsers don't play, as JPEG."""
    if not 1 <= place <= STILLS:
        raise HTTPException(404)
    path = _path(_site_of(request), file)
    try:
        with _decoding:  # a browser asks for all of them at once
            stills = _stills(path, path.stat().st_mtime_ns)
    except (ItemFailed, OSError) as error:
        raise HTTPException(404, f"it can't be shown: {error}") from error
    return Response(stills[place - 1], media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


_decoding = Lock()


@lru_cache(maxsize=8)
def _stills(path: Path, _changed: int) -> tuple[bytes, ...]:
    """All stills of a video, which is decoded once for them. Raises ItemFailed, OSError."""
    frames = decoded_apart(sampled_frames, path, time_limit_s=DECODE_LIMIT_S)
    chosen = (frames[round(n * (len(frames) - 1) / (STILLS - 1))] for n in range(STILLS))
    return tuple(cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes() for frame in chosen)


def _path(site: _Site, file: str) -> Path:
    path = site.folder / file
    if not path.is_file() or not path.resolve().is_relative_to(site.folder):  # it may have become a link since
        raise HTTPException(404)
    return path


def _shown(file: str) -> str:
    suffix = Path(file).suffix.lower()
    return "picture" if suffix in IMAGE_SUFFIXES else "video" if suffix in PLAYED else "stills"


def _given(site: _Site, file: str) -> Answer | None:
    return site.answers.of(site.by).get(file)


def _overview(site: _Site, exported: Any) -> Response:
    mine, known = site.answers.of(site.by), site.known()
    counts = {choice: sum(answer.choice == choice for answer in mine.values()) for choice in CHOICES}
    both = {
        because: [
            (known[file].medical >= 0.5) == (answer.choice != NON_MEDICAL)
            for file, answer in mine.items()
            if file in known and answer.choice != UNSURE and answer.because == because
        ]
        for because in ("doubt", "any")
    }
    agreed = {because: (sum(right), len(right)) for because, right in both.items() if right}
    failed = site.guesses.failed if site.guesses else {}
    return site.page(
        "done", counts=counts, agreed=agreed, judged=len(known), failed=dict(failed), exported=exported,
        manifest=MANIFEST, left=len([file for file in site.files if file not in mine]),
    )  # fmt: skip


def _to(where: str) -> RedirectResponse:
    return RedirectResponse(where, 303, {"Cache-Control": "no-store"})
