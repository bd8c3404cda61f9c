"""The text-to-video models on record, with what they are worth."""

from collections import defaultdict
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.among import among
from medgen.catalog import Evaluation
from medgen.ledger import Ledger
from tasks.training.model_files import models_on_record


def model_rows(ledger: Ledger) -> list[dict[str, Any]]:
    """A row for each model on record, newest first.

    Returns:
        digest, name, kind, release, created_at; base_name, preset, steps, train_clips and held_out_loss of those that
        were trained here, None of others; evaluations: metric → value, each of its newest evaluation.
    """
    versions = models_on_record(ledger)
    runs = ledger.load({v.step_run_id for v in versions if v.step_run_id is not None})
    values: dict[str, dict[str, float]] = defaultdict(dict)
    with Session(ledger.engine) as session:
        query = select(Evaluation.model_digest, Evaluation.metric, Evaluation.value).where(
            among(Evaluation.model_digest, [v.digest for v in versions])
        )
        for digest, metric, value in session.execute(query.order_by(Evaluation.id)):
            values[str(digest)][metric] = value
    rows = []
    for version in versions:
        detail = runs[version.step_run_id].detail if version.step_run_id is not None else {}
        rows.append(
            {
                "digest": version.digest,
                "name": version.name,
                "kind": version.kind,
                "release": version.release_name,
                "created_at": version.created_at.isoformat(),
                **{name: detail.get(name) for name in ("base_name", "preset", "steps", "train_clips")},
                "held_out_loss": (detail.get("held_out_loss") or [None])[-1],
                "evaluations": dict(sorted(values[version.digest].items())),
            }
        )
    return rows
