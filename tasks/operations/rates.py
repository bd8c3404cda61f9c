"""Rates: what an item of each step costs and how many pass it, measured on records; else those that come along.

Of this installation's records the newest count. A step that they tell too little of has the rates in `rates.json`,
which `bench/rates.py` measured on real videos; that file says on which machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, text

from tasks.curation.steps import STEP_NAMES

NEWEST = 200_000  # step runs looked at; a read of all takes minutes where there are millions
LEAST_ITEMS = 100  # of a step, for its rates to be believed
LEAST_ROWS = 100_000  # of listings: the models' loading weighs on fewer
LEAST_RUNS = 10_000  # step runs, for the catalog's size by step run: fewer don't fill the pages of its indexes

Unit = Literal["rows", "video seconds", "clips"]
UNITS: Mapping[str, Unit] = {
    "discover": "rows",
    "download": "video seconds",
    "segment": "video seconds",
    "classify": "video seconds",
    **dict.fromkeys(("cut", "quality", "decide", "deduplicate", "privacy", "caption", "release"), "clips"),
}
"""Step → what its cost grows with."""


class StepRate(BaseModel):
    """What a step costs.

    Args:
        items: it was measured on; of discover the rows.
        seconds: of a worker, by unit of `UNITS`.
        kept: share of the items that pass.
        store_bytes: that the step adds to the store, by unit.
        gpu_seconds: by unit; those of `seconds` in which a model ran on a GPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(ge=0)
    seconds: float = Field(ge=0)
    kept: float = Field(ge=0, le=1)
    store_bytes: float = Field(ge=0)
    gpu_seconds: float = Field(0.0, ge=0)


class General(BaseModel):
    """What belongs to no step alone; None: not measured.

    Args:
        video_seconds: mean length of a video.
        clips_per_video_second: stretches that classify hands on, by second of the videos that it keeps.
        decodes: video files opened for decoding, by downloaded video.
        catalog_bytes: of Postgres, by step run.
        record_seconds: of the main process, by step run: what the records cost beside the work.
        worker_bytes: most memory that a worker process took.
        tokens_in, tokens_out: of a captioner, by clip.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    video_seconds: float | None = Field(None, gt=0)
    clips_per_video_second: float | None = Field(None, ge=0)
    decodes: float | None = Field(None, ge=0)
    catalog_bytes: float | None = Field(None, ge=0)
    record_seconds: float | None = Field(None, ge=0)
    worker_bytes: float | None = Field(None, ge=0)
    tokens_in: float | None = Field(None, ge=0)
    tokens_out: float | None = Field(None, ge=0)


class Rates(BaseModel):
    """Rates of all steps.

    Args:
        origin: what measured them, for people.
        steps: step → its rate; of measured ones only the steps that records tell enough of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: str
    steps: dict[str, StepRate]
    general: General


@dataclass(frozen=True)
class Sourced:
    """Rates, and which of them are this installation's own.

    Args:
        here: names of steps, and of fields of `General`, that were measured on this installation's records.
        origin: of the others.
    """

    steps: Mapping[str, StepRate]
    general: General
    here: frozenset[str]
    origin: str


@cache
def shipped_rates() -> Rates:
    """Those that come along."""
    return Rates.model_validate_json((files("tasks.operations") / "rates.json").read_text(encoding="utf-8"))


def installation_rates(engine: Engine, least_items: int = LEAST_ITEMS) -> Sourced:
    """The rates of this installation's records, and where they tell too little, those that come along.

    Args:
        least_items: of a step, for its rates to be believed.
    """
    measured, shipped = measured_rates(engine, least_items), shipped_rates()
    own = {name: value for name, value in measured.general.model_dump().items() if value is not None}
    return Sourced(
        shipped.steps | measured.steps,
        shipped.general.model_copy(update=own),
        frozenset({*measured.steps, *own}),
        shipped.origin,
    )


def measured_rates(engine: Engine, least_items: int = LEAST_ITEMS, *, newest: int = NEWEST) -> Rates:
    """The rates of what is on record of at least so many items; of discover in proportion more.

    The seconds are those between the start of a work in its worker and its record: on a machine that other programs use
    too, more than processor time. What a step that compares all items needs for that is in no record.

    Args:
        newest: step runs looked at.
    """
    with engine.connect() as connection:
        connection.execute(text(_RECENT), {"steps": [*STEP_NAMES, "release"], "newest": newest})
        connection.execute(text("ANALYZE recent"))  # else its joins are planned for a few rows
        rows = {row.step: row for row in connection.execute(text(_STEPS))}
        stored = {step: size for step, size in connection.execute(text(_STORED))}
        steps = {
            step: _rate(row, stored.get(step, 0.0))
            for step, row in rows.items()
            if row.items >= least_items and row.amount
        }
        rows_listed = connection.execute(text(_LISTED)).one()
        if rows_listed.items >= least_items * (LEAST_ROWS // LEAST_ITEMS):
            steps["discover"] = _rate(rows_listed, stored.get("discover", 0.0))
        general = _general(connection, steps, least_items)
        connection.rollback()  # the temporary table goes
    return Rates(origin="this installation's records", steps=steps, general=general)


def _rate(row: Any, stored: float) -> StepRate:
    return StepRate(
        items=row.items,
        seconds=float(row.seconds) / float(row.amount),
        kept=row.kept / row.items,
        store_bytes=stored / float(row.amount),
        gpu_seconds=float(row.gpu_seconds) / float(row.amount),
    )


def _general(connection: Connection, steps: Mapping[str, StepRate], least_items: int) -> General:
    row = connection.execute(text(_GENERAL)).one()
    runs, size = connection.execute(text(_CATALOG)).one()
    asked = row.asked >= least_items
    return General(
        video_seconds=row.video_seconds if "download" in steps else None,
        clips_per_video_second=row.clips / row.classified_seconds
        if "classify" in steps and row.classified_seconds
        else None,
        decodes=row.decodes / row.downloads if "download" in steps and row.downloads else None,
        catalog_bytes=float(size) / runs if runs >= least_items * (LEAST_RUNS // LEAST_ITEMS) else None,
        tokens_in=row.tokens_in / row.asked if asked else None,
        tokens_out=row.tokens_out / row.asked if asked else None,
    )


# A transient failure is no outcome: its item is tried again.
_RECENT = """
CREATE TEMPORARY TABLE recent ON COMMIT DROP AS
SELECT id, step, subject, status, decodes, greatest(extract(epoch FROM finished_at - started_at), 0) AS seconds,
       (detail #>> '{probe,duration_s}')::float AS duration_s,
       CASE WHEN step = 'classify' AND status = 'kept' THEN jsonb_array_length(detail -> 'clips') END AS clips,
       CASE WHEN step = 'release' THEN (detail ->> 'clips')::bigint END AS released,
       CASE WHEN step = 'discover' AND status = 'kept' THEN detail -> 'counts' END AS counts,
       (detail ->> 'tokens_in')::bigint AS tokens_in, (detail ->> 'tokens_out')::bigint AS tokens_out,
       coalesce(detail ->> 'captioner' LIKE 'transformers:%', false) AS on_gpu
FROM step_run
WHERE NOT superseded AND step = ANY(:steps) AND (status <> 'failed' OR NOT transient)
  AND (step = 'discover' OR id > coalesce((SELECT max(id) FROM step_run), 0) - :newest)
"""
# Steps that see videos by the seconds of those whose length is known; the others by item.
_STEPS = """
SELECT r.step, coalesce(sum(r.released), count(*))::bigint AS items,
       coalesce(sum(r.released), count(*) FILTER (WHERE r.status = 'kept'))::bigint AS kept,
       coalesce(sum(r.seconds) FILTER (WHERE r.step NOT IN ('download', 'segment', 'classify')
                                       OR coalesce(r.duration_s, d.duration_s) IS NOT NULL), 0) AS seconds,
       coalesce(sum(r.seconds) FILTER (WHERE r.on_gpu), 0) AS gpu_seconds,
       CASE WHEN r.step IN ('download', 'segment', 'classify') THEN sum(coalesce(r.duration_s, d.duration_s))
            ELSE coalesce(sum(r.released), count(*)) END AS amount
FROM recent r LEFT JOIN recent d ON d.step = 'download' AND d.subject = r.subject AND r.step IN ('segment', 'classify')
WHERE r.step <> 'discover' GROUP BY r.step
"""
_LISTED = """
SELECT coalesce(sum(rows), 0)::bigint AS items, coalesce(sum(rows), 0) AS amount,
       coalesce(sum(passed), 0)::bigint AS kept, coalesce(sum(seconds), 0) AS seconds, 0 AS gpu_seconds
FROM recent, LATERAL (SELECT sum(value::bigint) AS rows, sum(value::bigint) FILTER (WHERE key = 'kept') AS passed
                      FROM jsonb_each_text(counts)) AS told
WHERE step = 'discover'
"""
# Bytes count once, for the step that made them first.
_STORED = """
SELECT step, sum(bytes)::float FROM (
  SELECT DISTINCT ON (o.artifact_sha256) r.step, a.bytes
  FROM recent r JOIN step_output o ON o.step_run_id = r.id JOIN artifact a ON a.sha256 = o.artifact_sha256
  ORDER BY o.artifact_sha256, r.id
) AS first GROUP BY step
"""
_GENERAL = """
SELECT avg(r.duration_s) FILTER (WHERE r.step = 'download') AS video_seconds,
       coalesce(sum(r.clips), 0)::float AS clips,
       coalesce(sum(d.duration_s) FILTER (WHERE r.step = 'classify' AND r.status = 'kept'), 0) AS classified_seconds,
       sum(r.decodes)::float AS decodes, count(*) FILTER (WHERE r.step = 'download') AS downloads,
       count(*) FILTER (WHERE r.tokens_in > 0) AS asked,
       coalesce(sum(r.tokens_in), 0)::float AS tokens_in, coalesce(sum(r.tokens_out), 0)::float AS tokens_out
FROM recent r LEFT JOIN recent d ON d.step = 'download' AND d.subject = r.subject AND r.step = 'classify'
"""
_CATALOG = """
SELECT (SELECT count(*) FROM step_run),
       (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c
        WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace)
"""
