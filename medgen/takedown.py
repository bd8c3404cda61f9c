"""Takedowns: which videos are taken down, which bytes must be gone, and what their releases still hold.

A tombstone is the first thing that a takedown writes and the last word on a video: from then on the ledger records
nothing about it but refusals (`taken_down_subjects`), whoever works on it at that moment.

What is proven afterwards. Records are blanked, not deleted: ids, numbers, verdicts, times and the record's hash stay,
texts go (`blanked`). A blanked record no longer gives its hash, so the takedown first checks it, then seals it: the
seal is a hash over the old record hash and the blanked content, and it stands in the takedown's own record, which is
hash-chained like any other. So `verify` still proves that every other record is as it was written, that a blanked
one is as the takedown left it, and that the records after it name the hash that it had. That the blanked content is
what is left of the content behind the old hash is the word of the takedown alone.

Tables that name many videos (what discover read, what a release lists) are replaced by copies without that
video, under a new record of the same step that supersedes the old one; nothing of these records is blanked.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    MetaData,
    Select,
    Table,
    Text,
    cast,
    func,
    insert,
    select,
    text,
    true,
    union,
)
from sqlalchemy.orm import Session, aliased

from medgen.among import PAGE, among, pages
from medgen.catalog import (
    Clip,
    ModelVersion,
    Release,
    ReleaseClip,
    Sha256,
    StepInput,
    StepOutput,
    StepRun,
    Tombstone,
    Video,
    now,
)
from medgen.insert_rows import insert_rows
from medgen.store import Store

TAKEDOWN_STEP = "forget"  # the step that a takedown is on record as
IMPORT = "import"  # the step that takes in a clip of a published set; its subject is VIDEO/KEY
IMPORT_LIST = "import_list"  # the step that reads a file which describes such clips
TAKEN_DOWN = "forgotten"  # the reason of what is refused because of a tombstone
BLOCKED = "near_duplicate_of_forgotten"  # the reason of clips that show the same as what was taken down
NOTICE = "TAKEDOWN.json"
TOMBSTONES = 100  # read at once: one names every artifact and record of its video

# Any numbers; all medgen processes must use the same ones.
GATE_LOCK = 0x746F6D6273746F6E  # shared: a record is being written; exclusive: a tombstone is
TAKEDOWN_LOCK = 0x666F72676574  # held by the one takedown that is under way

# Names of facts whose values are words of the program, never of a source.
PLAIN = frozenset(
    ["id", "video_id", "digest", "metric", "reason", "all_reasons", "passes_when", "duplicate_of", "replaces", "clip",
     "motion_type", "technical_model", "aesthetic_model", "captioner", "captioner_kind", "day", "tombstone",
     "list_sha256", "file_sha256",
     # Of pictures only their hashes and coarse brightness; by it a copy is known when it comes from another address.
     "fingerprint"]
)  # fmt: skip
NAME = re.compile(r"[a-z0-9_]{1,64}")


class NearCopy(BaseModel):
    """A clip of another video that shows the same as a clip that is taken down, when the takedown was asked for.

    `clip` and `copy_of` are empty where no clips were compared, but the downloaded files have the same bytes.
    """

    model_config = ConfigDict(frozen=True)

    video_id: str = ""
    url: str = ""
    clip: str = ""
    copy_of: str = ""  # the clip that is taken down
    similarity: float = 1.0  # 0..1
    threshold: float = 1.0  # least similarity of a copy
    overlap_s: float | None = None
    status: str = ""  # where the clip stands: kept | rejected | failed
    reason: str | None = None
    releases: list[str] = []  # that hold it


class Takedown(BaseModel):
    """What a takedown removed and touched: the detail of a tombstone, and of the step run behind it."""

    model_config = ConfigDict(frozen=True)

    video_id: str
    url: str
    reason: str
    forgotten_at: str
    artifacts: int = 0  # removed, with those replaced
    bytes: int = 0
    removed: list[str] = []  # digests of the video's own artifacts
    files: list[str] = []  # those of them that were downloaded
    kept_for_others: dict[str, list[str]] = {}  # digest → some of the subjects that have the same bytes
    # Digest of a table that named the video → digest of the copy that does not; empty while it is only planned.
    replaced: dict[str, str] = {}
    clips: list[str] = []
    releases: dict[str, int] = {}  # name → how many clips of the video it held; 0: only a row of its rejected ones
    models: list[str] = []  # trained on such a release
    creations: list[str] = []  # videos for a use that such a model made
    sealed: dict[str, str] = {}  # id of a blanked step run → its seal
    altered: list[int] = []  # step runs that were not as they were written even before they were blanked
    looked_to: int = 0  # newest step run whose tables were looked through
    copies: list[NearCopy] | None = None  # near-duplicates in other videos; None: they were not looked for
    copy_of: list[str] = []  # ids of the videos as whose copy it was taken down with them
    blocking: list[str] | None = None  # clips whose near-duplicates are stopped from now on; None: all of them


def taken_down_urls(engine: Engine) -> frozenset[str]:
    """URLs of all videos with a tombstone. About 1 s for 300,000, measured on two busy cores."""
    with engine.connect() as connection:
        return frozenset(connection.scalars(select(Tombstone.url)))


def taken_down_digests(engine: Engine) -> frozenset[str]:
    """sha256 of the downloaded files of videos that were taken down, so that another URL does not bring them back.

    Files that another video has too, one that was not taken down, are left out: they were allowed to stay.
    """
    file = select(func.jsonb_array_elements_text(Tombstone.detail["files"]).label("sha256")).distinct().subquery()
    with engine.connect() as connection:
        return frozenset(connection.scalars(select(file.c.sha256).where(*_unreferenced(file.c.sha256))))


# As text: to build and look up the same query anew takes longer than Postgres takes to answer it.
_TAKEN_DOWN = text(
    "SELECT subject FROM unnest(CAST(:subjects AS text[])) AS subject LEFT JOIN clip ON clip.id = subject "
    "JOIN tombstone ON tombstone.video_id = coalesce(clip.video_id, split_part(subject, '/', 1))"
)


def taken_down_subjects(session: Session, subjects: Iterable[str], *, wait: bool = False) -> set[str]:
    """Those of `subjects` (ids of videos and clips, and stretches ``VIDEO/a-b``) whose video was taken down.

    Args:
        wait: hold the gate until the session's transaction ends: no tombstone is set between this answer and the
            end of what the transaction writes.
    """
    connection = session.connection()  # each batch on record asks: by way of the session it would take longer
    if wait:
        connection.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": GATE_LOCK})
    wanted = sorted({subject for subject in subjects if _storable(subject)})
    return set(connection.scalars(_TAKEN_DOWN, {"subjects": wanted})) if wanted else set()


def _array(values: list[str]) -> ColumnElement[Sequence[str]]:
    return cast(values, ARRAY(Text))


def _storable(subject: str) -> bool:
    """Whether a text can be a subject on record; names of sources come here as people wrote them."""
    return "\0" not in subject and subject.isprintable()


def create_tombstones(
    engine: Engine, urls: Mapping[str, str], reason: str, details: Mapping[str, Mapping[str, Any]]
) -> None:
    """Sets tombstones for video id → URL; one that stands stays as it is. Waits for records that are being written.

    Args:
        details: video id → what is decided of its takedown before anything is removed: fields of `Takedown`.
    """
    with Session(engine) as session, session.begin():
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": GATE_LOCK})
        when = now()
        for page in pages(sorted(urls.items())):
            rows = [
                {"video_id": video_id, "url": url, "reason": reason, "forgotten_at": when}
                | {"detail": dict(details.get(video_id, {}))}
                for video_id, url in page
            ]
            insert_rows(session, Tombstone, rows, unless_there=True)


def list_tombstones(session: Session, *conditions: ColumnElement[bool]) -> Iterator[Tombstone]:
    """All tombstones, or those that meet the conditions; oldest first, a few of them in memory at a time."""
    query = select(Tombstone).where(*conditions).order_by(Tombstone.forgotten_at, Tombstone.video_id)
    for some in session.scalars(query.execution_options(yield_per=TOMBSTONES)).partitions():
        yield from some
        for tombstone in some:
            session.expunge(tombstone)


def unfinished_takedowns(session: Session) -> Iterator[str]:
    """Ids of the videos whose takedown was cut short, or whose tombstone was changed since; oldest first."""
    report = Tombstone.detail
    finished = select(StepRun.id).where(
        StepRun.step == TAKEDOWN_STEP,
        StepRun.subject == Tombstone.video_id,
        ~StepRun.superseded,
        StepRun.detail == report,
        report["url"].as_string() == Tombstone.url,
        report["reason"].as_string() == Tombstone.reason,
        cast(report["forgotten_at"].as_string(), Tombstone.forgotten_at.type) == Tombstone.forgotten_at,
    )
    query = select(Tombstone.video_id).where(~finished.exists())
    query = query.order_by(Tombstone.forgotten_at, Tombstone.video_id)
    yield from session.scalars(query.execution_options(yield_per=PAGE))


def referenced(session: Session, digests: Iterable[str]) -> set[str]:
    """Those of `digests` that must stay: a step made them for something that was not taken down, or a step of another
    video, or a model, needs them. That a step over many videos (a release, a training run) read them does not count."""
    wanted = set(digests)
    for page in pages(sorted(wanted)):
        given = func.unnest(_array(page)).table_valued("sha256").render_derived("given")
        wanted.difference_update(session.scalars(select(given.c.sha256).where(*_unreferenced(given.c.sha256))))
    return wanted


def _unreferenced(digest: ColumnElement[str]) -> tuple[ColumnElement[bool], ...]:
    """Conditions, which `referenced` names, that bytes need not stay.

    Args:
        digest: with the name of its table, for several tables here have columns of many names.
    """
    owner = func.coalesce(Clip.video_id, func.split_part(StepRun.subject, "/", 1))

    def standing(use: type[StepInput] | type[StepOutput]) -> Select[tuple[int]]:
        return (
            select(StepRun.id)
            .join(use, use.step_run_id == StepRun.id)
            .outerjoin(Clip, Clip.id == StepRun.subject)
            .outerjoin(Tombstone, Tombstone.video_id == owner)
            .where(use.artifact_sha256 == digest, Tombstone.video_id.is_(None))
        )

    return (
        ~standing(StepOutput).exists(),
        ~standing(StepInput).join(Video, Video.id == owner).exists(),
        ~select(ModelVersion.digest).where(ModelVersion.checkpoint_sha256 == digest).exists(),
    )


def referenced_by(
    session: Session, digests: Iterable[str], *, most: int = 3, besides: Iterable[str] = ()
) -> dict[str, list[str]]:
    """Digest → subjects, at most `most`, for whose sake the bytes must stay; see `referenced`.

    Args:
        besides: ids of videos that count as taken down too.
    """
    subjects: dict[str, list[str]] = {}
    made = select(StepOutput.artifact_sha256.label("digest"), StepOutput.step_run_id)
    read = select(StepInput.artifact_sha256.label("digest"), StepInput.step_run_id)
    for some in pages(sorted(set(digests))):
        for table, column, is_output in (
            (made, StepOutput.artifact_sha256, True),
            (read, StepInput.artifact_sha256, False),
        ):
            use = table.where(among(column, some)).subquery()
            owner = func.coalesce(Clip.video_id, func.split_part(StepRun.subject, "/", 1))
            query = (
                select(use.c.digest, StepRun.subject)
                .join(StepRun, StepRun.id == use.c.step_run_id)
                .outerjoin(Clip, Clip.id == StepRun.subject)
                .outerjoin(Tombstone, Tombstone.video_id == owner)
                .where(Tombstone.video_id.is_(None), ~among(owner, besides))
                .distinct()
            )
            if not is_output:
                query = query.join(Video, Video.id == owner)
            for digest, subject in session.execute(query):
                names = subjects.setdefault(digest, [])
                if len(names) < most and subject not in names:
                    names.append(subject)
        models = select(ModelVersion.checkpoint_sha256, ModelVersion.name)
        for digest, name in session.execute(models.where(among(ModelVersion.checkpoint_sha256, some))):
            subjects.setdefault(digest, [name])
    return subjects


def deletable(video_ids: Sequence[str] | None = None) -> CompoundSelect[tuple[str]]:
    """A query for `sha256`: digests that takedowns (all, or those of some videos) removed and nothing else references.

    Each is there once.
    """
    condition = true() if video_ids is None else among(Tombstone.video_id, video_ids)
    own = select(func.jsonb_array_elements_text(Tombstone.detail["removed"]).label("sha256")).where(condition)
    removed = own.subquery()
    replaced = select(func.jsonb_object_keys(Tombstone.detail["replaced"]).label("sha256")).where(condition)
    return union(select(removed.c.sha256).where(*_unreferenced(removed.c.sha256)), replaced)


DELETABLE = Table("deletable", MetaData(), Column("sha256", Sha256, primary_key=True), prefixes=["TEMPORARY"])


@contextmanager
def deletable_artifacts(engine: Engine) -> Iterator[Connection]:
    """A connection that has what `deletable` gives, of all takedowns, as the temporary table `DELETABLE`."""
    with engine.connect() as connection:
        DELETABLE.create(connection)
        connection.execute(insert(DELETABLE).from_select(["sha256"], deletable()))
        connection.execute(text("ANALYZE deletable"))
        connection.commit()
        try:
            yield connection
        finally:
            connection.rollback()
            DELETABLE.drop(connection)
            connection.commit()


def seals(session: Session, run_ids: Sequence[int]) -> dict[int, str]:
    """Id of a blanked step run → its seal, of those among `run_ids`: from the record of its video's takedown."""
    takedown = aliased(StepRun)
    owner = func.coalesce(Clip.video_id, func.split_part(StepRun.subject, "/", 1))
    seal = takedown.detail["sealed"][cast(StepRun.id, Text)].astext
    query = (
        select(StepRun.id, seal)
        .outerjoin(Clip, Clip.id == StepRun.subject)
        .join(takedown, (takedown.step == TAKEDOWN_STEP) & (takedown.subject == owner) & ~takedown.superseded)
        .where(among(StepRun.id, run_ids), seal.is_not(None))
    )
    return {run_id: value for run_id, value in session.execute(query)}


def blanked(value: Any, name: str = "") -> Any:
    """JSON facts without the words of their source: every text becomes empty unless its key is in `PLAIN`.

    The shape, numbers and truth values stay, so that an auditor still sees scores and thresholds.
    """
    match value:
        case str():
            return value if name in PLAIN else ""
        case dict():
            return {key: blanked(item, key) for key, item in value.items() if NAME.fullmatch(key)}
        case list() | tuple():
            return [blanked(item, name) for item in value]
        case _:
            return value


@dataclass(frozen=True)
class ReleaseTakedown:
    """How a release differs from its manifest since videos of it were taken down.

    Args:
        changes: path → digest of the file that is there instead; None: the file is gone.
        notice: content of the folder's ``TAKEDOWN.json``: what was removed, when and why.
    """

    changes: Mapping[str, str | None]
    notice: bytes

    def apply(self, store: Store, folder: Path) -> None:
        """Brings a folder that was made before the takedown up to date. Repeating it is harmless."""
        _write(folder / NOTICE, self.notice)
        for path, digest in self.changes.items():
            if digest is None:
                (folder / path).unlink(missing_ok=True)
            else:
                _write(folder / path, store.path(digest))


def release_takedown(session: Session, name: str, files: Sequence[Mapping[str, Any]]) -> ReleaseTakedown | None:
    """What takedowns changed of a release; None when no video of it was taken down.

    It follows from the catalog alone: the clips of videos that were taken down, and the tables of the record that
    superseded the release's own. So a notice in a folder can't excuse damage to it.

    Args:
        files: of the manifest: path and sha256.
    """
    release = session.get(Release, name)
    if release is None:
        return None
    members = (
        select(Clip.id, Clip.video_id)
        .join(ReleaseClip, ReleaseClip.clip_id == Clip.id)
        .join(Tombstone, Tombstone.video_id == Clip.video_id)
        .where(ReleaseClip.release_name == name)
    )
    clips = {clip: video for clip, video in session.execute(members)}
    replaced, listed = _replaced_tables(session, release.step_run_id)
    videos = {*clips.values(), *listed}
    if not videos:
        return None
    changes = {file["path"]: replaced.get(file["sha256"]) for file in files if file["sha256"] in replaced}
    changes |= {file["path"]: None for file in files if Path(file["path"]).stem in clips}
    of_video: dict[str, list[str]] = {}
    for clip, video in sorted(clips.items()):
        of_video.setdefault(video, []).append(clip)
    tombstones = session.execute(
        select(Tombstone.video_id, Tombstone.reason, Tombstone.forgotten_at)
        .where(among(Tombstone.video_id, videos))
        .order_by(Tombstone.forgotten_at, Tombstone.video_id)
    )
    notice = {
        "format": 1,
        "release": name,
        "digest": release.digest,
        "takedowns": [
            {
                "video_id": tombstone.video_id,
                "reason": tombstone.reason,
                "forgotten_at": stamp(tombstone.forgotten_at),
                "clips": of_video.get(tombstone.video_id, []),
            }
            for tombstone in tombstones
        ],
        "files": [
            {"path": file["path"], "sha256": file["sha256"], "now": changes[file["path"]]}
            for file in files
            if file["path"] in changes
        ],
    }
    return ReleaseTakedown(changes, json.dumps(notice, indent=1, ensure_ascii=False, sort_keys=True).encode())


def stamp(when: datetime) -> str:
    """A time as takedowns put it on record: UTC, ISO 8601."""
    return when.astimezone(UTC).isoformat()


def _replaced_tables(session: Session, run_id: int) -> tuple[dict[str, str], list[str]]:
    """Of the step run of a release: (digest of a table → digest of the copy instead; ids of the videos left out)."""
    old, new = aliased(StepRun), aliased(StepRun)
    standing = session.execute(
        select(new.id, new.detail["taken_down"])
        .join(old, old.key == new.key)
        .where(old.id == run_id, ~new.superseded, new.detail.has_key("taken_down"))
    ).first()
    if standing is None:
        return {}, []
    before, after = _outputs(session, run_id), _outputs(session, standing[0])
    replaced = {digest: after[role] for role, digest in before.items() if after.get(role, digest) != digest}
    return replaced, standing[1]


def _outputs(session: Session, run_id: int) -> dict[str, str]:
    rows = session.execute(select(StepOutput.role, StepOutput.artifact_sha256).where(StepOutput.step_run_id == run_id))
    return {role: digest for role, digest in rows}


def _write(path: Path, content: bytes | Path) -> None:
    """Replaces a file in one move. It is never written through, because it may be a hard link into the store."""
    making = path.with_name(f".{path.name}.making")
    making.unlink(missing_ok=True)
    if isinstance(content, bytes):
        making.write_bytes(content)
    else:
        try:
            os.link(content, making)
        except OSError:
            shutil.copyfile(content, making)
    making.replace(path)
