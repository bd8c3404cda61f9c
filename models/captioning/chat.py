"""How a chat model is asked for captions: the prompts, the two questions, the checks, and asking again.

The models that answer are `models.captioning.openai_chat` and `models.captioning.local_chat`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from medgen.canonical import digest_of
from medgen.video.pictures import evenly_spaced
from models.captioning.captioner import FRAMES_SENT, Caption, CaptionRejected, Evidence
from models.captioning.checks import CaptionLimits, Check, check, in_order
from models.captioning.untrusted_text import clean, delimited, without_instructions

MAX_TITLE_CHARS = 300
MAX_DESCRIPTION_CHARS = 2_000
MAX_TAGS_CHARS = 500
MAX_TRANSCRIPT_CHARS = 4_000
MAX_ANSWER_CHARS = 6_000
MAX_ANSWER_TOKENS = 1_024  # room for 170 words several times over; an answer that needs more is cut and refused
LONG_SIDE = 768  # pixels of a frame that is sent
FIRST_TEMPERATURE = 0.0
AGAIN_TEMPERATURE = 0.5  # at 0 a model that failed would give the same answer again

_PROMPTS = Path(__file__).parents[1] / "prompts"
_KINDS = ("detailed", "brief", "again")


@dataclass(frozen=True)
class Prompts:
    """System prompts for a detailed caption and for condensing it, and what is added when asking again."""

    version: str
    detailed: str
    brief: str
    again: str

    @property
    def digest(self) -> str:
        """sha256 (hex) over the three texts."""
        return digest_of([self.detailed, self.brief, self.again])


def load_prompts(name: str) -> Prompts:
    """Prompts of a version that comes with the package ("v1"), or of a folder of your own.

    A folder holds detailed.txt, brief.txt and again.txt; "{problems}" in again.txt stands for what was wrong. Its
    version is its name and the beginning of the digest of its texts. Raises ValueError for anything else.
    """
    folder = Path(name)
    own = folder.is_dir()
    paths = [folder / f"{kind}.txt" if own else _PROMPTS / f"caption_{kind}_{name}.txt" for kind in _KINDS]
    # A version is a word: "v1/../x" must not reach outside the package.
    if not own and not name.isalnum():
        raise ValueError(f"prompts are a version such as 'v1' or a folder: {name!r}")
    try:
        texts = [path.read_text(encoding="utf-8").strip() for path in paths]
    except (OSError, UnicodeDecodeError) as error:
        known = sorted(path.stem.removeprefix("caption_brief_") for path in _PROMPTS.glob("caption_brief_*.txt"))
        raise ValueError(f"no prompts {name!r}: {error}; the package has {', '.join(known)}") from error
    if not all(texts):
        raise ValueError(f"prompts {name!r}: {paths[texts.index('')].name} is empty")
    prompts = Prompts(name, *texts)
    return Prompts(f"{folder.resolve().name}-{prompts.digest[:8]}", *texts) if own else prompts


@dataclass(frozen=True)
class Question:
    """One question to a chat model.

    Args:
        system: instructions.
        text: the user's text, after the pictures.
        pictures: uint8 RGB (H, W, 3), long side at most 768.
        temperature: 0 for the likeliest answer; otherwise drawn with `seed`.
        max_tokens: longest answer.
    """

    system: str
    text: str
    pictures: tuple[np.ndarray, ...] = ()
    temperature: float = FIRST_TEMPERATURE
    seed: int | None = None
    max_tokens: int = MAX_ANSWER_TOKENS


@dataclass(frozen=True)
class Answer:
    """A chat model's answer. `refused`: flagged so by the server; `cut_off`: it reached the longest answer."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    refused: bool = False
    cut_off: bool = False


class Chat(Protocol):
    """A multimodal chat model."""

    name: str
    digest: str

    def answer(self, question: Question) -> Answer:
        """Answers. Safe to call from several threads. Raises CaptionUnavailable."""
        ...

    def ensure_available(self) -> None:
        """Raises ModelUnavailable when it can't be asked at all."""
        ...


class ChatCaptioner:
    """Asks a chat model for a detailed caption from 8 frames and the metadata, then for a brief one from that text.

    A caption that fails a check is asked for again, with what was wrong, at a temperature above 0 and with a seed of
    its own; after `attempts` answers it is rejected. Sentences of the metadata that give orders to a language model
    are not sent; the rest is delimited, and the detailed caption is itself untrusted when it is condensed.
    """

    needs_frames = True

    def __init__(self, chat: Chat, prompts: Prompts, limits: CaptionLimits, attempts: int) -> None:
        if attempts < 1:
            raise ValueError(f"a caption needs at least one attempt: {attempts}")
        self.name = chat.name
        self.digest = chat_captioner_digest(chat.digest, prompts)
        self._chat = chat
        self._prompts = prompts
        self._limits = limits
        self._attempts = attempts

    def ensure_available(self) -> None:
        """Raises ModelUnavailable when the model can't be asked at all."""
        self._chat.ensure_available()

    def caption(self, evidence: Evidence, frames: Sequence[np.ndarray]) -> Caption:
        """Both captions. Fewer than 8 frames are all sent.

        Raises ValueError for no frames or other arrays, CaptionUnavailable when the model gives no usable answer,
        CaptionRejected when every answer failed a check.
        """
        if not len(frames):
            raise ValueError("this captioner needs frames")
        pictures = tuple(sent_picture(frames[index]) for index in evenly_spaced(len(frames), FRAMES_SENT))
        spent = _Spent()
        detailed, checks = self._write("detailed", metadata_block(evidence), pictures, evidence, spent)
        condensed_from = delimited("untrusted_description", {"description": detailed})
        brief, brief_checks = self._write("brief", condensed_from, (), evidence, spent)
        return Caption(
            brief=brief,
            detailed=detailed,
            model=self.name,
            model_digest=self.digest,
            prompt_version=self._prompts.version,
            tokens_in=spent.tokens_in,
            tokens_out=spent.tokens_out,
            questions=spent.questions,
            checks=(*checks, *brief_checks),
        )

    def _write(
        self, kind: str, text: str, pictures: tuple[np.ndarray, ...], evidence: Evidence, spent: "_Spent"
    ) -> tuple[str, list[Check]]:
        """The first answer that passes the checks, and these."""
        prompt = self._prompts.detailed if kind == "detailed" else self._prompts.brief
        system, temperature, seed = prompt, FIRST_TEMPERATURE, None
        for attempt in range(1, self._attempts + 1):
            answer = self._chat.answer(Question(system, text, pictures, temperature, seed, MAX_ANSWER_TOKENS))
            spent.add(answer)
            written = clean(answer.text, MAX_ANSWER_CHARS)
            prompts = (self._prompts.detailed, self._prompts.brief)
            checks = in_order([*_flags(kind, answer), *check({kind: written}, evidence, self._limits, prompts)])
            failed = [result for result in checks if not result.passed]
            if not failed:
                return written, checks
            problems = "; ".join(dict.fromkeys(result.message for result in failed))
            system = f"{prompt}\n\n{self._prompts.again.replace('{problems}', problems)}"
            temperature, seed = AGAIN_TEMPERATURE, attempt
        raise CaptionRejected(checks, written, spent.questions, spent.tokens_in, spent.tokens_out)


def chat_captioner_digest(chat_digest: str, prompts: Prompts) -> str:
    """sha256 (hex) over a chat model's digest, the prompts and all settings of asking."""
    settings = {
        "frames": [FRAMES_SENT, LONG_SIDE],
        "temperatures": [FIRST_TEMPERATURE, AGAIN_TEMPERATURE],
        "chars": [MAX_TITLE_CHARS, MAX_DESCRIPTION_CHARS, MAX_TAGS_CHARS, MAX_TRANSCRIPT_CHARS, MAX_ANSWER_CHARS],
        "tokens": MAX_ANSWER_TOKENS,
    }
    return digest_of({"chat": chat_digest, "prompts": prompts.digest, "settings": settings})


class _Spent:
    """Questions and tokens of one clip."""

    def __init__(self) -> None:
        self.questions = self.tokens_in = self.tokens_out = 0

    def add(self, answer: Answer) -> None:
        self.questions += 1
        self.tokens_in += answer.tokens_in
        self.tokens_out += answer.tokens_out


def _flags(kind: str, answer: Answer) -> list[Check]:
    """Failed checks by the server's flags, whatever the text is; none for a good answer."""
    flags = []
    if answer.refused:
        flags.append(Check("caption_refusal", f"{kind}_flagged_refusal", 1, 0, "at most", "it was refused"))
    if answer.cut_off or len(answer.text) > MAX_ANSWER_CHARS:
        flags.append(Check("caption_length", f"{kind}_cut_off", 1, 0, "at most", "it was far too long and cut off"))
    return flags


def metadata_block(evidence: Evidence) -> str:
    """What strangers wrote and said of a clip, made safe and delimited."""
    limits = {
        "title": (evidence.title, MAX_TITLE_CHARS),
        "description": (evidence.description, MAX_DESCRIPTION_CHARS),
        "tags": (", ".join(evidence.tags), MAX_TAGS_CHARS),
        "transcript": (evidence.transcript, MAX_TRANSCRIPT_CHARS),
    }
    texts = {name: clean(without_instructions(text)[0], limit) for name, (text, limit) in limits.items()}
    return delimited("untrusted_metadata", texts)


def sent_picture(frame: np.ndarray) -> np.ndarray:
    """A uint8 RGB frame (H, W, 3), shrunk to a long side of at most 768 pixels."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise ValueError(f"a frame must be uint8 (H, W, 3), not {frame.dtype} {frame.shape}")
    height, width = frame.shape[:2]
    scale = min(1.0, LONG_SIDE / max(height, width))
    if scale == 1.0:
        return frame
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
