"""A video and a source: what was listed, what was decided, which clips were cut."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import Connection, func, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from apps.audit import search
from apps.audit.decisions import describe_steps, explanation_of
from apps.audit.search import Filters
from apps.audit.search_page import LONGEST, place_within
from apps.audit.site import Site, site_of
from apps.audit.timeline import clips_of_video, strip_of
from apps.history import Unknown, history_of
from medgen.among import among
from medgen.catalog import ItemStatus, ReleaseClip, Source, SourceTerms, Video
from medgen.source_terms import terms_of
from medgen.verify import record_faults

router = APIRouter()


@router.get("/videos/{video_id}")
def video(
    request: Request,
    video_id: Annotated[str, Path(max_length=200)],
    within: Annotated[str, Query(max_length=LONGEST)] = "",
) -> Response:
    """The page of a video."""
    site = site_of(request)
    history = history_of(site.ledger, "video", video_id)
    with Session(site.engine) as session:
        clips = clips_of_video(session, video_id)
        faults = record_faults(session, [step["id"] for step in history["steps"]])
        held = select(ReleaseClip.release_name).where(among(ReleaseClip.clip_id, [c["id"] for c in clips])).distinct()
        releases = sorted(session.scalars(held))
        terms = terms_of(session, history["video"]["source_name"])
        uncut = session.execute(
            select(ItemStatus.id, ItemStatus.run_id, ItemStatus.reason)
            .where(ItemStatus.video_id == video_id, ItemStatus.kind == "stretch")
            .limit(50)
        ).all()
    describe_steps(history["steps"], faults)
    return site.page(
        "video.html",
        history=history,
        place=place_within(site, within, video_id),
        why=explanation_of(history),
        clips=clips,
        terms=terms,
        uncut=uncut,
        faults=faults,
        releases=releases,
        strip=strip_of(site.store, history["steps"], clips, None),
        description=_description(site, video_id),
    )


@router.get("/sources")
def source(request: Request, name: Annotated[str, Query(max_length=2000)] = "") -> Response:
    """All sources; or one with its newest items."""
    site = site_of(request)
    with site.engine.connect() as connection:
        if not name:
            rows = connection.execute(select(Source.__table__).order_by(Source.name).limit(500)).mappings().all()
            return site.page("sources.html", sources=rows)
        row = connection.execute(select(Source.__table__).where(Source.name == name)).mappings().first()
        if row is None:
            raise Unknown(f"there is no source {name[:80]}")
        filters = Filters(source=name[:300])
        return site.page(
            "source.html", source=row, terms=_terms(connection, name), filters=filters,
            page=search.search(connection, filters), wrong=[], after="",
        )  # fmt: skip


def _terms(connection: Connection, source: str) -> list[SourceTerms]:
    with Session(connection) as session:
        terms = terms_of(session, source)
        session.expunge_all()
        return terms


def _description(site: Site, video_id: str) -> str:
    """At most as much of it as a page shows: a hostile one may be large."""
    with site.engine.connect() as connection:
        query = select(func.left(Video.description, 20_000)).where(Video.id == video_id)
        return connection.scalar(query) or ""
