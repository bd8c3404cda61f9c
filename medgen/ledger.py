"""The ledger: what has been done, so that nothing is done twice and nothing is lost.

A step run is identified by the sha256 of everything that its function sees: step name and version, parameters,
subject, context, digests of input artifacts, digests of models. Outputs go to the store before the record does,
and the record is one transaction; so a process killed anywhere leaves at worst an unreferenced object.

Every record carries a hash over its content and the hashes of its parents: the records behind a clip form a
hash chain. A takedown blanks the words of a video's records and keeps their hashes; see `medgen.takedown`.
"""

import hashlib
import itertools
import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, cast

from sqlalchemy import (
    ColumnElement,
    Engine,
    Select,
    Table,
    Text,
    case,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random

from medgen import __version__
from medgen.among import among, among_given, pages
from medgen.canonical import canonical_json, canonical_object
from medgen.catalog import Artifact as ArtifactRow
from medgen.catalog import Base, Caption, Score, StepInput, StepOutput, StepRun, now, open_catalog
from medgen.errors import ItemFailed
from medgen.insert_rows import column_values, insert_rows
from medgen.retries import wanted_again
from medgen.store import Artifact, Store, open_store
from medgen.takedown import TAKEDOWN_STEP, TAKEN_DOWN, referenced, taken_down_subjects

Status = Literal["kept", "rejected", "failed"]

SAME_IN_A_BATCH = ("step", "version", "params", "models", "code_version", "flow_run_id", "superseded")
ATTEMPTS = 5  # at a transaction that Postgres ended because it and another waited for one another


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
        rows: catalog rows that this outcome implies, those of a table together; inserted unless they exist. They may
            be read more than once.
        captions: kind → caption row values.
        decodes: number of video files opened for decoding.
    """

    status: Literal["kept", "rejected"]
    reason: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    score_models: Mapping[str, str] = field(default_factory=dict)
    outputs: dict[str, Artifact] = field(default_factory=dict)
    rows: Iterable[Base] = ()
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
        seen = {"subject": work.subject, "inputs": dict(work.inputs), "context": dict(work.context)}
        return hashlib.sha256(canonical_object(seen, self.canonical)).hexdigest()

    @cached_property
    def canonical(self) -> Mapping[str, bytes]:
        """Member of a step run → its canonical JSON, of those that are the same on all subjects."""
        shared = {"step": self.name, "version": self.version, "params": self.params, "models": self.models}
        return {name: canonical_json(value) for name, value in shared.items()}


@dataclass(frozen=True)
class Ended:
    """A work and what came of it.

    Args:
        earlier: the failed or lost record that this one supersedes.
    """

    work: Work
    outcome: Outcome | ItemFailed
    started_at: datetime
    finished_at: datetime
    earlier: "Record | None" = None


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
        found = (self._records(_STANDING, page) for page in pages(keys))
        return {record.key: record for records in found for record in records}

    def load(self, ids: Iterable[int], *, told: "Mapping[str, Told] | None" = None) -> dict[int, Record]:
        """id → record. Raises KeyError when one is unknown.

        A superseded record tells the outputs of the one that stands in its place, because its own may be gone.

        Args:
            told: step → what of its records is read, where there are many; of other steps no more than what they came
                to. None: everything.
        """
        records: dict[int, Record] = {}
        for page in pages(sorted(set(ids))):
            records |= self._load(page, told)
        return records

    def _load(self, ids: Sequence[int], told: "Mapping[str, Told] | None") -> dict[int, Record]:
        records = {record.id: record for record in self._records(_BY_ID, ids, told)}
        if len(records) < len(ids):
            raise KeyError(f"no such step runs: {sorted(set(ids) - records.keys())}")
        with self.engine.connect() as connection:
            successors = connection.execute(_SUCCESSORS, {"given": ids}).all()
        if successors:
            standing = {r.id: r for r in self._records(_BY_ID, [new for _, new in successors], told)}
            records |= {run_id: replace(records[run_id], outputs=standing[new].outputs) for run_id, new in successors}
        return records

    def forgotten(self, subjects: Iterable[str]) -> set[str]:
        """Those of `subjects` that belong to a video that was taken down."""
        with Session(self.engine) as session:
            return taken_down_subjects(session, subjects)

    def done(self, records: Mapping[str, Record]) -> dict[str, Record]:
        """Those of `records` (by key) that stand: decided, or quarantined and not wanted again, with their outputs
        still in the store."""
        settled = {key: r for key, r in records.items() if r.status != "failed" or not r.transient}
        if failed := {r.id for r in settled.values() if r.status == "failed"}:
            with Session(self.engine) as session:
                again = wanted_again(session, failed)
            settled = {key: r for key, r in settled.items() if r.id not in again}
        lost = self.missing({sha for r in settled.values() for sha in r.outputs.values()})
        return {key: r for key, r in settled.items() if not lost.intersection(r.outputs.values())}

    def missing(self, digests: Collection[str]) -> set[str]:
        """Those of `digests` that the store has not, or not as many bytes of as are on record."""
        missing: set[str] = set()
        with Session(self.engine) as session:
            for page in pages(digests):
                on_record = select(ArtifactRow.sha256, ArtifactRow.bytes).where(among(ArtifactRow.sha256, page))
                missing |= self.store.missing(page, {digest: size for digest, size in session.execute(on_record)})
        return missing

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
        """Records one outcome. Arguments as of `Ended`, returns and the rest as `write_all`."""
        key = step.key(work)
        ended = Ended(work, outcome, started_at, now(), earlier)
        return self.write_all(step, {key: ended}, flow_run_id=flow_run_id)[key]

    def write_all(
        self, step: StepIdentity, ended: Mapping[str, Ended], *, flow_run_id: str | None
    ) -> dict[str, Record]:
        """Records outcomes of a step, with all they imply, in one transaction.

        Of a video that was taken down, be it while it was worked on, nothing is recorded but a refusal, and what
        the step made is removed again.

        Args:
            ended: key of the work → what came of it.

        Returns:
            The same keys → records; another worker's, where that was quicker with the same key.
        """
        for attempt in Retrying(
            retry=retry_if_exception(_is_deadlock),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random(0, 1),
            reraise=True,
        ):
            with attempt, Session(self.engine) as session, session.begin():
                written, refused, made = self._write(session, step, ended, flow_run_id)
        for digest in made:
            self.store.remove(digest)
        keys = {key: refused.get(key, key) for key in ended}
        written |= self.find({*keys.values()} - written.keys())
        return {key: written[under] for key, under in keys.items()}

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
        self, session: Session, step: StepIdentity, ended: Mapping[str, Ended], flow_run_id: str | None
    ) -> tuple[dict[str, Record], dict[str, str], set[str]]:
        """Adds the rows of outcomes.

        Returns:
            The new records by key; key of a work → key of its refusal; digests that the store must lose again.
        """
        refused: dict[str, str] = {}
        made: set[str] = set()
        subjects = {one.work.subject for one in ended.values()}
        gone = taken_down_subjects(session, subjects, wait=True) if step.name != TAKEDOWN_STEP else set()
        if gone:
            ended, refused, made = _refusals(step, ended, gone)
            made -= referenced(session, made)
        parents = _parent_hashes(session, {parent for one in ended.values() for parent in one.work.parents.values()})
        # In one order, so that two transactions with the same rows seldom wait for one another.
        rows = [_Rows.of(step, key, ended[key], flow_run_id, parents) for key in sorted(ended)]
        superseded = sorted(one.earlier.id for one in ended.values() if one.earlier)
        if superseded:
            session.execute(update(StepRun).where(among(StepRun.id, superseded)).values(superseded=True))
        artifacts = {a.sha256: vars(a) for row in rows for a in row.outcome.outputs.values()}
        insert_rows(session, ArtifactRow, [artifacts[digest] for digest in sorted(artifacts)], unless_there=True)
        ids = insert_rows(
            session,
            StepRun,
            [row.run for row in rows],
            unless_there=True,
            returning=("key", "id"),
            shared=SAME_IN_A_BATCH,
        )
        new = [(row, ids[row.run["key"]]) for row in rows if row.run["key"] in ids]
        few: defaultdict[type[Base], list[tuple[Base, int]]] = defaultdict(list)
        for row, run_id in new:
            if isinstance(row.outcome.rows, Sequence):
                for one in row.outcome.rows:
                    few[type(one)].append((one, run_id))
                continue
            for implied, group in itertools.groupby(row.outcome.rows, key=type):
                _imply(session, implied, ((one, run_id) for one in group))
        for implied in sorted(few, key=lambda table: _depth(cast(Table, table.__table__))):
            _imply(session, implied, few[implied])
        children: defaultdict[type[Base], list[dict[str, Any]]] = defaultdict(list)
        for row, run_id in new:
            for child, own in row.children.items():
                children[child] += [{**values, "step_run_id": run_id} for values in own]
        for child, own in children.items():
            insert_rows(session, child, own)
        return {row.run["key"]: row.record(run_id) for row, run_id in new}, refused, made

    def _records(
        self, query: Select[Any], given: Sequence[Any], told: "Mapping[str, Told] | None" = None
    ) -> list[Record]:
        """Records by one of the queries below."""
        scores_query = _SCORES
        if told is not None:
            query = query.with_only_columns(*_COLUMNS, _told_detail(told))
            metrics = (metric for of in told.values() for metric in of.scores)
            scores_query = scores_query.where(among(Score.metric, metrics))
        with self.engine.connect() as connection:
            runs = connection.execute(query, {"given": given}).all()
            made = [run.id for run in runs if told is None or (run.step in told and told[run.step].outputs)]
            outputs: dict[int, dict[str, str]] = {}
            for run_id, role, sha in connection.execute(_OUTPUTS, {"given": made}):
                outputs.setdefault(run_id, {})[role] = sha
            scored = [run.id for run in runs if told is None or (run.step in told and told[run.step].scores)]
            scores: dict[int, dict[str, float]] = {}
            for run_id, metric, value in connection.execute(scores_query, {"given": scored}):
                scores.setdefault(run_id, {})[metric] = value
        # In the order of the fields: by name it would take four times as long, which many records feel.
        return [
            Record(
                run_id, key, step, subject, status, reason, transient, detail,
                outputs.get(run_id, {}), scores.get(run_id, {}), models, decodes, attempts, record_hash_,
            )
            for (
                run_id, key, step, subject, status, reason, transient, models, decodes, attempts, record_hash_, detail,
            ) in runs
        ]  # fmt: skip


# Queries of records. SQLAlchemy's Core, and made once: each shard asks several times.
_RUN, _STANDING_RUN = cast(Table, StepRun.__table__).c, cast(Table, StepRun.__table__).alias().c
_OUTPUT, _SCORE = cast(Table, StepOutput.__table__).c, cast(Table, Score.__table__).c
_COLUMNS = (
    _RUN.id, _RUN.key, _RUN.step, _RUN.subject, _RUN.status, _RUN.reason, _RUN.transient, _RUN.models, _RUN.decodes,
    _RUN.attempts, _RUN.record_hash,
)  # fmt: skip
_BY_ID = select(*_COLUMNS, _RUN.detail).where(among_given(_RUN.id))
_STANDING = select(*_COLUMNS, _RUN.detail).where(among_given(_RUN.key), ~_RUN.superseded)
_SUCCESSORS = select(_RUN.id, _STANDING_RUN.id).where(
    among_given(_RUN.id),
    _RUN.superseded,
    _STANDING_RUN.key == _RUN.key,
    ~_STANDING_RUN.superseded,
    _STANDING_RUN.status == _RUN.status,
)
_HASHES = select(_RUN.id, _RUN.record_hash).where(among_given(_RUN.id))
_OUTPUTS = select(_OUTPUT.step_run_id, _OUTPUT.role, _OUTPUT.artifact_sha256).where(among_given(_OUTPUT.step_run_id))
_SCORES = select(_SCORE.step_run_id, _SCORE.metric, _SCORE.value).where(among_given(_SCORE.step_run_id))


@dataclass(frozen=True)
class Told:
    """What of the records of a step is read.

    Args:
        detail: keys of the detail; those that a record lacks are None.
        scores: metrics.
        outputs: whether they are.
    """

    detail: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    outputs: bool = False


def _told_detail(told: Mapping[str, Told]) -> ColumnElement[Any]:
    """The detail of a step run with the keys that are asked for: to read all of many takes longer than all else."""

    def name(of_ours: str) -> ColumnElement[str]:
        return literal(of_ours, Text, literal_execute=True)  # in the statement itself: there are many, always the same

    parts = [
        (
            StepRun.step == name(step),
            func.jsonb_build_object(
                *(part for key in of.detail for part in (name(key), StepRun.detail.op("->")(name(key))))
            ),
        )
        for step, of in told.items()
    ]
    return case(*parts, else_=func.jsonb_build_object())


@dataclass(frozen=True)
class _Rows:
    """The rows of one outcome.

    Args:
        run: columns of the step run.
        children: table → rows, which miss the id of the step run.
        outcome: what they are made of; it stands for a failure too.
    """

    run: dict[str, Any]
    children: dict[type[Base], list[dict[str, Any]]]
    outcome: Outcome

    @classmethod
    def of(
        cls, step: StepIdentity, key: str, ended: Ended, flow_run_id: str | None, parents: Mapping[int, str]
    ) -> "_Rows":
        """The rows of what ended, with the hash of the record. `parents`: id of a parent → its record hash."""
        work, failure = ended.work, ended.outcome
        outcome = Outcome("rejected", failure.reason) if isinstance(failure, ItemFailed) else failure
        run = {
            "key": key,
            "superseded": False,
            "step": step.name,
            "version": step.version,
            "subject": work.subject,
            "status": outcome.status,
            "reason": outcome.reason,
            "transient": False,
            "detail": _as_stored(outcome.detail),
            "params": step.params,
            "context": dict(work.context),
            "models": step.models,
            "code_version": code_version(),
            "flow_run_id": flow_run_id,
            "attempts": ended.earlier.attempts + 1 if ended.earlier else 1,
            "decodes": outcome.decodes,
            "started_at": ended.started_at,
            "finished_at": ended.finished_at,
        }
        if isinstance(failure, ItemFailed):
            run |= {"status": "failed", "transient": failure.transient}
            run["detail"] = {"message": _as_stored(failure.message)}
        inputs = [
            {"role": role, "artifact_sha256": work.inputs.get(role), "parent_id": work.parents.get(role)}
            for role in sorted({*work.inputs, *work.parents})
        ]
        outputs = [{"role": role, "artifact_sha256": a.sha256} for role, a in sorted(outcome.outputs.items())]
        scores = [
            {
                "metric": metric,
                "clip_id": outcome.clip_id,
                "value": float(value),  # as Postgres gives it back: an integer is written differently in the hash
                "model_digest": outcome.score_models.get(metric),
            }
            for metric, value in sorted(outcome.scores.items())
        ]
        captions = [{"kind": kind, "clip_id": outcome.clip_id, **row} for kind, row in sorted(outcome.captions.items())]
        run["record_hash"] = record_hash(run, inputs, outputs, scores, captions, parents, known=step.canonical)
        children: dict[type[Base], list[dict[str, Any]]] = {
            StepInput: inputs, StepOutput: outputs, Score: scores, Caption: captions,
        }  # fmt: skip
        return cls(run, children, outcome)

    def record(self, run_id: int) -> Record:
        """As `Ledger.find` reads it back."""
        run = self.run
        return Record(
            id=run_id,
            key=run["key"],
            step=run["step"],
            subject=run["subject"],
            status=run["status"],
            reason=run["reason"],
            transient=run["transient"],
            detail=run["detail"],
            outputs={row["role"]: row["artifact_sha256"] for row in self.children[StepOutput]},
            scores={row["metric"]: row["value"] for row in self.children[Score]},
            models=run["models"],
            decodes=run["decodes"],
            attempts=run["attempts"],
            record_hash=run["record_hash"],
        )


def _refusals(
    step: StepIdentity, ended: Mapping[str, Ended], gone: Collection[str]
) -> tuple[dict[str, Ended], dict[str, str], set[str]]:
    """What ended, refusals in place of subjects that were taken down. Further the keys, old and new, of these, and the
    digests of what they had made."""
    under: dict[str, Ended] = {}
    refused: dict[str, str] = {}
    made: set[str] = set()
    for key, one in ended.items():
        if one.work.subject not in gone:
            under[key] = one
            continue
        if isinstance(one.outcome, Outcome):
            made |= {artifact.sha256 for artifact in one.outcome.outputs.values()}
        refusal = replace(one, work=replace(one.work, inputs={}, context={}), outcome=Outcome("rejected", TAKEN_DOWN))
        refused[key] = step.key(refusal.work)
        under[refused[key]] = refusal
    return under, refused, made


def _imply(session: Session, table: type[Base], rows: Iterable[tuple[Base, int]]) -> None:
    """Adds rows, each with the id of the step run that implies it, unless they exist."""
    for page in pages(column_values(row, run_id) for row, run_id in rows):
        insert_rows(session, table, page, unless_there=True)


@cache
def _depth(table: Table) -> int:
    """The place of a table in an order in which none refers to a later one."""
    return Base.metadata.sorted_tables.index(table)


def _is_deadlock(error: BaseException) -> bool:
    return isinstance(error, OperationalError) and getattr(error.orig, "sqlstate", None) == "40P01"


def record_hash(
    run: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
    captions: Sequence[Mapping[str, Any]],
    parents: Mapping[int, str],
    *,
    known: Mapping[str, bytes] | None = None,
) -> str:
    """sha256 over a step run's whole content and its parents' record hashes. Any later change shows.

    Args:
        run: columns of `step_run`; ids, the hash itself and the superseded mark are left out.
        inputs, outputs, scores, captions: rows of their tables; row order does not matter.
        parents: parent id → its record hash.
        known: canonical JSON of some columns of `step_run`, where it is at hand.
    """
    skipped = {"id", "record_hash", "superseded", "step_run_id"}
    content = {
        k: v.astimezone(UTC).isoformat() if isinstance(v, datetime) else v for k, v in run.items() if k not in skipped
    }
    content["inputs"] = sorted(
        [row["role"], row["artifact_sha256"], parents[row["parent_id"]] if row["parent_id"] else None] for row in inputs
    )
    for name, rows in (("outputs", outputs), ("scores", scores), ("captions", captions)):
        told = [sorted([k, v] for k, v in row.items() if k not in skipped) for row in rows]
        content[name] = sorted(told, key=str) if len(told) > 1 else told
    return hashlib.sha256(canonical_object(content, known or {})).hexdigest()


def _parent_hashes(session: Session, ids: Iterable[int]) -> dict[int, str]:
    hashes: dict[int, str] = {}
    for page in pages(sorted(set(ids))):
        hashes |= {run_id: hash_ for run_id, hash_ in session.connection().execute(_HASHES, {"given": page})}
    return hashes


def _as_stored(value: Any) -> Any:
    """A JSON value as Postgres gives it back. Its text can't hold NUL or lone surrogates, which texts of sources can;
    its numbers know no -0.0, and no exponent, so that what is written with one, from 1e16 on, comes back whole."""
    text = json.dumps(value)
    return json.loads(text) if not _CHANGES.search(text) else _changed(value)


_CHANGES = re.compile(r"\\u0000|\\ud[89a-f]|-0\.0|e\+")  # whatever may change, and some texts that don't


def _changed(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return int(value) if abs(value) >= 1e16 else float(value) + 0.0
    if isinstance(value, Mapping):
        return {_changed(k): _changed(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(v) for v in value]
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
