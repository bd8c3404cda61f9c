"""The records behind a clip or a release, and the models and evaluations that came of it, for the exports."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.orm import Session

from apps.history import history_of
from medgen.among import among
from medgen.catalog import (
    Clip,
    Evaluation,
    ModelVersion,
    Release,
    ReleaseClip,
    Source,
    SourceTerms,
    StepInput,
    StepRun,
    Video,
)
from medgen.ledger import Ledger
from medgen.source_terms import terms_of

BATCH = 2000  # members of a release read at once


@dataclass(frozen=True)
class ClipLineage:
    """All records behind a clip, and what it went into.

    Args:
        history: as `apps.history.history_of` gives it.
        inputs: step run id → its rows (role, artifact, parent).
        releases, models, evaluations: rows.
    """

    history: Mapping[str, Any]
    inputs: Mapping[int, Sequence[Mapping[str, Any]]]
    source: Mapping[str, Any]
    releases: Sequence[Mapping[str, Any]]
    models: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]


def clip_lineage(ledger: Ledger, clip_id: str) -> ClipLineage:
    """All records behind a clip, and what it went into. Raises `Unknown`."""
    history = history_of(ledger, "clip", clip_id)
    names = [release["name"] for release in history["releases"]]
    with Session(ledger.engine) as session:
        connection = session.connection()
        inputs: dict[int, list[Mapping[str, Any]]] = {}
        query = select(StepInput.__table__).where(among(StepInput.step_run_id, [s["id"] for s in history["steps"]]))
        for row in connection.execute(query.order_by(StepInput.step_run_id, StepInput.role)).mappings():
            inputs.setdefault(row["step_run_id"], []).append(dict(row))
        by_name = select(Source.__table__).where(Source.name == history["video"]["source_name"])
        source = dict(connection.execute(by_name).mappings().one())
        source["terms"] = [_stated(terms) for terms in terms_of(session, source["name"])]
        held = select(Release.name, Release.digest, Release.created_at, Release.clips).where(among(Release.name, names))
        releases = [dict(row) for row in connection.execute(held).mappings()]
        models, evaluations = trained_on(connection, names)
    return ClipLineage(history, inputs, source, releases, models, evaluations)


def _stated(terms: SourceTerms) -> dict[str, Any]:
    names = ("legal_basis", "retain_days", "contact", "stated_by", "stated_at")
    return {name: getattr(terms, name) for name in names}


def trained_on(connection: Connection, names: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Models that were trained on these releases, and their evaluations."""
    query = select(ModelVersion.__table__).where(among(ModelVersion.release_name, names))
    models = [dict(row) for row in connection.execute(query.order_by(ModelVersion.digest)).mappings()]
    evaluated = select(Evaluation.__table__).where(among(Evaluation.model_digest, [m["digest"] for m in models]))
    return models, [dict(row) for row in connection.execute(evaluated.order_by(Evaluation.id)).mappings()]


def members(engine: Engine, release: str) -> Iterator[Sequence[Mapping[str, Any]]]:
    """The clips of a release in batches, in order of their ids: clip, digest, video, its source, url and licence."""
    after = ""
    while True:
        query = (
            select(
                Clip.id, Clip.digest, Clip.video_id, Clip.start_s, Clip.end_s, Video.url, Video.licence,
                Video.source_name, Video.title, StepRun.record_hash,
            )
            .select_from(ReleaseClip)
            .join(Clip, Clip.id == ReleaseClip.clip_id)
            .join(Video, Video.id == Clip.video_id)
            .join(StepRun, StepRun.id == ReleaseClip.step_run_id)
            .where(ReleaseClip.release_name == release, ReleaseClip.clip_id > after)
            .order_by(ReleaseClip.clip_id)
            .limit(BATCH)
        )  # fmt: skip
        with engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        if not rows:
            return
        yield rows
        after = rows[-1]["id"]
