"""The history of a clip or video, read from the catalog: where it came from, every decision, where it went."""

from collections.abc import Mapping, Set
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from medgen.among import among
from medgen.ancestry import ancestry
from medgen.catalog import (
    Caption,
    Clip,
    ModelVersion,
    Release,
    ReleaseClip,
    Score,
    StepOutput,
    StepRun,
    Tombstone,
    Video,
)
from medgen.ledger import Ledger
from medgen.model_lineage import models_of
from medgen.notes import NOTE
from medgen.store import ArtifactLost
from medgen.takedown import IMPORT, IMPORT_LIST, stamp
from tasks.curation.vanished import RECHECK, vanished

MAX_NAME = 8192  # characters


class Unknown(LookupError):
    """Nothing on record goes by this name."""


def find(ledger: Ledger, name: str) -> tuple[str, str]:
    """("clip" or "video", full id) for an id, the unique beginning of one, a digest of a clip, or a video's URL.

    Raises:
        Unknown: no clip or video, or more than one, goes by that name; says so when it was taken down unseen.
    """
    shown = f"{name[:80]!r}" + ("…" if len(name) > 80 else "")
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise Unknown(f"no clip or video goes by {shown}")
    prefix = name.replace("%", "").replace("_", "") + "%"
    with Session(ledger.engine) as session:
        clips = session.scalars(
            select(Clip.id).where(or_(Clip.id.like(prefix), Clip.digest.like(prefix))).limit(3)
        ).all()
        videos = session.scalars(
            select(Video.id).where(or_(Video.id.like(prefix), Video.url == name, Video.external_id == name)).limit(3)
        ).all()
        candidates = [("clip", i) for i in clips] + [("video", i) for i in videos]
        matches = [pair for pair in candidates if pair[1] == name] or candidates
        if not matches:
            by_name = or_(Tombstone.video_id == name, Tombstone.url == name)
            tombstone = session.scalars(select(Tombstone).where(by_name)).first()
            since = (
                f"; it was taken down unseen {stamp(tombstone.forgotten_at)[:19]}: {tombstone.reason}"
                if tombstone
                else ""
            )
            raise Unknown(f"no clip or video goes by {shown}{since}")
    if len(matches) != 1:
        raise Unknown(f"{len(matches)} clips and videos go by {shown}")
    return matches[0]


def history(ledger: Ledger, name: str) -> dict[str, Any]:
    """All that is on record about a clip or video, by any of its names. Raises `Unknown`."""
    return history_of(ledger, *find(ledger, name))


def history_of(ledger: Ledger, kind: str, identity: str) -> dict[str, Any]:
    """All that is on record about the clip or video with this id.

    Returns:
        kind, id, forgotten (None, or when and why it was taken down), vanished (None or when), video, steps (oldest
        first, with scores and outputs); of a video also clips (their ids); of a clip also clip, captions, releases,
        models, trained. Times are ISO 8601.

    Raises:
        Unknown: there is no such clip or video.
    """
    with Session(ledger.engine) as session:
        clip = session.get(Clip, identity) if kind == "clip" else None
        video = session.get(Video, clip.video_id if clip else identity)
        if video is None or (kind == "clip" and clip is None):
            raise Unknown(f"there is no {kind} {identity[:80]}")
        since = vanished(ledger.engine, [video.id]).get(video.id)
        facts: dict[str, Any] = {
            "kind": kind,
            "id": identity,
            "forgotten": _takedown(session.get(Tombstone, video.id)),
            "vanished": stamp(since) if since else None,
            "video": _columns(video, skip={"description"}),
            "steps": _steps(session, ledger, clip, video),
        }
        return facts | (_clips_of(session, video) if clip is None else _whereabouts(session, ledger, clip))


def _steps(session: Session, ledger: Ledger, clip: Clip | None, video: Video) -> list[dict[str, Any]]:
    """The step runs behind a clip or video, oldest first, with their scores and outputs."""
    runs = _ancestry(session, clip, video) or _listing(session, ledger, video)
    ids = [run.id for run in runs]
    scores: dict[int, list[dict[str, Any]]] = {}
    for score in session.scalars(select(Score).where(among(Score.step_run_id, ids))):
        row = {"metric": score.metric, "value": score.value, "model": score.model_digest}
        scores.setdefault(score.step_run_id, []).append(row)
    outputs: dict[int, list[dict[str, Any]]] = {}
    for output in session.scalars(select(StepOutput).where(among(StepOutput.step_run_id, ids))):
        outputs.setdefault(output.step_run_id, []).append({"role": output.role, "sha256": output.artifact_sha256})
    steps = [
        {**_columns(run, skip={"context"}), "scores": scores.get(run.id, []), "outputs": outputs.get(run.id, [])}
        for run in runs
    ]
    for step in steps:
        if step["step"] == "discover":
            step["listed"] = _listed(ledger, step, video.id)
    return steps


def _clips_of(session: Session, video: Video) -> dict[str, Any]:
    ids = session.scalars(select(Clip.id).where(Clip.video_id == video.id).order_by(Clip.start_frame, Clip.id))
    return {"clips": list(ids)}


def _whereabouts(session: Session, ledger: Ledger, clip: Clip) -> dict[str, Any]:
    """A clip with its captions, the releases that hold it and the models that were trained on it."""
    captions = session.scalars(select(Caption).where(Caption.clip_id == clip.id).order_by(Caption.step_run_id))
    releases = session.execute(
        select(Release.name, Release.digest)
        .join(ReleaseClip, ReleaseClip.release_name == Release.name)
        .where(ReleaseClip.clip_id == clip.id)
        .order_by(Release.name)
    ).all()
    models = session.scalars(
        select(ModelVersion.name).where(among(ModelVersion.release_name, [row.name for row in releases]))
    )
    return {
        "clip": _columns(clip),
        "captions": [_columns(caption) for caption in captions],
        "releases": [dict(row._mapping) for row in releases],
        "models": list(models),
        "trained": models_of(ledger, clip.id),
    }


def verdict(history: Mapping[str, Any]) -> str:
    """Why the subject was kept or not, in a sentence."""
    if takedown := history["forgotten"]:
        return f"Taken down {takedown['forgotten_at'][:19]}: {takedown['reason']}. Its bytes and words are gone."
    current = [step for step in history["steps"] if not step["superseded"] and step["step"] not in (RECHECK, NOTE)]
    if [step["step"] for step in current] in ([], ["discover"], [IMPORT_LIST]):
        return "Listed; nothing was done with it yet."
    last = current[-1]
    detail = last["detail"]
    if last["status"] == "failed":
        return f"Quarantined by {last['step']} ({last['reason']}): {detail.get('message', '')}"
    if last["status"] == "rejected":
        why = ""
        if "score" in detail:
            why = f": {detail.get('metric', 'score')} {detail['score']} against a threshold of {detail['threshold']}"
        return f"Rejected by {last['step']} ({last['reason']}){why}."
    if last["step"] == IMPORT and (imported := detail.get("imported")):
        released = ", ".join(release["name"] for release in history.get("releases", ())) or "no release"
        return f"Imported as {imported['set']} published it, judged by no step here; released in {released}."
    if history.get("releases"):
        return f"Kept, and released in {', '.join(release['name'] for release in history['releases'])}."
    return f"Kept by {last['step']}, the last step so far."


def _takedown(row: Tombstone | None) -> dict[str, Any] | None:
    return {"forgotten_at": stamp(row.forgotten_at), "reason": row.reason} if row else None


def _ancestry(session: Session, clip: Clip | None, video: Video) -> list[StepRun]:
    """All step runs about the subject and those before them, oldest first."""
    if clip is None:
        imported = select(StepRun.id).where(StepRun.step == IMPORT, StepRun.subject.startswith(f"{video.id}/"))
        wanted = {*session.scalars(select(StepRun.id).where(StepRun.subject == video.id)), *session.scalars(imported)}
    else:
        wanted = set(session.scalars(select(StepRun.id).where(StepRun.subject == clip.id))) | {clip.step_run_id}
    return ancestry(session, wanted)


def _listing(session: Session, ledger: Ledger, video: Video) -> list[StepRun]:
    """The step run that found a video which nothing was done with yet."""
    runs = session.scalars(
        select(StepRun)
        .where(StepRun.step == "discover", StepRun.status == "kept", ~StepRun.superseded)
        .where(StepRun.detail["source"].astext == video.source_name)
        .order_by(StepRun.id.desc())
        .execution_options(yield_per=10)
    )
    for run in runs:
        outputs = session.scalars(select(StepOutput).where(StepOutput.step_run_id == run.id))
        facts = {"outputs": [{"role": output.role, "sha256": output.artifact_sha256} for output in outputs]}
        if _listed(ledger, facts, video.id):
            return [run]
    return []


def _listed(ledger: Ledger, step: Mapping[str, Any], video_id: str) -> dict[str, Any] | None:
    """What discover saw in the words of a video: row, terms and scores."""
    digest = next((output["sha256"] for output in step["outputs"] if output["role"] == "hits"), None)
    if digest is None:
        return None
    columns = ["row", "terms", "word_score", "text_probability"]
    try:
        path = ledger.store.path(digest)
    except ArtifactLost:
        return None
    rows = pq.read_table(path, columns=columns, filters=[("video_id", "=", video_id)]).to_pylist()
    row: dict[str, Any] | None = rows[0] if rows else None
    return row


def _columns(row: Any, skip: Set[str] = frozenset()) -> dict[str, Any]:
    values = {column.name: getattr(row, column.name) for column in row.__table__.columns if column.name not in skip}
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in values.items()}
