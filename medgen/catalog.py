"""The catalog: every table of the system, in Postgres.

The ledger writes these tables; everything else reads them. Rows are added and never changed: a repeated attempt
is a new step run beside the one that it supersedes. Only a takedown blanks words, and leaves a seal (see
`medgen.takedown`), what raters answer may be revised, and a source that was moved gets its new place. Only the last
five tables hold transient facts of operation, and `item_status` repeats what the others say, to be searched: triggers
keep it (migration 0005), nobody else writes it.
"""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    Engine,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR, insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from medgen import __version__
from medgen.home import private_home
from medgen.settings import current

Sha256: String = String(64)


class CatalogUnreachable(RuntimeError):
    """Postgres can't be reached or refuses us."""


def now() -> datetime:
    """The present time in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Metadata of all tables."""

    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads it from the class)
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
        datetime: DateTime(timezone=True),
        str: Text,
        float: Float,
    }


class Source(Base):
    """A feed: a listing file or a local folder."""

    __tablename__ = "source"
    name: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    uri: Mapped[str]
    added_at: Mapped[datetime] = mapped_column(default=now)


class SourceTerms(Base):
    """On what terms videos of a source are kept, as somebody stated it. The newest of a source counts."""

    __tablename__ = "source_terms"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    source_name: Mapped[str] = mapped_column(ForeignKey("source.name"), index=True)
    legal_basis: Mapped[str]
    retain_days: Mapped[int | None]  # after a video was listed; None: no end
    contact: Mapped[str]
    stated_by: Mapped[str]
    stated_at: Mapped[datetime] = mapped_column(default=now)


class SourceIdentity(Base):
    """Which source goes by which name: one place, one name. `medgen.listings.source_identity` gives them."""

    __tablename__ = "source_identity"
    name: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(index=True)  # what people call it; several sources may be called the same
    place: Mapped[str]  # a path as it was written, made absolute, or a URL
    uri: Mapped[str]  # the same, of a path where its links led when it was last listed
    added_at: Mapped[datetime] = mapped_column(default=now)


class Artifact(Base):
    """Bytes in the store, known by their sha256."""

    __tablename__ = "artifact"
    sha256: Mapped[str] = mapped_column(Sha256, primary_key=True)
    media_type: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=now)


class StepRun(Base):
    """What one step did to one subject: what it saw, what it decided, with which code and model."""

    __tablename__ = "step_run"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    key: Mapped[str] = mapped_column(Sha256)
    superseded: Mapped[bool] = mapped_column(default=False)  # a later attempt at the same key replaced it
    step: Mapped[str]
    version: Mapped[int] = mapped_column(Integer)
    subject: Mapped[str]
    status: Mapped[str]  # kept | rejected | failed
    reason: Mapped[str | None]
    transient: Mapped[bool] = mapped_column(default=False)
    detail: Mapped[dict[str, Any]]
    params: Mapped[dict[str, Any]]
    context: Mapped[dict[str, Any]]  # the facts, besides artifacts, that the step saw
    models: Mapped[dict[str, Any]]
    code_version: Mapped[str]
    flow_run_id: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(Integer, default=1)
    decodes: Mapped[int] = mapped_column(Integer, default=0)  # video files opened for decoding
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime]
    record_hash: Mapped[str] = mapped_column(Sha256)
    __table_args__ = (
        Index("uq_step_run_key", "key", unique=True, postgresql_where=text("NOT superseded")),
        Index("ix_step_run_step_subject", "step", "subject"),
        Index("ix_step_run_subject", "subject"),
        Index("ix_step_run_step_status_reason", "step", "status", "reason", "id"),
        Index(
            "ix_step_run_copy_of", text("(detail ->> 'duplicate_of')"), postgresql_where=text("step = 'deduplicate'")
        ),
        Index("ix_step_run_flow", "flow_run_id", "id", postgresql_where=text("flow_run_id IS NOT NULL")),
    )


class Video(Base):
    """A listed video that discover kept. Its metadata is as first seen."""

    __tablename__ = "video"
    id: Mapped[str] = mapped_column(primary_key=True)
    source_name: Mapped[str] = mapped_column(ForeignKey("source.name"), index=True)
    external_id: Mapped[str | None]
    url: Mapped[str]
    title: Mapped[str]
    description: Mapped[str]
    tags: Mapped[list[str]]
    channel: Mapped[str | None]
    channel_url: Mapped[str | None]
    licence: Mapped[str | None]
    published: Mapped[str | None]
    duration_s: Mapped[float | None]
    discovered_at: Mapped[datetime] = mapped_column(default=now)


class StepInput(Base):
    """Lineage: the artifacts and earlier step runs that a step run saw."""

    __tablename__ = "step_input"
    step_run_id: Mapped[int] = mapped_column(ForeignKey("step_run.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    artifact_sha256: Mapped[str | None] = mapped_column(ForeignKey("artifact.sha256"), index=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("step_run.id"), index=True)


class StepOutput(Base):
    """Lineage: the artifacts that a step run made."""

    __tablename__ = "step_output"
    step_run_id: Mapped[int] = mapped_column(ForeignKey("step_run.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    artifact_sha256: Mapped[str] = mapped_column(ForeignKey("artifact.sha256"), index=True)


class Clip(Base):
    """A stretch of one shot of a video, as its own file."""

    __tablename__ = "clip"
    id: Mapped[str] = mapped_column(primary_key=True)
    video_id: Mapped[str] = mapped_column(ForeignKey("video.id"), index=True)
    step_run_id: Mapped[int] = mapped_column(ForeignKey("step_run.id", ondelete="CASCADE"), index=True)
    start_frame: Mapped[int] = mapped_column(Integer)  # first source frame
    end_frame: Mapped[int] = mapped_column(Integer)  # one past the last source frame
    start_s: Mapped[float]
    end_s: Mapped[float]
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    fps: Mapped[float]
    digest: Mapped[str] = mapped_column(ForeignKey("artifact.sha256"), index=True)


class Score(Base):
    """One measured number of a subject."""

    __tablename__ = "score"
    step_run_id: Mapped[int] = mapped_column(ForeignKey("step_run.id", ondelete="CASCADE"), primary_key=True)
    metric: Mapped[str] = mapped_column(primary_key=True)
    clip_id: Mapped[str | None] = mapped_column(ForeignKey("clip.id"))
    value: Mapped[float]
    model_digest: Mapped[str | None] = mapped_column(Sha256)
    __table_args__ = (
        Index("ix_score_metric_value", "metric", "value", "clip_id"),
        # A clip's newest value of a metric, without a look at the table.
        Index("ix_score_of_clip", "clip_id", "metric", "step_run_id", postgresql_include=["value"]),
    )


class Caption(Base):
    """What a captioner wrote about a clip."""

    __tablename__ = "caption"
    step_run_id: Mapped[int] = mapped_column(ForeignKey("step_run.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)  # brief | detailed
    clip_id: Mapped[str] = mapped_column(ForeignKey("clip.id"), index=True)
    text: Mapped[str]
    model: Mapped[str]
    model_digest: Mapped[str] = mapped_column(Sha256)
    prompt_version: Mapped[str]


class Release(Base):
    """An immutable, named set of clips and the policy that chose them."""

    __tablename__ = "release"
    name: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(Sha256, index=True)  # sha256 of the manifest
    policy: Mapped[dict[str, Any]]
    clips: Mapped[int] = mapped_column(Integer)
    record_root: Mapped[str] = mapped_column(Sha256)  # hash over the record hashes behind the release
    step_run_id: Mapped[int] = mapped_column(ForeignKey("step_run.id"))
    created_at: Mapped[datetime] = mapped_column(default=now)


class ReleaseClip(Base):
    """Membership of a clip in a release, with the step run that the clip's life ended with."""

    __tablename__ = "release_clip"
    release_name: Mapped[str] = mapped_column(ForeignKey("release.name"), primary_key=True)
    clip_id: Mapped[str] = mapped_column(ForeignKey("clip.id"), primary_key=True, index=True)
    step_run_id: Mapped[int] = mapped_column(ForeignKey("step_run.id"))


class ModelVersion(Base):
    """A trained model: its checkpoint, the step run that trained it and the release it was trained on."""

    __tablename__ = "model_version"
    digest: Mapped[str] = mapped_column(Sha256, primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    checkpoint_sha256: Mapped[str | None] = mapped_column(ForeignKey("artifact.sha256"))
    step_run_id: Mapped[int | None] = mapped_column(ForeignKey("step_run.id"))
    release_name: Mapped[str | None] = mapped_column(ForeignKey("release.name"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Evaluation(Base):
    """One metric of a model (or of any set of videos) from one evaluation step run."""

    __tablename__ = "evaluation"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    model_digest: Mapped[str | None] = mapped_column(ForeignKey("model_version.digest"), index=True)
    step_run_id: Mapped[int] = mapped_column(ForeignKey("step_run.id"))
    metric: Mapped[str]
    value: Mapped[float]
    detail: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
    __table_args__ = (UniqueConstraint("step_run_id", "metric"),)


class Study(Base):
    """A blind rating of videos of several systems: its design."""

    __tablename__ = "study"
    name: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]  # pairs: side by side | errors: one video at a time
    systems: Mapped[list[str]]  # their names, which raters never see
    seed: Mapped[int] = mapped_column(BigInteger)
    consent: Mapped[str]  # what raters agree to, as plain text
    step_run_id: Mapped[int] = mapped_column(ForeignKey("step_run.id"))
    created_at: Mapped[datetime] = mapped_column(default=now)


class StudyPair(Base):
    """Two videos of one prompt. First and second are their places on record; who sees which where is the rater's.

    In a study of errors it is one video, which stands at both places.
    """

    __tablename__ = "study_pair"
    study_name: Mapped[str] = mapped_column(ForeignKey("study.name", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str]  # rated | check: an attention check, in which one video is plainly broken
    prompt_id: Mapped[str]
    prompt: Mapped[str]
    category: Mapped[str]
    first_system: Mapped[str]
    second_system: Mapped[str]
    first_sha256: Mapped[str] = mapped_column(ForeignKey("artifact.sha256"))
    second_sha256: Mapped[str] = mapped_column(ForeignKey("artifact.sha256"))
    expected: Mapped[str | None]  # of a check: first | second, the one that is not broken; broken, of a single video


class StudyRater(Base):
    """A person who was invited to a study, known by a number."""

    __tablename__ = "study_rater"
    study_name: Mapped[str] = mapped_column(ForeignKey("study.name", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    token_sha256: Mapped[str] = mapped_column(Sha256, unique=True)  # the token itself is on no record
    showing: Mapped[dict[str, Any]]  # pairs: their numbers in this rater's order; swapped: whether second is left
    consented_at: Mapped[datetime | None]
    withdrawn_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class StudyAnswer(Base):
    """What a rater answered on a pair: first, second, neither or both, in terms of the pair and not of the screen.

    In a study of errors: the level of the worst error in the video, 0 to 3.
    """

    __tablename__ = "study_answer"
    study_name: Mapped[str] = mapped_column(primary_key=True)
    rater: Mapped[int] = mapped_column(Integer, primary_key=True)
    pair: Mapped[int] = mapped_column(Integer, primary_key=True)
    swapped: Mapped[bool]  # whether the second video was on the left
    text_alignment: Mapped[str | None]
    medical_accuracy: Mapped[str | None]
    visual_quality: Mapped[str | None]
    error_level: Mapped[int | None] = mapped_column(Integer)
    comment: Mapped[str]
    seconds: Mapped[float | None]  # from the page's opening to the answer, as the rater's browser told
    revisions: Mapped[int] = mapped_column(Integer, default=0)
    answered_at: Mapped[datetime] = mapped_column(default=now)
    revised_at: Mapped[datetime | None]
    __table_args__ = (
        ForeignKeyConstraint(
            ["study_name", "rater"], ["study_rater.study_name", "study_rater.number"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(
            ["study_name", "pair"], ["study_pair.study_name", "study_pair.number"], ondelete="CASCADE"
        ),
    )


class Tombstone(Base):
    """A video that was taken down: its bytes are gone, its records stay, no later refresh takes it again."""

    __tablename__ = "tombstone"
    video_id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str]
    detail: Mapped[dict[str, Any]]  # artifacts removed; clips, releases and models affected
    forgotten_at: Mapped[datetime] = mapped_column(default=now)


class ItemStatus(Base):
    """Where a video, clip or stretch stands: the last word of the pipeline on it, beside what people search for.

    Kept by triggers in the transaction that changes it; `SELECT rebuild_item_status()` makes it anew from the records.
    """

    __tablename__ = "item_status"
    id: Mapped[str] = mapped_column(primary_key=True)  # of a video or clip, or VIDEO/a-b of a stretch never cut
    kind: Mapped[str]  # video | clip | stretch
    video_id: Mapped[str]
    step: Mapped[str]
    status: Mapped[str]  # kept | rejected | failed
    reason: Mapped[str | None]
    decided_at: Mapped[datetime]
    run_id: Mapped[int | None] = mapped_column(BigInteger)
    source_name: Mapped[str]
    title: Mapped[str]
    channel: Mapped[str | None]
    licence: Mapped[str | None]
    category: Mapped[str | None]
    words: Mapped[Any] = mapped_column(TSVECTOR)  # of title, channel and tags, unstemmed: any language
    __table_args__ = (
        Index("ix_item_status_at", "decided_at", "id"),
        *(
            Index(f"ix_item_status_{column}", column, "decided_at", "id")
            for column in ("kind", "status", "reason", "step", "channel", "licence", "category", "source_name")
        ),
        Index("ix_item_status_video", "video_id"),
        Index("ix_item_status_words", "words", postgresql_using="gin"),
    )


class ItemStep(Base):
    """A step whose records say where an item stands. Others (recheck, forget, encode, …) look at items and leave them
    where they stand."""

    __tablename__ = "item_step"
    name: Mapped[str] = mapped_column(primary_key=True)


class KnownFile(Base):
    """Digest of a listing file as last read, so that an unchanged one is not read again. A cache: not history."""

    __tablename__ = "known_file"
    uri: Mapped[str] = mapped_column(primary_key=True)
    mark: Mapped[str]  # size and time of change, or an S3 ETag
    sha256: Mapped[str] = mapped_column(Sha256)


class ShardResult(Base):
    """What a step made of a shard, by all that the step saw of it. Repeats what its step runs say: not history."""

    __tablename__ = "shard_result"
    key: Mapped[str] = mapped_column(Sha256, primary_key=True)
    step: Mapped[str]
    content: Mapped[bytes]  # as `medgen.shard_results` writes it
    runs: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))  # the step runs of all its items
    used_at: Mapped[datetime] = mapped_column(default=now, index=True)  # to the day


class LostArtifact(Base):
    """An artifact on record that the store did not have, or not whole, when it was last looked through. Not history."""

    __tablename__ = "lost_artifact"
    sha256: Mapped[str] = mapped_column(Sha256, primary_key=True)


class HostPace(Base):
    """When a host may be asked again. Shared by all workers; not history."""

    __tablename__ = "host_pace"
    host: Mapped[str] = mapped_column(primary_key=True)
    next_at: Mapped[datetime]


class Claim(Base):
    """Who is at work on what, see `medgen.claims`. Not logged: after a crash of the server nobody is at work."""

    __tablename__ = "claim"
    __table_args__ = {"prefixes": ["UNLOGGED"]}  # noqa: RUF012  (SQLAlchemy reads it from the class)
    key: Mapped[str] = mapped_column(Sha256, primary_key=True)  # of a step run
    claimant: Mapped[int] = mapped_column(BigInteger)


class FlowRun(Base):
    """A run of a flow: what it is called, when it began and how it ended. Step runs name it; no record rests on it."""

    __tablename__ = "flow_run"
    id: Mapped[str] = mapped_column(primary_key=True)  # Prefect's
    flow: Mapped[str]
    name: Mapped[str]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]  # None: it is under way, or was killed
    outcome: Mapped[str | None]  # completed | failed
    __table_args__ = (Index("ix_flow_run_flow", "flow", "started_at"),)


class RetryRequest(Base):
    """Somebody wants failures of a reason to be tried again, see `medgen.retries`."""

    __tablename__ = "retry_request"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    reason: Mapped[str]
    step: Mapped[str]  # empty: any
    asked_at: Mapped[datetime]


class ByteAccount(Base):
    """Bytes fetched on one account, for example those of a night. Shared by all workers; not history."""

    __tablename__ = "byte_account"
    name: Mapped[str] = mapped_column(primary_key=True)
    used: Mapped[int] = mapped_column(BigInteger)


@cache
def declare_item_step(engine: Engine, name: str) -> None:
    """Makes the records of the step `name` count for `item_status`; once a process."""
    with engine.begin() as connection:
        connection.execute(insert(ItemStep).values(name=name).on_conflict_do_nothing())


@cache
def open_catalog() -> Engine:
    """Connection pool to the catalog, its tables brought up to date.

    Starts the embedded server when no `MEDGEN_DATABASE_URL` is set. One engine per process.

    Raises:
        CatalogUnreachable: names the host and the cause, never the password; or the tables are of a newer version.
        DatabaseUnusable: the embedded server can't be made or started.
        HomeUnusable: as `private_home`.
    """
    from medgen.migrations import TooNew, upgrade

    settings = current()
    if settings.database_url is None:
        from medgen.postgres import embedded_url

        url = embedded_url(private_home(settings.home) / "postgres")
    else:
        url = settings.database_url.get_secret_value()
    engine = create_engine(url, pool_size=8, max_overflow=24, pool_pre_ping=True)
    if settings.database_url is None:
        # Nobody else starts the embedded server again where it died or was killed.
        event.listen(engine, "do_connect", lambda *_: _keep_running(settings.home / "postgres"))
    place = engine.url.render_as_string(hide_password=True)
    try:
        upgrade(engine)
    except TooNew as error:
        raise CatalogUnreachable(
            f"the tables of the catalog at {place} are at {error.revision}, which this version of medgen, {__version__}"
            ", does not know\nA newer version wrote them: upgrade medgen, or restore the back-up made before."
        ) from error
    except OperationalError as error:
        raise CatalogUnreachable(f"the catalog at {place} can't be used: {_first_line(error.orig)}") from error
    return engine


def _keep_running(folder: Path) -> None:
    from medgen.postgres import embedded_url

    embedded_url(folder)


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0]
