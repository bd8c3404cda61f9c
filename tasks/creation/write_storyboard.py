"""Storyboard: a use and a topic become shots, words and statements to check, by template or by a language model."""

from functools import cache, partial
from typing import TypedDict

from pydantic import Field, field_validator

from medgen.canonical import canonical_json, digest_of
from medgen.errors import ItemFailed, RunStopped
from medgen.handover import Handover
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.parameters import MOST_SECONDS, Parameters
from medgen.settings import current
from medgen.shard import ShardResult, Step
from medgen.store import Store
from models.captioning.captioner import CaptionUnavailable
from models.captioning.chat import Chat
from models.captioning.loading import load_chat
from models.captioning.untrusted_text import clean
from models.storyboards.chat_writer import chat_storyboard, writer_digest
from models.storyboards.personas import MAX_PERSONAS
from models.storyboards.storyboard import MAX_TOPIC_CHARS, Language, Storyboard, UseName
from models.storyboards.template import TEMPLATE_NAME, TEMPLATE_VERSION, template_storyboard
from models.storyboards.use import load_use
from tasks.prefect_step import run_in_prefect, step_task

STEP = "storyboard"
VERSION = 1


class StoryboardParams(Parameters):
    """Parameters of the storyboard."""

    use: UseName = Field(description="What the video is for.")
    topic: str = Field(
        description="What it is about, in the video's language. remote-consultation: the complaint, or several with ; "
        "between.",
    )
    language: Language = Field("en", description="Language of titles, subtitles and statements.")
    topic_in_english: str = Field(
        "", description="The topic in English, for the video model; empty: as it is. A language model translates it."
    )
    writer: str = Field(
        TEMPLATE_NAME,
        description="Who words the storyboard: template (offline, knows nothing of the topic), openai:MODEL or "
        "transformers:NAME_OR_FOLDER.",
    )
    personas: int = Field(6, ge=1, le=MAX_PERSONAS, description="remote-consultation: simulated patients.")
    writer_answer_limit_s: float = Field(
        600.0, gt=0, le=MOST_SECONDS, exclude=True, description="Longest wait for one answer of the writer, seconds."
    )

    @field_validator("topic")
    @classmethod
    def _topic(cls, topic: str) -> str:
        line = clean(topic, 10 * MAX_TOPIC_CHARS)
        if not 0 < len(line) <= MAX_TOPIC_CHARS:
            raise ValueError(f"a topic has 1 to {MAX_TOPIC_CHARS} characters, this one {len(line)}")
        return line


class StoryboardDetail(TypedDict):
    """Detail of a kept record: who wrote how many shots and statements."""

    use: str
    language: str
    topic: str
    writer: str
    shots: int
    statements: int


class StoryboardOutputs(TypedDict):
    """Outputs of a kept record, role → sha256."""

    storyboard: str


STORYBOARD: Handover[StoryboardDetail, StoryboardOutputs] = Handover(STEP)


def write_storyboard(work: Work, store: Store, params: StoryboardParams) -> Outcome:
    """Writes one storyboard. Output `storyboard`: JSON, see `models.storyboards.storyboard.Storyboard`.

    Raises:
        ItemFailed: bad_topic; writer_unavailable; as `chat_storyboard`.
    """
    use = load_use(params.use)
    try:
        board = template_storyboard(use, params.topic, params.language, params.topic_in_english, params.personas)
    except ValueError as error:
        raise ItemFailed("bad_topic", str(error)) from error
    if params.writer != TEMPLATE_NAME:
        try:
            board = chat_storyboard(_chat(params), use, board)
        except CaptionUnavailable as error:
            raise ItemFailed("writer_unavailable", str(error), transient=error.transient) from error
    detail: StoryboardDetail = {
        "use": board.use, "language": board.language, "topic": board.topic, "writer": board.writer,
        "shots": len(board.shots), "statements": len(board.statements),
    }  # fmt: skip
    artifact = store.put_bytes(canonical_json(board.model_dump(mode="json")), "application/json")
    return Outcome("kept", detail=dict(detail), outputs={"storyboard": artifact})


def step(params: StoryboardParams) -> Step:
    """Storyboard, ready to run.

    Raises:
        ModelUnavailable: the writer can't be had.
        RunStopped: no writer has such a name.
    """
    models = {"use": load_use(params.use).digest}
    if params.writer != TEMPLATE_NAME:
        models["writer"] = writer_digest(_chat(params).digest)
    given = params.model_dump(mode="json", exclude={"writer"})
    if not load_use(params.use).personas:
        del given["personas"]
    identity = StepIdentity(STEP, VERSION, {"template": TEMPLATE_VERSION, **given}, models)
    return Step(identity, partial(write_storyboard, params=params), runs_in="threads")


def read_storyboard(ledger: Ledger, record: Record) -> Storyboard:
    """The storyboard of a kept record. Raises as `Store.read`."""
    return Storyboard.model_validate_json(ledger.store.read(STORYBOARD.outputs(record)["storyboard"]))


@cache
def _chat(params: StoryboardParams) -> Chat:
    settings = current()
    try:
        return load_chat(
            params.writer,
            base_url=settings.caption_base_url,
            api_key=settings.caption_key,
            time_limit_s=params.writer_answer_limit_s,
            without=f"choose writer={TEMPLATE_NAME}, which words the topic without knowing it",
        )
    except ValueError as error:
        raise RunStopped(f"writer: {error}; or {TEMPLATE_NAME!r}") from error


@step_task(STEP, "network")
def storyboard_shard(label: str, params: StoryboardParams, retry_quarantined: bool = False) -> ShardResult:
    """Writes the storyboard; the one record's id is the result's."""
    ready = step(params)
    subject = f"storyboard-{digest_of(ready.identity.params)[:16]}"
    return run_in_prefect(ready, [Work(subject)], retry_quarantined=retry_quarantined)
