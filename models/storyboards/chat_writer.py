"""A storyboard by a chat model: asked by the use's rules, checked, and asked again with what was wrong.

What no model decides: closing words, marks, and who is shown where the use has personas. These are the template's.
"""

import json
import re
from collections.abc import Iterator
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field

from medgen.canonical import digest_of
from medgen.errors import ItemFailed
from models.captioning.chat import AGAIN_TEMPERATURE, FIRST_TEMPERATURE, Chat, Question
from models.captioning.json_answer import json_answer
from models.captioning.untrusted_text import INSTRUCTION, PROMOTION, clean, delimited, without_instructions
from models.storyboards.storyboard import (
    MAX_NARRATION_CHARS,
    MAX_PROMPT_CHARS,
    MAX_STATEMENT_CHARS,
    MAX_TITLE_CHARS,
    MAX_TOPIC_CHARS,
    Language,
    Shot,
    Storyboard,
)
from models.storyboards.use import Use

PROMPT_VERSION = "v1"
ATTEMPTS = 3
MAX_TOKENS = 4_096
MIN_SHOTS, MAX_SHOTS = 3, 10
MIN_STATEMENTS, MAX_STATEMENTS = 2, 40
MAX_ASKED_PERSONAS = 24  # more do not fit into one answer
ENGLISH_NAMES: dict[Language, str] = {
    "en": "English", "de": "German", "es": "Spanish", "fr": "French", "hi": "Hindi", "ja": "Japanese",
    "pt": "Portuguese", "zh": "Chinese, in simplified characters",
}  # fmt: skip
# Letters that a text in these languages can't do without; the others are written in Latin letters.
SCRIPTS: dict[str, str] = {"hi": r"[\u0900-\u097f]", "ja": r"[\u3040-\u30ff]", "zh": r"[\u4e00-\u9fff]"}
_LATIN = r"[A-Za-z\u00c0-\u024f]"


class _Shot(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    title: str = Field(min_length=1, max_length=MAX_TITLE_CHARS)
    narration: str = Field(min_length=1, max_length=MAX_NARRATION_CHARS)
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    goal: str = Field(min_length=1, max_length=300)
    audience: str = Field(min_length=1, max_length=200)
    shots: list[_Shot]
    statements: list[str] = Field(min_length=MIN_STATEMENTS, max_length=MAX_STATEMENTS)


def writer_digest(chat_digest: str) -> str:
    """sha256 (hex) over the model and how it is asked."""
    settings = [ATTEMPTS, MAX_TOKENS, MIN_SHOTS, MAX_SHOTS, MIN_STATEMENTS, MAX_STATEMENTS, MAX_ASKED_PERSONAS]
    return digest_of({"chat": chat_digest, "prompt": _prompt(), "settings": settings})


def chat_storyboard(chat: Chat, use: Use, template: Storyboard) -> Storyboard:
    """A storyboard in a chat model's words.

    Args:
        template: the use's own storyboard of the same topic; its closing words, marks and personas stay.

    Raises:
        CaptionUnavailable: the model gives no answer.
        ItemFailed: storyboard_rejected when every answer failed a check, with what was wrong; too_many_personas.
    """
    if use.personas and len(template.shots) > MAX_ASKED_PERSONAS:
        raise ItemFailed(
            "too_many_personas",
            f"a language model writes at most {MAX_ASKED_PERSONAS} personas at once, not {len(template.shots)}: take "
            "fewer, or the template",
        )
    system, problems = _system(use, template), [""]
    text = delimited("untrusted_topic", _facts(template))
    for attempt in range(ATTEMPTS):
        again = (
            f"\n\nYour last answer could not be used: {'; '.join(problems)[:1_500]}. Write it anew." if attempt else ""
        )
        temperature = AGAIN_TEMPERATURE if attempt else FIRST_TEMPERATURE
        answer = chat.answer(Question(system + again, text, (), temperature, attempt or None, MAX_TOKENS))
        if answer.refused or answer.cut_off:
            problems = ["it was refused" if answer.refused else "it was too long and cut off"]
            continue
        try:
            written = json_answer(answer.text, _Answer)
        except ValueError as error:
            problems = [clean(str(error), 300)]
            continue
        problems = list(_problems(written, use, template))
        if not problems:
            return _storyboard(written, template, chat.name)
    raise ItemFailed(
        "storyboard_rejected", f"{chat.name}: {ATTEMPTS} storyboards, none usable; the last: {problems[0]}"
    )


def _prompt() -> str:
    path = files("models").joinpath("prompts", f"storyboard_{PROMPT_VERSION}.txt")
    return path.read_text("utf-8").strip()


def _system(use: Use, template: Storyboard) -> str:
    shots = len(template.shots)
    count = (
        f"Exactly {shots} shots, one for each persona of the list, in its order"
        if use.personas
        else f"{MIN_SHOTS} to {MAX_SHOTS} shots"
    )
    values = {
        "{rules}": use.rules, "{count}": count, "{language}": ENGLISH_NAMES[template.language],
        "{words}": str(use.sentence_words),
    }  # fmt: skip
    text = _prompt()
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _facts(template: Storyboard) -> dict[str, str]:
    topic = clean(without_instructions(template.topic)[0], MAX_TOPIC_CHARS)
    if not topic:
        raise ItemFailed("bad_topic", "the topic gives orders to a language model and names nothing else")
    personas = [shot.persona.model_dump() for shot in template.shots if shot.persona]
    return {"topic": topic} | ({"personas": json.dumps(personas, ensure_ascii=False)} if personas else {})


def _problems(written: _Answer, use: Use, template: Storyboard) -> Iterator[str]:
    """What is wrong with an answer, in words that the model can go by."""
    shots = len(written.shots)
    if use.personas and shots != len(template.shots):
        yield f"there must be {len(template.shots)} shots, not {shots}"
    elif not use.personas and not MIN_SHOTS <= shots <= MAX_SHOTS:
        yield f"there must be {MIN_SHOTS} to {MAX_SHOTS} shots, not {shots}"
    told = [written.goal, written.audience, *written.statements]
    told += [text for shot in written.shots for text in (shot.title, shot.narration)]
    for text in [*told, *(shot.prompt for shot in written.shots)]:
        if INSTRUCTION.search(text) or PROMOTION.search(text):
            yield f"a text holds an address, an order or a call to subscribe: {clean(text, 60)}"
        if len(text) > MAX_STATEMENT_CHARS and text in written.statements:
            yield f"a statement is longer than {MAX_STATEMENT_CHARS} characters"
    for text in told:
        if not re.search(SCRIPTS.get(template.language, _LATIN), text) and re.search(r"\w", text):
            yield f"not in {ENGLISH_NAMES[template.language]}: {clean(text, 60)}"
    claimed = {number for statement in written.statements for number in _numbers(statement)}
    for place, shot in enumerate(written.shots, 1):
        if not shot.prompt.isascii() and len(re.findall(r"[A-Za-z]", shot.prompt)) < 0.7 * len(shot.prompt):
            yield f"the prompt of shot {place} is not in English"
        if unclaimed := _numbers(shot.narration) - claimed:
            yield f"no statement has the number {sorted(unclaimed)[0]} of shot {place}'s narration"
        longest = max(len(sentence.split()) for sentence in re.split(r"[.!?。！？।]", shot.narration))
        if longest > use.sentence_words:
            yield f"a sentence of shot {place} has {longest} words, more than {use.sentence_words}"


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:[.,]\d+)*", text))


def _storyboard(written: _Answer, template: Storyboard, writer: str) -> Storyboard:
    """The written storyboard with what is the template's."""
    personas = template.shots[0].persona is not None
    shots = tuple(
        Shot(
            title=clean(shot.title, MAX_TITLE_CHARS),
            narration=clean(shot.narration, MAX_NARRATION_CHARS),
            # A persona's prompt is the grid's, or the balance would be the model's to decide.
            prompt=template.shots[place].prompt if personas else clean(shot.prompt, MAX_PROMPT_CHARS),
            persona=template.shots[place].persona if personas else None,
        )
        for place, shot in enumerate(written.shots)
    )
    return template.model_copy(
        update={
            "writer": writer,
            "goal": clean(written.goal, 300),
            "audience": clean(written.audience, 200),
            "shots": shots,
            # The use's own statements hold for whatever a model writes.
            "statements": (*template.statements, *(clean(text, MAX_STATEMENT_CHARS) for text in written.statements)),
        }
    )
