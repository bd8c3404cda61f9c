"""A multimodal chat model behind any OpenAI-compatible endpoint (`chat.completions`)."""

import base64
import logging
import math
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from pydantic import BaseModel, Field, ValidationError

from medgen.canonical import digest_of
from models import ModelUnavailable
from models.captioning.captioner import OFFLINE_CHOICE, OPENAI_PREFIX, CaptionUnavailable
from models.captioning.chat import Answer, Question
from models.captioning.untrusted_text import clean

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

JPEG_QUALITY = 85
MAX_REPLY_BYTES = 4_000_000  # a chat completion of 1,024 tokens has a few thousand
PROBE_TOKENS = 16
PROBE_SECONDS = 20.0

log = logging.getLogger(__name__)


class OpenAIChat:
    """Asks over HTTP; one instance serves any number of threads.

    Timeouts, broken connections, garbage and the statuses 408, 409, 429 and 5xx are tried again after growing pauses
    with jitter, or after as long as the server's Retry-After asks; a pause asked of one thread holds for all. The key
    is held in memory only: it is in no repr, error message, log or digest.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key: str,
        *,
        tries: int = 5,
        try_limit_s: float = 120,
        time_limit_s: float = 600,
        first_pause_s: float = 1.0,
    ) -> None:
        """Nothing is asked yet. Raises ValueError for a base_url that is not http(s).

        Args:
            tries: of one question.
            try_limit_s: longest wait for one whole reply, however slowly it drips.
            time_limit_s: longest for a question, all its tries and pauses together.
            first_pause_s: doubled at each try, at most 60 s.
        """
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("the captioner's base_url must be an http or https address")
        self.name = f"{OPENAI_PREFIX}{model}"
        self.digest = openai_digest(model)
        self._model = model
        self._base_url = base_url
        self._host = f"{address.scheme}://{address.hostname}{f':{address.port}' if address.port else ''}"
        self._api_key = api_key
        self._tries, self._try_limit_s, self._time_limit_s = tries, try_limit_s, time_limit_s
        self._first_pause_s = first_pause_s
        self._not_before = 0.0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self._model!r})"

    @cached_property
    def _client(self) -> "OpenAI":
        from openai import OpenAI

        return OpenAI(api_key=self._api_key, base_url=self._base_url, max_retries=0)

    def ensure_available(self) -> None:
        """Asks for a word or two. Raises ModelUnavailable when nobody answers or the request itself is refused.

        A server that is busy, slow or loading the model counts as available.
        """
        try:
            self._try(Question("Answer with one word.", "Hello", max_tokens=PROBE_TOKENS), PROBE_SECONDS)
        except _Transient as error:
            if error.unreachable:
                raise ModelUnavailable(f"{self.name}: no answer from {self._host}; {OFFLINE_CHOICE}") from None
        except CaptionUnavailable as error:
            raise ModelUnavailable(f"{error} (asked at {self._host}); {OFFLINE_CHOICE}") from None

    def answer(self, question: Question) -> Answer:
        """See `Chat`. Raises CaptionUnavailable, transient when the server may do better later."""
        deadline = time.monotonic() + self._time_limit_s
        for attempt in range(1, self._tries + 1):
            self._wait_for_turn(deadline)
            try:
                return self._try(question, min(self._try_limit_s, deadline - time.monotonic()))
            except _Transient as error:
                # Jitter: threads that failed together must not come back together.
                pause = min(60.0, self._first_pause_s * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)
                if error.retry_after_s is not None:
                    pause = error.retry_after_s
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + pause)
                if attempt == self._tries or time.monotonic() + pause >= deadline:
                    raise CaptionUnavailable(f"{error} ({attempt} tries)", transient=True) from None
                log.info("%s; asking again in %.1f s", error, pause)
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _wait_for_turn(self, deadline: float) -> None:
        with self._lock:
            pause = self._not_before - time.monotonic()
        if time.monotonic() + max(0.0, pause) >= deadline:
            raise CaptionUnavailable(f"{self.name} asks to wait longer than the time limit", transient=True)
        if pause > 0:
            time.sleep(pause)

    def _try(self, question: Question, seconds: float) -> Answer:
        """One request. Raises _Transient, or CaptionUnavailable when asking again cannot help."""
        import httpx2
        import openai

        try:
            completion = _Completion.model_validate_json(self._reply(question, seconds))
        # Not chained: the client's errors carry the request and the server's words, which may hold the key.
        except openai.APIStatusError as error:
            message = f"{self.name} answered HTTP {error.status_code}: {self._redacted(error.message)}"
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                raise _Transient(message, _retry_after_s(error)) from None
            raise CaptionUnavailable(message, transient=False) from None
        except (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError):
            raise _Transient(f"{self.name} did not answer in time") from None
        except openai.APIConnectionError:
            raise _Transient(f"{self.name} could not be reached", unreachable=True) from None
        except httpx2.TransportError:
            raise _Transient(f"{self.name} broke off its answer") from None
        except openai.OpenAIError as error:
            message = f"{self.name} could not be asked: {type(error).__name__}"
            raise CaptionUnavailable(message, transient=False) from None
        except ValidationError:
            # A proxy's page or a truncated body: a fault of the moment more often than a lasting one.
            raise _Transient(f"{self.name} answered something other than a chat completion") from None
        choice, usage = completion.choices[0], completion.usage or _Usage()
        return Answer(
            choice.message.content or "",
            usage.prompt_tokens,
            usage.completion_tokens,
            refused=bool(choice.message.refusal) or choice.finish_reason == "content_filter",
            cut_off=choice.finish_reason == "length",
        )

    def _reply(self, question: Question, seconds: float) -> bytes:
        """The body. Read piece by piece, because the client's own timeout starts anew with every byte."""
        end = time.monotonic() + seconds
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _jpeg_data_url(picture)}} for picture in question.pictures
        ]
        drawn = {} if question.seed is None else {"seed": question.seed}
        create: Callable[..., Any] = self._client.chat.completions.with_streaming_response.create
        with create(
            model=self._model,
            temperature=question.temperature,
            max_completion_tokens=question.max_tokens,
            messages=[
                {"role": "system", "content": question.system},
                {"role": "user", "content": [*content, {"type": "text", "text": question.text}]},
            ],
            timeout=seconds,
            **drawn,
        ) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > end:
                    raise TimeoutError
                if len(body) > MAX_REPLY_BYTES:
                    raise _Transient(f"{self.name} answered more than {MAX_REPLY_BYTES} bytes")
            return bytes(body)

    def _redacted(self, message: str) -> str:
        return clean(message.replace(self._api_key, "[key]"), 300)


def openai_digest(model: str) -> str:
    """sha256 (hex) over the model's name and how pictures are sent. The address is not part of it."""
    return digest_of({"name": f"{OPENAI_PREFIX}{model}", "jpeg": JPEG_QUALITY})


class _Transient(Exception):
    """An error after which asking again may help."""

    def __init__(self, message: str, retry_after_s: float | None = None, unreachable: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.unreachable = unreachable


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


def _retry_after_s(error: "APIStatusError") -> float | None:
    """What Retry-After asks for (RFC 9110, 10.2.3: seconds or a date), seconds; None when it says nothing sound."""
    value = error.response.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _jpeg_data_url(picture: np.ndarray) -> str:
    """A uint8 RGB picture (H, W, 3) as a JPEG data URL."""
    encoded, jpeg = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    if not encoded:
        raise ValueError(f"a picture of shape {picture.shape} could not be encoded as JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
