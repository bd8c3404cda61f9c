"""What trained a model: step, settings, base, release and clips."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.among import PAGE
from medgen.catalog import Clip, Evaluation, ModelVersion, StepInput, StepRun, Video
from medgen.ledger import Ledger
from medgen.model_lineage import TRAIN, clips_read_by, held_out_by, part_played, quarantined_by
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
        away, bad = held_out_by(session, run), quarantined_by(run)
        read = clips_read_by(run).add_columns(Video.url, Video.title).join(Video, Video.id == Clip.video_id)
        rows = session.execute(read.order_by(Clip.id).execution_options(yield_per=PAGE))
        return [
            {
                "clip_id": clip,
                "video_id": video,
                "url": url,
                "title": title,
                "part": part_played(clip, video, away, bad),
            }
            for clip, video, url, title in rows
        ]
