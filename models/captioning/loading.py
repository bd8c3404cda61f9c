"""The captioners, and the chat models behind them, by name. Only this file knows all of them; none of them knows it.

Those that ask a model are imported where they are made: the offline one needs no package for pictures.
"""

from typing import TYPE_CHECKING

from models import ModelUnavailable
from models.captioning.captioner import (
    DEFAULT_PROMPTS,
    OFFLINE_CHOICE,
    OPENAI_PREFIX,
    TEMPLATE_NAME,
    TRANSFORMERS_PREFIX,
    Captioner,
)
from models.captioning.checks import CaptionLimits
from models.captioning.template import EvidenceTemplateCaptioner, template_digest

if TYPE_CHECKING:
    from models.captioning.chat import Chat


def load_captioner(
    name: str = TEMPLATE_NAME,
    *,
    limits: CaptionLimits | None = None,
    attempts: int = 3,
    prompts: str = DEFAULT_PROMPTS,
    base_url: str | None = None,
    api_key: str | None = None,
    time_limit_s: float = 600,
    batch: int = 1,
) -> Captioner:
    """A captioner by name.

    Args:
        name: "evidence_template"; "openai:MODEL" at `base_url` with `api_key`; or "transformers:NAME_OR_FOLDER".
        attempts: answers asked for, per kind of caption, until one passes the checks.
        prompts: version of the prompts, or a folder of your own, see `models.captioning.chat.load_prompts`.
        time_limit_s: for one answer of the endpoint, its retries included.
        batch: most questions that the local model answers at once.

    Raises:
        ModelUnavailable: the endpoint or its key is not set, or the local model is not to be had.
        ValueError: any other name, unknown prompts.
    """
    limits = limits or CaptionLimits()
    backend, model = _parts(name)
    if backend == TEMPLATE_NAME:
        return EvidenceTemplateCaptioner(limits)
    from models.captioning.chat import ChatCaptioner, load_prompts
    from models.captioning.local_chat import LocalChat
    from models.captioning.openai_chat import OpenAIChat

    words = load_prompts(prompts)
    if backend == TRANSFORMERS_PREFIX:
        return ChatCaptioner(LocalChat(model, batch), words, limits, attempts)
    missing = [
        setting
        for setting, value in (("MEDGEN_CAPTION_BASE_URL", base_url), ("MEDGEN_CAPTION_API_KEY", api_key))
        if not value
    ]
    if missing or base_url is None or api_key is None:
        raise ModelUnavailable(f"captioner {name} needs {' and '.join(missing)}; {OFFLINE_CHOICE}")
    return ChatCaptioner(OpenAIChat(model, base_url, api_key, time_limit_s=time_limit_s), words, limits, attempts)


def load_chat(
    name: str, *, base_url: str | None, api_key: str | None, time_limit_s: float = 600, batch: int = 1, without: str
) -> "Chat":
    """A chat model by name, asked once whether it is there.

    Args:
        name: "openai:MODEL" at `base_url` with `api_key`, or "transformers:NAME_OR_FOLDER".
        time_limit_s: for one answer of the endpoint, its retries included.
        batch: most questions that the local model answers at once. With another it is loaded another time.
        without: how to do without it, for the message.

    Raises:
        ModelUnavailable: the endpoint or its key is not set or does not answer, or the local model is not to be had.
        ValueError: any other name.
    """
    from models.captioning.local_chat import LocalChat
    from models.captioning.openai_chat import OpenAIChat

    chat: Chat
    if name.startswith(TRANSFORMERS_PREFIX):
        chat = LocalChat(name.removeprefix(TRANSFORMERS_PREFIX), batch)
    elif name.startswith(OPENAI_PREFIX):
        if not (base_url and api_key):
            raise ModelUnavailable(f"{name} needs MEDGEN_CAPTION_BASE_URL and MEDGEN_CAPTION_API_KEY; {without}")
        chat = OpenAIChat(name.removeprefix(OPENAI_PREFIX), base_url, api_key, time_limit_s=time_limit_s)
    else:
        raise ValueError(f"a chat model is named 'openai:MODEL' or 'transformers:NAME_OR_FOLDER': {name!r}")
    chat.ensure_available()
    return chat


def captioner_digest(name: str, prompts: str = DEFAULT_PROMPTS) -> str:
    """sha256 (hex) over all that shapes a captioner's words: its name or weights, prompts or template, settings.

    The address of an endpoint and the place of a folder are not part of it. Loads no model. Raises ValueError for
    an unknown name or prompts, ModelUnavailable when local weights are not to be had.
    """
    backend, model = _parts(name)
    if backend == TEMPLATE_NAME:
        return template_digest()
    from models.captioning.chat import chat_captioner_digest, load_prompts
    from models.captioning.local_chat import local_digest
    from models.captioning.openai_chat import openai_digest

    if backend == TRANSFORMERS_PREFIX:
        return chat_captioner_digest(local_digest(model), load_prompts(prompts))
    return chat_captioner_digest(openai_digest(model), load_prompts(prompts))


def _parts(name: str) -> tuple[str, str]:
    """(backend, model) of a captioner's name."""
    if name == TEMPLATE_NAME:
        return name, ""
    for prefix in (OPENAI_PREFIX, TRANSFORMERS_PREFIX):
        model = name.removeprefix(prefix).strip()
        if name.startswith(prefix) and model:
            return prefix, model
    raise ValueError(
        f"a captioner is named {TEMPLATE_NAME!r}, 'openai:MODEL' or 'transformers:NAME_OR_FOLDER': {name!r}"
    )
