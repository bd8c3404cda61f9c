"""Clips like this one, or like these words: search by what clips show, released and rejected alike."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from apps.audit.site import Site, site_of
from apps.similar_clips import described
from models import ModelUnavailable
from tasks.curation.clip_search import NotIndexed, Wanted, like_clip, like_words
from tasks.curation.clip_vectors import open_index

router = APIRouter()

COUNT = 24  # clips of a page: each has a picture


@router.get("/similar")
def similar(
    request: Request,
    clip: Annotated[str, Query(max_length=60)] = "",
    words: Annotated[str, Query(max_length=300)] = "",
    status: Annotated[Literal["", "kept", "rejected", "failed"], Query()] = "",
    release: Annotated[str, Query(max_length=120)] = "",
) -> Response:
    """Clips like the one that is named; else like the words."""
    site = site_of(request)
    asked = {"clip": clip.strip(), "words": words.strip(), "status": status, "release": release.strip()}
    return site.page("similar.html", asked=asked, **_found(site, asked))


def _found(site: Site, asked: dict[str, str]) -> dict[str, Any]:
    """What the page shows: the clips, how they were compared, or why there are none."""
    if not asked["clip"] and not asked["words"]:
        return {"rows": [], "answer": None, "why": ""}
    index = open_index(site.engine, writing=False)
    wanted = Wanted(asked["status"], asked["release"], COUNT)
    try:
        if asked["clip"]:
            answer = like_clip(site.engine, index, asked["clip"], wanted)
        else:
            answer = like_words(site.engine, index, asked["words"], wanted, site.encoders)
    except (NotIndexed, ModelUnavailable) as error:
        return {"rows": [], "answer": None, "why": str(error)}
    return {"rows": described(site.engine, answer.clips), "answer": answer, "why": ""}
