"""Leaderboard: the newest evaluation of each model and other system, metric by metric, side by side.

Side by side stands only what may be compared: values over the same prompts, distances to the same release.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy import Connection, Row, func, select
from starlette.responses import Response

from apps.audit.site import site_of
from medgen.catalog import Evaluation, ModelVersion, StepRun
from models.metrics.terms import NEUTRAL, TERM_MEAN, TERMS

router = APIRouter()

MOST = 20_000  # values that are looked at, newest first
SYSTEMS = 200
LOWER_IS_BETTER = ("fid", "fvd", "error_share", "near_copies")


@router.get("/leaderboard")
def leaderboard(
    request: Request,
    by: Annotated[str, Query(max_length=200)] = "",
    prompts: Annotated[str, Query(max_length=80)] = "",
) -> Response:
    """Systems by one metric, best first; by the first of the paper's terms that is measured, where none is chosen.

    Args:
        prompts: digest of the prompts; those of the newest evaluation where they are not known.
    """
    site = site_of(request)
    with site.engine.connect() as connection:
        values = _values(connection)
    sets = _prompt_sets(values)
    asked = prompts if prompts in sets else next(iter(sets), "")
    systems = _systems(values, asked)
    metrics = sorted({name for row in systems for name in row["values"]}, key=_place)
    chosen = by if by in metrics else next((name for name in metrics if _term(name)), metrics[0] if metrics else "")
    systems.sort(key=lambda row: _order(row["values"], chosen))
    best = {name: _best(systems, name) for name in metrics}
    return site.page(
        "leaderboard.html", systems=systems, metrics=metrics, by=chosen, best=best, neutral=_neutral,
        lower=_lower_is_better, prompts=asked, sets=sets,
    )  # fmt: skip


@dataclass
class _Prompts:
    """The prompts that some systems were evaluated with: a set, or some of it."""

    about: Mapping[str, Any]  # as `tasks.evaluation.plan.PromptSet`
    systems: set[str] = field(default_factory=set)


def _values(connection: Connection) -> Sequence[Row[Any]]:
    """The newest values, newest first, each with its system and its prompts."""
    query = (
        select(
            Evaluation.model_digest, Evaluation.metric, Evaluation.value, Evaluation.detail, Evaluation.step_run_id,
            func.coalesce(ModelVersion.name, StepRun.detail["system"].astext, StepRun.subject).label("system"),
            StepRun.detail["prompts"].label("prompts"), ModelVersion.release_name,
        )
        .join(StepRun, StepRun.id == Evaluation.step_run_id)
        .outerjoin(ModelVersion, ModelVersion.digest == Evaluation.model_digest)
        .where(~StepRun.superseded)
        .order_by(Evaluation.id.desc())
        .limit(MOST)
    )  # fmt: skip
    return connection.execute(query).all()


def _prompt_sets(values: Sequence[Row[Any]]) -> dict[str, _Prompts]:
    """Those that values were measured with, by their digest, the one of the newest value first."""
    sets: dict[str, _Prompts] = {}
    for row in values:
        if row.prompts:
            prompts = sets.setdefault(row.prompts["digest"], _Prompts(row.prompts))
            prompts.systems.add(row.model_digest or row.system)
    return sets


def _systems(rows: Sequence[Row[Any]], prompts: str) -> list[dict[str, Any]]:
    """Each system with the newest value of every metric: name, digest of the model, release, values.

    Args:
        prompts: their digest; values over other ones are left out. A study's values name none, as it compares its
            systems by itself.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.prompts and row.prompts["digest"] != prompts:
            continue
        key = row.model_digest or row.system
        about = {"name": row.system, "digest": row.model_digest, "release": row.release_name, "values": {}}
        if key not in found and len(found) == SYSTEMS:
            continue
        against = row.detail.get("against")
        found.setdefault(key, about)["values"].setdefault(
            f"{row.metric} against {against}" if against else row.metric,
            {"value": row.value, "low": row.detail.get("low"), "high": row.detail.get("high"), "run": row.step_run_id},
        )
    return list(found.values())


def _term(metric: str) -> bool:
    return metric.startswith(TERMS)


def _neutral(metric: str) -> bool:
    """Whether it says how much, not how well."""
    return metric.startswith(NEUTRAL)


def _lower_is_better(metric: str) -> bool:
    return metric.startswith(LOWER_IS_BETTER)


def _place(metric: str) -> tuple[int, int, str]:
    """The paper's terms first, in their order, then their mean, then the others; what says how much comes last."""
    term = next((number for number, name in enumerate(TERMS) if metric.startswith(name)), len(TERMS))
    return (2 if _neutral(metric) else 0 if metric.startswith((*TERMS, TERM_MEAN)) else 1, term, metric)


def _order(values: Mapping[str, Mapping[str, Any]], by: str) -> tuple[bool, float]:
    if by not in values:
        return True, 0.0
    value = float(values[by]["value"])
    return False, value if _lower_is_better(by) else -value


def _best(systems: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """The best value of a metric among two systems or more; None of what is no measure of quality."""
    values = [row["values"][metric]["value"] for row in systems if metric in row["values"]]
    if len(values) < 2 or _neutral(metric):
        return None
    return float(min(values) if _lower_is_better(metric) else max(values))
