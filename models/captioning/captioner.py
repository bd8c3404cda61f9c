"""What does this clip show, in words?

Three captioners. Two ask a multimodal language model as MedGen does (arXiv 2507.05675: 8 evenly spaced frames,
title, description and transcript give a detailed caption, mean about 174 words, which a second prompt condenses):
one behind any OpenAI-compatible endpoint, one through transformers on this machine. The third is their weaker
offline stand-in, which looks at no picture and only words the evidence on record.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from models.captioning.checks import Check

TEMPLATE_NAME = "evidence_template"
OPENAI_PREFIX = "openai:"
TRANSFORMERS_PREFIX = "transformers:"
OFFLINE_CHOICE = f"without it choose {TEMPLATE_NAME!r}, which words the record and sees no picture"
DEFAULT_PROMPTS = "v1"

FRAMES_SENT = 8

MotionType = Literal["still", "static", "pan", "tilt", "zoom_in", "zoom_out", "roll", "handheld", "tracking"]
"""As `models.quality.motion` names it."""
CaptionerKind = Literal["vision_language_model", "template"]
"""Whether a captioner looks at pictures, or only words what is on record: an offline stand-in."""


def captioner_kind(name: str) -> CaptionerKind:
    """The kind of a captioner by its name on record."""
    return "template" if name == TEMPLATE_NAME else "vision_language_model"


class CaptionUnavailable(RuntimeError):
    """The model gave no usable answer. `transient`: whether asking again later may help."""

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class CaptionRejected(ValueError):
    """Every answer failed a check.

    Args:
        checks: those of the last answer; at least one failed.
        text: the last answer, cleaned.
        questions, tokens_in, tokens_out: what was spent on it.
    """

    def __init__(
        self, checks: Sequence[Check], text: str = "", questions: int = 0, tokens_in: int = 0, tokens_out: int = 0
    ) -> None:
        first = next(check for check in checks if not check.passed)
        super().__init__(
            f"{first.reason}: {first.metric} is {first.score:g}, {first.passes_when} {first.threshold:g} is asked"
        )
        self.first = first
        self.checks = tuple(checks)
        self.text = text
        self.questions, self.tokens_in, self.tokens_out = questions, tokens_in, tokens_out


@dataclass(frozen=True)
class Evidence:
    """What is on record about a clip before it is captioned.

    `title`, `description`, `tags` (of the whole video), `transcript` (of the clip) and `shown_text` (read in its
    picture) are untrusted text. `category_probability` is in [0, 1], None where a model that was asked named the
    category; `start_s` (of the clip in its video) and `duration_s` in seconds; `width` and `height` in pixels; `fps`
    in frames per second. Raises ValueError for values out of range.
    """

    title: str
    description: str
    transcript: str
    category: str
    category_probability: float | None
    motion_type: MotionType
    duration_s: float
    width: int
    height: int
    fps: float
    tags: tuple[str, ...] = ()
    start_s: float = 0.0
    shown_text: str = ""

    def __post_init__(self) -> None:
        if self.motion_type not in get_args(MotionType):
            raise ValueError(f"motion_type must be one of {get_args(MotionType)}: {self.motion_type!r}")
        if self.category_probability is not None and not 0.0 <= self.category_probability <= 1.0:
            raise ValueError(f"category_probability must be in [0, 1]: {self.category_probability}")
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise ValueError(f"start_s must be finite and not negative: {self.start_s}")
        for field in ("duration_s", "width", "height", "fps"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field} must be positive and finite: {value}")

    @property
    def untrusted(self) -> tuple[str, ...]:
        """Everything that strangers wrote or said."""
        return (self.title, self.description, "\n".join(self.tags), self.transcript, self.shown_text)

    @property
    def facts(self) -> tuple[str, ...]:
        """Words of our own."""
        return (self.category.replace("_", " "),)


@dataclass(frozen=True)
class Caption:
    """A brief and a detailed caption, what wrote them, and the checks that they passed.

    `questions` counts the answers that were asked for (2 when the first two were good), tokens those of all of
    them. All three are 0 for the offline captioner.
    """

    brief: str
    detailed: str
    model: str
    model_digest: str
    prompt_version: str
    tokens_in: int = 0
    tokens_out: int = 0
    questions: int = 0
    checks: tuple[Check, ...] = ()


class Captioner(Protocol):
    """Words a clip. `needs_frames` says whether `caption` looks at the frames at all."""

    name: str
    digest: str
    needs_frames: bool

    def caption(self, evidence: Evidence, frames: Sequence[np.ndarray]) -> Caption:
        """Caption one clip from its evidence and its frames, uint8 RGB (H, W, 3) in time order.

        Safe to call from several threads. Raises CaptionRejected when a check fails for good, CaptionUnavailable
        when the model gives no answer.
        """
        ...

    def ensure_available(self) -> None:
        """Raises ModelUnavailable when the model can't be asked at all; before any work."""
        ...
