"""Lineage of models, both ways: what trained a model, and which models a clip entered."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from medgen.among import PAGE
from medgen.catalog import Clip, Evaluation, ModelVersion, StepInput, StepRun, Video
from medgen.ledger import Ledger
from models.training.holdout import held_out
from tasks.training.job_folder import LATENTS, TRAIN
from tasks.training.model_files import model_on_record, taken_down


def trained_by(ledger: Ledger, name: str) -> dict[str, Any]:
    """What made a model on record: step, settings, base, release and every clip, with the part that it played.

    Args:
        name: digest or name of the model, or the beginning of either.

    Returns:
        JSON facts: digest, name, kind, release, created_at, step (name, id, params, detail, code_version), base (the
        same facts of the model it started from, without clips; None), clips (clip_id, video_id, url, title, part:
        trained_on, held_out or quarantined), evaluations, taken_down (videos of the release that were since).

    Raises:
        ItemFailed: unknown_model, ambiguous_model.
    """
    version = model_on_record(ledger, name.removeprefix("medgen:"))
    facts = _facts(ledger, version)
    facts["clips"] = _clips(ledger, version.step_run_id) if version.step_run_id else []
    with Session(ledger.engine) as session:
        rows = session.scalars(select(Evaluation).where(Evaluation.model_digest == version.digest))
        facts["evaluations"] = [{"metric": row.metric, "value": row.value} for row in rows]
    return facts


def models_of(ledger: Ledger, clip_id: str) -> list[dict[str, Any]]:
    """The models that a clip entered: directly, or through the base that they were trained from. Newest last.

    Returns:
        For each: digest, name, release, part (trained_on, held_out, quarantined), via: the name of the model on
        the way, or None.
    """
    with Session(ledger.engine) as session:
        runs = session.scalars(
            select(StepRun)
            .join(StepInput, StepInput.step_run_id == StepRun.id)
            .where(StepInput.role == LATENTS + clip_id, StepRun.step == TRAIN, ~StepRun.superseded)
            .order_by(StepRun.id)
        ).all()
        models: list[dict[str, Any]] = []
        for run in runs:
            part = _part(session, run, clip_id)
            versions = session.scalars(select(ModelVersion).where(ModelVersion.step_run_id == run.id)).all()
            models += [_entered(version, part, None) for version in versions]
        known = {row["digest"] for row in models}
        for row in models:  # grows while it is gone through: fine-tunes of fine-tunes
            tuned = session.scalars(
                select(ModelVersion)
                .join(StepInput, StepInput.step_run_id == ModelVersion.step_run_id)
                .where(StepInput.role == "base", StepInput.artifact_sha256 == row["digest"])
            ).all()
            models += [_entered(v, row["part"], row["name"]) for v in tuned if v.digest not in known]
            known.update(v.digest for v in tuned)
    return models


def _entered(version: ModelVersion, part: str, via: str | None) -> dict[str, Any]:
    return {"digest": version.digest, "name": version.name, "release": version.release_name, "part": part, "via": via}


def _facts(ledger: Ledger, version: ModelVersion) -> dict[str, Any]:
    """A model and, as far as they are on record, the ones it started from."""
    facts: dict[str, Any] = {
        "digest": version.digest,
        "name": version.name,
        "kind": version.kind,
        "release": version.release_name,
        "created_at": version.created_at.isoformat(),
        "step": None,
        "base": None,
        "taken_down": taken_down(ledger, version.release_name),
    }
    if version.step_run_id is None:
        return facts
    with Session(ledger.engine) as session:
        run = session.get(StepRun, version.step_run_id)
        assert run is not None
        facts["step"] = {
            "id": run.id, "name": run.step, "params": run.params, "models": run.models, "detail": run.detail,
            "code_version": run.code_version, "record_hash": run.record_hash,
        }  # fmt: skip
        base = session.scalars(
            select(ModelVersion)
            .join(StepInput, StepInput.artifact_sha256 == ModelVersion.digest)
            .where(StepInput.step_run_id == run.id, StepInput.role == "base")
        ).first()
        if base is not None:
            session.expunge(base)
    if base is not None and base.digest != version.digest:
        facts["base"] = _facts(ledger, base)
    return facts


def _clips(ledger: Ledger, step_run_id: int) -> list[dict[str, Any]]:
    """The clips that a training run read, in order of their ids."""
    with Session(ledger.engine) as session:
        run = session.get(StepRun, step_run_id)
        if run is None or run.step != TRAIN:
            return []
        away, bad = _held_out(session, run), _quarantined(run)
        read = _read_by(run).add_columns(Video.url, Video.title).join(Video, Video.id == Clip.video_id)
        rows = session.execute(read.order_by(Clip.id).execution_options(yield_per=PAGE))
        return [
            {"clip_id": clip, "video_id": video, "url": url, "title": title, "part": _played(clip, video, away, bad)}
            for clip, video, url, title in rows
        ]


def _part(session: Session, run: StepRun, clip_id: str) -> str:
    """The part that one of its clips played in a training run."""
    video = session.scalars(select(Clip.video_id).where(Clip.id == clip_id)).one()
    return _played(clip_id, video, _held_out(session, run), _quarantined(run))


def _played(clip_id: str, video_id: str, away: Collection[str], bad: Collection[str]) -> str:
    return "quarantined" if clip_id in bad else "held_out" if video_id in away else "trained_on"


def _quarantined(run: StepRun) -> Collection[str]:
    quarantined: dict[str, str] = (run.detail or {}).get("quarantined", {})
    return quarantined


def _held_out(session: Session, run: StepRun) -> frozenset[str]:
    """The videos held out of a training run, as it says; one that does not split by ids, share and seed alone."""
    if "held_out_videos" in run.detail:
        return frozenset(run.detail["held_out_videos"])
    videos = _read_by(run).with_only_columns(Clip.video_id).distinct().execution_options(yield_per=PAGE)
    return held_out(session.scalars(videos), run.params["validation_share"], run.params["seed"])


def _read_by(run: StepRun) -> Select[tuple[str, str]]:
    """A query for (clip id, video id) of the encoded clips that a training run read."""
    return (
        select(Clip.id, Clip.video_id)
        .join(StepInput, Clip.id == func.substr(StepInput.role, len(LATENTS) + 1))
        .where(StepInput.step_run_id == run.id, StepInput.role.startswith(LATENTS))
    )
