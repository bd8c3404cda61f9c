"""Multimodal LLMs judge a video: medical accuracy by a rubric, and the ratings of VideoScore.

Both are off unless a model is named, and neither is the same as asking people.
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import TypedDict

import numpy as np
from pydantic import Field, field_validator

from medgen.canonical import rounded
from medgen.devices import this_device
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.parameters import MOST_SECONDS, Parameters
from medgen.settings import current
from medgen.shard import ShardResult, Step
from medgen.store import Store
from medgen.video.limits import Limits
from medgen.video.pictures import evenly_spaced, pictures
from models.captioning.captioner import OPENAI_PREFIX, TRANSFORMERS_PREFIX, CaptionUnavailable
from models.captioning.chat import Chat
from models.captioning.loading import load_chat
from models.encoders import shown_name
from models.metrics.descriptor import shrunk
from models.metrics.mllm_judge import ERROR_FROM, JUDGED_FRAMES, RUBRIC, collect_votes, mllm_judge_digest
from models.metrics.video_score import VideoScore, scored_frames, scored_places, video_score_digest
from tasks.evaluation.measure_video import MAX_FPS, Video, video_file
from tasks.prefect_step import run_in_prefect, step_task

STEP = "judge_video"
KEPT_SIDE = 980  # pixels of the longest side; the judge sees less
MAX_S = 120.0
ACCURACY = "medical_accuracy"
LEVEL = "medical_error_level"


class MllmJudgeParams(Parameters):
    """Parameters of the judge of medical accuracy and of VideoScore."""

    judge_model: str = Field(
        "", description="Judge of medical accuracy: openai:MODEL or transformers:NAME_OR_FOLDER; empty: none."
    )
    judge_votes: int = Field(3, ge=1, le=15, description="Votes on each video, an odd number; the majority counts.")
    judge_answer_limit_s: float = Field(
        600.0, gt=0, le=MOST_SECONDS, exclude=True, description="Longest wait for one answer, seconds."
    )
    video_score_model: str = Field(
        "", description="VideoScore: hub name (TIGER-Lab/VideoScore-v1.1) or folder; empty: none."
    )
    video_score_frames: int = Field(
        0,
        ge=0,
        le=480,
        description="Most frames that VideoScore sees; 0: as its authors have it, 16 for VideoScore and 48 for v1.1.",
    )

    @property
    def scored_frames(self) -> int:
        """Most frames that VideoScore sees."""
        return self.video_score_frames or scored_frames(self.video_score_model)

    @field_validator("judge_votes")
    @classmethod
    def _odd(cls, votes: int) -> int:
        if votes % 2 == 0:
            raise ValueError("an even number of votes has no majority")
        return votes


class VoteRow(TypedDict):
    """One vote; see `models.metrics.mllm_judge.Vote`."""

    level: int
    kinds: list[str]
    reason: str


class MllmJudgeDetail(TypedDict):
    """Detail of a kept record of the judge: its votes, how many could not be used, and what they were asked by."""

    votes: list[VoteRow]
    unusable: int
    rubric: str
    wrong_from: int
    tokens_in: int
    tokens_out: int


MLLM_JUDGE: Handover[MllmJudgeDetail] = Handover(STEP)


def mllm_judge(work: Work, store: Store, params: MllmJudgeParams) -> Outcome:
    """Asks the judge about one video. Scores: medical_accuracy (0 or 1) and medical_error_level (0 to 3).

    Raises:
        ItemFailed: judge_unavailable; as `medgen.video.pictures.pictures`.
    """
    chat = _chat(params)
    places = evenly_spaced(work.context["frames"], JUDGED_FRAMES)
    frames = [shrunk(frame, KEPT_SIDE) for frame in frames_at(work, store, places)]
    try:
        verdict = collect_votes(chat, frames, work.context["prompt"], params.judge_votes)
    except CaptionUnavailable as error:
        raise ItemFailed("judge_unavailable", str(error), transient=error.transient) from error
    names = judged_names(params.judge_model)
    values = {names[0]: 0.0 if verdict.wrong else 1.0, names[1]: float(verdict.level)}
    digest = mllm_judge_digest(chat.digest, params.judge_votes)
    detail: MllmJudgeDetail = {
        "votes": [{"level": vote.level, "kinds": list(vote.kinds), "reason": vote.reason} for vote in verdict.votes],
        "unusable": verdict.unusable,
        "rubric": RUBRIC,
        "wrong_from": ERROR_FROM,
        "tokens_in": verdict.tokens_in,
        "tokens_out": verdict.tokens_out,
    }
    return Outcome("kept", detail=dict(detail), scores=values, score_models=dict.fromkeys(values, digest), decodes=1)


def video_score(work: Work, store: Store, params: MllmJudgeParams) -> Outcome:
    """Asks VideoScore about one video. Scores: its five dimensions.

    Raises:
        ItemFailed: as `medgen.video.pictures.pictures`.
    """
    # At their own size: the processor makes them smaller, as it did for the authors.
    frames = list(frames_at(work, store, scored_places(work.context["frames"], params.scored_frames)))
    ratings = _video_score(params.video_score_model).scores(frames, work.context["prompt"])
    shown = shown_name(params.video_score_model)
    values = {f"videoscore/{name}[{shown}]": rounded(value) for name, value in ratings.items()}
    digest = video_score_digest(params.video_score_model, params.scored_frames)
    return Outcome("kept", scores=values, score_models=dict.fromkeys(values, digest), decodes=1)


def judged_names(model: str) -> tuple[str, str]:
    """Names of the judge's two scores."""
    prefix = TRANSFORMERS_PREFIX if model.startswith(TRANSFORMERS_PREFIX) else ""
    shown = shown_name(model.removeprefix(prefix)) if prefix else model.removeprefix(OPENAI_PREFIX)
    return f"{ACCURACY}[{shown}]", f"{LEVEL}[{shown}]"


def frames_at(work: Work, store: Store, places: Sequence[int]) -> Iterator[np.ndarray]:
    """A video's frames at those places, uint8 RGB (H, W, 3).

    Raises ItemFailed as `medgen.video.pictures.pictures`; undecodable.
    """
    wanted = set(places)
    found = False
    for picture in pictures(video_file(work, store), Limits(max_duration_s=MAX_S, max_fps=MAX_FPS)):
        if picture.index in wanted:
            found = True
            yield picture.rgb()
    if not found:
        raise ItemFailed("undecodable", "not one frame could be decoded")


@cache
def _chat(params: MllmJudgeParams) -> Chat:
    """Raises ModelUnavailable when it can't be asked; once for a process, so that no work begins."""
    settings = current()
    try:
        return load_chat(
            params.judge_model,
            base_url=settings.caption_base_url,
            api_key=settings.caption_key,
            time_limit_s=params.judge_answer_limit_s,
            without="leave judge_model empty to go without",
        )
    except ValueError as error:
        raise ValueError(f"a judge is named as a chat model is: {error}") from error


@cache
def _video_score(name: str) -> VideoScore:
    return VideoScore(name, this_device())


def mllm_judge_step(params: MllmJudgeParams) -> Step:
    """The judge, ready to run. Raises ModelUnavailable, ValueError."""
    digest = mllm_judge_digest(_chat(params).digest, params.judge_votes)
    identity = StepIdentity(STEP, 1, {"judge_votes": params.judge_votes}, {"judge": digest})
    return Step(identity, partial(mllm_judge, params=params), runs_in="threads")


def video_score_step(params: MllmJudgeParams) -> Step:
    """VideoScore, ready to run."""
    digest = video_score_digest(params.video_score_model, params.scored_frames)
    identity = StepIdentity("video_score", 1, {}, {"video_score": digest})
    return Step(identity, partial(video_score, params=params), runs_in="device")


def _run(step: Step, videos: Sequence[tuple[Video, int]], retry_quarantined: bool) -> ShardResult:
    works = [video.work(prompt=video.prompt, frames=frames) for video, frames in videos]
    return run_in_prefect(step, works, retry_quarantined=retry_quarantined)


@step_task(STEP, "network")
def mllm_judge_shard(
    label: str, videos: Sequence[tuple[Video, int]], params: MllmJudgeParams, retry_quarantined: bool = False
) -> ShardResult:
    """Asks the judge about videos, each with its number of frames; the records' ids come in their order."""
    return _run(mllm_judge_step(params), videos, retry_quarantined)


@step_task("video_score", "gpu")
def video_score_shard(
    label: str, videos: Sequence[tuple[Video, int]], params: MllmJudgeParams, retry_quarantined: bool = False
) -> ShardResult:
    """Asks VideoScore about videos, each with its number of frames; the records' ids come in their order."""
    return _run(video_score_step(params), videos, retry_quarantined)
