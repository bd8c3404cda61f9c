"""Releases as they are on record: columns, files, and how the clips are distributed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Connection, select
from sqlalchemy.orm import aliased

from apps.audit import charts
from apps.history import Unknown
from medgen.catalog import Release, StepOutput, StepRun
from medgen.errors import ItemFailed
from medgen.store import Store

NUMBERS = (
    "duration", "aesthetic_score", "technical_score", "medical_probability", "category_probability", "overlay_words",
    "fps", "bit_rate",
)  # fmt: skip
KINDS = ("category", "licence", "camera_motion", "resolution", "captioner", "source")


def release_of(connection: Connection, name: str) -> dict[str, Any]:
    """Columns of a release. Raises `Unknown`."""
    row = connection.execute(select(Release.__table__).where(Release.name == name)).mappings().first()
    if row is None:
        raise Unknown(f"there is no release {name[:80]}")
    return dict(row)


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


def read_json(store: Store, digest: str | None) -> Any:
    """The content of a JSON artifact; None without a digest, or when the artifact is lost or no JSON."""
    if digest is None:
        return None
    try:
        return json.loads(store.read(digest))
    except (ItemFailed, ValueError):
        return None


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
