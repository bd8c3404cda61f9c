"""Release: an immutable, named set of clips with metadata, card and funnel.

A release is known by the sha256 of its manifest, which lists every file with its own sha256. Nothing in it depends on
time, machine, order or number of workers: the same outcomes give the same release.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from sqlalchemy.orm import Session

from medgen.canonical import canonical_json
from medgen.catalog import Release, ReleaseClip
from medgen.handover import Handover
from medgen.ledger import Outcome, Record, StepIdentity, Work, open_ledger
from medgen.parameters import Parameters
from medgen.shard import Item, ShardResult, Step, run_shard
from medgen.store import Artifact, Store
from tasks.curation.dataset_card import dataset_card
from tasks.curation.funnel import picture
from tasks.curation.release_content import METADATA, REJECTED, release_content
from tasks.curation.release_files import awaits_approval, materialize
from tasks.prefect_step import step_task


class ReleaseDetail(TypedDict):
    """What release puts on record: its name, the sha256 of its manifest, its number of clips."""

    name: str
    digest: str
    clips: int


class ReleaseOutputs(TypedDict):
    """The files of a release beside its clips."""

    content: str
    metadata: str
    rejected: str
    card: str
    funnel: str
    funnel_picture: str
    manifest: str


RELEASE: Handover[ReleaseDetail, ReleaseOutputs] = Handover("release")


class ReleaseParams(Parameters):
    """Parameters of release."""

    release_prefix: str = Field(
        "medgen", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="First part of the name of the release."
    )
    vanished_videos: Literal["keep", "drop"] = Field(
        "keep", description="Clips of videos that `medgen recheck` no longer found at their source: keep or leave out."
    )
    # Left out of records where it is not asked for, so that releases without it keep their names.
    approval: Literal["none", "required"] = Field(
        "none",
        exclude_if=lambda value: value == "none",
        description="required: the release may not be used before a person approves it.",
    )


def release(work: Work, store: Store, params: ReleaseParams) -> Outcome:
    """Builds a release of what the content artifact says.

    Outputs:
        manifest, metadata, rejected, card, funnel, funnel_picture; the clips are in the store already.
    """
    content = json.loads(store.read(work.inputs["content"]))
    rows = content["clips"]
    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k in METADATA.names} for row in rows], METADATA)
    scratch, other = store.scratch(".parquet"), store.scratch(".parquet")
    pq.write_table(table, scratch, compression="zstd")
    pq.write_table(pa.Table.from_pylist(content["rejected"], REJECTED), other, compression="zstd")
    outputs = {
        "content": Artifact(work.inputs["content"], "application/json", work.context["bytes"]),
        "metadata": store.put_file(scratch, "application/vnd.apache.parquet"),
        "rejected": store.put_file(other, "application/vnd.apache.parquet"),
        "card": store.put_bytes(dataset_card(content).encode(), "text/markdown"),
        "funnel": store.put_bytes(canonical_json(content["funnel"]), "application/json"),
        "funnel_picture": store.put_bytes(picture(content["funnel"]), "image/png"),
    }
    paths = {
        "metadata": "metadata.parquet",
        "rejected": "rejected.parquet",
        "card": "README.md",
        "funnel": "funnel.json",
        "funnel_picture": "funnel.png",
    }
    files: list[dict[str, Any]] = [
        {"path": path, "sha256": outputs[role].sha256, "bytes": outputs[role].bytes} for role, path in paths.items()
    ]
    files += [{"path": row["file"], "sha256": row["clip_sha256"], "bytes": row["bytes"]} for row in rows]
    manifest = {"format": 1, "policy": content["policy"], "files": sorted(files, key=lambda file: file["path"])}
    outputs["manifest"] = store.put_bytes(canonical_json(manifest), "application/json")
    digest = outputs["manifest"].sha256
    name = f"{params.release_prefix}-{digest[:12]}"
    catalog_rows = [
        Release(
            name=name, digest=digest, policy=content["policy"], clips=len(rows), record_root=content["record_root"]
        ),
        *(ReleaseClip(release_name=name, clip_id=r["clip_id"], step_run_id=r["step_run_id"]) for r in rows),
    ]
    detail: ReleaseDetail = {"name": name, "digest": digest, "clips": len(rows)}
    return Outcome("kept", detail=detail, outputs=outputs, rows=catalog_rows)


def step(params: ReleaseParams) -> Step:
    """Release, ready to run."""
    identity = StepIdentity("release", 2, params.model_dump(mode="json"), {})
    return Step(identity, partial(release, params=params), runs_in="inline")


@step_task("release", "cpu")
def make_release(
    label: str,
    kept: Sequence[Item],
    dropped: Sequence[Mapping[str, int]],
    discovered: Collection[int],
    policy: Mapping[str, Any],
    params: ReleaseParams,
) -> tuple[ShardResult, Record, Path | None]:
    """Makes the release of a refresh and lays out its files, unless it awaits approval.

    Args:
        kept: clips that passed all steps.
        dropped: lineages of what did not.
        discovered: step runs of all shards of listings, also of those that nothing was kept of.
    """
    ledger = open_ledger()
    drop_vanished = params.vanished_videos == "drop"
    facts = release_content(ledger, kept, dropped, discovered, policy, drop_vanished=drop_vanished)
    content = ledger.store.put_bytes(canonical_json(facts), "application/json")
    work = Work("release", inputs={"content": content.sha256}, context={"bytes": content.bytes})
    result = run_shard(step(params), [work])
    record = next(iter(ledger.load([result.kept[0].lineage["release"]]).values()))
    name = RELEASE.detail(record)["name"]
    with Session(ledger.engine) as session:
        waits = awaits_approval(session, session.get_one(Release, name))
    return result, record, None if waits else materialize(ledger.store, name, RELEASE.outputs(record)["manifest"])


def read_funnel(record: Record) -> list[dict[str, Any]]:
    """The funnel of a release's step run."""
    funnel_of: list[dict[str, Any]] = json.loads(open_ledger().store.read(RELEASE.outputs(record)["funnel"]))
    return funnel_of


def read_picture(record: Record) -> bytes:
    """The funnel's PNG of a release's step run."""
    return open_ledger().store.read(RELEASE.outputs(record)["funnel_picture"])
