"""Which of the paper's categories does a clip belong to? A multimodal chat model is asked, by `category_v1.txt`.

The paper sorts clips into five categories (arXiv 2507.05675) and says of none what belongs there; the prompt does, and
its digest is on record. The offline answer is `models.segmentation.category`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medgen.canonical import digest_of
from medgen.video.pictures import evenly_spaced
from models.captioning.captioner import FRAMES_SENT, CaptionUnavailable, Evidence
from models.captioning.chat import (
    AGAIN_TEMPERATURE,
    FIRST_TEMPERATURE,
    LONG_SIDE,
    Chat,
    Question,
    metadata_block,
    sent_picture,
)
from models.captioning.json_answer import json_answer
from models.captioning.untrusted_text import clean
from models.segmentation.category import CATEGORIES

PROMPT = Path(__file__).parents[1] / "prompts" / "category_v1.txt"
UNCLEAR = "unclear"
ATTEMPTS = 3  # answers asked for until one can be read
MAX_TOKENS = 256
MAX_REASON_CHARS = 600

Named = Literal[
    "medical teaching", "clinical practice", "popular science", "medical animation", "medical imaging", "unclear"
]
assert set(get_args(Named)) == {*CATEGORIES, UNCLEAR}


class CategoryAnswer(BaseModel):
    """What a model says: one of `CATEGORIES`, or "unclear", and why."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    category: Named
    reason: str = Field("", max_length=4_000)


@dataclass(frozen=True)
class AskedCategory:
    """The answer, and what was spent on it."""

    answer: CategoryAnswer
    questions: int
    tokens_in: int
    tokens_out: int

    @property
    def named(self) -> str | None:
        """The category that the model named; None when it said that none is clear."""
        return None if self.answer.category == UNCLEAR else self.answer.category


def category_question_digest(chat_digest: str) -> str:
    """sha256 (hex) over model, prompt and settings of asking."""
    settings = [FRAMES_SENT, LONG_SIDE, MAX_TOKENS, FIRST_TEMPERATURE, AGAIN_TEMPERATURE, ATTEMPTS]
    return digest_of({"chat": chat_digest, "prompt": PROMPT.read_text("utf-8"), "settings": settings})


def ask_category(chat: Chat, evidence: Evidence, frames: Sequence[np.ndarray]) -> AskedCategory:
    """Asks a chat model for the category of a clip, again where the answer can't be read.

    Args:
        evidence: its title, description, tags and transcript are shown; its category is not.
        frames: in order of time, uint8 RGB (H, W, 3); of more than 8, 8 are sent.

    Raises:
        CaptionUnavailable: the model gives no answer, or none that can be read.
        ValueError: no frames.
    """
    if not len(frames):
        raise ValueError("the category of a clip needs frames")
    pictures = tuple(sent_picture(frames[index]) for index in evenly_spaced(len(frames), FRAMES_SENT))
    system, text = PROMPT.read_text("utf-8").strip(), metadata_block(evidence)
    tokens_in = tokens_out = 0
    fault = ""
    for attempt in range(ATTEMPTS):
        temperature, seed = (AGAIN_TEMPERATURE, attempt) if attempt else (FIRST_TEMPERATURE, None)
        answer = chat.answer(Question(system, text, pictures, temperature, seed, MAX_TOKENS))
        tokens_in, tokens_out = tokens_in + answer.tokens_in, tokens_out + answer.tokens_out
        try:
            if answer.refused or answer.cut_off:
                raise ValueError("it was refused" if answer.refused else "it was cut off")
            return AskedCategory(read_category(answer.text), attempt + 1, tokens_in, tokens_out)
        except ValueError as error:
            fault = clean(str(error), 200)
    raise CaptionUnavailable(f"{chat.name}: no answer names a category; the last: {fault}")


def read_category(text: str) -> CategoryAnswer:
    """The category in an answer: a JSON object, in a code fence or not. Raises ValueError for anything else."""
    answer = json_answer(text, CategoryAnswer)
    return answer.model_copy(update={"reason": clean(answer.reason, MAX_REASON_CHARS)})
