"""Two releases side by side: which clips only one of them holds, and how policy, funnel and distributions differ."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy import Connection, Engine, and_, select
from sqlalchemy.orm import aliased
from starlette.responses import Response

from apps.audit import charts
from apps.audit.releases import NUMBERS, Facts, described, outputs_of, read_json, release_of
from apps.audit.site import site_of
from medgen.among import among
from medgen.catalog import ItemStatus, Release, ReleaseClip

router = APIRouter()

COMPARED = 20_000  # clips of a difference that are counted


@router.get("/compare")
def compare(
    request: Request, a: Annotated[str, Query(max_length=200)] = "", b: Annotated[str, Query(max_length=200)] = ""
) -> Response:
    """Two releases side by side."""
    site = site_of(request)
    with site.engine.connect() as connection:
        if not (a and b):
            names = connection.scalars(select(Release.name).order_by(Release.created_at.desc()).limit(500)).all()
            first, *rest = [name for name in names if name not in (a, b)] or [""]
            # The newest beside the one before it, never a release beside itself.
            b = b or first
            return site.page("compare_choose.html", names=names, a=a or next(iter(rest), first), b=b)
        pair = [release_of(connection, name) for name in (a, b)]
        outputs = [outputs_of(connection, release["step_run_id"]) for release in pair]
        only = [_only_in(site.engine, connection, a, b), _only_in(site.engine, connection, b, a)]
        both = max(0, pair[0]["clips"] - only[0]["count"]) if only[0]["exact"] else None
    facts = [described(site.store, files.get("metadata")) for files in outputs]
    funnels = [
        {row["step"]: row for row in charts.funnel_bars(read_json(site.store, files.get("funnel")) or [])}
        for files in outputs
    ]
    steps = list(dict.fromkeys([*funnels[0], *funnels[1]]))
    return site.page(
        "compare.html",
        pair=pair,
        only=only,
        both=both,
        policy=_differences(pair[0]["policy"], pair[1]["policy"]),
        steps=[(step, funnels[0].get(step), funnels[1].get(step)) for step in steps],
        reasons=_reasons(funnels),
        numbers=[
            (name, facts[0].numbers.get(name), facts[1].numbers.get(name))
            for name in NUMBERS
            if name in facts[0].numbers or name in facts[1].numbers
        ],
        kinds=_kinds(facts),
    )


def _only_in(engine: Engine, connection: Connection, first: str, second: str) -> dict[str, Any]:
    """Clips of one release that another does not hold: their number, and some with where they stand now."""
    count, ids = _missing(engine, first, second)
    rows = connection.execute(
        select(
            ItemStatus.id, ItemStatus.title, ItemStatus.step, ItemStatus.status, ItemStatus.reason, ItemStatus.category
        )
        .where(among(ItemStatus.id, ids))
        .order_by(ItemStatus.id)
    ).mappings()
    return {"count": count, "exact": count < COMPARED, "rows": [dict(row) for row in rows]}


@lru_cache(maxsize=256)
def _missing(engine: Engine, first: str, second: str) -> tuple[int, tuple[str, ...]]:
    """Number of the clips that only the first release holds, and ids of some. What a release holds never changes."""
    mine, theirs = aliased(ReleaseClip), aliased(ReleaseClip)
    missing = (
        select(mine.clip_id)
        .outerjoin(theirs, and_(theirs.release_name == second, theirs.clip_id == mine.clip_id))
        .where(mine.release_name == first, theirs.clip_id.is_(None))
        .limit(COMPARED)
    )
    with engine.connect() as connection:
        ids = connection.scalars(missing).all()
    return len(ids), tuple(sorted(ids)[:40])


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Names of a policy whose values differ, with both values, as JSON; nested ones by their path."""
    flat = [dict(_flat(policy)) for policy in (first, second)]
    names = sorted({*flat[0], *flat[1]})
    return [(n, flat[0].get(n), flat[1].get(n)) for n in names if flat[0].get(n) != flat[1].get(n)]


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for key, item in value.items() for pair in _flat(item, f"{path}.{key}" if path else str(key))]
    return [(path, json.dumps(value, sort_keys=True, ensure_ascii=False)[:2000])]


def _reasons(funnels: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int, int]]:
    """(step, reason, in the first, in the second) where the two differ, by how much."""
    rows_by_reason: dict[tuple[str, str], list[int]] = {}
    for number, funnel in enumerate(funnels):
        for step, row in funnel.items():
            for reason, rows, _ in row["reasons"]:
                rows_by_reason.setdefault((step, reason), [0, 0])[number] += rows
    changed = [(step, reason, a, b) for (step, reason), (a, b) in rows_by_reason.items() if a != b]
    return sorted(changed, key=lambda row: -abs(row[2] - row[3]))[:30]


def _kinds(facts: Sequence[Facts]) -> list[tuple[str, list[tuple[str, float, float, int, int]]]]:
    """Column → (value, share in the first, share in the second, rows, rows), most frequent first."""
    compared = []
    for name in ("category", "licence", "camera_motion"):
        sides = [side.kinds.get(name, {}) for side in facts]
        totals = [sum(side.values()) or 1 for side in sides]
        values = sorted({*sides[0], *sides[1]}, key=lambda v: -(sides[0].get(v, 0) + sides[1].get(v, 0)))[:12]
        rows = [
            (v, sides[0].get(v, 0) / totals[0], sides[1].get(v, 0) / totals[1], sides[0].get(v, 0), sides[1].get(v, 0))
            for v in values
        ]
        if rows:
            compared.append((name, rows))
    return compared
