"""The whole life of a clip or video, read from the catalog: where it came from, every decision, where it went."""

from typing import Any

import pyarrow.parquet as pq
from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from medgen.catalog import (
    Caption,
    Clip,
    ModelVersion,
    Release,
    ReleaseClip,
    Score,
    StepInput,
    StepOutput,
    StepRun,
    Tombstone,
    Video,
)
from medgen.ledger import Ledger
from medgen.store import ArtifactLost
from medgen.takedown import stamp
from tasks.curation.vanished import RECHECK, vanished
from tasks.training.model_lineage import models_of

MAX_NAME = 8192  # characters


class Unknown(LookupError):
    """Nothing on record goes by this name."""


def find(ledger: Ledger, name: str) -> tuple[str, str]:
    """("clip" or "video", full id) for an id, the unique beginning of one, a digest of a clip, or a video's URL.

    Raises:
        Unknown: nothing, or more than one thing, goes by that name; says so when it was taken down unseen.
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
    found = [("clip", i) for i in clips] + [("video", i) for i in videos]
    exact = [pair for pair in found if pair[1] == name] or found
    if not exact:
        with Session(ledger.engine) as session:
            named = or_(Tombstone.video_id == name, Tombstone.url == name)
            grave = session.scalars(select(Tombstone).where(named)).first()
        since = f"; it was taken down unseen {stamp(grave.forgotten_at)[:19]}: {grave.reason}" if grave else ""
        raise Unknown(f"no clip or video goes by {shown}{since}")
    if len(exact) != 1:
        raise Unknown(f"{len(exact)} clips and videos go by {shown}")
    return exact[0]


def life(ledger: Ledger, name: str) -> dict[str, Any]:
    """All that is on record about a clip or video, by any of its names. Raises `Unknown`."""
    return story_of(ledger, *find(ledger, name))


def story_of(ledger: Ledger, kind: str, identity: str) -> dict[str, Any]:
    """All that is on record about the clip or video with this id. Raises `Unknown`."""
    with Session(ledger.engine) as session:
        clip = session.get(Clip, identity) if kind == "clip" else None
        video = session.get(Video, clip.video_id if clip else identity)
        if video is None or (kind == "clip" and clip is None):
            raise Unknown(f"there is no {kind} {identity[:80]}")
        runs = _ancestry(session, clip, video) or _listing(session, ledger, video)
        ids = [run.id for run in runs]
        scores = _grouped(
            session, Score, ids, lambda s: {"metric": s.metric, "value": s.value, "model": s.model_digest}
        )
        outputs = _grouped(session, StepOutput, ids, lambda o: {"role": o.role, "sha256": o.artifact_sha256})
        story: dict[str, Any] = {
            "kind": kind,
            "id": identity,
            "forgotten": _grave(session.get(Tombstone, video.id)),
            "vanished": stamp(since) if (since := vanished(ledger.engine, video.id).get(video.id)) else None,
            "video": _columns(video, skip={"description"}),
            "steps": [
                {
                    **_columns(run, skip={"context"}),
                    "scores": scores.get(run.id, []),
                    "outputs": outputs.get(run.id, []),
                }
                for run in runs
            ],
        }
        for step in story["steps"]:
            if step["step"] == "discover":
                step["listed"] = _listed(ledger, step, video.id)
        if clip is None:
            clips = session.scalars(
                select(Clip.id).where(Clip.video_id == video.id).order_by(Clip.start_frame, Clip.id)
            )
            return story | {"clips": list(clips)}
        captions = session.scalars(select(Caption).where(Caption.clip_id == clip.id).order_by(Caption.step_run_id))
        releases = session.execute(
            select(Release.name, Release.digest)
            .join(ReleaseClip, ReleaseClip.release_name == Release.name)
            .where(ReleaseClip.clip_id == clip.id)
            .order_by(Release.name)
        ).all()
        models = session.scalars(
            select(ModelVersion.name).where(ModelVersion.release_name.in_([r.name for r in releases]))
        )
        return story | {
            "clip": _columns(clip),
            "captions": [_columns(caption) for caption in captions],
            "releases": [dict(row._mapping) for row in releases],
            "models": list(models),
            "trained": models_of(ledger, clip.id),
        }


def verdict(story: dict[str, Any]) -> str:
    """Why the subject was kept or not, in a sentence."""
    if grave := story["forgotten"]:
        return f"Taken down {grave['forgotten_at'][:19]}: {grave['reason']}. Its bytes and words are gone."
    current = [step for step in story["steps"] if not step["superseded"] and step["step"] != RECHECK]
    if [step["step"] for step in current] in ([], ["discover"]):
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
    if story.get("releases"):
        return f"Kept, and released in {', '.join(release['name'] for release in story['releases'])}."
    return f"Kept by {last['step']}, the last step so far."


def show(story: dict[str, Any], console: Console) -> None:
    """Prints a life for people."""
    video = story["video"]
    about = Table.grid(padding=(0, 2))
    for name, value in (
        ("title", video["title"]),
        ("url", video["url"]),
        ("channel", video["channel"]),
        ("licence", video["licence"] or "not stated by the source"),
        ("published", video["published"]),
        ("source", video["source_name"]),
        ("video", video["id"]),
    ):
        about.add_row(f"[dim]{name}[/]", escape(str(value or "–")))
    if clip := story.get("clip"):
        about.add_row("[dim]clip[/]", f"{clip['id']}  {clip['width']}x{clip['height']}  {clip['fps']:g} fps")
        about.add_row(
            "[dim]cut from[/]",
            f"{clip['start_s']:g} s to {clip['end_s']:g} s (frames {clip['start_frame']} to {clip['end_frame'] - 1})",
        )
        about.add_row("[dim]sha256[/]", clip["digest"])
    lines = [f"[red]{escape(verdict(story))}[/]" if story["forgotten"] else escape(verdict(story))]
    if story["vanished"]:
        lines.append(f"[yellow]Vanished from its source, found {story['vanished'][:19]}.[/]")
    console.print(Panel(Group(*lines, "", about), title=f"{story['kind']} {story['id']}", title_align="left"))
    steps = Table(title="Decisions", title_justify="left", show_lines=True)
    for column in ("step", "verdict", "scores and facts", "model and code"):
        steps.add_column(column, overflow="fold")
    for step in story["steps"]:
        steps.add_row(
            f"{step['step']} v{step['version']}\n[dim]{step['finished_at'][:19]}[/]",
            _verdict_cell(step),
            escape(_facts(step)),
            escape(_provenance(step)),
        )
    console.print(steps)
    for caption in story.get("captions", []):
        console.print(
            f"[bold]{caption['kind']} caption[/] [dim]by {escape(caption['model'])} {caption['prompt_version']}[/]"
        )
        console.print(escape(caption["text"]), "")
    if "clip" in story:
        console.print("releases:", ", ".join(r["name"] for r in story["releases"]) or "none")
        entered = {row["name"]: row["part"].replace("_", " ") for row in story["trained"]}
        named = [
            f"{name} ({entered.get(name, 'by its release')})" for name in {**dict.fromkeys(story["models"]), **entered}
        ]
        console.print("models:", ", ".join(named) or "none")
    else:
        console.print("clips:", ", ".join(story["clips"]) or "none")


def _grave(row: Tombstone | None) -> dict[str, Any] | None:
    return {"forgotten_at": stamp(row.forgotten_at), "reason": row.reason} if row else None


def _ancestry(session: Session, clip: Clip | None, video: Video) -> list[StepRun]:
    """All step runs about the subject and those before them, oldest first."""
    if clip is None:
        wanted = set(session.scalars(select(StepRun.id).where(StepRun.subject == video.id)))
    else:
        wanted = set(session.scalars(select(StepRun.id).where(StepRun.subject == clip.id))) | {clip.step_run_id}
    found: set[int] = set()
    while wanted - found:
        fresh = wanted - found
        found |= fresh
        parents = session.scalars(select(StepInput.parent_id).where(StepInput.step_run_id.in_(fresh)))
        wanted |= {parent for parent in parents if parent is not None}
    return list(session.scalars(select(StepRun).where(StepRun.id.in_(found)).order_by(StepRun.id)))


def _listing(session: Session, ledger: Ledger, video: Video) -> list[StepRun]:
    """The step run that found a video which nothing was done with yet."""
    runs = session.scalars(
        select(StepRun)
        .where(StepRun.step == "discover", StepRun.status == "kept", ~StepRun.superseded)
        .where(StepRun.detail["source"].astext == video.source_name)
        .order_by(StepRun.id.desc())
    )
    for run in runs:
        outputs = session.scalars(select(StepOutput).where(StepOutput.step_run_id == run.id))
        facts = {"outputs": [{"role": output.role, "sha256": output.artifact_sha256} for output in outputs]}
        if _listed(ledger, facts, video.id):
            return [run]
    return []


def _listed(ledger: Ledger, step: dict[str, Any], video_id: str) -> dict[str, Any] | None:
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
    return rows[0] if rows else None


def _grouped(session: Session, table: Any, ids: list[int], row: Any) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    for one in session.scalars(select(table).where(table.step_run_id.in_(ids))):
        grouped.setdefault(one.step_run_id, []).append(row(one))
    return grouped


def _columns(row: Any, skip: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    values = {column.name: getattr(row, column.name) for column in row.__table__.columns if column.name not in skip}
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in values.items()}


def _verdict_cell(step: dict[str, Any]) -> str:
    colour = {"kept": "green", "rejected": "yellow", "failed": "red"}[step["status"]]
    lines = [f"[{colour}]{step['status']}[/]"]
    if step["reason"]:
        lines.append(escape(step["reason"]))
    if step["superseded"]:
        lines.append("[dim]superseded[/]")
    return "\n".join(lines)


def _facts(step: dict[str, Any]) -> str:
    lines = [f"{score['metric']} {score['value']:g}" for score in step["scores"]]
    if listed := step.get("listed"):
        lines.append(f"row {listed['row']}")
        if listed["terms"]:
            lines.append(f"words weigh {listed['word_score']:g}: {', '.join(listed['terms'][:10])}")
        if listed["text_probability"] is not None:
            lines.append(f"medical by its text: {listed['text_probability']:.2f}")
    detail = step["detail"]
    for check in detail.get("checks", []):
        mark = "ok" if check["passed"] else "NO"
        lines.append(f"{mark}  {check['metric']} {check['score']:g}, {check['passes_when']} {check['threshold']:g}")
    for name in (
        "message",
        "word_filter",
        "meaning_filter",
        "borders",
        "shots",
        "frames",
        "motion_type",
        "technical_model",
        "aesthetic_model",
    ):
        if detail.get(name) is not None:
            lines.append(f"{name}: {detail[name]}")
    if step["status"] == "rejected" and "score" in detail and "checks" not in detail:
        lines.append(f"{detail.get('metric', 'score')} {detail['score']:g}, threshold {detail['threshold']:g}")
    return "\n".join(lines)


def _provenance(step: dict[str, Any]) -> str:
    lines = [f"{role} {digest[:12]}" for role, digest in step["models"].items()]
    return "\n".join([*lines, f"code {step['code_version']}", f"record {step['record_hash'][:12]}"])
