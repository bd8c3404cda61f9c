"""A release: its funnel, how its clips are distributed, and some of them to look at."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import Connection, select, text
from starlette.responses import Response

from apps.audit import charts
from apps.audit.releases import described, outputs_of, read_json, release_of
from apps.audit.site import query, site_of
from medgen.among import among
from medgen.catalog import Clip, ItemStatus, ModelVersion, Release, ReleaseClip, StepRun, Tombstone
from medgen.errors import ItemFailed
from medgen.store import Store

router = APIRouter()

Name = Annotated[str, Path(max_length=200)]
WALL = 12
REASONS = 12  # walls of rejects on a page


@router.get("/releases")
def releases(request: Request) -> Response:
    """All releases, newest first."""
    site = site_of(request)
    with site.engine.connect() as connection:
        rows = connection.execute(
            select(Release.name, Release.clips, Release.created_at, Release.digest)
            .order_by(Release.created_at.desc(), Release.name)
            .limit(500)
        ).all()
    return site.page("releases.html", releases=rows)


@router.get("/releases/{name}")
def release(request: Request, name: Name, seed: Annotated[int, Query(ge=0, lt=2**31)] = 0) -> Response:
    """The page of a release."""
    site = site_of(request)
    with site.engine.connect() as connection:
        row = release_of(connection, name)
        outputs = outputs_of(connection, row["step_run_id"])
        seed = seed or random.randrange(1, 2**31)
        sample = _sample(connection, name, row["clips"], seed)
        models = connection.execute(
            select(ModelVersion.digest, ModelVersion.name, ModelVersion.kind)
            .where(ModelVersion.release_name == name)
            .order_by(ModelVersion.created_at)
            .limit(100)
        ).all()
        others = connection.scalars(
            select(Release.name).where(Release.name != name).order_by(Release.created_at.desc()).limit(100)
        ).all()
        run = connection.execute(
            select(StepRun.flow_run_id, StepRun.code_version, StepRun.record_hash).where(
                StepRun.id == row["step_run_id"]
            )
        ).one()
        takedowns = _takedowns(connection, name)
        rejects = _rejects(connection, site.store, outputs)
    facts = described(site.store, outputs.get("metadata"))
    return site.page(
        "release.html",
        release=row,
        outputs=outputs,
        run=run,
        funnel=charts.funnel_bars(read_json(site.store, outputs.get("funnel")) or []),
        facts=facts,
        sample=sample,
        rejects=rejects,
        models=models,
        others=others,
        takedowns=takedowns,
        seed=seed,
        policy=json.dumps(row["policy"], indent=1, sort_keys=True, ensure_ascii=False)[:200_000],
    )


def _sample(connection: Connection, name: str, clips: int, seed: int) -> list[dict[str, Any]]:
    """Clips of a release by chance: those whose ids come after chosen places. The same seed gives the same ones."""
    chosen = random.Random(seed)
    if clips <= WALL:
        ids = connection.scalars(select(ReleaseClip.clip_id).where(ReleaseClip.release_name == name).limit(WALL)).all()
    else:
        places = [f"c{chosen.getrandbits(64):016x}" for _ in range(2 * WALL)]
        drawn = connection.scalars(
            text(
                "SELECT (SELECT clip_id FROM release_clip WHERE release_name = :name AND clip_id >= place "
                "ORDER BY clip_id LIMIT 1) FROM unnest(CAST(:places AS text[])) AS place"
            ),
            {"name": name, "places": places},
        )
        ids = list(dict.fromkeys(i for i in drawn if i))[:WALL]
    return _shown(connection, ids)


def _shown(connection: Connection, ids: Sequence[str]) -> list[dict[str, Any]]:
    """What a wall shows of clips and videos."""
    rows = connection.execute(
        select(ItemStatus.id, ItemStatus.kind, ItemStatus.title, ItemStatus.category, Clip.start_s, Clip.end_s)
        .outerjoin(Clip, Clip.id == ItemStatus.id)
        .where(among(ItemStatus.id, ids))
    ).mappings()
    by_id = {row["id"]: dict(row) for row in rows}
    return [by_id[i] for i in ids if i in by_id]


@lru_cache(maxsize=64)
def _rejected_rows(store: Store, digest: str) -> tuple[tuple[str, str, int, tuple[dict[str, Any], ...]], ...]:
    """(step, reason, rows, some of them) of a release's table of rejected ones, most frequent first."""
    file = pq.ParquetFile(store.path(digest))
    table = file.read(columns=["step", "reason", "subject", "metric", "score", "threshold", "title", "verdict"])
    counts = Counter(zip(table["step"].to_pylist(), table["reason"].to_pylist(), strict=True))
    groups = []
    for (step, reason), rows in counts.most_common(60):
        same = table.filter(pc.and_kleene(pc.equal(table["step"], step), _equal(table["reason"], reason)))
        chosen = random.Random(f"{digest}{step}{reason}").sample(range(rows), min(6, rows))
        groups.append((step, reason or "", rows, tuple(same.take(sorted(chosen)).to_pylist())))
    return tuple(groups)


def _equal(column: Any, value: str | None) -> Any:
    return pc.is_null(column) if value is None else pc.equal(column, value)


def _rejects(connection: Connection, store: Store, outputs: Mapping[str, str]) -> list[dict[str, Any]]:
    """Walls of what a release left out, a wall per reason; without pictures of what has none."""
    digest = outputs.get("rejected")
    if digest is None:
        return []
    try:
        groups = _rejected_rows(store, digest)
    except (ItemFailed, OSError, ValueError, KeyError):
        return []
    subjects = [row["subject"] for _, _, _, rows in groups[:REASONS] for row in rows]
    known = {row["id"]: row for row in _shown(connection, subjects)}
    walls = []
    for number, (step, reason, rows, some) in enumerate(groups):
        shown = [row | {"known": known.get(row["subject"])} for row in some] if number < REASONS else []
        href = "/items" + query(step=step, reason=reason) if step != "release" else ""
        walls.append({"step": step, "reason": reason, "rows": rows, "some": shown, "href": href})
    return walls


def _takedowns(connection: Connection, name: str) -> list[Any]:
    """Takedowns that touched a release: by the videos that are gone, not by going through all of its clips."""
    rows = connection.execute(
        select(Tombstone.video_id, Tombstone.reason, Tombstone.forgotten_at)
        .where(Tombstone.detail["releases"].has_key(name))
        .order_by(Tombstone.forgotten_at.desc())
        .limit(50)
    )
    return list(rows)
