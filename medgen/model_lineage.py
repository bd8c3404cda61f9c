"""Which models a clip entered, and which part it played: by what training runs have on record."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from medgen.among import PAGE
from medgen.catalog import Clip, ModelVersion, StepInput, StepRun
from medgen.holdout import held_out
from medgen.ledger import Ledger

TRAIN = "train"  # name of the step
LATENTS = "latents:"  # beginning of the role of an encoded clip among a training run's inputs; the clip's id follows


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


def _part(session: Session, run: StepRun, clip_id: str) -> str:
    """The part that one of its clips played in a training run."""
    video = session.scalars(select(Clip.video_id).where(Clip.id == clip_id)).one()
    return part_played(clip_id, video, held_out_by(session, run), quarantined_by(run))


def part_played(clip_id: str, video_id: str, away: Collection[str], bad: Collection[str]) -> str:
    """What became of a clip in a training run that held out the videos `away` and put the clips `bad` aside."""
    return "quarantined" if clip_id in bad else "held_out" if video_id in away else "trained_on"


def quarantined_by(run: StepRun) -> Collection[str]:
    """The clips that a training run could not read."""
    quarantined: dict[str, str] = (run.detail or {}).get("quarantined", {})
    return quarantined


def held_out_by(session: Session, run: StepRun) -> frozenset[str]:
    """The videos held out of a training run, as it says; one that does not split by ids, share and seed alone."""
    if "held_out_videos" in run.detail:
        return frozenset(run.detail["held_out_videos"])
    videos = clips_read_by(run).with_only_columns(Clip.video_id).distinct().execution_options(yield_per=PAGE)
    return held_out(session.scalars(videos), run.params["validation_share"], run.params["seed"])


def clips_read_by(run: StepRun) -> Select[tuple[str, str]]:
    """A query for (clip id, video id) of the encoded clips that a training run read."""
    return (
        select(Clip.id, Clip.video_id)
        .join(StepInput, Clip.id == func.substr(StepInput.role, len(LATENTS) + 1))
        .where(StepInput.step_run_id == run.id, StepInput.role.startswith(LATENTS))
    )
