"""A video and a source: what was listed, what was decided, which clips were cut."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from apps.audit import search
from apps.audit.clip_page import neighbours, strip_of, tell_steps, why
from apps.audit.search import Filters
from apps.audit.site import site_of
from apps.life import Unknown, story_of
from medgen.catalog import ReleaseClip, Source, Standing
from medgen.verify import record_faults

router = APIRouter()


@router.get("/videos/{video_id}")
def video(request: Request, video_id: Annotated[str, Path(max_length=200)]) -> Response:
    """The page of a video."""
    site = site_of(request)
    story = story_of(site.ledger, "video", video_id)
    with Session(site.engine) as session:
        clips = neighbours(session, video_id)
        faults = record_faults(session, [step["id"] for step in story["steps"]])
        held = select(ReleaseClip.release_name).where(ReleaseClip.clip_id.in_([c["id"] for c in clips])).distinct()
        releases = sorted(session.scalars(held))
        uncut = session.execute(
            select(Standing.id, Standing.run_id, Standing.reason)
            .where(Standing.video_id == video_id, Standing.kind == "stretch")
            .limit(50)
        ).all()
    tell_steps(story["steps"], faults)
    return site.page(
        "video.html",
        story=story,
        why=why(story),
        clips=clips,
        uncut=uncut,
        faults=faults,
        releases=releases,
        strip=strip_of(site.store, story["steps"], clips, None),
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
        found = connection.execute(select(Source.__table__).where(Source.name == name)).mappings().first()
        if found is None:
            raise Unknown(f"there is no source {name[:80]}")
        filters = Filters(source=name[:300])
        return site.page(
            "source.html", source=found, filters=filters, page=search.search(connection, filters), wrong=[], after=""
        )


def _description(site: Any, video_id: str) -> str:
    """At most as much of it as a page shows: a hostile one may be large."""
    from sqlalchemy import func

    from medgen.catalog import Video

    with site.engine.connect() as connection:
        query = select(func.left(Video.description, 20_000)).where(Video.id == video_id)
        return connection.scalar(query) or ""
