"""Forget: takes a video down. Its bytes go, its words go, a tombstone stays.

The order makes a takedown safe to kill: the tombstone first (from then on nothing about the video is recorded), then
words, tables, releases, bytes, and at last the record of the step. Whatever was done is found again by doing it over,
so `forget` a second time, or `gc`, finishes a takedown that was cut short.

What goes: every artifact that a step made of the video, its stretches or its clips, unless something that is not
forgotten has the same bytes; its rows in the tables of discover (their words) and of releases (the whole row); its
clips in the folders of releases; title, description, tags, channel, captions, and all other words of its records.
What stays: ids, URL, licence, dates, numbers, verdicts, hashes. Not ours to remove: the listing or the folder that the
video came from, copies of a release that were handed on, and folders made by `medgen sample`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from medgen.canonical import canonical_json
from medgen.catalog import (
    Artifact as ArtifactRow,
)
from medgen.catalog import (
    Caption,
    Clip,
    ModelVersion,
    Release,
    ReleaseClip,
    Score,
    StepInput,
    StepOutput,
    StepRun,
    Tombstone,
    Video,
    now,
)
from medgen.ledger import Ledger, Outcome, StepIdentity, Work
from medgen.settings import current
from medgen.store import Artifact, ArtifactLost, Store
from medgen.takedown import (
    FORGET,
    FORGOTTEN,
    TAKEDOWN_LOCK,
    Takedown,
    blanked,
    dead,
    entomb,
    holders,
    release_takedown,
    stamp,
    tombstones,
)
from medgen.verify import rehashed

TABLES_OF = ("list", "discover", "release")  # steps whose tables name many videos
NAMED_BY = ("video_id", "subject", "url")  # the first of these columns that a table has says which video a row is about
STAYS = frozenset(["row", "video_id", "url", "licence", "published", "external_id"])  # of a row of discover
LATE = timedelta(days=1)  # a step that began this long after a tombstone knew of it
BATCH = 500
# Records of tables that the steps themselves wrote, not a takedown in their stead.
_FIRST_HAND = (StepRun.step.in_(TABLES_OF), ~StepRun.detail.has_key("taken_down"))


def survey(ledger: Ledger, urls: Mapping[str, str]) -> list[Takedown]:
    """What a takedown of these videos (id → URL) would remove and touch, or did. Changes nothing.

    Of tables that name the videos only those that must be found by reading them are left out.
    """
    with Session(ledger.engine) as session:
        return [_takedown(session, _noted(session, video_id, url), urls) for video_id, url in sorted(urls.items())]


def forget(ledger: Ledger, urls: Mapping[str, str], reason: str) -> list[Takedown]:
    """Takes videos (id → URL) down, also such as were never listed. Waits for a takedown that is under way.

    Raises:
        ItemFailed: the store does not answer; the takedown is then to be finished later.
    """
    if not urls:
        return []
    with _alone(ledger.engine):
        entomb(ledger.engine, urls, reason)
        return _bury(ledger, sorted(urls), looked_to=0)


def finish(ledger: Ledger) -> list[Takedown]:
    """Finishes takedowns that were cut short, and those that a step in flight has escaped. Raises as `forget`."""
    with _alone(ledger.engine):
        with Session(ledger.engine) as session:
            cut_short = [grave.video_id for grave in tombstones(session, unfinished=True)]
            late = session.execute(
                select(Tombstone.video_id, Tombstone.detail["looked_to"].as_integer())
                .where(
                    select(StepRun.id)
                    .where(
                        *_FIRST_HAND,
                        StepRun.id > Tombstone.detail["looked_to"].as_integer(),
                        StepRun.started_at < Tombstone.forgotten_at + LATE,
                    )
                    .exists()
                )
                .order_by(Tombstone.video_id)
            ).all()
        done = _bury(ledger, cut_short, looked_to=0) if cut_short else []
        rest = [video_id for video_id, _ in late if video_id not in cut_short]
        return done + (_bury(ledger, rest, looked_to=min(seen for _, seen in late)) if rest else [])


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """One takedown at a time, whatever process it is in: two must not replace the same table."""
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": TAKEDOWN_LOCK})
        connection.commit()
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": TAKEDOWN_LOCK})
            connection.commit()


def _noted(session: Session, video_id: str, url: str = "") -> Takedown:
    """What the tombstone of a video says so far; without one, that nothing was removed."""
    row = session.get(Tombstone, video_id)
    if row is None:
        return Takedown(video_id=video_id, url=url, reason="", forgotten_at="")
    told = {"video_id": video_id, "url": row.url, "reason": row.reason, "forgotten_at": stamp(row.forgotten_at)}
    return Takedown(**row.detail | told)


def _bury(ledger: Ledger, video_ids: Sequence[str], *, looked_to: int) -> list[Takedown]:
    """All that follows the tombstones.

    Args:
        looked_to: tables of step runs up to this one have been looked through before.
    """
    with Session(ledger.engine) as session:
        newest = session.scalar(select(func.max(StepRun.id)).where(*_FIRST_HAND)) or 0
    for video_id in video_ids:
        with Session(ledger.engine) as session, session.begin():
            _redact(session, video_id)
    _replace_tables(ledger, video_ids, looked_to)
    with Session(ledger.engine) as session, session.begin():
        for video_id in video_ids:
            found = _takedown(session, _noted(session, video_id)).model_copy(update={"looked_to": newest})
            _note(session, found)
    _settle_releases(ledger, video_ids)
    with Session(ledger.engine) as session:
        removed = dead(session, video_ids)
    for digest in sorted(removed):
        ledger.store.remove(digest)
    return [_record(ledger, video_id) for video_id in video_ids]


def _note(session: Session, found: Takedown) -> None:
    detail = found.model_dump(mode="json")
    session.execute(update(Tombstone).where(Tombstone.video_id == found.video_id).values(detail=detail))


def _record(ledger: Ledger, video_id: str) -> Takedown:
    """The takedown as the step run that it is. One that stands and says the same is left alone."""
    started = now()
    with Session(ledger.engine) as session:
        row = session.get_one(Tombstone, video_id)
        found = Takedown(**row.detail)
    identity, work = StepIdentity(FORGET, 1, {}, {}), Work(video_id)
    standing = ledger.find([identity.key(work)]).get(identity.key(work))
    if standing is None or standing.detail != row.detail:
        outcome = Outcome("kept", detail=row.detail)
        ledger.write(identity, work, outcome, started_at=started, flow_run_id=None, earlier=standing)
    return found


def _takedown(session: Session, before: Takedown, with_these: Iterable[str] = ()) -> Takedown:
    """What there is of a video, from its lineage and from what earlier attempts have noted.

    Args:
        with_these: ids of videos without a tombstone yet that do not count as living either.
    """
    runs, clips = _own(session, before.video_id)
    made: dict[str, int] = {}
    files: set[str] = set()
    for some in _in_batches(sorted(runs)):
        query = (
            select(StepRun.step, StepOutput.role, ArtifactRow.sha256, ArtifactRow.bytes)
            .join(StepOutput, StepOutput.step_run_id == StepRun.id)
            .join(ArtifactRow, ArtifactRow.sha256 == StepOutput.artifact_sha256)
            .where(StepRun.id.in_(some))
        )
        for step, role, digest, size in session.execute(query):
            made[digest] = size
            if (step, role) == ("download", "video"):
                files.add(digest)
    needed = holders(session, made, besides=with_these)
    removed = {*before.removed, *(digest for digest in made if digest not in needed)}
    sizes = session.execute(
        select(func.count(), func.coalesce(func.sum(ArtifactRow.bytes), 0)).where(
            ArtifactRow.sha256.in_({*removed, *before.replaced})
        )
    ).one()
    held_by = session.execute(
        select(ReleaseClip.release_name, func.count()).where(ReleaseClip.clip_id.in_(clips)).group_by("release_name")
    )
    releases = before.releases | {name: count for name, count in held_by}
    trained = select(ModelVersion.name).where(
        ModelVersion.release_name.in_([name for name, count in releases.items() if count])
    )
    return before.model_copy(
        update={
            "artifacts": sizes[0],
            "bytes": int(sizes[1]),
            "removed": sorted(removed),
            "files": sorted(files & removed),
            "kept_for_others": dict(sorted(needed.items())),
            "clips": sorted(clips),
            "releases": dict(sorted(releases.items())),
            "models": sorted(set(session.scalars(trained))),
        }
    )


def _own(session: Session, video_id: str) -> tuple[dict[int, str], set[str]]:
    """(id → subject of the step runs about a video, its stretches and its clips; ids of the clips)."""
    clips = set(session.scalars(select(Clip.id).where(Clip.video_id == video_id)))
    names = {video_id, *clips}
    runs: dict[int, str] = {}
    for some in _in_batches([video_id, *sorted(clips)]):
        about = select(StepRun.id, StepRun.subject).where(StepRun.subject.in_(some), StepRun.step != FORGET)
        runs |= {run_id: subject for run_id, subject in session.execute(about)}
    fresh = set(runs)
    while fresh:
        found: dict[int, str] = {}
        for some in _in_batches(sorted(fresh)):
            below = (
                select(StepRun.id, StepRun.subject)
                .join(StepInput, StepInput.step_run_id == StepRun.id)
                .where(StepInput.parent_id.in_(some))
            )
            found |= {i: s for i, s in session.execute(below) if i not in runs and s.partition("/")[0] in names}
        runs |= found
        fresh = set(found)
    return runs, clips


def _redact(session: Session, video_id: str) -> None:
    """Blanks the words of a video, checks its records before and seals them after, all in one transaction."""
    runs, _ = _own(session, video_id)
    before = _takedown(session, _noted(session, video_id))
    sealed, altered = dict(before.sealed), set(before.altered)
    for some in _in_batches(sorted(runs)):
        rows = session.scalars(select(StepRun).where(StepRun.id.in_(some)).order_by(StepRun.id)).all()
        captioned = set(session.scalars(select(Caption.step_run_id).where(Caption.step_run_id.in_(some))))
        wordy: list[int] = []
        for one in rehashed(session, rows):
            run = one.run
            plain = (blanked(run.detail), blanked(run.context))
            if str(run.id) in sealed or (plain == (run.detail, run.context) and run.id not in captioned):
                continue
            if one.found != run.record_hash:
                altered.add(run.id)
            run.detail, run.context = plain
            wordy.append(run.id)
        session.execute(update(Caption).where(Caption.step_run_id.in_(wordy)).values(text=""))
        session.flush()
        session.expire_all()
        rows = session.scalars(select(StepRun).where(StepRun.id.in_(wordy))).all()
        sealed |= {str(one.run.id): one.seal for one in rehashed(session, rows)}
        session.expunge_all()
    session.execute(
        update(Video)
        .where(Video.id == video_id)
        .values(title="", description="", tags=[], channel=None, channel_url=None)
    )
    _note(session, before.model_copy(update={"sealed": sealed, "altered": sorted(altered)}))


@dataclass
class _Named:
    """A table with rows of forgotten videos.

    Args:
        copy: the table without them.
        rows: video → (verdict, reason) of its rows, as discover counts them.
    """

    copy: Artifact
    rows: dict[str, list[str]] = field(default_factory=dict)


def _replace_tables(ledger: Ledger, video_ids: Sequence[str], looked_to: int) -> None:
    """Finds the tables that name the videos, puts copies in the store, and lets these stand on record instead."""
    owner = {video_id: video_id for video_id in video_ids}
    with Session(ledger.engine) as session:
        for some in _in_batches(video_ids):
            clips = session.execute(select(Clip.id, Clip.video_id).where(Clip.video_id.in_(some)))
            owner |= {clip: video for clip, video in clips}
            urls = session.execute(select(Tombstone.url, Tombstone.video_id).where(Tombstone.video_id.in_(some)))
            owner |= {url: video for url, video in urls}
        outputs = session.execute(
            select(StepRun.step, StepOutput.role, ArtifactRow)
            .join(StepOutput, StepOutput.step_run_id == StepRun.id)
            .join(ArtifactRow, ArtifactRow.sha256 == StepOutput.artifact_sha256)
            .where(StepRun.step.in_(TABLES_OF), StepRun.id > looked_to)
            .order_by(StepRun.id, StepOutput.role)
        ).all()
        gone = dead(session)
    found: dict[str, _Named] = {}
    for step, _, row in outputs:
        artifact = Artifact(row.sha256, row.media_type, row.bytes)
        if artifact.sha256 in found:
            continue
        try:
            if named := _without(ledger.store, step, artifact, owner):
                found[artifact.sha256] = named
        except ArtifactLost:
            if artifact.sha256 not in gone:
                raise
    with Session(ledger.engine) as session, session.begin():
        listed_in = session.execute(
            select(Release.name, StepOutput.artifact_sha256)
            .join(StepOutput, StepOutput.step_run_id == Release.step_run_id)
            .where(StepOutput.artifact_sha256.in_(found))
        ).all()
        for video_id in video_ids:
            mine = {digest: named.copy.sha256 for digest, named in found.items() if video_id in named.rows}
            before = _takedown(session, _noted(session, video_id))
            releases = {name: 0 for name, digest in listed_in if digest in mine} | before.releases
            _note(session, before.model_copy(update={"replaced": before.replaced | mine, "releases": releases}))
        standing = session.scalars(
            select(StepOutput.step_run_id)
            .join(StepRun, StepRun.id == StepOutput.step_run_id)
            .where(StepOutput.artifact_sha256.in_(found), ~StepRun.superseded)
            .distinct()
            .order_by(StepOutput.step_run_id)
        ).all()
    for run_id in standing:
        _supersede(ledger, run_id, found)


def _supersede(ledger: Ledger, run_id: int, found: Mapping[str, _Named]) -> None:
    """Writes a step run again with the copies as outputs: the same work with the same key, as after a loss of bytes."""
    earlier = ledger.load([run_id])[run_id]
    with Session(ledger.engine) as session:
        run = session.get_one(StepRun, run_id)
        inputs = session.scalars(select(StepInput).where(StepInput.step_run_id == run_id)).all()
        scores = session.scalars(select(Score).where(Score.step_run_id == run_id)).all()
        rows = session.scalars(select(ArtifactRow).where(ArtifactRow.sha256.in_(earlier.outputs.values())))
        artifacts = {row.sha256: Artifact(row.sha256, row.media_type, row.bytes) for row in rows}
    named = [found[digest] for digest in earlier.outputs.values() if digest in found]
    videos = {video_id for one in named for video_id in one.rows}
    detail = run.detail | {"taken_down": sorted({*run.detail.get("taken_down", ()), *videos})}
    if "counts" in detail:
        counts = Counter(detail["counts"])
        for verdicts in (verdicts for one in named for verdicts in one.rows.values()):
            counts.subtract(verdicts)
            counts[f"rejected {FORGOTTEN}"] += len(verdicts)
        detail["counts"] = {verdict: count for verdict, count in counts.items() if count > 0}
    outcome = Outcome(
        earlier.status if earlier.status != "failed" else "rejected",
        run.reason,
        detail=detail,
        scores={score.metric: score.value for score in scores},
        score_models={score.metric: score.model_digest for score in scores if score.model_digest},
        outputs={
            role: found[digest].copy if digest in found else artifacts[digest]
            for role, digest in earlier.outputs.items()
        },
        clip_id=next((score.clip_id for score in scores), None),
    )
    work = Work(
        run.subject,
        inputs={row.role: row.artifact_sha256 for row in inputs if row.artifact_sha256},
        context=run.context,
        parents={row.role: row.parent_id for row in inputs if row.parent_id},
    )
    identity = StepIdentity(run.step, run.version, run.params, run.models)
    ledger.write(identity, work, outcome, started_at=now(), flow_run_id=None, earlier=earlier)


def _without(store: Store, step: str, artifact: Artifact, owner: Mapping[str, str]) -> _Named | None:
    """A table of discover or a release without the words of forgotten videos; None when it has none.

    Args:
        owner: forgotten video, its URL or a clip of it → the video.

    Raises:
        ArtifactLost: it is in no store. StoreUnavailable.
    """
    if artifact.media_type == "application/vnd.apache.parquet":
        return _table_without(store, step, artifact, owner)
    if artifact.media_type == "application/json":
        return _content_without(store, artifact, owner)
    return None


def _content_without(store: Store, artifact: Artifact, owner: Mapping[str, str]) -> _Named | None:
    data = store.read(artifact.sha256)
    if not any(name.encode() in data for name in owner):
        return None
    content = json.loads(data)
    if not isinstance(content, dict) or not {"clips", "rejected"} <= content.keys():
        return None
    gone = Counter(owner.get(row["clip_id"], "") for row in content["clips"])
    gone.update(owner.get(row["subject"].partition("/")[0], "") for row in content["rejected"])
    content["clips"] = [row for row in content["clips"] if row["clip_id"] not in owner]
    content["rejected"] = [row for row in content["rejected"] if row["subject"].partition("/")[0] not in owner]
    if not any(gone):
        return None
    copy = store.put_bytes(canonical_json(content), artifact.media_type)
    return _Named(copy, {video_id: [] for video_id in gone if video_id})


def _table_without(store: Store, step: str, artifact: Artifact, owner: Mapping[str, str]) -> _Named | None:
    path = store.path(artifact.sha256)
    names = pa.array(sorted(owner), pa.string())
    with pq.ParquetFile(path) as file:
        present = file.schema_arrow.names
        column = next((name for name in NAMED_BY if name in present), None)
        looked_at = [name for name in (column, "reason", "title", "description") if name and name in present]
        batches = file.iter_batches(batch_size=1 << 16, columns=looked_at)
        if column is None or not any(pc.any(_named(batch, column, names)).as_py() for batch in batches):
            return None
        rows: dict[str, list[str]] = {}
        scratch = store.scratch(".parquet")
        try:
            with pq.ParquetWriter(scratch, file.schema_arrow, compression="zstd") as writer:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    mask = _named(table, column, names)
                    for row in table.filter(mask).to_pylist():
                        about = row[column] if column == "url" else row[column].partition("/")[0]
                        told = rows.setdefault(owner[about], [])
                        if "status" in row:
                            told.append(f"{row['status'] or ''} {row['reason'] or ''}".strip())
                    # Every listed row keeps its verdict; what was kept of the video is kept no more.
                    drop = step == "release" or (step == "discover" and "status" not in present)
                    kept = table.filter(pc.invert(mask)) if drop else _blank_rows(table, mask)
                    writer.write_table(kept)
            return _Named(store.put_file(scratch, artifact.media_type), rows)
        finally:
            scratch.unlink(missing_ok=True)


def _named(rows: pa.Table | pa.RecordBatch, column: str, names: pa.Array) -> Any:
    """Which rows are about one of `names` or a stretch of one, and were not blanked before; no null in it."""
    about = pc.fill_null(rows[column], "")
    if column != "url":
        about = pc.list_element(pc.split_pattern(about, "/", max_splits=1), 0)
    mask = pc.is_in(about, value_set=names)
    names_there = rows.schema.names
    if "reason" in names_there:
        mask = pc.and_(mask, pc.not_equal(pc.fill_null(rows["reason"], ""), FORGOTTEN))
    elif {"title", "description"} <= {*names_there}:  # a row that has no words any more was blanked before
        words = pc.binary_join_element_wise(*(pc.fill_null(rows[name], "") for name in ("title", "description")), "")
        mask = pc.and_(mask, pc.not_equal(words, ""))
    return mask


def _blank_rows(table: pa.Table, mask: Any) -> pa.Table:
    """Rows under `mask` say nothing but which video they were about, and that it was taken down."""
    told = {"status": "rejected", "reason": FORGOTTEN, "message": "taken down"}
    for place, column in enumerate(table.schema):
        if column.name in STAYS:
            continue
        if pa.types.is_list(column.type):
            blank: Any = pa.scalar([], column.type)
        else:
            blank = pa.scalar(told.get(column.name), column.type)
        table = table.set_column(place, column, pc.if_else(mask, blank, table[column.name]))
    return table


def _settle_releases(ledger: Ledger, video_ids: Sequence[str]) -> None:
    """Brings the folders of releases up to date, those too that a killed process left half made."""
    folder = current().releases_folder
    with Session(ledger.engine) as session:
        graves = [_takedown(session, _noted(session, video_id)) for video_id in video_ids]
        for name in sorted({name for grave in graves for name in grave.releases}):
            manifest = folder / name / "manifest.json"
            if manifest.exists():
                taken = release_takedown(session, name, json.loads(manifest.read_bytes())["files"])
                if taken:
                    taken.settle(ledger.store, folder / name)
    clips = {clip for grave in graves for clip in grave.clips}
    for path in folder.glob(".making-*/*/clips/*.mp4"):
        if path.stem in clips:
            path.unlink(missing_ok=True)


def _in_batches(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[start : start + BATCH] for start in range(0, len(values), BATCH))
