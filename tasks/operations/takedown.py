"""Takedown: removes a video. Its bytes go, its words go, a tombstone stays.

The order makes a takedown safe to kill: the tombstone first (from then on nothing about the video is recorded), then
words, tables, releases, bytes, and at last the record of the step. Whatever was done is found again by doing it over,
so `medgen forget` a second time, or `gc`, finishes a takedown that was cut short.

What goes: every artifact that a step made of the video, its stretches or its clips, unless something that was not
taken down has the same bytes; its rows in the tables of discover and of imports (their words) and of releases (whole);
its clips in the folders of releases; title, description, tags, channel, captions, and all other words of its records.
What stays: ids, URL, licence, dates, numbers, verdicts, hashes; and the fingerprints of its clips, by which deduplicate
knows near-duplicates and stops them (`tasks.curation.takedown_block`). Not ours to remove: the listing or the folder
that the video came from, copies of a release that were handed on, and folders made by `medgen sample`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, array
from sqlalchemy.orm import Session

from medgen.among import PAGE, among, pages
from medgen.catalog import Artifact as ArtifactRow
from medgen.catalog import (
    Caption,
    Clip,
    ModelVersion,
    Release,
    ReleaseClip,
    StepInput,
    StepOutput,
    StepRun,
    Tombstone,
    Video,
    now,
)
from medgen.ledger import Ledger, Outcome, StepIdentity, Work
from medgen.settings import current
from medgen.store import Artifact, ArtifactLost
from medgen.takedown import (
    IMPORT,
    IMPORT_LIST,
    TAKEDOWN_LOCK,
    TAKEDOWN_STEP,
    Takedown,
    blanked,
    create_tombstones,
    deletable,
    referenced_by,
    release_takedown,
    stamp,
    unfinished_takedowns,
)
from medgen.verify import read_rehashed
from tasks.creation.on_record import CREATE_STEP
from tasks.curation.clip_vectors import indexes, remove_taken_down
from tasks.operations.near_copies import near_copies
from tasks.operations.redact_tables import (
    RedactedTable,
    redact_description,
    redact_table,
    supersede,
    tables_described,
    videos_named,
)

TABLES_OF = ("list", "discover", IMPORT_LIST, "release")  # steps whose tables name many videos
LATE = timedelta(days=1)  # a step that began this long after a tombstone knew of it
BATCH = 500  # records in memory at once while they are blanked
# Records of tables that the steps themselves wrote, not a takedown in their stead.
_FIRST_HAND = (among(StepRun.step, TABLES_OF), ~StepRun.detail.has_key("taken_down"))


def survey(
    ledger: Ledger, urls: Mapping[str, str], *, with_copies: bool = False, block: bool | None = None
) -> list[Takedown]:
    """What a takedown of these videos (id → URL) would remove and touch, or did. Changes nothing.

    Args:
        with_copies, block: as `take_down`.

    Raises:
        ItemFailed: the store does not answer, or has lost a table that may name them.
    """
    plan = _plan(ledger, urls, with_copies=with_copies, block=block)
    with Session(ledger.engine) as session:
        tables = _tables_naming(ledger, session, plan.urls)
        return [
            _report(session, video_id, url, besides=plan.urls, begun=plan.details[video_id], tables=tables)
            for video_id, url in sorted(plan.urls.items())
        ]


def take_down(
    ledger: Ledger, urls: Mapping[str, str], reason: str, *, with_copies: bool = False, block: bool | None = None
) -> list[Takedown]:
    """Takes videos (id → URL) down, also such as were never listed. Waits for a takedown that is under way.

    Args:
        with_copies: take down the videos too that hold near-duplicates of them, whole. Copies of these copies stay.
        block: whether deduplicate stops near-duplicates of them from now on. None: it does, but for videos that were
            taken down before, of which it stays as it is.

    Raises:
        ItemFailed: the store does not answer; the takedown is then to be finished later.
    """
    if not urls:
        return []
    with _one_at_a_time(ledger.engine):
        plan = _plan(ledger, urls, with_copies=with_copies, block=block)
        create_tombstones(ledger.engine, plan.urls, reason, plan.details)
        if block is not None:
            _switch_block(ledger.engine, urls, block)
        return _complete_takedowns(ledger, sorted(plan.urls), searched_to=0)


@dataclass(frozen=True)
class _Plan:
    """What is to be taken down.

    Args:
        urls: video id → URL, of the videos that were named and of their copies if these go too.
        details: video id → what is decided before anything is removed: fields of `Takedown`.
    """

    urls: Mapping[str, str]
    details: Mapping[str, Mapping[str, Any]]


def _plan(ledger: Ledger, urls: Mapping[str, str], *, with_copies: bool, block: bool | None) -> _Plan:
    decided: dict[str, Any] = {} if block is None else {"blocking": None if block else []}
    copies = near_copies(ledger.engine, urls)
    together = dict(urls)
    details: dict[str, dict[str, Any]] = {
        video_id: {"copies": [copy.model_dump(mode="json") for copy in copies[video_id]]} | decided for video_id in urls
    }
    if with_copies:
        for named, copy in [(named, copy) for named, found in copies.items() for copy in found]:
            together[copy.video_id] = copy.url
            # Only what it shows of the named video is stopped from now on: a compilation holds other things too.
            own = details.setdefault(copy.video_id, {"copies": [], "copy_of": [], "blocking": []})
            own["copy_of"] = sorted({*own["copy_of"], named})
            own["blocking"] = sorted({*own["blocking"], *filter(None, [copy.clip])})
    return _Plan(together, details)


def _switch_block(engine: Engine, video_ids: Iterable[str], block: bool) -> None:
    """Sets whether near-duplicates of videos that were taken down are stopped: all, or none."""
    with Session(engine) as session, session.begin():
        blocking = literal({"blocking": None if block else []}, JSONB)
        session.execute(
            update(Tombstone)
            .where(among(Tombstone.video_id, video_ids))
            .values(detail=Tombstone.detail.concat(blocking))
        )


def finish(ledger: Ledger) -> list[Takedown]:
    """Finishes takedowns that were cut short, and those that a step in flight has escaped. Raises as `take_down`."""
    with _one_at_a_time(ledger.engine):
        with Session(ledger.engine) as session:
            cut_short = [*unfinished_takedowns(session)]
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
        done = _complete_takedowns(ledger, cut_short, searched_to=0) if cut_short else []
        rest = [video_id for video_id, _ in late if video_id not in cut_short]
        if rest:
            done += _complete_takedowns(ledger, rest, searched_to=min(searched_to for _, searched_to in late))
        return done


@contextmanager
def _one_at_a_time(engine: Engine) -> Iterator[None]:
    """One takedown at a time, whatever process it is in: two must not replace the same table."""
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": TAKEDOWN_LOCK})
        connection.commit()
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": TAKEDOWN_LOCK})
            connection.commit()


def _saved_report(session: Session, video_id: str, url: str, begun: Mapping[str, Any]) -> Takedown:
    """The report that the tombstone of a video holds so far; without one, that nothing was removed."""
    row = session.get(Tombstone, video_id)
    if row is None:
        return Takedown(**begun, video_id=video_id, url=url, reason="", forgotten_at="")
    columns = {"video_id": video_id, "url": row.url, "reason": row.reason, "forgotten_at": stamp(row.forgotten_at)}
    # What is like it now matters to who asks once more; the rest was decided when it was taken down.
    fresh = {name: begun[name] for name in ("copies", "blocking") if name in begun}
    return Takedown(**row.detail | fresh | columns)


def _complete_takedowns(ledger: Ledger, video_ids: Sequence[str], *, searched_to: int) -> list[Takedown]:
    """All that follows the tombstones.

    Args:
        searched_to: id of a step run; the tables of those up to it have been searched before.
    """
    with Session(ledger.engine) as session:
        newest = session.scalar(select(func.max(StepRun.id)).where(*_FIRST_HAND)) or 0
    for video_id in video_ids:
        with Session(ledger.engine) as session, session.begin():
            _blank_records(session, video_id)
    _replace_tables(ledger, video_ids, searched_to)
    with Session(ledger.engine) as session, session.begin():
        for video_id in video_ids:
            _save_report(session, _report(session, video_id).model_copy(update={"looked_to": newest}))
    _update_releases(ledger, video_ids)
    for index in indexes(ledger.engine):
        remove_taken_down(ledger.engine, index, video_ids)
    with Session(ledger.engine) as session:
        for digest in session.scalars(deletable(video_ids).execution_options(yield_per=PAGE)):
            ledger.store.remove(digest)
    return [_record(ledger, video_id) for video_id in video_ids]


def _save_report(session: Session, report: Takedown) -> None:
    detail = report.model_dump(mode="json")
    session.execute(update(Tombstone).where(Tombstone.video_id == report.video_id).values(detail=detail))


def _record(ledger: Ledger, video_id: str) -> Takedown:
    """Records the takedown as a step run, unless one that says the same stands. Returns its report."""
    started = now()
    with Session(ledger.engine) as session:
        detail = session.get_one(Tombstone, video_id).detail
    identity, work = StepIdentity(TAKEDOWN_STEP, 1, {}, {}), Work(video_id)
    standing = ledger.find([identity.key(work)]).get(identity.key(work))
    if standing is None or standing.detail != detail:
        outcome = Outcome("kept", detail=detail)
        ledger.write(identity, work, outcome, started_at=started, flow_run_id=None, earlier=standing)
    return Takedown(**detail)


def _report(
    session: Session,
    video_id: str,
    url: str = "",
    *,
    besides: Iterable[str] = (),
    begun: Mapping[str, Any] | None = None,
    tables: Sequence["_TableNaming"] = (),
) -> Takedown:
    """What a takedown of a video removes and touches: from its lineage, and from the reports of earlier attempts.

    Args:
        url: of a video without a tombstone.
        besides: ids of videos without a tombstone yet that count as taken down too.
        begun: fields of a report that is only planned.
        tables: those that are to be replaced too.
    """
    before = _saved_report(session, video_id, url, begun or {})
    to_replace = [table for table in tables if video_id in table.videos]
    before = before.model_copy(
        update={
            "replaced": {table.digest: "" for table in to_replace} | before.replaced,
            "releases": {name: 0 for table in to_replace for name in table.releases} | before.releases,
        }
    )
    runs, clips = _step_runs_of(session, video_id)
    made: dict[str, int] = {}
    files: set[str] = set()
    for some in pages(sorted(runs)):
        query = (
            select(StepRun.step, StepOutput.role, ArtifactRow.sha256, ArtifactRow.bytes)
            .join(StepOutput, StepOutput.step_run_id == StepRun.id)
            .join(ArtifactRow, ArtifactRow.sha256 == StepOutput.artifact_sha256)
            .where(among(StepRun.id, some))
        )
        for step, role, digest, size in session.execute(query):
            made[digest] = size
            if (step, role) in (("download", "video"), (IMPORT, "clip")):
                files.add(digest)
    needed = referenced_by(session, made, besides=besides)
    removed = {*before.removed, *(digest for digest in made if digest not in needed)}
    sizes = session.execute(
        select(func.count(), func.coalesce(func.sum(ArtifactRow.bytes), 0)).where(
            among(ArtifactRow.sha256, {*removed, *before.replaced})
        )
    ).one()
    members = session.execute(
        select(ReleaseClip.release_name, func.count()).where(among(ReleaseClip.clip_id, clips)).group_by("release_name")
    )
    releases = before.releases | {name: count for name, count in members}
    held = [name for name, count in releases.items() if count]
    trained = select(ModelVersion.name).where(among(ModelVersion.release_name, held))
    created = select(StepRun.subject).where(
        StepRun.step == CREATE_STEP, StepRun.status == "kept", StepRun.detail["releases"].has_any(array(held))
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
            "creations": sorted(set(session.scalars(created))) if held else [],
        }
    )


def _step_runs_of(session: Session, video_id: str) -> tuple[dict[int, str], set[str]]:
    """(id → subject of the step runs about a video, its stretches and its clips; ids of the clips)."""
    clips = set(session.scalars(select(Clip.id).where(Clip.video_id == video_id)))
    names = {video_id, *clips}
    runs: dict[int, str] = {}
    for subjects in pages([video_id, *sorted(clips)]):
        about = select(StepRun.id, StepRun.subject).where(among(StepRun.subject, subjects))
        about = about.where(StepRun.step != TAKEDOWN_STEP)
        runs |= {run_id: subject for run_id, subject in session.execute(about)}
    # Clips of published sets have no step before them that is about their video.
    imported = select(StepRun.id, StepRun.subject).where(
        StepRun.step == IMPORT, StepRun.subject.startswith(f"{video_id}/", autoescape=True)
    )
    runs |= {run_id: subject for run_id, subject in session.execute(imported)}
    fresh = set(runs)
    while fresh:
        children: dict[int, str] = {}
        for some in pages(sorted(fresh)):
            below = (
                select(StepRun.id, StepRun.subject)
                .join(StepInput, StepInput.step_run_id == StepRun.id)
                .where(among(StepInput.parent_id, some))
            )
            children |= {i: s for i, s in session.execute(below) if i not in runs and s.partition("/")[0] in names}
        runs |= children
        fresh = set(children)
    return runs, clips


def _blank_records(session: Session, video_id: str) -> None:
    """Blanks the words of a video. Its records are checked before and sealed after, all in one transaction."""
    runs, _ = _step_runs_of(session, video_id)
    before = _report(session, video_id)
    sealed, altered = dict(before.sealed), set(before.altered)
    for some in pages(sorted(runs.keys() - {int(run_id) for run_id in sealed}), BATCH):
        captioned = set(session.scalars(select(Caption.step_run_id).where(among(Caption.step_run_id, some))))
        plain: dict[int, dict[str, Any]] = {}
        content = select(StepRun.id, StepRun.detail, StepRun.context).where(among(StepRun.id, some))
        for run_id, detail, context in session.execute(content):
            words = {"detail": blanked(detail), "context": blanked(context)}
            if words != {"detail": detail, "context": context} or run_id in captioned:
                plain[run_id] = words
        if plain:
            records = read_rehashed(session, [*plain])
            altered |= {record.run.id for record in records if record.actual_hash != record.run.record_hash}
            session.execute(update(StepRun), [{"id": run_id} | words for run_id, words in plain.items()])
            session.execute(update(Caption).where(among(Caption.step_run_id, plain)).values(text=""))
            sealed |= {str(record.run.id): record.seal for record in read_rehashed(session, [*plain])}
    session.execute(
        update(Video)
        .where(Video.id == video_id)
        .values(title="", description="", tags=[], channel=None, channel_url=None)
    )
    _save_report(session, before.model_copy(update={"sealed": sealed, "altered": sorted(altered)}))


def _replace_tables(ledger: Ledger, video_ids: Sequence[str], searched_to: int) -> None:
    """Finds the tables that name the videos, puts copies in the store, and lets these stand on record instead."""
    redacted = _redacted_tables(ledger, video_ids, searched_to)
    with Session(ledger.engine) as session, session.begin():
        listed_in = _releases_with(session, redacted)
        for video_id in {video_id for table in redacted.values() for video_id in table.rows}:
            replaced = {digest: table.copy.sha256 for digest, table in redacted.items() if video_id in table.rows}
            before = _saved_report(session, video_id, "", {})
            releases = {name: 0 for digest in replaced for name in listed_in.get(digest, ())} | before.releases
            changes = {"replaced": before.replaced | replaced, "releases": releases}
            _save_report(session, before.model_copy(update=changes))
        standing = session.scalars(
            select(StepOutput.step_run_id)
            .join(StepRun, StepRun.id == StepOutput.step_run_id)
            .where(among(StepOutput.artifact_sha256, redacted), ~StepRun.superseded)
            .distinct()
            .order_by(StepOutput.step_run_id)
        ).all()
    for run_id in standing:
        supersede(ledger, run_id, redacted)


def _redacted_tables(ledger: Ledger, video_ids: Sequence[str], searched_to: int) -> dict[str, RedactedTable]:
    """sha256 → redaction of every table that names one of the videos. Raises as `redact_table`."""
    urls: dict[str, str] = {}
    with Session(ledger.engine) as session:
        for some in pages(video_ids):
            found = session.execute(select(Tombstone.video_id, Tombstone.url).where(among(Tombstone.video_id, some)))
            urls |= {video_id: url for video_id, url in found}
        owner = _owners(session, urls)
        tables = _tables(session, searched_to)
        removed = _replaced_tables(session)
    redacted: dict[str, RedactedTable] = {}
    for step, artifact in tables:
        try:
            if table := redact_table(ledger.store, step, artifact, owner):
                redacted[artifact.sha256] = table
        except ArtifactLost:
            if artifact.sha256 not in removed:
                raise
    for _, artifact in tables:
        if artifact.sha256 not in removed and (described := redact_description(ledger.store, artifact, redacted)):
            redacted[artifact.sha256] = described
    return redacted


@dataclass(frozen=True)
class _TableNaming:
    """A table that names videos which are to be taken down, with the releases whose table it is."""

    digest: str
    videos: Set[str]
    releases: Sequence[str]


def _tables_naming(ledger: Ledger, session: Session, urls: Mapping[str, str]) -> list[_TableNaming]:
    """The tables that a takedown of videos (id → URL) would replace. Raises as `redact_table`."""
    owner, removed = _owners(session, urls), _replaced_tables(session)
    tables = [artifact for _, artifact in _tables(session, searched_to=0) if artifact.sha256 not in removed]
    named: dict[str, set[str]] = {}
    for artifact in tables:
        if videos := videos_named(ledger.store, artifact, owner):
            named[artifact.sha256] = videos
    for artifact in tables:
        if described := tables_described(ledger.store, artifact, named):
            named[artifact.sha256] = {video for digest in described for video in named[digest]}
    listed_in = _releases_with(session, named)
    return [_TableNaming(digest, videos, listed_in.get(digest, ())) for digest, videos in named.items()]


def _owners(session: Session, urls: Mapping[str, str]) -> dict[str, str]:
    """Id of a video (id → URL), its URL or the id of a clip of it → id of the video."""
    owner = {video_id: video_id for video_id in urls} | {url: video_id for video_id, url in urls.items()}
    for some in pages(sorted(urls)):
        clips = session.execute(select(Clip.id, Clip.video_id).where(among(Clip.video_id, some)))
        owner |= {clip: video for clip, video in clips}
    return owner


def _tables(session: Session, searched_to: int) -> list[tuple[str, Artifact]]:
    """(step, artifact) of what steps wrote that may name many videos, each once, oldest first.

    Args:
        searched_to: id of a step run; only what came after it.
    """
    outputs = session.execute(
        select(StepRun.step, StepOutput.role, ArtifactRow)
        .join(StepOutput, StepOutput.step_run_id == StepRun.id)
        .join(ArtifactRow, ArtifactRow.sha256 == StepOutput.artifact_sha256)
        .where(among(StepRun.step, TABLES_OF), StepRun.id > searched_to)
        .order_by(StepRun.id, StepOutput.role)
    ).all()
    unique: dict[str, tuple[str, Artifact]] = {}
    for step, _, row in outputs:
        unique.setdefault(row.sha256, (step, Artifact(row.sha256, row.media_type, row.bytes)))
    return list(unique.values())


def _replaced_tables(session: Session) -> set[str]:
    """Digests of the tables that takedowns replaced by copies and removed."""
    return set(session.scalars(select(func.jsonb_object_keys(Tombstone.detail["replaced"])).distinct()))


def _releases_with(session: Session, digests: Iterable[str]) -> dict[str, list[str]]:
    """Digest of a table → names of the releases whose table it is."""
    rows = session.execute(
        select(StepOutput.artifact_sha256, Release.name)
        .join(Release, Release.step_run_id == StepOutput.step_run_id)
        .where(among(StepOutput.artifact_sha256, digests))
        .order_by(Release.name)
    )
    found: dict[str, list[str]] = {}
    for digest, name in rows:
        found.setdefault(digest, []).append(name)
    return found


def _update_releases(ledger: Ledger, video_ids: Sequence[str]) -> None:
    """Brings the folders of releases up to date, those too that a killed process left half made."""
    folder = current().releases_folder
    with Session(ledger.engine) as session:
        reports = [_saved_report(session, video_id, "", {}) for video_id in video_ids]
        for name in sorted({name for report in reports for name in report.releases}):
            manifest = folder / name / "manifest.json"
            if manifest.exists():
                takedown = release_takedown(session, name, json.loads(manifest.read_bytes())["files"])
                if takedown:
                    takedown.apply(ledger.store, folder / name)
    clips = {clip for report in reports for clip in report.clips}
    for path in folder.glob(".making-*/*/clips/*.mp4"):
        if path.stem in clips:
            path.unlink(missing_ok=True)
