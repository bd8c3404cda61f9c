"""What does this clip show, in words?

Two captioners. One asks a multimodal language model behind any OpenAI-compatible endpoint, as MedGen does
(arXiv 2507.05675: 8 evenly spaced frames, title, description and transcript give a detailed caption, mean
about 174 words, which a second prompt condenses). The other is its weaker offline stand-in, which looks at
no picture and only words the evidence on record.
"""

import base64
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from models import ModelUnavailable
from models.relevance import keyword_digest, load_keyword_dictionary

if TYPE_CHECKING:
    from openai import OpenAI

TEMPLATE_NAME = "evidence_template"
OPENAI_PREFIX = "openai:"
PROMPT_VERSION = "v1"  # of the two prompt files
TEMPLATE_VERSION = "v1"  # of the sentences below: raise it when their wording changes

FRAMES_SENT = 8
JPEG_QUALITY = 85
JPEG_LONG_SIDE = 768  # pixels
TEMPERATURE = 0.0

MAX_TITLE_CHARS = 300
MAX_DESCRIPTION_CHARS = 2_000
MAX_TRANSCRIPT_CHARS = 4_000
MAX_ANSWER_CHARS = 6_000
MAX_QUOTED_TITLE_CHARS = 120
MAX_TERMS_NAMED = 12

MotionType = Literal["still", "static_camera", "moving_camera"]

_PROMPTS = Path(__file__).with_name("prompts")
_CAMERA_SENTENCES: dict[str, str] = {
    "still": "The picture stands still.",
    "static_camera": "The camera stands still while something in the picture moves.",
    "moving_camera": "The camera moves.",
}
_CAMERA_PHRASES: dict[str, str] = {
    "still": "a still picture",
    "static_camera": "a static camera",
    "moving_camera": "a moving camera",
}
_QUOTATION_MARKS = re.compile('["“”„‟«»＂`]')
# How chat models word a refusal that the endpoint does not flag as one.
_REFUSAL = re.compile(
    r"(i['’]?m sorry|i am sorry|sorry,|i can['’]?t|i cannot|i['’]?m unable|i am unable|as an ai\b)", re.IGNORECASE
)


class CaptionUnavailable(RuntimeError):
    """The endpoint gave no usable answer. `transient`: whether asking again later may help."""

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class CaptionRejected(ValueError):
    """The model answered with nothing, a refusal, or a text that was cut off or far too long."""


@dataclass(frozen=True)
class Evidence:
    """What is on record about a clip before it is captioned.

    `title`, `description`, `tags` (of the whole video) and `transcript` (of the clip) are untrusted text.
    `category_probability` is in [0, 1]; `duration_s` in seconds; `width` and `height` in pixels; `fps` in
    frames per second. Raises ValueError for values out of range.
    """

    title: str
    description: str
    transcript: str
    category: str
    category_probability: float
    motion_type: MotionType
    duration_s: float
    width: int
    height: int
    fps: float
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.motion_type not in get_args(MotionType):
            raise ValueError(f"motion_type must be one of {get_args(MotionType)}: {self.motion_type!r}")
        if not 0.0 <= self.category_probability <= 1.0:
            raise ValueError(f"category_probability must be in [0, 1]: {self.category_probability}")
        for field in ("duration_s", "width", "height", "fps"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field} must be positive and finite: {value}")


@dataclass(frozen=True)
class Caption:
    """A brief and a detailed caption and what wrote them. Tokens are 0 for an offline captioner."""

    brief: str
    detailed: str
    model: str
    model_digest: str
    prompt_version: str
    tokens_in: int
    tokens_out: int


class Captioner(Protocol):
    """Words a clip. `needs_frames` says whether `caption` looks at the frames at all."""

    name: str
    digest: str
    needs_frames: bool

    def caption(self, evidence: Evidence, frames: Sequence[np.ndarray]) -> Caption:
        """Caption one clip from its evidence and its frames, uint8 RGB (H, W, 3) in time order."""
        ...


class EvidenceTemplateCaptioner:
    """Offline and weaker: it words the evidence on record and knows nothing of the picture.

    The title appears only between quotation marks, cleaned and cut; of description, tags and speech only
    the terms of the medical dictionary are named. Deterministic.
    """

    name = TEMPLATE_NAME
    needs_frames = False

    def __init__(self) -> None:
        self.digest = captioner_digest(TEMPLATE_NAME)
        self._dictionary = load_keyword_dictionary()

    def caption(self, evidence: Evidence, frames: Sequence[np.ndarray] = ()) -> Caption:
        """Both captions in plain sentences; `frames` are not looked at."""
        category = _quoted(evidence.category.replace("_", " "), MAX_QUOTED_TITLE_CHARS) or "no category"
        title = _quoted(evidence.title, MAX_QUOTED_TITLE_CHARS)
        listed = self._dictionary.match("\n".join((evidence.title, evidence.description, *evidence.tags)))
        spoken = self._dictionary.match(evidence.transcript)
        video = f"a video titled {title}" if title else "an untitled video"

        brief = (
            f"A clip of {evidence.duration_s:.1f} seconds from {video}, "
            f"sorted under {category}, with {_CAMERA_PHRASES[evidence.motion_type]}."
        )
        detailed = " ".join(
            (
                f"The clip lasts {evidence.duration_s:.1f} seconds and comes from {video}.",
                f"It measures {evidence.width} by {evidence.height} pixels at {evidence.fps:g} frames per second.",
                f"A classifier sorts it under {category} with a probability of {evidence.category_probability:.2f}.",
                _CAMERA_SENTENCES[evidence.motion_type],
                f"The title, description and tags of the video name {_terms_phrase(listed)}.",
                f"The words spoken in the clip name {_terms_phrase(spoken)}."
                if _clean(evidence.transcript, MAX_TRANSCRIPT_CHARS)
                else "No speech is on record for the clip.",
                "This caption words the records alone; the picture was not looked at.",
            )
        )
        return Caption(brief, detailed, self.name, self.digest, TEMPLATE_VERSION, 0, 0)


class OpenAICaptioner:
    """A multimodal chat model behind an OpenAI-compatible endpoint (`chat.completions`).

    At temperature 0, so that answers repeat as far as the server allows. The key is held in memory only: it
    is in no repr, error message or digest.
    """

    needs_frames = True

    def __init__(self, model: str, base_url: str, api_key: str, timeout_s: float = 60, max_retries: int = 4) -> None:
        """Nothing is asked yet. Raises ValueError for an empty model name or a base_url that is not http(s).

        `timeout_s` bounds each wait for the server, not the sum over `max_retries`, which the client spaces
        with growing pauses and spends on timeouts, broken connections and the statuses 408, 409, 429, 5xx.
        """
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("the captioner's base_url must be an http or https address")
        self.name = f"{OPENAI_PREFIX}{model}"
        self.digest = captioner_digest(self.name)
        self._model = model
        self._base_url = base_url
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._max_retries = max_retries

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self._model!r})"

    @cached_property
    def _client(self) -> "OpenAI":
        from openai import OpenAI

        return OpenAI(
            api_key=self._api_key,
            base_url=self._base_url,
            timeout=self._timeout_s,
            max_retries=self._max_retries,
        )

    def caption(self, evidence: Evidence, frames: Sequence[np.ndarray]) -> Caption:
        """Ask for a detailed caption from 8 evenly spaced frames, then for a brief one from that text.

        Fewer than 8 frames are all sent. Frames are uint8 RGB (H, W, 3) in time order. Raises ValueError
        for no frames or other arrays, CaptionUnavailable when the endpoint gives no usable answer,
        CaptionRejected when the answer is empty, a refusal, cut off or too long.
        """
        if not len(frames):
            raise ValueError("this captioner needs frames")
        metadata = {
            "title": _clean(evidence.title, MAX_TITLE_CHARS),
            "description": _clean(evidence.description, MAX_DESCRIPTION_CHARS),
            "transcript": _clean(evidence.transcript, MAX_TRANSCRIPT_CHARS),
        }
        pictures = [
            {"type": "image_url", "image_url": {"url": _jpeg_data_url(frames[index])}}
            for index in evenly_spaced(len(frames), FRAMES_SENT)
        ]
        evidence_text = {"type": "text", "text": _delimited("untrusted_metadata", metadata)}
        detailed, detailed_usage = self._ask("caption_detailed", [*pictures, evidence_text])
        description = _delimited("untrusted_description", {"description": detailed})
        brief, brief_usage = self._ask("caption_brief", [{"type": "text", "text": description}])
        return Caption(
            brief=brief,
            detailed=detailed,
            model=self.name,
            model_digest=self.digest,
            prompt_version=PROMPT_VERSION,
            tokens_in=detailed_usage.prompt_tokens + brief_usage.prompt_tokens,
            tokens_out=detailed_usage.completion_tokens + brief_usage.completion_tokens,
        )

    def _ask(self, prompt: str, content: list[dict[str, Any]]) -> tuple[str, "_Usage"]:
        """One question. The answer on one line, and the tokens that it cost."""
        import openai

        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self._model,
                temperature=TEMPERATURE,
                messages=[
                    {"role": "system", "content": _prompt_path(prompt).read_text(encoding="utf-8")},
                    {"role": "user", "content": content},
                ],
            )
            completion = _Completion.model_validate_json(response.content)
        # Not chained: the client's errors carry the request and the server's words, which may hold the key.
        except openai.APIStatusError as error:
            transient = error.status_code in (408, 409, 429) or error.status_code >= 500
            message = f"{self.name} answered HTTP {error.status_code}: {self._redacted(error.message)}"
            raise CaptionUnavailable(message, transient=transient) from None
        except openai.APITimeoutError:
            raise CaptionUnavailable(f"{self.name} did not answer in time", transient=True) from None
        except openai.APIConnectionError:
            raise CaptionUnavailable(f"{self.name} could not be reached", transient=True) from None
        except openai.OpenAIError as error:
            message = f"{self.name} could not be asked: {type(error).__name__}"
            raise CaptionUnavailable(message, transient=False) from None
        except ValidationError:
            # A proxy's page or a truncated body: a fault of the moment more often than a lasting one.
            message = f"{self.name} answered something other than a chat completion"
            raise CaptionUnavailable(message, transient=True) from None
        choice = completion.choices[0]
        answer = choice.message.content or ""
        text = _clean(answer, MAX_ANSWER_CHARS)
        if choice.message.refusal or choice.finish_reason == "content_filter" or _REFUSAL.match(text):
            raise CaptionRejected(f"{self.name} refused ({prompt})")
        if not text:
            raise CaptionRejected(f"{self.name} gave an empty answer ({prompt})")
        if choice.finish_reason == "length" or len(answer) > MAX_ANSWER_CHARS:
            raise CaptionRejected(f"{self.name} gave an answer that was cut off or too long ({prompt})")
        return text, completion.usage or _Usage()

    def _redacted(self, message: str) -> str:
        return _clean(message.replace(self._api_key, "[key]"), 300)


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class _Completion(BaseModel):
    """The part of a chat completion that is read; the client's own parser accepts any shape unchecked."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def load_captioner(name: str = TEMPLATE_NAME, *, base_url: str | None = None, api_key: str | None = None) -> Captioner:
    """The captioner "evidence_template", or "openai:MODEL" at `base_url` with `api_key`.

    Raises ModelUnavailable when the endpoint or its key is not set, ValueError for any other name.
    """
    if name == TEMPLATE_NAME:
        return EvidenceTemplateCaptioner()
    model = _openai_model(name)
    missing = [
        setting
        for setting, value in (("MEDGEN_CAPTION_BASE_URL", base_url), ("MEDGEN_CAPTION_API_KEY", api_key))
        if not value
    ]
    if missing or base_url is None or api_key is None:
        raise ModelUnavailable(f"captioner {name} needs {' and '.join(missing)}")
    return OpenAICaptioner(model, base_url, api_key)


def captioner_digest(name: str) -> str:
    """sha256 (hex) over all that shapes a captioner's words: its name, prompts or template, and settings.

    The address of an endpoint is not part of it. Loads no model. Raises ValueError for an unknown name.
    """
    identity: dict[str, Any] = {"name": name}
    if name == TEMPLATE_NAME:
        identity |= {
            "template": TEMPLATE_VERSION,
            "dictionary": keyword_digest(),
            "title_chars": MAX_QUOTED_TITLE_CHARS,
            "terms": MAX_TERMS_NAMED,
        }
    else:
        _openai_model(name)
        prompts = [_prompt_path(prompt) for prompt in ("caption_detailed", "caption_brief")]
        identity |= {
            "prompts": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in prompts},
            "frames": FRAMES_SENT,
            "jpeg": [JPEG_QUALITY, JPEG_LONG_SIDE],
            "temperature": TEMPERATURE,
            "text_chars": [MAX_TITLE_CHARS, MAX_DESCRIPTION_CHARS, MAX_TRANSCRIPT_CHARS, MAX_ANSWER_CHARS],
        }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def evenly_spaced(n_frames: int, count: int) -> list[int]:
    """Indices of `count` frames out of `n_frames`: the middles of `count` equal stretches, in order.

    All indices when there are no more than `count`. Raises ValueError unless n_frames >= 0 and count >= 1.
    """
    if n_frames < 0 or count < 1:
        raise ValueError(f"cannot pick {count} of {n_frames} frames")
    if n_frames <= count:
        return list(range(n_frames))
    return [(2 * i + 1) * n_frames // (2 * count) for i in range(count)]


def _openai_model(name: str) -> str:
    model = name.removeprefix(OPENAI_PREFIX)
    if model == name or not model.strip():
        raise ValueError(f"a captioner is named {TEMPLATE_NAME!r} or 'openai:MODEL': {name!r}")
    return model


def _prompt_path(prompt: str) -> Path:
    return _PROMPTS / f"{prompt}_{PROMPT_VERSION}.txt"


def _delimited(tag: str, data: dict[str, str]) -> str:
    """Untrusted text as JSON between tags. Its own angle brackets are escaped, so it cannot close them."""
    body = json.dumps(data, ensure_ascii=False, indent=1).replace("<", "\\u003c").replace(">", "\\u003e")
    return f"<{tag}>\n{body}\n</{tag}>"


def _clean(text: str, limit: int) -> str:
    """Untrusted text on one line: no control, format or surrogate characters, at most `limit` long."""
    kept = []
    for char in text[: 20 * limit]:
        kind = unicodedata.category(char)
        if kind in ("Cc", "Zl", "Zp"):
            kept.append(" ")
        elif not kind.startswith("C"):
            kept.append(char)
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def _quoted(text: str, limit: int) -> str:
    """Untrusted text between quotation marks that it cannot close itself; empty when nothing is left."""
    line = _QUOTATION_MARKS.sub("'", _clean(text, limit))
    return f'"{line}"' if line else ""


def _terms_phrase(terms: list[str]) -> str:
    if not terms:
        return "no term of the medical dictionary"
    noun = "term" if len(terms) == 1 else "terms"
    more = len(terms) - MAX_TERMS_NAMED
    return f"the medical {noun} {', '.join(terms[:MAX_TERMS_NAMED])}" + (f" and {more} more" if more > 0 else "")


def _jpeg_data_url(frame: np.ndarray) -> str:
    """A uint8 RGB frame (H, W, 3) as a JPEG data URL, shrunk to a long side of at most 768 pixels."""
    import cv2

    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise ValueError(f"a frame must be uint8 (H, W, 3), not {frame.dtype} {frame.shape}")
    height, width = frame.shape[:2]
    scale = min(1.0, JPEG_LONG_SIDE / max(height, width))
    if scale < 1.0:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    encoded, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise ValueError(f"a frame of {width} by {height} pixels could not be encoded as JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
