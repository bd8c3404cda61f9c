"""Verifies what is on record: the hash chain of step runs, rows against their records, bytes against their digests.

What a takedown removed is no fault, but what it left is held to its word: blanked records to their seals, releases to
what the catalog says is missing from them, removed bytes to being gone. `medgen.takedown` says what that proves.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Row, func, literal, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from medgen.among import among, pages
from medgen.canonical import digest_of
from medgen.catalog import (
    Artifact,
    Caption,
    Clip,
    Release,
    ReleaseClip,
    Score,
    StepInput,
    StepOutput,
    StepRun,
    Tombstone,
)
from medgen.errors import ItemFailed
from medgen.ledger import Ledger, record_hash
from medgen.store import Store, file_digest
from medgen.takedown import (
    DELETABLE,
    NOTICE,
    deletable_artifacts,
    list_tombstones,
    release_takedown,
    seals,
    unfinished_takedowns,
)

BATCH = 1000  # records, artifacts or clips in memory at once
RELEASES = 100
READERS = 4  # artifacts read at once; hashing them takes a core each, and a server's answer takes time
_RUNS = select(*StepRun.__table__.columns)
_PartOfRun = type[StepInput] | type[StepOutput] | type[Score] | type[Caption]


def verify(
    ledger: Ledger,
    releases_folder: Path,
    *,
    artifacts: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[str]:
    """Everything that is wrong, a sentence each; an empty list when all is well.

    Args:
        artifacts: read every artifact and recompute its sha256; otherwise only its presence is checked.
        progress: called with (what, done, total).
    """
    report = progress or (lambda what, done, total: None)
    return [
        *_records(ledger, report),
        *_artifacts(ledger, report, artifacts),
        *_clips(ledger),
        *_releases(ledger, releases_folder, report),
        *_takedowns(ledger),
    ]


def _records(ledger: Ledger, progress: Callable[[str, int, int], None]) -> Iterator[str]:
    with Session(ledger.engine) as session:
        total = session.scalar(select(func.count()).select_from(StepRun)) or 0
    done, last = 0, 0
    while True:
        with Session(ledger.engine) as session:
            runs = session.execute(_RUNS.where(StepRun.id > last).order_by(StepRun.id).limit(BATCH)).all()
            if not runs:
                return
            sealed = seals(session, [run.id for run in runs])
            records = list(rehashed(session, runs))
        for record in records:
            name = f"step run {record.run.id} ({record.run.step} {record.run.subject})"
            yield from (f"{name}: {fault}" for fault in _faults(record, sealed))
        done, last = done + len(runs), runs[-1].id
        progress("records", done, total)


def record_faults(session: Session, ids: Sequence[int]) -> dict[int, str | None]:
    """Id of a step run → what is wrong with its record; None: it is as it was written, or as a takedown left it."""
    faults: dict[int, str | None] = {}
    for page in pages(sorted(set(ids)), BATCH):
        records = list(rehashed(session, session.execute(_RUNS.where(among(StepRun.id, page))).all()))
        sealed = seals(session, page)
        faults |= {record.run.id: "; ".join(_faults(record, sealed)) or None for record in records}
    return faults


def _faults(record: "Rehashed", sealed: Mapping[int, str]) -> Iterator[str]:
    run = record.run
    if record.lost_parents:
        yield f"the records of {', '.join(record.lost_parents)} before it are gone"
    elif run.id in sealed:
        if record.seal != sealed[run.id]:
            yield "its content was changed after a takedown blanked it"
    else:
        if record.actual_hash != run.record_hash:
            yield "its content, or that of a record before it, was changed after it was written"
        if _key(run, record.inputs) != run.key:
            yield "its key does not follow from its content"


@dataclass(frozen=True)
class Rehashed:
    """A step run with its hash computed anew.

    Args:
        run: its columns.
        inputs: its rows of `step_input`.
        lost_parents: roles of parents that are no longer on record; then `actual_hash` is empty.
        actual_hash: the record hash that its content gives now.
    """

    run: Row[Any]
    inputs: Sequence[dict[str, Any]]
    lost_parents: Sequence[str]
    actual_hash: str

    @property
    def seal(self) -> str:
        """sha256 over the hash that the record was written with and the one that its content gives now."""
        return digest_of([self.run.record_hash, self.actual_hash])


def read_rehashed(session: Session, ids: Sequence[int]) -> Iterator[Rehashed]:
    """Step runs with their hashes computed anew, from what is on record now, in order of their ids."""
    yield from rehashed(session, session.execute(_RUNS.where(among(StepRun.id, ids)).order_by(StepRun.id)).all())


def rehashed(session: Session, runs: Sequence[Row[Any]]) -> Iterator[Rehashed]:
    """Computes the hashes of step runs anew, from what is on record now."""
    ids = [run.id for run in runs]
    inputs, outputs, scores, captions = (
        _by_run(session, table, ids) for table in (StepInput, StepOutput, Score, Caption)
    )
    parent_ids = {row["parent_id"] for rows in inputs.values() for row in rows if row["parent_id"]}
    hashes = session.execute(select(StepRun.id, StepRun.record_hash).where(among(StepRun.id, parent_ids)))
    parents = {run_id: record_hash_ for run_id, record_hash_ in hashes}
    for run in runs:
        own = inputs.get(run.id, [])
        lost = [row["role"] for row in own if row["parent_id"] and row["parent_id"] not in parents]
        rows = (outputs.get(run.id, []), scores.get(run.id, []), captions.get(run.id, []))
        yield Rehashed(run, own, lost, "" if lost else record_hash(run._asdict(), own, *rows, parents))


def _by_run(session: Session, table: _PartOfRun, ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in session.execute(select(*table.__table__.columns).where(among(table.step_run_id, ids))).mappings():
        rows.setdefault(row["step_run_id"], []).append(dict(row))
    return rows


def _key(run: Row[Any], inputs: Sequence[dict[str, Any]]) -> str:
    return digest_of(
        {
            "step": run.step,
            "version": run.version,
            "params": run.params,
            "models": run.models,
            "subject": run.subject,
            "inputs": {row["role"]: row["artifact_sha256"] for row in inputs if row["artifact_sha256"]},
            "context": run.context,
        }
    )


def _artifacts(ledger: Ledger, progress: Callable[[str, int, int], None], read: bool) -> Iterator[str]:
    done, last = 0, ""
    with deletable_artifacts(ledger.engine) as connection, ThreadPoolExecutor(READERS) as readers:
        total = connection.scalar(select(func.count()).select_from(Artifact)) or 0
        query = (
            select(Artifact.sha256, DELETABLE.c.sha256.is_not(None))
            .outerjoin(DELETABLE, DELETABLE.c.sha256 == Artifact.sha256)
            .order_by(Artifact.sha256)
            .limit(BATCH)
        )
        while rows := connection.execute(query.where(Artifact.sha256 > last)).all():
            connection.commit()  # reading bytes takes long, and no transaction should
            removed = {digest for digest, gone in rows if gone}
            present = [digest for digest, gone in rows if not gone]
            back = removed - ledger.store.missing(removed)
            if read:
                faults = dict(zip(present, readers.map(partial(_bytes_fault, ledger.store), present), strict=True))
            else:
                faults = dict.fromkeys(ledger.store.missing(present), "in no store")
            faults |= dict.fromkeys(back, "was taken down, but is in the store; `medgen gc` removes it")
            yield from (f"artifact {digest}: {faults[digest]}" for digest, _ in rows if faults.get(digest))
            done, last = done + len(rows), rows[-1][0]
            progress("artifacts", done, total)


def _bytes_fault(store: Store, digest: str) -> str | None:
    """What is wrong with the bytes of an artifact."""
    try:
        actual = store.actual_digest(digest)
    except ItemFailed as failure:
        return failure.message
    return None if actual == digest else f"its bytes were changed (they have sha256 {actual})"


def _clips(ledger: Ledger) -> Iterator[str]:
    columns = Clip.__table__.columns
    query = select(*columns, StepRun.detail["clip"].label("recorded")).join(StepRun, StepRun.id == Clip.step_run_id)
    with ledger.engine.connect() as connection:
        for clip in connection.execution_options(yield_per=BATCH).execute(query).mappings():
            recorded = clip["recorded"]
            if recorded is None:
                yield f"clip {clip['id']}: its record says nothing of it"
                continue
            wrong = [c.name for c in columns if c.name in recorded and recorded[c.name] != clip[c.name]]
            if wrong:
                yield f"clip {clip['id']}: {', '.join(wrong)} differ from its record"


def _releases(ledger: Ledger, folder: Path, progress: Callable[[str, int, int], None]) -> Iterator[str]:
    with Session(ledger.engine) as session:
        query = select(Release, StepRun.detail["digest"].astext).join(StepRun, Release.step_run_id == StepRun.id)
        releases = session.execute(query.execution_options(yield_per=RELEASES))
        for number, (release, digest) in enumerate(releases, start=1):
            members = session.scalar(
                select(func.count()).select_from(ReleaseClip).where(ReleaseClip.release_name == release.name)
            )
            if digest != release.digest:
                yield f"release {release.name}: its digest differs from its record"
            if members != release.clips:
                yield f"release {release.name}: {members} clips on record where {release.clips} were released"
            yield from _release_files(session, release, folder / release.name)
            progress("releases", number, number)


def _release_files(session: Session, release: Release, folder: Path) -> Iterator[str]:
    """The files of a release against its manifest. A removed folder is no fault: refresh lays it out."""
    if not folder.exists():
        return
    manifest = (folder / "manifest.json").read_bytes() if (folder / "manifest.json").exists() else b""
    if hashlib.sha256(manifest).hexdigest() != release.digest:
        yield f"release {release.name}: {folder / 'manifest.json'} is missing or was changed"
        return
    files = json.loads(manifest)["files"]
    taken = release_takedown(session, release.name, files)
    changes = taken.changes if taken else {}
    for file in files:
        path, wanted = folder / file["path"], changes.get(file["path"], file["sha256"])
        if wanted is None:
            if path.exists():
                yield f"release {release.name}: {file['path']} was taken down, but is there; `medgen gc` removes it"
        elif not path.exists():
            yield f"release {release.name}: {file['path']} is missing"
        elif file_digest(path)[0] != wanted:
            yield f"release {release.name}: {file['path']} was changed"
    if taken and (not (folder / NOTICE).exists() or (folder / NOTICE).read_bytes() != taken.notice):
        yield f"release {release.name}: {NOTICE} is missing or was changed"


def _takedowns(ledger: Ledger) -> Iterator[str]:
    with Session(ledger.engine) as session:
        for video_id in unfinished_takedowns(session):
            yield (
                f"takedown of {video_id}: not finished, or its tombstone was changed; "
                "`medgen gc` or `medgen forget` finishes it"
            )
        for tombstone in list_tombstones(session, Tombstone.detail["altered"] != literal([], JSONB)):
            for run_id in tombstone.detail["altered"]:
                yield f"step run {run_id}: was changed after it was written, before a takedown blanked it"


def taken_down(ledger: Ledger) -> list[str]:
    """What is missing because it was taken down, a sentence for each video. None of it is a fault."""
    with Session(ledger.engine) as session:
        return [_takedown_summary(tombstone) for tombstone in list_tombstones(session)]


def _takedown_summary(tombstone: Tombstone) -> str:
    report = tombstone.detail
    return (
        f"video {tombstone.video_id}: taken down {tombstone.forgotten_at:%Y-%m-%d}; {report.get('artifacts', 0)} "
        f"artifacts removed, {len(report.get('sealed', ()))} records redacted, "
        f"{len(report.get('releases', ()))} releases changed"
    )
