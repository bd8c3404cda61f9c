"""The whole life of one clip on one page: why it was kept or not, every decision, and where it went."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from sqlalchemy import select, text
from sqlalchemy.orm import Session
from starlette.responses import Response

from apps.audit import charts
from apps.audit.reasons import in_words
from apps.audit.shown_text import number
from apps.audit.site import Site, site_of
from apps.life import story_of
from medgen.catalog import Clip, Evaluation, ModelVersion, Release, Standing
from medgen.errors import ItemFailed
from medgen.store import Store
from medgen.verify import record_faults

router = APIRouter()

MANY = 400  # clips of one video that a page lists


@router.get("/clips/{clip_id}")
def clip(request: Request, clip_id: Annotated[str, Path(max_length=200)]) -> Response:
    """The page of a clip."""
    site = site_of(request)
    return site.page("clip.html", **clip_facts(site, clip_id))


def clip_facts(site: Site, clip_id: str) -> dict[str, Any]:
    """All that the page shows. Raises `Unknown`."""
    story = story_of(site.ledger, "clip", clip_id)
    steps = story["steps"]
    with Session(site.engine) as session:
        siblings = neighbours(session, story["video"]["id"])
        faults = record_faults(session, [step["id"] for step in steps])
        went = went_to(session, [release["name"] for release in story["releases"]])
        copies = _copies(session, clip_id)
    tell_steps(steps, faults)
    at = [sibling["id"] for sibling in siblings]
    place = at.index(clip_id) if clip_id in at else 0
    last = {step["step"]: step for step in steps if not step["superseded"]}
    return {
        "story": story,
        "why": why(story),
        "standing": next((s for s in siblings if s["id"] == clip_id), None),
        "siblings": siblings,
        "before": at[place - 1] if place else None,
        "after": at[place + 1] if place + 1 < len(at) else None,
        "strip": strip_of(site.store, steps, siblings, clip_id),
        "faults": faults,
        "went": went,
        "copies": copies,
        "copy_of": last.get("deduplicate", {"detail": {}})["detail"].get("duplicate_of"),
        "privacy": last.get("privacy", {"detail": {}})["detail"],
        "measured": last.get("quality"),
        "captioned": last.get("caption"),
        "category": next((s["category"] for s in siblings if s["id"] == clip_id), None),
    }


def why(story: Mapping[str, Any]) -> dict[str, Any]:
    """Why the clip or video was kept or not: a verdict, a sentence, and the check behind it.

    Returns:
        status, words; and of a rejection the step, the reason and the comparison that decided.
    """
    if grave := story["forgotten"]:
        words = f"Its video was taken down on {grave['forgotten_at'][:10]}. Bytes and words are gone; the numbers stay."
        return {"status": "forgotten", "words": words, "check": None, "reason": "forgotten", "step": "forget"}
    current = [s for s in story["steps"] if not s["superseded"] and s["step"] not in ("recheck", "forget")]
    if [s["step"] for s in current] in ([], ["discover"]):
        words = "It is listed; nothing was done with it yet."
        return {"status": "kept", "words": words, "check": None, "reason": None, "step": "discover"}
    # The ancestry also holds what was decided about the whole video: only words on this very subject count.
    own = [s for s in current if s["subject"] == story["id"]] or current
    last = own[-1]
    told: dict[str, Any] = {"status": last["status"], "step": last["step"], "reason": last["reason"], "check": None}
    if last["status"] == "failed":
        return told | {"words": f"The step {last['step']} failed on it: {in_words(last['reason'])}."}
    if last["status"] == "rejected":
        compared = charts.comparisons(last)
        check = next((c for c in compared if not c["passed"]), None)
        words = f"The step {last['step']} rejected it because {in_words(last['reason'])}"
        if check:
            side = "no more than" if check["passes_when"] == "at most" else check["passes_when"]
            words += f": {check['metric'].replace('_', ' ')} is {number(check['score'])}"
            words += f" where {side} {number(check['threshold'])} is wanted"
        return told | {"words": words + ".", "check": check}
    if releases := story.get("releases"):
        names = ", ".join(r["name"] for r in releases[:3]) + (f" and {len(releases) - 3} more" if releases[3:] else "")
        passed = sum(len(charts.comparisons(s)) for s in own)
        return told | {"words": f"It passed all {passed} comparisons on record and was released in {names}."}
    if clips := story.get("clips"):
        return told | {"words": f"It was taken, and {len(clips)} clip{'s' if len(clips) > 1 else ''} cut from it."}
    return told | {"words": f"It was kept by {last['step']}, the last step that has seen it. No release holds it."}


def tell_steps(steps: Sequence[dict[str, Any]], faults: Mapping[int, str | None]) -> None:
    """Adds to every step what its card shows: comparisons with their bars, other scores, facts, state of its record."""
    for step in steps:
        step["compared"] = charts.comparisons(step)
        shown = {check["metric"] for check in step["compared"]}
        step["other_scores"] = [s for s in step["scores"] if s["metric"] not in shown]
        skipped = {"checks", "metric", "score", "threshold", "fingerprint", "clips", "metadata", "all_reasons"}
        step["facts"] = {
            k: v for k, v in sorted(step["detail"].items()) if k not in skipped and v not in (None, "", [])
        }
        step["fault"] = faults.get(step["id"])


def neighbours(session: Session, video_id: str) -> list[dict[str, Any]]:
    """The clips of a video in their order, with where they stand."""
    rows = session.execute(
        select(
            Clip.id, Clip.start_s, Clip.end_s, Clip.start_frame, Standing.status, Standing.step, Standing.reason,
            Standing.category,
        )
        .join(Standing, Standing.id == Clip.id)
        .where(Clip.video_id == video_id)
        .order_by(Clip.start_frame, Clip.id)
        .limit(MANY)
    )  # fmt: skip
    return [dict(row._mapping) for row in rows]


def strip_of(
    store: Store, steps: Sequence[Mapping[str, Any]], clips: Sequence[Mapping[str, Any]], current: str | None
) -> charts.Strip | None:
    """The video over time, as classify saw it."""
    found = next((s for s in reversed(steps) if s["step"] == "classify" and s["status"] != "failed"), None)
    if found is None:
        return None
    digest = next((o["sha256"] for o in found["outputs"] if o["role"] == "classification"), None)
    samples: Sequence[Mapping[str, Any]] = ()
    if digest:
        try:
            samples = _samples(store, digest)
        except ItemFailed:
            samples = ()
    return charts.strip(samples, clips, current, float(found["params"].get("medical_threshold", 0.5)), 0.0)


@lru_cache(maxsize=256)
def _samples(store: Store, digest: str) -> tuple[dict[str, Any], ...]:
    report = json.loads(store.read(digest))
    return tuple({name: sample[name] for name in ("time_s", "shot", "medical")} for sample in report["samples"])


def went_to(session: Session, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Releases, the models trained on them, and these models' evaluations."""
    if not names:
        return {"releases": [], "models": [], "evaluations": []}
    releases = session.execute(
        select(Release.name, Release.clips, Release.created_at).where(Release.name.in_(names)).order_by(Release.name)
    )
    models = session.execute(
        select(ModelVersion.digest, ModelVersion.name, ModelVersion.kind, ModelVersion.release_name)
        .where(ModelVersion.release_name.in_(names))
        .order_by(ModelVersion.created_at)
        .limit(100)
    ).all()
    evaluations = session.execute(
        select(Evaluation.step_run_id, Evaluation.model_digest)
        .where(Evaluation.model_digest.in_([m.digest for m in models]))
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
