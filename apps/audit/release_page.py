"""A release: its funnel, how its clips are distributed, some of them to look at, and how it differs from another."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import Connection, Engine, and_, select, text
from sqlalchemy.orm import aliased
from starlette.responses import Response

from apps.audit import charts
from apps.audit.site import query, site_of
from apps.history import Unknown
from medgen.catalog import Clip, ModelVersion, Release, ReleaseClip, Standing, StepOutput, StepRun, Tombstone
from medgen.errors import ItemFailed
from medgen.store import Store

router = APIRouter()

Name = Annotated[str, Path(max_length=200)]
WALL = 12
REASONS = 12  # walls of rejects on a page
NUMBERS = (
    "duration", "aesthetic_score", "technical_score", "medical_probability", "category_probability", "overlay_words",
    "fps", "bit_rate",
)  # fmt: skip
KINDS = ("category", "licence", "camera_motion", "resolution", "captioner", "source")
COMPARED = 20_000  # clips of a difference that are counted


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
        found = release_of(connection, name)
        outputs = outputs_of(connection, found["step_run_id"])
        seed = seed or random.randrange(1, 2**31)
        sample = _sample(connection, name, found["clips"], seed)
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
                StepRun.id == found["step_run_id"]
            )
        ).one()
        graves = _graves(connection, name, found["step_run_id"])
        rejects = _rejects(connection, site.store, outputs)
    facts = described(site.store, outputs.get("metadata"))
    return site.page(
        "release.html",
        release=found,
        outputs=outputs,
        run=run,
        funnel=charts.funnel_bars(_json(site.store, outputs.get("funnel")) or []),
        facts=facts,
        sample=sample,
        rejects=rejects,
        models=models,
        others=others,
        graves=graves,
        seed=seed,
        policy=json.dumps(found["policy"], indent=1, sort_keys=True, ensure_ascii=False)[:200_000],
    )


@router.get("/compare")
def compare(
    request: Request, a: Annotated[str, Query(max_length=200)] = "", b: Annotated[str, Query(max_length=200)] = ""
) -> Response:
    """Two releases side by side."""
    site = site_of(request)
    with site.engine.connect() as connection:
        if not (a and b):
            names = connection.scalars(select(Release.name).order_by(Release.created_at.desc()).limit(500)).all()
            return site.page("compare_choose.html", names=names, a=a, b=b)
        pair = [release_of(connection, name) for name in (a, b)]
        outputs = [outputs_of(connection, one["step_run_id"]) for one in pair]
        only = [_only_in(site.engine, connection, a, b), _only_in(site.engine, connection, b, a)]
        both = max(0, pair[0]["clips"] - only[0]["count"]) if only[0]["exact"] else None
    facts = [described(site.store, one.get("metadata")) for one in outputs]
    funnels = [
        {row["step"]: row for row in charts.funnel_bars(_json(site.store, one.get("funnel")) or [])} for one in outputs
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


def release_of(connection: Connection, name: str) -> dict[str, Any]:
    """Columns of a release. Raises `Unknown`."""
    found = connection.execute(select(Release.__table__).where(Release.name == name)).mappings().first()
    if found is None:
        raise Unknown(f"there is no release {name[:80]}")
    return dict(found)


def outputs_of(connection: Connection, step_run_id: int) -> dict[str, str]:
    """Role → digest of what a step run made; after a takedown, of the record that stands in its place."""
    old, new = aliased(StepRun), aliased(StepRun)
    standing = connection.scalar(
        select(new.id)
        .join(old, old.key == new.key)
        .where(old.id == step_run_id, old.superseded, ~new.superseded, new.status == old.status)
    )
    rows = connection.execute(
        select(StepOutput.role, StepOutput.artifact_sha256).where(StepOutput.step_run_id == (standing or step_run_id))
    )
    return {role: digest for role, digest in rows}


@dataclass(frozen=True)
class Facts:
    """What the metadata table of a release says in sum.

    Args:
        numbers: column → histogram; kinds: column → value → rows.
    """

    rows: int
    seconds: float
    videos: int
    numbers: Mapping[str, dict[str, Any]]
    kinds: Mapping[str, Mapping[str, int]]


def described(store: Store, digest: str | None) -> Facts:
    """Distributions of a release's metadata; without any where the table can't be read."""
    if digest is not None:
        try:
            return _described(store, digest)
        except (ItemFailed, OSError, ValueError):  # lost, or no Parquet: the page says that nothing is known
            pass
    return Facts(0, 0.0, 0, {}, {})


@lru_cache(maxsize=64)
def _described(store: Store, digest: str) -> Facts:
    file = pq.ParquetFile(store.path(digest))
    wanted = [n for n in (*NUMBERS, *KINDS, "video_id") if n in file.schema_arrow.names]
    table = file.read(columns=wanted)
    numbers = {
        name: drawn
        for name in NUMBERS
        if name in wanted and (drawn := charts.histogram(table[name].cast("float64").to_numpy())) is not None
    }
    kinds: dict[str, dict[str, int]] = {}
    for name in KINDS:
        if name in wanted:
            counted = pc.value_counts(table[name].cast("string").fill_null("not stated").combine_chunks()).to_pylist()
            kinds[name] = {row["values"]: row["counts"] for row in counted}
    seconds = pc.sum(table["duration"]).as_py() or 0.0 if "duration" in wanted else 0.0
    videos = pc.count_distinct(table["video_id"]).as_py() if "video_id" in wanted else 0
    return Facts(table.num_rows, float(seconds), videos, numbers, kinds)


def _json(store: Store, digest: str | None) -> Any:
    if digest is None:
        return None
    try:
        return json.loads(store.read(digest))
    except (ItemFailed, ValueError):
        return None


def _sample(connection: Connection, name: str, clips: int, seed: int) -> list[dict[str, Any]]:
    """Clips of a release by chance: those whose ids come after chosen places. The same seed gives the same ones."""
    chosen = random.Random(seed)
    if clips <= WALL:
        ids = connection.scalars(select(ReleaseClip.clip_id).where(ReleaseClip.release_name == name).limit(WALL)).all()
    else:
        places = [f"c{chosen.getrandbits(64):016x}" for _ in range(2 * WALL)]
        found = connection.scalars(
            text(
                "SELECT (SELECT clip_id FROM release_clip WHERE release_name = :name AND clip_id >= place "
                "ORDER BY clip_id LIMIT 1) FROM unnest(CAST(:places AS text[])) AS place"
            ),
            {"name": name, "places": places},
        )
        ids = list(dict.fromkeys(i for i in found if i))[:WALL]
    return _shown(connection, ids)


def _shown(connection: Connection, ids: Sequence[str]) -> list[dict[str, Any]]:
    """What a wall shows of clips and videos."""
    rows = connection.execute(
        select(Standing.id, Standing.kind, Standing.title, Standing.category, Clip.start_s, Clip.end_s)
        .outerjoin(Clip, Clip.id == Standing.id)
        .where(Standing.id.in_(ids))
    ).mappings()
    by_id = {row["id"]: dict(row) for row in rows}
    return [by_id[i] for i in ids if i in by_id]


@lru_cache(maxsize=64)
def _rejected_rows(store: Store, digest: str) -> tuple[tuple[str, str, int, tuple[dict[str, Any], ...]], ...]:
    """(step, reason, rows, some of them) of a release's table of rejected ones, most frequent first."""
    file = pq.ParquetFile(store.path(digest))
    table = file.read(columns=["step", "reason", "subject", "metric", "score", "threshold", "title", "verdict"])
    groups = Counter(zip(table["step"].to_pylist(), table["reason"].to_pylist(), strict=True))
    found = []
    for (step, reason), rows in groups.most_common(60):
        same = table.filter(and_arrow(pc.equal(table["step"], step), _equal(table["reason"], reason)))
        chosen = random.Random(f"{digest}{step}{reason}").sample(range(rows), min(6, rows))
        found.append((step, reason or "", rows, tuple(same.take(sorted(chosen)).to_pylist())))
    return tuple(found)


def and_arrow(one: Any, other: Any) -> Any:
    """Both, of two boolean arrays."""
    return pc.and_kleene(one, other)


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


def _graves(connection: Connection, name: str, step_run_id: int) -> list[Any]:
    """Takedowns that touched a release: by the videos that are gone, not by going through all of its clips."""
    rows = connection.execute(
        select(Tombstone.video_id, Tombstone.reason, Tombstone.forgotten_at)
        .where(Tombstone.detail["releases"].has_key(name))
        .order_by(Tombstone.forgotten_at.desc())
        .limit(50)
    )
    return list(rows)


def _only_in(engine: Engine, connection: Connection, one: str, other: str) -> dict[str, Any]:
    """Clips of one release that another does not hold: their number, and some with where they stand now."""
    count, ids = _missing(engine, one, other)
    rows = connection.execute(
        select(Standing.id, Standing.title, Standing.step, Standing.status, Standing.reason, Standing.category)
        .where(Standing.id.in_(ids))
        .order_by(Standing.id)
    ).mappings()
    return {"count": count, "exact": count < COMPARED, "rows": [dict(row) for row in rows]}


@lru_cache(maxsize=256)
def _missing(engine: Engine, one: str, other: str) -> tuple[int, tuple[str, ...]]:
    """Number of the clips that only the first release holds, and ids of some. What a release holds never changes."""
    mine, theirs = aliased(ReleaseClip), aliased(ReleaseClip)
    missing = (
        select(mine.clip_id)
        .outerjoin(theirs, and_(theirs.release_name == other, theirs.clip_id == mine.clip_id))
        .where(mine.release_name == one, theirs.clip_id.is_(None))
        .limit(COMPARED)
    )
    with engine.connect() as connection:
        ids = connection.scalars(missing).all()
    return len(ids), tuple(sorted(ids)[:40])


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Names of a policy whose values differ, with both values, as JSON; nested ones by their path."""
    flat = [dict(_flat(policy)) for policy in (one, other)]
    names = sorted({*flat[0], *flat[1]})
    return [(n, flat[0].get(n), flat[1].get(n)) for n in names if flat[0].get(n) != flat[1].get(n)]


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for key, item in value.items() for pair in _flat(item, f"{path}.{key}" if path else str(key))]
    return [(path, json.dumps(value, sort_keys=True, ensure_ascii=False)[:2000])]


def _reasons(funnels: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int, int]]:
    """(step, reason, in the first, in the second) where the two differ, by how much."""
    told: dict[tuple[str, str], list[int]] = {}
    for number, funnel in enumerate(funnels):
        for step, row in funnel.items():
            for reason, rows, _ in row["reasons"]:
                told.setdefault((step, reason), [0, 0])[number] += rows
    found = [(step, reason, a, b) for (step, reason), (a, b) in told.items() if a != b]
    return sorted(found, key=lambda row: -abs(row[2] - row[3]))[:30]


def _kinds(facts: Sequence[Facts]) -> list[tuple[str, list[tuple[str, float, float, int, int]]]]:
    """Column → (value, share in the first, share in the second, rows, rows), most frequent first."""
    found = []
    for name in ("category", "licence", "camera_motion"):
        sides = [one.kinds.get(name, {}) for one in facts]
        totals = [sum(side.values()) or 1 for side in sides]
        values = sorted({*sides[0], *sides[1]}, key=lambda v: -(sides[0].get(v, 0) + sides[1].get(v, 0)))[:12]
        rows = [
            (v, sides[0].get(v, 0) / totals[0], sides[1].get(v, 0) / totals[1], sides[0].get(v, 0), sides[1].get(v, 0))
            for v in values
        ]
        if rows:
            found.append((name, rows))
    return found
