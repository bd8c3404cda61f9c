"""Verifies what is on record: the hash chain of step runs, rows against their records, bytes against their digests.

What a takedown removed is no fault, but what it left is held to its word: blanked records to their seals, releases to
what the catalog says is missing from them, removed bytes to being gone. `medgen.takedown` says what that proves.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from medgen.canonical import digest_of
from medgen.catalog import (
    Artifact,
    Base,
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
from medgen.store import file_digest
from medgen.takedown import NOTICE, deletable, list_tombstones, release_takedown, seals

BATCH = 1000
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
        sealed = seals(session)
        done, last = 0, 0
        while runs := session.scalars(select(StepRun).where(StepRun.id > last).order_by(StepRun.id).limit(BATCH)).all():
            for record in rehashed(session, runs):
                name = f"step run {record.run.id} ({record.run.step} {record.run.subject})"
                yield from (f"{name}: {fault}" for fault in _faults(record, sealed))
            done, last = done + len(runs), runs[-1].id
            progress("records", done, total)
            session.expunge_all()


def record_faults(session: Session, ids: Sequence[int]) -> dict[int, str | None]:
    """Id of a step run → what is wrong with its record; None: it is as it was written, or as a takedown left it."""
    runs = session.scalars(select(StepRun).where(StepRun.id.in_(ids)).order_by(StepRun.id)).all()
    records = list(rehashed(session, runs))
    # Seals are read only when something differs: most records were never blanked.
    sealed = seals(session) if any(record.actual_hash != record.run.record_hash for record in records) else {}
    return {record.run.id: "; ".join(_faults(record, sealed)) or None for record in records}


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
        inputs: its rows of `step_input`.
        lost_parents: roles of parents that are no longer on record; then `actual_hash` is empty.
        actual_hash: the record hash that its content gives now.
    """

    run: StepRun
    inputs: Sequence[dict[str, Any]]
    lost_parents: Sequence[str]
    actual_hash: str

    @property
    def seal(self) -> str:
        """sha256 over the hash that the record was written with and the one that its content gives now."""
        return digest_of([self.run.record_hash, self.actual_hash])


def rehashed(session: Session, runs: Sequence[StepRun]) -> Iterator[Rehashed]:
    """Computes the hashes of step runs anew, from what is on record now."""
    ids = [run.id for run in runs]
    inputs, outputs, scores, captions = (
        _by_run(session, table, ids) for table in (StepInput, StepOutput, Score, Caption)
    )
    parent_ids = {row["parent_id"] for rows in inputs.values() for row in rows if row["parent_id"]}
    hashes = session.execute(select(StepRun.id, StepRun.record_hash).where(StepRun.id.in_(parent_ids)))
    parents = {run_id: record_hash_ for run_id, record_hash_ in hashes}
    for run in runs:
        own = inputs.get(run.id, [])
        lost = [row["role"] for row in own if row["parent_id"] and row["parent_id"] not in parents]
        rows = (outputs.get(run.id, []), scores.get(run.id, []), captions.get(run.id, []))
        yield Rehashed(run, own, lost, "" if lost else record_hash(_values(run), own, *rows, parents))


def _by_run(session: Session, table: _PartOfRun, ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    rows: dict[int, list[dict[str, Any]]] = {}
    for run_id, row in session.execute(select(table.step_run_id, table).where(table.step_run_id.in_(ids))):
        rows.setdefault(run_id, []).append(_values(row))
    return rows


def _values(row: Base) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}


def _key(run: StepRun, inputs: Sequence[dict[str, Any]]) -> str:
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
    with Session(ledger.engine) as session:
        digests = list(session.scalars(select(Artifact.sha256).order_by(Artifact.sha256)))
        removed = deletable(session)
    back = removed - ledger.store.missing(removed)
    for number, digest in enumerate(digests, start=1):
        progress("artifacts", number, len(digests))
        if digest in removed:
            if digest in back:
                yield f"artifact {digest}: was taken down, but is in the store; `medgen gc` removes it"
            continue
        try:
            actual = ledger.store.actual_digest(digest) if read else digest
            if not read and ledger.store.missing([digest]):
                yield f"artifact {digest}: in no store"
        except ItemFailed as failure:
            yield f"artifact {digest}: {failure.message}"
            continue
        if actual != digest:
            yield f"artifact {digest}: its bytes were changed (they have sha256 {actual})"


def _clips(ledger: Ledger) -> Iterator[str]:
    with Session(ledger.engine) as session:
        pairs = session.execute(select(Clip, StepRun.detail).join(StepRun, Clip.step_run_id == StepRun.id))
        for clip, detail in pairs:
            recorded = detail.get("clip")
            if recorded is None:
                yield f"clip {clip.id}: its record says nothing of it"
                continue
            wrong = [name for name, value in _values(clip).items() if name in recorded and recorded[name] != value]
            if wrong:
                yield f"clip {clip.id}: {', '.join(wrong)} differ from its record"


def _releases(ledger: Ledger, folder: Path, progress: Callable[[str, int, int], None]) -> Iterator[str]:
    with Session(ledger.engine) as session:
        releases = session.execute(select(Release, StepRun.detail).join(StepRun, Release.step_run_id == StepRun.id))
        for number, (release, detail) in enumerate(releases.all(), start=1):
            members = session.scalar(
                select(func.count()).select_from(ReleaseClip).where(ReleaseClip.release_name == release.name)
            )
            if detail.get("digest") != release.digest:
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
        for tombstone in list_tombstones(session, unfinished=True):
            yield (
                f"takedown of {tombstone.video_id}: not finished, or its tombstone was changed; "
                "`medgen gc` or `medgen forget` finishes it"
            )
        for tombstone in list_tombstones(session):
            for run_id in tombstone.detail.get("altered", ()):
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
