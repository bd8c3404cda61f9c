"""Releases in Python: a table, clips with their frames, where each came from, and the models that learned from it.

    from medgen import open_release

    release = open_release("latest")
    for clip in release:
        print(clip.id, clip.caption, clip.licence)

Everything here is read from the installation that the environment names (MEDGEN_HOME and others, as for the command
line), is read-only, and leaves out what was taken down. These names and their arguments stay from version to version;
what they give may grow.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.among import PAGE, among
from medgen.ancestry import ancestry
from medgen.catalog import ModelVersion, ReleaseClip, Score, StepRun
from medgen.catalog import Release as ReleaseRow
from medgen.errors import ItemFailed
from medgen.ledger import Ledger, open_ledger
from medgen.model_lineage import models_of
from medgen.notes import NOTE
from medgen.releases import awaits_approval, named_release
from medgen.video.limits import Limits
from medgen.video.pictures import pictures


@dataclass(frozen=True)
class Step:
    """One decision on the way to a clip, as it is on record.

    Args:
        name: of the step, such as quality.
        status: kept, rejected or failed; reason: why not kept.
        scores: metric → value.
        params, models: what decided the result; models by their digests.
        detail: what the step put on record, JSON facts.
        record_hash: sha256 of the record, which names those before it.
    """

    name: str
    status: str
    reason: str | None
    finished_at: datetime
    scores: Mapping[str, float]
    params: Mapping[str, Any]
    models: Mapping[str, str]
    detail: Mapping[str, Any]
    code_version: str
    record_hash: str


@dataclass(frozen=True)
class LearnedModel:
    """A model on record.

    Args:
        release: that it was trained on; None: none is on record.
        part: that the clip played: trained_on, held_out or quarantined; empty where no clip was asked about.
        via: name of the model between, where it is a fine-tune of one that learned from the clip.
    """

    name: str
    digest: str
    release: str | None
    part: str = ""
    via: str | None = None


@dataclass(frozen=True)
class Clip:
    """A clip of a release.

    Args:
        row: its row of metadata.parquet.
    """

    row: Mapping[str, Any]
    _ledger: Ledger

    @property
    def id(self) -> str:
        """Such as c070ca691e763eb2b."""
        return str(self.row["clip_id"])

    @property
    def caption(self) -> str:
        """The detailed caption."""
        return str(self.row["detailed_caption"] or "")

    @property
    def brief_caption(self) -> str:
        """A sentence or two."""
        return str(self.row["brief_caption"] or "")

    @property
    def licence(self) -> str | None:
        """Of the source video, as the source states it."""
        licence: str | None = self.row["licence"]
        return licence

    @property
    def path(self) -> Path:
        """Its MP4 (H.264), in the store. Not to be written to. Raises ItemFailed: artifact_lost."""
        return self._ledger.store.path(self.row["clip_sha256"])

    def frames(self, long_side: int | None = None) -> Iterator[np.ndarray]:
        """Its pictures in order, one at a time: uint8 (height, width, 3), RGB.

        Args:
            long_side: scale down so that no side has more pixels.

        Raises:
            ItemFailed: the file is lost or can't be decoded.
        """
        return (picture.rgb(long_side) for picture in pictures(self.path, Limits()))

    def lineage(self) -> list[Step]:
        """The steps behind it, from the listing on, oldest first; attempts that later ones superseded are left out."""
        with Session(self._ledger.engine) as session:
            ids = session.scalars(
                select(StepRun.id).where(StepRun.subject == self.id, StepRun.step != NOTE, ~StepRun.superseded)
            )
            runs = [run for run in ancestry(session, ids) if not run.superseded]
            scores: dict[int, dict[str, float]] = {run.id: {} for run in runs}
            for score in session.scalars(select(Score).where(among(Score.step_run_id, scores))):
                scores[score.step_run_id][score.metric] = score.value
            return [
                Step(
                    run.step, run.status, run.reason, run.finished_at, scores[run.id], run.params, run.models,
                    run.detail, run.code_version, run.record_hash,
                )
                for run in runs
            ]  # fmt: skip

    def models(self) -> list[LearnedModel]:
        """The models that it entered, also by a base that they were tuned from, newest last."""
        return [
            LearnedModel(row["name"], row["digest"], row["release"], row["part"], row["via"])
            for row in models_of(self._ledger, self.id)
        ]


class Release:
    """A release: iterate over it for its clips, by order of their ids; ``release[ID]`` is one of them.

    Attributes:
        name, digest: the digest is the sha256 of its manifest.
        created_at: when it was made.
        policy: what chose its clips: sources, parameters, models.
    """

    def __init__(self, row: ReleaseRow, ledger: Ledger) -> None:
        self.name: str = row.name
        self.digest: str = row.digest
        self.created_at: datetime = row.created_at
        self.policy: Mapping[str, Any] = row.policy
        self._run_id = row.step_run_id
        self._ledger = ledger

    def __repr__(self) -> str:
        return f"<Release {self.name}: {len(self)} clips>"

    def __len__(self) -> int:
        return len(self._present)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._present

    def __iter__(self) -> Iterator[Clip]:
        with pq.ParquetFile(self._metadata) as file:
            for batch in file.iter_batches(batch_size=PAGE):
                rows = batch.to_pylist()
                yield from (Clip(row, self._ledger) for row in rows if row["clip_id"] in self._present)

    def __getitem__(self, clip_id: str) -> Clip:
        """Raises KeyError: it holds no such clip (any more)."""
        if clip_id not in self._present:
            raise KeyError(f"the release {self.name} holds no clip {clip_id!r}")
        (row,) = pq.read_table(self._metadata, filters=[("clip_id", "=", clip_id)]).to_pylist()
        return Clip(row, self._ledger)

    def table(self) -> pa.Table:
        """A row for each clip, as in metadata.parquet; `.to_pandas()` makes a data frame of it."""
        table = pq.read_table(self._metadata)
        return table.filter(pc.is_in(table["clip_id"], value_set=pa.array(sorted(self._present), pa.string())))

    def models(self) -> list[LearnedModel]:
        """The models that were trained on it, oldest first."""
        with Session(self._ledger.engine) as session:
            rows = session.scalars(
                select(ModelVersion).where(ModelVersion.release_name == self.name).order_by(ModelVersion.created_at)
            )
            return [LearnedModel(row.name, row.digest, row.release_name) for row in rows]

    @cached_property
    def _metadata(self) -> Path:
        record = self._ledger.load([self._run_id])[self._run_id]
        return self._ledger.store.path(record.outputs["metadata"])

    @cached_property
    def _present(self) -> frozenset[str]:
        """Ids of its clips but for those that were taken down."""
        with Session(self._ledger.engine) as session:
            ids = set(session.scalars(select(ReleaseClip.clip_id).where(ReleaseClip.release_name == self.name)))
        return frozenset(ids - self._ledger.forgotten(ids))


def open_release(name: str = "latest") -> Release:
    """A release on record.

    Args:
        name: its name; ``latest``; or the first part of names, for the newest that begins so.

    Raises:
        ItemFailed: unknown_release, release_not_approved.
        CatalogUnreachable: see `medgen.catalog`.
    """
    ledger = open_ledger()
    with Session(ledger.engine) as session:
        row = session.get_one(ReleaseRow, named_release(ledger, name))
        if awaits_approval(session, row):
            raise ItemFailed(
                "release_not_approved", f"the release {row.name} awaits approval: `medgen release approve`"
            )
        return Release(row, ledger)


def list_releases() -> list[Release]:
    """All releases that may be used, newest first."""
    ledger = open_ledger()
    with Session(ledger.engine) as session:
        rows = session.scalars(select(ReleaseRow).order_by(ReleaseRow.created_at.desc(), ReleaseRow.name))
        return [Release(row, ledger) for row in rows if not awaits_approval(session, row)]
