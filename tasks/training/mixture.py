"""Mixtures: several releases as one, of which training draws so many samples as each one's weight says.

A mixture is a release like any other, so that takedowns, lineage, export and evaluation know it. Its policy names the
releases, their digests and their shares; the column `mixed_from` says which of them hold a clip. The same releases and
shares give the same mixture. Its folder is not laid out: its clips lie in those of its releases.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Column, Connection, MetaData, Table, Text, func, select
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by

from medgen.among import PAGE
from medgen.canonical import canonical_json, digest_of
from medgen.catalog import Artifact, Clip, Release, ReleaseClip, Tombstone
from medgen.ledger import Ledger, Work, open_ledger
from medgen.releases import named_release
from medgen.shard import run_shard
from tasks.curation.release import RELEASE, ReleaseParams, step
from tasks.curation.release_content import METADATA, REJECTED, UNPUBLISHED, copied, streamed, table
from tasks.prefect_step import step_task
from tasks.training.released import usable_release

MIXED_FROM = "mixed_from"
MOST_PARTS = 64
FORMER_FILE = "file"  # as the column file_name was called in releases made before

_temporary = MetaData()
_member = Table(
    "mixture_member",
    _temporary,
    Column("clip", Text(collation="C")),
    Column("part", Text(collation="C")),
    Column("content", JSONB),  # its row of the metadata
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)


def is_mixture(text: str) -> bool:
    """Whether what people name to train on is several releases, or one with a weight."""
    return "," in text or "=" in text


def read_mixture(text: str) -> dict[str, float]:
    """Release → share of the samples, by name; the shares add up to 1.

    Args:
        text: ``RELEASE=WEIGHT,RELEASE=WEIGHT``; a weight that is left out is 1.

    Raises:
        ValueError: a name is missing or stands twice, a weight is no finite number above 0, or there are too many.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, given = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(given) if equals else 1.0
        except ValueError:
            weight = math.nan
        if not name or not math.isfinite(weight) or weight <= 0:
            raise ValueError(f"{part.strip()[:100]!r} is not RELEASE=WEIGHT with a weight above 0")
        if name in weights:
            raise ValueError(f"the release {name[:100]!r} stands twice in the mixture")
        weights[name] = weight
    if len(weights) > MOST_PARTS:
        raise ValueError(f"a mixture has at most {MOST_PARTS} releases, not {len(weights)}")
    total = sum(weights.values())
    return {name: round(weight / total, 9) for name, weight in sorted(weights.items())}


def named_releases(ledger: Ledger, text: str) -> str:
    """What people name to train on, with each release by its own name; see `medgen.releases.named_release`."""
    if not is_mixture(text):
        return named_release(ledger, text)
    parts = (part.partition("=") for part in text.split(","))
    return ",".join(named_release(ledger, name.strip()) + equals + weight for name, equals, weight in parts)


def weights_of(policy: Mapping[str, Any]) -> dict[str, float]:
    """Release → share of the samples, of the policy of a mixture; empty for other releases."""
    return {name: float(part["share"]) for name, part in policy.get("mixture", {}).items()}


def mixed_release(ledger: Ledger, text: str, flow_run_id: str | None = None) -> str:
    """The name of the mixture of releases, which is made unless it stands. Clips that were taken down are left out.

    Args:
        text: as of `read_mixture`.

    Raises:
        ValueError: as `read_mixture`.
        ItemFailed: unknown_release, release_not_approved.
        ArtifactLost, StoreUnavailable: as `Store.path`.
    """
    shares = read_mixture(text)
    parts = {name: usable_release(ledger, name) for name in shares}
    if len(parts) == 1:
        return next(iter(parts))
    policy = {"mixture": {name: {"digest": parts[name].digest, "share": share} for name, share in shares.items()}}
    with ledger.engine.connect() as connection, connection.begin():
        _temporary.create_all(connection, checkfirst=False)
        schemas = [_collect(connection, ledger, release) for release in parts.values()]
        own = [METADATA, *schemas, pa.schema([(MIXED_FROM, pa.list_(pa.string()))])]
        schema = pa.unify_schemas(own, promote_options="permissive")
        schema = pa.schema([*schema, *((name, pa.int64()) for name in UNPUBLISHED)])
        clips = table(ledger.store, schema, _rows(connection))
        listed, kept = connection.execute(select(func.count(), func.count(_member.c.clip.distinct()))).one()
        videos = connection.scalar(
            select(func.count(Clip.video_id.distinct())).join(_member, _member.c.clip == Clip.id)
        )
    funnel = {
        "step": "mixture", "unit": "clips", "in": listed, "kept": kept,
        "rejected": {"in_several_releases": listed - kept} if listed > kept else {}, "failed": {},
    }  # fmt: skip
    facts = {
        "policy": policy,
        "funnel": [funnel],
        "record_root": digest_of(sorted(release.record_root for release in parts.values())),
        "videos": videos,
    }
    artifacts = {
        "content": clips,
        "rejected": table(ledger.store, REJECTED, []),
        "facts": ledger.store.put_bytes(canonical_json(facts), "application/json"),
    }
    work = Work(
        "release",
        inputs={role: artifact.sha256 for role, artifact in artifacts.items()},
        context={"bytes": {role: artifact.bytes for role, artifact in artifacts.items()}},
        parents={f"part:{name}": release.step_run_id for name, release in parts.items()},
    )
    made = run_shard(step(ReleaseParams(release_prefix="mixture")), [work], flow_run_id=flow_run_id, ledger=ledger)
    return RELEASE.detail(ledger.load(made.records)[made.records[0]])["name"]


def _collect(connection: Connection, ledger: Ledger, release: Release) -> pa.Schema:
    """Takes the rows of a release's metadata into the table of members; gives their schema."""
    outputs = ledger.load([release.step_run_id])[release.step_run_id].outputs
    with pq.ParquetFile(ledger.store.path(outputs["metadata"])) as file, copied(connection, _member) as copy:
        for batch in file.iter_batches(batch_size=PAGE):
            for row in batch.to_pylist():
                row.pop(MIXED_FROM, None)
                if FORMER_FILE in row:
                    row["file_name"] = row.pop(FORMER_FILE)
                copy.write_row((row["clip_id"], release.name, json.dumps(row, ensure_ascii=False)))
        return pa.schema(
            [field.remove_metadata() for field in file.schema_arrow if field.name not in (MIXED_FROM, FORMER_FILE)]
        )


def _rows(connection: Connection) -> Iterator[dict[str, Any]]:
    """A row for each clip that was not taken down, by its id; what it says is what the first release says."""
    part = _member.c.part
    once = (
        select(
            _member.c.clip,
            func.array_agg(aggregate_order_by(part, part)).label(MIXED_FROM),
            func.min(part).label("first"),
        )
        .group_by(_member.c.clip)
        .subquery()
    )
    query = (
        select(_member.c.content, once.c[MIXED_FROM], Artifact.bytes, ReleaseClip.step_run_id)
        .join(once, (once.c.clip == _member.c.clip) & (once.c.first == part))
        .join(Clip, Clip.id == _member.c.clip)
        .join(Artifact, Artifact.sha256 == Clip.digest)
        .join(ReleaseClip, (ReleaseClip.clip_id == _member.c.clip) & (ReleaseClip.release_name == part))
        .outerjoin(Tombstone, Tombstone.video_id == Clip.video_id)
        .where(Tombstone.video_id.is_(None))
        .order_by(_member.c.clip)
    )
    for row in streamed(connection, query):
        yield {**row.content, MIXED_FROM: row[1], "bytes": row.bytes, "step_run_id": row.step_run_id}


@step_task("mixture", "cpu")
def mix(label: str, releases: str) -> str:
    """The name of a mixture; see `mixed_release`."""
    return mixed_release(open_ledger(), releases)
