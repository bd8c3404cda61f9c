"""Is a generated video medically and physically right? A multimodal language model (MLLM) votes by a published rubric.

The rubric is `models/prompts/medical_judge_v1.txt`: kinds of error, and four levels of severity as the three people of
the paper used (arXiv 2507.05675, "warning error"; the levels' wording is not given there). Several votes, each drawn
with a seed of its own; a video counts as wrong when more than half of the votes reach ERROR_FROM. A model's judgement
is no physician's: `medgen judge` asks people.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medgen.canonical import digest_of
from models.captioning.captioner import CaptionUnavailable
from models.captioning.chat import Chat, Question
from models.captioning.json_answer import json_answer
from models.captioning.untrusted_text import clean, delimited, without_instructions
from models.metrics.descriptor import shrunk

RUBRIC = "v1"
JUDGED_FRAMES = 8
LONG_SIDE = 768
MAX_TOKENS = 512
MAX_PROMPT_CHARS = 2_000
MAX_REASON_CHARS = 600
TEMPERATURE = 0.5  # at 0 all votes would be one
ATTEMPTS = 2  # answers asked for until one vote is sound
ERROR_FROM = 2  # level from which a video counts as wrong: clear errors

Kind = Literal["anatomy", "instruments", "procedure", "physics", "images", "prompt"]


class MllmJudgeUnusable(CaptionUnavailable):
    """Fewer than half of the votes could be used."""


class Vote(BaseModel):
    """One answer."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    level: int = Field(ge=0, le=3)
    kinds: list[Kind] = Field(default=[], max_length=6)
    reason: str = Field("", max_length=4_000)


@dataclass(frozen=True)
class Verdict:
    """What the votes come to.

    Args:
        level: lower median of the votes' levels, 0 to 3.
        wrong: whether more than half of the votes reach ERROR_FROM.
        votes: those that could be used; `unusable` counts the others.
        tokens_in, tokens_out: spent on all answers.
    """

    level: int
    wrong: bool
    votes: tuple[Vote, ...]
    unusable: int
    tokens_in: int
    tokens_out: int


def rubric(version: str = RUBRIC) -> str:
    """The rubric's text. Raises ValueError for a version that isn't there."""
    path = Path(__file__).parents[1] / "prompts" / f"medical_judge_{version}.txt"
    if not version.isalnum() or not path.is_file():
        raise ValueError(f"no rubric {version!r}; there is {RUBRIC}")
    return path.read_text("utf-8").strip()


def mllm_judge_digest(chat_digest: str, votes: int) -> str:
    """sha256 (hex) over model, rubric and settings of asking."""
    settings = [JUDGED_FRAMES, LONG_SIDE, MAX_TOKENS, MAX_PROMPT_CHARS, TEMPERATURE, ATTEMPTS, ERROR_FROM, votes]
    return digest_of({"chat": chat_digest, "rubric": rubric(), "settings": settings})


def collect_votes(chat: Chat, frames: Sequence[np.ndarray], prompt: str, votes: int) -> Verdict:
    """Asks for `votes` votes on a video.

    Args:
        frames: evenly spaced, in order, uint8 RGB (H, W, 3); JUDGED_FRAMES of them, or fewer.
        prompt: what the video should show; untrusted. "" when unknown.
        votes: odd, so that there is a majority.

    Raises:
        MllmJudgeUnusable: not more than half of the votes could be used.
        CaptionUnavailable: the model gives no answer.
        ValueError: no frames, or an even number of votes.
    """
    if not len(frames) or votes < 1 or votes % 2 == 0:
        raise ValueError(f"a judge needs frames and an odd number of votes: {len(frames)} frames, {votes} votes")
    pictures = tuple(shrunk(frame, LONG_SIDE) for frame in frames)
    shown_prompt = clean(without_instructions(prompt)[0], MAX_PROMPT_CHARS)
    text = delimited("untrusted_prompt", {"prompt": shown_prompt or "(not known)"})
    usable: list[Vote] = []
    tokens_in = tokens_out = 0
    fault = ""
    for number in range(votes):
        for attempt in range(ATTEMPTS):
            seed = number * ATTEMPTS + attempt + 1
            answer = chat.answer(Question(rubric(), text, pictures, TEMPERATURE, seed, MAX_TOKENS))
            tokens_in, tokens_out = tokens_in + answer.tokens_in, tokens_out + answer.tokens_out
            try:
                if answer.refused or answer.cut_off:
                    raise ValueError("the answer was refused" if answer.refused else "the answer was cut off")
                usable.append(read_vote(answer.text))
                break
            except ValueError as error:
                fault = clean(str(error), 200)
    if 2 * len(usable) <= votes:
        raise MllmJudgeUnusable(
            f"{chat.name}: {votes - len(usable)} of {votes} votes could not be used; the last: {fault}"
        )
    wrong = sum(vote.level >= ERROR_FROM for vote in usable)
    level = median_low(vote.level for vote in usable)
    return Verdict(level, 2 * wrong > len(usable), tuple(usable), votes - len(usable), tokens_in, tokens_out)


def read_vote(text: str) -> Vote:
    """The vote in an answer: a JSON object, in a code fence or not. Raises ValueError for anything else."""
    try:
        vote = json_answer(text, Vote)
    except ValueError as error:
        raise ValueError(f"no vote: {error}") from error
    if (vote.level == 0) != (not vote.kinds):
        raise ValueError(f"a vote of level {vote.level} that names the kinds {vote.kinds}")
    return vote.model_copy(update={"reason": clean(vote.reason, MAX_REASON_CHARS)})
