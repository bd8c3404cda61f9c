"""The ledger: what has been done, so that nothing is done twice and nothing is lost.

A step run is identified by the sha256 of everything that its function sees: step name and version, parameters,
subject, context, digests of input artifacts, digests of models. Outputs go to the store before the record does,
and the record is one transaction; so a process killed anywhere leaves at worst an unreferenced object.

Every record carries a hash over its content and the hashes of its parents: the records behind a clip form a
hash chain. A takedown blanks the words of a video's records and keeps their hashes; see `medgen.takedown`.
"""

import itertools
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from sqlalchemy import Engine, Table, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, aliased

from medgen import __version__
from medgen.canonical import digest_of
from medgen.catalog import Artifact as ArtifactRow
from medgen.catalog import Base, Caption, Score, StepInput, StepOutput, StepRun, now, open_catalog
from medgen.errors import ItemFailed
from medgen.store import Artifact, Store, open_store
from medgen.takedown import TAKEDOWN_STEP, TAKEN_DOWN, referenced, taken_down_subjects

Status = Literal["kept", "rejected", "failed"]


@dataclass(frozen=True)
class Work:
    """All that a step's function sees of one subject, so that the same work always gives the same outcome.

    Args:
        subject: what the step is about: a source, a video id, a stretch of a video, a clip id.
        inputs: role → sha256 of an artifact.
        context: JSON facts from earlier records that the function reads.
        parents: role → id of the step run that an input or fact came from. Lineage only: not in the key.
        access: JSON facts on how to get at the inputs just now, such as a path. Neither in the key nor on record.
    """

    subject: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, int] = field(default_factory=dict)
    access: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a step's function found.

    Args:
        status: kept, or rejected with a `reason`; functions raise `ItemFailed` for failures.
        detail: JSON facts for later steps and for auditors; a rejection names score and threshold here.
        scores: metric → value, and `score_models`: metric → digest of the model that measured it.
        outputs: role → artifact, already in the store.
        rows: catalog rows that this outcome implies; inserted unless they exist.
        captions: kind → caption row values.
        decodes: number of video files opened for decoding.
    """

    status: Literal["kept", "rejected"]
    reason: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    score_models: Mapping[str, str] = field(default_factory=dict)
    outputs: dict[str, Artifact] = field(default_factory=dict)
    rows: list[Base] = field(default_factory=list)
    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    clip_id: str | None = None
    decodes: int = 0


@dataclass(frozen=True)
class StepIdentity:
    """Name, version, parameters and models of a step: the part of the key that its subjects share."""

    name: str
    version: int
    params: dict[str, Any]
    models: dict[str, str]

    def key(self, work: Work) -> str:
        """sha256 that identifies this step on this work."""
        return digest_of(
            {
                "step": self.name,
                "version": self.version,
                "params": self.params,
                "models": self.models,
                "subject": work.subject,
                "inputs": dict(work.inputs),
                "context": dict(work.context),
            }
        )


@dataclass(frozen=True)
class Record:
    """A step run as later steps read it."""

    id: int
    key: str
    step: str
    subject: str
    status: Status
    reason: str | None
    transient: bool
    detail: dict[str, Any]
    outputs: dict[str, str]  # role → sha256
    scores: dict[str, float]
    models: dict[str, str]
    decodes: int
    attempts: int
    record_hash: str


class Ledger:
    """Looks up and writes step runs. Safe for any number of threads and processes."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self.engine = engine
        self.store = store

    def find(self, keys: Iterable[str]) -> dict[str, Record]:
        """key → record of the step runs that stand under these keys."""
        condition = StepRun.key.in_(list(keys)) & ~StepRun.superseded
        return {record.key: record for record in self._records(condition)}

    def load(self, ids: Iterable[int]) -> dict[int, Record]:
        """id → record. Raises KeyError when one is unknown.

        A superseded record tells the outputs of the one that stands in its place, because its own may be gone.
        """
        wanted = set(ids)
        records = {record.id: record for record in self._records(StepRun.id.in_(wanted))}
        if wanted - records.keys():
            raise KeyError(f"no such step runs: {sorted(wanted - records.keys())}")
        old = aliased(StepRun)
        with Session(self.engine) as session:
            successors = session.execute(
                select(old.id, StepRun.id)
                .join(StepRun, (StepRun.key == old.key) & ~StepRun.superseded)
                .where(old.id.in_(wanted), old.superseded, old.status == StepRun.status)
            ).all()
        if successors:
            standing = {r.id: r for r in self._records(StepRun.id.in_([new for _, new in successors]))}
            records |= {run_id: replace(records[run_id], outputs=standing[new].outputs) for run_id, new in successors}
        return records

    def forgotten(self, subjects: Iterable[str]) -> set[str]:
        """Those of `subjects` that belong to a video that was taken down."""
        with Session(self.engine) as session:
            return taken_down_subjects(session, subjects)

    def done(self, records: Mapping[str, Record]) -> dict[str, Record]:
        """Those of `records` (by key) that stand: decided, or quarantined, with their outputs still in the store."""
        settled = {key: r for key, r in records.items() if r.status != "failed" or not r.transient}
        lost = self.missing({sha for r in settled.values() for sha in r.outputs.values()})
        return {key: r for key, r in settled.items() if not lost.intersection(r.outputs.values())}

    def missing(self, digests: Collection[str]) -> set[str]:
        """Those of `digests` that the store has not, or not as many bytes of as are on record."""
        with Session(self.engine) as session:
            on_record = select(ArtifactRow.sha256, ArtifactRow.bytes).where(ArtifactRow.sha256.in_(list(digests)))
            sizes = {digest: size for digest, size in session.execute(on_record)}
        return self.store.missing(digests, sizes)

    def write(
        self,
        step: StepIdentity,
        work: Work,
        outcome: Outcome | ItemFailed,
        *,
        started_at: datetime,
        flow_run_id: str | None,
        earlier: Record | None = None,
    ) -> Record:
        """Records an outcome, with all it implies, in one transaction.

        Of a video that was taken down, be it while it was worked on, nothing is recorded but a refusal, and what
        the step made is removed again.

        Args:
            earlier: the failed or lost record that this one supersedes.

        Returns:
            The record; another worker's, when that was quicker with the same key.
        """
        with Session(self.engine) as session, session.begin():
            made: set[str] = set()
            if step.name != TAKEDOWN_STEP and taken_down_subjects(session, [work.subject], wait=True):
                made = set() if isinstance(outcome, ItemFailed) else {a.sha256 for a in outcome.outputs.values()}
                made -= referenced(session, made)
                work, outcome = replace(work, inputs={}, context={}), Outcome("rejected", TAKEN_DOWN)
            key = self._write(session, step, work, outcome, started_at, flow_run_id, earlier)
        for digest in made:
            self.store.remove(digest)
        return self.find([key])[key]

    def once(
        self,
        step: StepIdentity,
        work: Work,
        make: Callable[[], Outcome | ItemFailed],
        *,
        flow_run_id: str | None = None,
    ) -> tuple[Record, bool]:
        """The record of a step on one subject, made only if none stands.

        Args:
            make: does the work and returns its outcome. What it raises goes through, and nothing is recorded then.

        Returns:
            The record, and whether it stood already.
        """
        earlier = self.find([step.key(work)])
        for record in self.done(earlier).values():
            return record, True
        started = now()
        outcome = make()
        record = self.write(
            step,
            work,
            outcome,
            started_at=started,
            flow_run_id=flow_run_id,
            earlier=next(iter(earlier.values()), None),
        )
        return record, False

    def _write(
        self,
        session: Session,
        step: StepIdentity,
        work: Work,
        outcome: Outcome | ItemFailed,
        started_at: datetime,
        flow_run_id: str | None,
        earlier: Record | None,
    ) -> str:
        """Adds the rows of an outcome; gives its key."""
        result = Outcome("rejected", outcome.reason) if isinstance(outcome, ItemFailed) else outcome
        values = _run_values(step, work, outcome, result)
        values |= {
            "flow_run_id": flow_run_id,
            "attempts": earlier.attempts + 1 if earlier else 1,
            "started_at": started_at,
            "finished_at": now(),
        }
        inputs = [
            {"role": role, "artifact_sha256": work.inputs.get(role), "parent_id": work.parents.get(role)}
            for role in sorted({*work.inputs, *work.parents})
        ]
        outputs = [{"role": role, "artifact_sha256": a.sha256} for role, a in sorted(result.outputs.items())]
        scores = [
            {
                "metric": metric,
                "clip_id": result.clip_id,
                "value": float(value),  # as Postgres gives it back: an integer is written differently in the hash
                "model_digest": result.score_models.get(metric),
            }
            for metric, value in sorted(result.scores.items())
        ]
        captions = [{"kind": kind, "clip_id": result.clip_id, **row} for kind, row in sorted(result.captions.items())]
        parents = _parent_hashes(session, work.parents.values())
        values["record_hash"] = record_hash(values, inputs, outputs, scores, captions, parents)
        if earlier:
            session.execute(update(StepRun).where(StepRun.id == earlier.id).values(superseded=True))
        for artifact in result.outputs.values():
            row = {"sha256": artifact.sha256, "media_type": artifact.media_type, "bytes": artifact.bytes}
            session.execute(upsert(ArtifactRow).values(row).on_conflict_do_nothing())
        new_id = session.scalar(
            upsert(StepRun)
            .values(values)
            .on_conflict_do_nothing(index_elements=["key"], index_where=~StepRun.superseded)
            .returning(StepRun.id)
        )
        if new_id is not None:
            for implied, rows in itertools.groupby(result.rows, key=type):
                values_of = [_column_values(row, new_id) for row in rows]
                session.execute(upsert(implied).on_conflict_do_nothing(), values_of)
            children: list[tuple[type[Base], list[dict[str, Any]]]] = [
                (StepInput, inputs), (StepOutput, outputs), (Score, scores), (Caption, captions),
            ]  # fmt: skip
            for child, own in children:
                if own:
                    session.execute(insert(child), [{**row, "step_run_id": new_id} for row in own])
        return str(values["key"])

    def _records(self, condition: Any) -> list[Record]:
        with Session(self.engine) as session:
            runs = session.execute(
                select(
                    StepRun.id, StepRun.key, StepRun.step, StepRun.subject, StepRun.status, StepRun.reason,
                    StepRun.transient, StepRun.detail, StepRun.models, StepRun.decodes, StepRun.attempts,
                    StepRun.record_hash,
                ).where(condition)
            ).all()  # fmt: skip
            ids = [run.id for run in runs]
            outputs: dict[int, dict[str, str]] = {}
            for run_id, role, sha in session.execute(
                select(StepOutput.step_run_id, StepOutput.role, StepOutput.artifact_sha256).where(
                    StepOutput.step_run_id.in_(ids)
                )
            ):
                outputs.setdefault(run_id, {})[role] = sha
            scores: dict[int, dict[str, float]] = {}
            for run_id, metric, value in session.execute(
                select(Score.step_run_id, Score.metric, Score.value).where(Score.step_run_id.in_(ids))
            ):
                scores.setdefault(run_id, {})[metric] = value
        return [Record(**run._mapping, outputs=outputs.get(run.id, {}), scores=scores.get(run.id, {})) for run in runs]


def _run_values(step: StepIdentity, work: Work, outcome: Outcome | ItemFailed, result: Outcome) -> dict[str, Any]:
    """Columns of the step run that say what was seen and what came of it; `result` stands for a failure too."""
    values: dict[str, Any] = {
        "key": step.key(work),
        "step": step.name,
        "version": step.version,
        "subject": work.subject,
        "status": result.status,
        "reason": result.reason,
        "transient": False,
        "detail": _clean(result.detail),
        "params": step.params,
        "context": dict(work.context),
        "models": step.models,
        "code_version": code_version(),
        "decodes": result.decodes,
    }
    if isinstance(outcome, ItemFailed):
        values |= {"status": "failed", "transient": outcome.transient, "detail": {"message": _clean(outcome.message)}}
    return values


def record_hash(
    run: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
    captions: Sequence[Mapping[str, Any]],
    parents: Mapping[int, str],
) -> str:
    """sha256 over a step run's whole content and its parents' record hashes. Any later change shows.

    Args:
        run: columns of `step_run`; ids, the hash itself and the superseded mark are left out.
        inputs, outputs, scores, captions: rows of their tables; row order does not matter.
        parents: parent id → its record hash.
    """
    skipped = {"id", "record_hash", "superseded", "step_run_id"}
    content = {
        k: v.astimezone(UTC).isoformat() if isinstance(v, datetime) else v for k, v in run.items() if k not in skipped
    }
    content["inputs"] = sorted(
        [row["role"], row["artifact_sha256"], parents[row["parent_id"]] if row["parent_id"] else None] for row in inputs
    )
    for name, rows in (("outputs", outputs), ("scores", scores), ("captions", captions)):
        content[name] = sorted(
            (sorted([k, v] for k, v in row.items() if k not in skipped) for row in rows), key=lambda row: str(row)
        )
    return digest_of(content)


def _parent_hashes(session: Session, ids: Iterable[int]) -> dict[int, str]:
    rows = session.execute(select(StepRun.id, StepRun.record_hash).where(StepRun.id.in_(set(ids))))
    return {run_id: hash_ for run_id, hash_ in rows}


def _column_values(row: Base, step_run_id: int) -> dict[str, Any]:
    table = cast(Table, row.__table__)
    own_key = table.autoincrement_column  # the database numbers it
    values = {
        column.name: getattr(row, column.name)
        for column in table.columns
        if column.default is None and column is not own_key
    }
    if "step_run_id" in values and values["step_run_id"] is None:
        values["step_run_id"] = step_run_id
    return values


def _clean(value: Any) -> Any:
    """Postgres text can't hold NUL or lone surrogates; source texts can."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_clean(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return value


@cache
def code_version() -> str:
    """Package version and, in a checkout, the commit, marked when files were changed since."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return __version__
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{__version__}+{described.stdout.strip()}" if described.returncode == 0 else __version__


@cache
def open_ledger() -> Ledger:
    """The ledger of this installation, one per process."""
    return Ledger(open_catalog(), open_store())
