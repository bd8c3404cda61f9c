"""The history of one clip on one page: why it was kept or not, every decision, and where it went."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import select, text
from sqlalchemy.orm import Session
from starlette.responses import Response

from apps.audit.decisions import describe_steps, explanation_of
from apps.audit.search_page import LONGEST, place_within
from apps.audit.site import Site, site_of
from apps.audit.timeline import clips_of_video, strip_of
from apps.history import history_of
from medgen.among import among
from medgen.catalog import Evaluation, ModelVersion, Release
from medgen.source_terms import terms_of
from medgen.verify import record_faults

router = APIRouter()


@router.get("/clips/{clip_id}")
def clip(
    request: Request,
    clip_id: Annotated[str, Path(max_length=200)],
    within: Annotated[str, Query(max_length=LONGEST)] = "",
) -> Response:
    """The page of a clip."""
    site = site_of(request)
    return site.page("clip.html", place=place_within(site, within, clip_id), **clip_facts(site, clip_id))


def clip_facts(site: Site, clip_id: str) -> dict[str, Any]:
    """All that the page shows. Raises `Unknown`."""
    history = history_of(site.ledger, "clip", clip_id)
    steps = history["steps"]
    with Session(site.engine) as session:
        siblings = clips_of_video(session, history["video"]["id"])
        faults = record_faults(session, [step["id"] for step in steps])
        went = went_to(session, [release["name"] for release in history["releases"]])
        copies = _copies(session, clip_id)
        terms = terms_of(session, history["video"]["source_name"])
    describe_steps(steps, faults)
    at = [sibling["id"] for sibling in siblings]
    place = at.index(clip_id) if clip_id in at else 0
    last = {step["step"]: step for step in steps if not step["superseded"]}
    return {
        "history": history,
        "why": explanation_of(history),
        "item_status": next((s for s in siblings if s["id"] == clip_id), None),
        "siblings": siblings,
        "before": at[place - 1] if place else None,
        "after": at[place + 1] if place + 1 < len(at) else None,
        "strip": strip_of(site.store, steps, siblings, clip_id),
        "faults": faults,
        "went": went,
        "copies": copies,
        "terms": terms,
        "copy_of": last.get("deduplicate", {"detail": {}})["detail"].get("duplicate_of"),
        "privacy": last.get("privacy", {"detail": {}})["detail"],
        "measured": last.get("quality"),
        "faces": _faces(last.get("quality")),
        "captioned": last.get("caption"),
        "imported": last.get("import"),
        "category": next((s["category"] for s in siblings if s["id"] == clip_id), None),
    }


def _faces(measured: Mapping[str, Any] | None) -> int | None:
    """Most faces on one of the frames that quality looked at; None when it looked for none."""
    scores = {score["metric"]: score["value"] for score in measured["scores"]} if measured else {}
    return int(scores["faces"]) if "faces" in scores else None


def went_to(session: Session, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Releases, the models trained on them, and these models' evaluations."""
    if not names:
        return {"releases": [], "models": [], "evaluations": []}
    releases = session.execute(
        select(Release.name, Release.clips, Release.created_at).where(among(Release.name, names)).order_by(Release.name)
    )
    models = session.execute(
        select(ModelVersion.digest, ModelVersion.name, ModelVersion.kind, ModelVersion.release_name)
        .where(among(ModelVersion.release_name, names))
        .order_by(ModelVersion.created_at)
        .limit(100)
    ).all()
    evaluations = session.execute(
        select(Evaluation.step_run_id, Evaluation.model_digest)
        .where(among(Evaluation.model_digest, [m.digest for m in models]))
        .distinct()
        .limit(200)
    )
    return {
        "releases": [dict(row._mapping) for row in releases],
        "models": [dict(row._mapping) for row in models],
        "evaluations": [dict(row._mapping) for row in evaluations],
    }


def _copies(session: Session, clip_id: str) -> list[dict[str, Any]]:
    """Clips that were found to copy this one."""
    # As words, for only so does the index of this very expression serve. Ordered afterwards, or the planner, which
    # expects copies everywhere, goes through all records in their order.
    query = text(
        "WITH found AS MATERIALIZED (SELECT id, subject, status, detail ->> 'score' AS score FROM step_run "
        "WHERE step = 'deduplicate' AND NOT superseded AND detail ->> 'duplicate_of' = :clip LIMIT 50) "
        "SELECT subject, status, CAST(score AS double precision) AS similarity FROM found ORDER BY id"
    )
    rows = session.execute(query, {"clip": clip_id})
    return [dict(row._mapping) for row in rows]
