"""A random sample of what a step kept and rejected, as a folder to label: the paper's check of 200 samples a stage."""

import csv
import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.catalog import Release
from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from tasks.curation.release_content import KEYED_STEPS

COLUMNS = (
    "file", "sha256", "clip_id", "step", "verdict", "reason", "metric", "score", "threshold", "title", "url", "correct",
    "is_medical", "kind", "has_black_border", "has_subtitles_or_heavy_text", "n_hard_cuts", "cut_times_s",
    "quality_note",
)  # fmt: skip


class NothingToSample(LookupError):
    """No such release or step, or nothing went through it."""


def sample(ledger: Ledger, step: str, count: int, target: Path, release: str | None, seed: int) -> dict[str, int]:
    """Lays out up to `count` subjects of a step, half kept and half rejected where there are enough, with a manifest.

    Kept are the clips of the release, which passed every step; rejected are the videos and clips that this step
    turned down. The same release, step, count and seed give the same folder.

    Returns:
        Number of files by verdict.

    Raises:
        NothingToSample: see there.
        FileExistsError: the target holds something already.
    """
    if step not in KEYED_STEPS:
        raise NothingToSample(f"no step {step!r} judges videos or clips: choose one of {', '.join(KEYED_STEPS)}")
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty")
    with Session(ledger.engine) as session:
        query = select(Release).order_by(Release.created_at.desc(), Release.name)
        release_row = session.scalars(query.where(Release.name == release) if release else query).first()
    if release_row is None:
        raise NothingToSample(f"no release goes by {release!r}" if release else "there is no release yet")
    outputs = ledger.load([release_row.step_run_id])[release_row.step_run_id].outputs
    kept = pq.read_table(ledger.store.path(outputs["metadata"])).to_pylist()
    rejected = [row for row in pq.read_table(ledger.store.path(outputs["rejected"])).to_pylist() if row["step"] == step]
    chosen = random.Random(f"{seed} {release_row.digest} {step}")
    half = max(count - count // 2, count - len(rejected))
    rows = [_kept(row, step) for row in _some(kept, half, chosen)]
    rows += [_rejected(row) for row in _some(rejected, count - len(rows), chosen)]
    if not rows:
        raise NothingToSample(f"release {release_row.name}: nothing went through {step}")
    target.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    with (target / "MANIFEST.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            if row["sha256"] and not _lay(ledger, row["sha256"], target / row["file"]):
                continue
            writer.writerow({name: "" if value is None else value for name, value in row.items()})
            counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    (target / "sample.json").write_text(
        json.dumps(
            {"release": release_row.name, "digest": release_row.digest, "step": step, "seed": seed, "counts": counts}
        )
    )
    return counts


def _some(rows: Sequence[Mapping[str, Any]], count: int, chosen: random.Random) -> list[Mapping[str, Any]]:
    return chosen.sample(list(rows), min(max(count, 0), len(rows)))


def _kept(row: Mapping[str, Any], step: str) -> dict[str, Any]:
    return {
        "file": f"{row['clip_id']}.mp4", "sha256": row["clip_sha256"], "clip_id": row["clip_id"], "step": step,
        "verdict": "kept", "title": row["title"], "url": row["url"],
    }  # fmt: skip


def _rejected(row: Mapping[str, Any]) -> dict[str, Any]:
    name = "".join(c if c.isalnum() else "-" for c in row["subject"])[:80]
    return dict(row) | {"file": f"{name}-{row['key'][:8]}.mp4", "clip_id": row["subject"]}


def _lay(ledger: Ledger, digest: str, path: Path) -> bool:
    """Links or copies an artifact; whether it was still in the store."""
    try:
        source = ledger.store.path(digest)
    except ItemFailed:
        return False
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
    return True
