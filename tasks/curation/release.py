"""Release: an immutable, named set of clips with metadata, card and funnel.

A release is known by the sha256 of its manifest, which lists every file with its own sha256. Nothing in it depends on
time, machine, order or number of workers: the same outcomes give the same release.
"""

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from sqlalchemy.orm import Session

from medgen.canonical import canonical_json
from medgen.catalog import Base, Release, ReleaseClip
from medgen.handover import Handover
from medgen.ledger import Outcome, Record, StepIdentity, Work, open_ledger
from medgen.parameters import Parameters
from medgen.releases import awaits_approval
from medgen.shard import ShardResult, Step, run_shard
from medgen.shard_results import ShardReference
from medgen.store import Artifact, Store
from tasks.curation.croissant import croissant
from tasks.curation.dataset_card import ClipTotals, dataset_card
from tasks.curation.funnel import picture
from tasks.curation.release_content import PARQUET, UNPUBLISHED, release_content
from tasks.curation.release_files import materialize
from tasks.prefect_step import step_task


class ReleaseDetail(TypedDict):
    """What release puts on record: its name, the sha256 of its manifest, its number of clips, in all and by the kind of
    their captioner (`models.captioning.captioner.CaptionerKind`)."""

    name: str
    digest: str
    clips: int
    captioner_kinds: dict[str, int]


class ReleaseOutputs(TypedDict):
    """The files of a release beside its clips, and the table `content` and the JSON `facts` that it was made of."""

    content: str
    facts: str
    metadata: str
    rejected: str
    card: str
    funnel: str
    funnel_picture: str
    croissant: str
    manifest: str


PATHS = {
    "metadata": "metadata.parquet",
    "rejected": "rejected.parquet",
    "card": "README.md",
    "funnel": "funnel.json",
    "funnel_picture": "funnel.png",
    "croissant": "croissant.json",
}
"""Role of an output → its place in the release's folder."""

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
    """Builds a release of what the tables `content` and `rejected` and the JSON `facts` say.

    Outputs:
        manifest, metadata, rejected, card, funnel, funnel_picture, croissant; the clips are in the store already.
    """
    facts = json.loads(store.read(work.inputs["facts"]))
    clips = store.path(work.inputs["content"])
    given = {
        role: Artifact(work.inputs[role], media_type, work.context["bytes"][role])
        for role, media_type in (("content", PARQUET), ("rejected", PARQUET), ("facts", "application/json"))
    }
    metadata, totals = _metadata(store, clips)
    outputs = given | {
        "metadata": metadata,
        "card": store.put_bytes(
            dataset_card(totals, facts["videos"], facts["funnel"], facts["policy"]).encode(), "text/markdown"
        ),
        "funnel": store.put_bytes(canonical_json(facts["funnel"]), "application/json"),
        "funnel_picture": store.put_bytes(picture(facts["funnel"]), "image/png"),
    }
    about = croissant(
        params.release_prefix,
        {role: artifact.sha256 for role, artifact in outputs.items()},
        pq.read_schema(store.path(metadata.sha256)),
        totals.licences,
    )
    outputs["croissant"] = store.put_bytes(canonical_json(about), "application/ld+json")
    outputs["manifest"] = _manifest(store, outputs, clips, facts["policy"])
    digest = outputs["manifest"].sha256
    name = f"{params.release_prefix}-{digest[:12]}"
    row = {"policy": facts["policy"], "clips": totals.clips, "record_root": facts["record_root"]}
    kinds = dict(sorted(totals.captioner_kinds.items()))
    detail: ReleaseDetail = {"name": name, "digest": digest, "clips": totals.clips, "captioner_kinds": kinds}
    return Outcome("kept", detail=detail, outputs=outputs, rows=_CatalogRows(name, digest, row, clips))


@dataclass(frozen=True)
class _CatalogRows:
    """The release and its clips as rows of the catalog, made while they are read.

    Args:
        row: further columns of the release.
        clips: the table of the clips.
    """

    name: str
    digest: str
    row: Mapping[str, Any]
    clips: Path

    def __iter__(self) -> Iterator[Base]:
        yield Release(name=self.name, digest=self.digest, **self.row)
        for row in _rows(self.clips, ["clip_id", "step_run_id"]):
            yield ReleaseClip(release_name=self.name, **row)


def _rows(table: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(columns=list(columns)):
            yield from batch.to_pylist()


def _metadata(store: Store, clips: Path) -> tuple[Artifact, ClipTotals]:
    """metadata.parquet, and what adds up in it."""
    totals = ClipTotals()
    scratch = store.scratch(".parquet")
    with pq.ParquetFile(clips) as file:
        given = file.schema_arrow
        schema = pa.schema([given.field(name).remove_metadata() for name in given.names if name not in UNPUBLISHED])
        with pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=schema.names)
                totals.add(table.to_pylist())
                writer.write_table(table.cast(schema))
    return store.put_file(scratch, PARQUET), totals


def _manifest(store: Store, outputs: Mapping[str, Artifact], clips: Path, policy: Mapping[str, Any]) -> Artifact:
    """Canonical JSON of every file, by path, with its sha256 and bytes, and the policy."""
    own = [{"path": path, "sha256": outputs[role].sha256, "bytes": outputs[role].bytes} for role, path in PATHS.items()]
    clip_files = (
        {"path": row["file_name"], "sha256": row["clip_sha256"], "bytes": row["bytes"]}
        for row in _rows(clips, ["file_name", "clip_sha256", "bytes"])
    )
    files = heapq.merge(sorted(own, key=_path_of), clip_files, key=_path_of)
    scratch = store.scratch(".json")
    with scratch.open("wb") as out:
        out.write(b'{"files":[')
        for number, file in enumerate(files):
            out.write((b"," if number else b"") + canonical_json(file))
        out.write(b'],"format":1,"policy":' + canonical_json(policy) + b"}")
    return store.put_file(scratch, "application/json")


def _path_of(file: Mapping[str, Any]) -> str:
    return str(file["path"])


def step(params: ReleaseParams) -> Step:
    """Release, ready to run."""
    identity = StepIdentity("release", 5, params.model_dump(mode="json"), {})
    return Step(identity, partial(release, params=params), runs_in="inline")


@step_task("release", "cpu")
def make_release(
    label: str, results: Sequence[ShardReference], policy: Mapping[str, Any], params: ReleaseParams
) -> tuple[ShardResult, Record, Path | None]:
    """Makes the release of a refresh and lays out its files, unless it awaits approval.

    Args:
        results: of all steps on all shards; the release is about what the last step kept.
    """
    ledger = open_ledger()
    content = release_content(ledger, results, policy, drop_vanished=params.vanished_videos == "drop")
    artifacts = {"content": content.clips, "rejected": content.rejected, "facts": content.facts}
    work = Work(
        "release",
        inputs={role: artifact.sha256 for role, artifact in artifacts.items()},
        context={"bytes": {role: artifact.bytes for role, artifact in artifacts.items()}},
    )
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
