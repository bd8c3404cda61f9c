"""The offline writer of storyboards: the use's own words with the topic put in. It knows nothing of the topic."""

import re

from models.captioning.untrusted_text import clean
from models.storyboards.personas import balanced_personas, in_english
from models.storyboards.storyboard import MAX_TOPIC_CHARS, Language, Shot, Storyboard
from models.storyboards.use import Use

TEMPLATE_NAME = "template"
TEMPLATE_VERSION = 1  # of how the words are put together; the words have their use's version


def template_storyboard(
    use: Use, topic: str, language: Language, prompt_topic: str = "", personas: int = 6
) -> Storyboard:
    """The storyboard of a topic by the use's template.

    Args:
        topic: one clean line, in the storyboard's language; of a use with personas several complaints may stand in it,
            with ";" between.
        prompt_topic: the same in English, for the video model's prompts; "" to take `topic`.
        personas: how many, where the use has some.

    Raises:
        ValueError: an empty topic; too many personas or complaints, or another number of English ones.
    """
    topic = clean(topic, MAX_TOPIC_CHARS)
    if not topic:
        raise ValueError("a storyboard needs a topic")
    english = clean(prompt_topic, MAX_TOPIC_CHARS) or topic
    text, common = use.texts[language], use.common[language]
    shots = (
        persona_shots(use, topic, english, language, personas)
        if use.personas
        else tuple(
            Shot(title=title, narration=_filled(narration, topic=topic), prompt=_filled(prompt, topic=english))
            for (title, narration), prompt in zip(text["shots"], use.prompts, strict=True)
        )
    )
    return Storyboard(
        use=use.name,
        use_version=use.version,
        language=language,
        topic=topic,
        patient_facing=use.patient_facing,
        writer=TEMPLATE_NAME,
        goal=_filled(text["goal"], topic=topic),
        audience=text["audience"],
        shots=shots,
        statements=tuple(_filled(statement, topic=topic) for statement in text["statements"]),
        closing_title=common["closing_title"],
        closing=use.closing(language),
        synthetic=common["synthetic"],
        draft=common["draft"],
    )


def persona_shots(use: Use, topic: str, english: str, language: Language, count: int) -> tuple[Shot, ...]:
    """A shot for each persona of the grid of personas and complaints.

    Raises ValueError: too many, or other numbers of complaints in the two languages.
    """
    complaints, prompted = _several(topic), _several(english)
    if len(complaints) != len(prompted):
        raise ValueError(f"the topic names {len(complaints)} complaints, the topic in English {len(prompted)}")
    in_prompts = dict(zip(complaints, prompted, strict=True))
    common = use.common[language]
    return tuple(
        Shot(
            title=clean(
                f"{number}. {', '.join(common[name] for name in (persona.sex, persona.age, persona.setting))}", 80
            ),
            narration=_filled(common["complaint"], complaint=persona.complaint),
            prompt=_filled(use.prompts[0], topic=in_prompts[persona.complaint], persona=in_english(persona)),
            persona=persona,
        )
        for number, persona in enumerate(balanced_personas(count, complaints), 1)
    )


def _several(topic: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in topic.replace("；", ";").split(";") if part.strip()))


def _filled(text: str, **values: str) -> str:
    # Not `format`, and in one go: braces in a topic are its own.
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)
