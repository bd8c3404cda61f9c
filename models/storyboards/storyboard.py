"""A storyboard: what a video made for a use shows and says, and what a person has to check before anybody sees it."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

UseName = Literal["surgical-training", "patient-education", "remote-consultation", "popular-science"]
USES: tuple[UseName, ...] = get_args(UseName)
Language = Literal["en", "de", "es", "fr", "hi", "ja", "pt", "zh"]
"""Those of the medical dictionary."""
LANGUAGES: tuple[Language, ...] = get_args(Language)

MAX_TOPIC_CHARS = 200
MAX_TITLE_CHARS = 80
MAX_NARRATION_CHARS = 400
MAX_PROMPT_CHARS = 1_000
MAX_STATEMENT_CHARS = 500


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Persona(_Written):
    """A simulated patient: one cell of the grid of personas and complaints; see `models.storyboards.personas`."""

    age: str
    sex: str
    skin_tone: str
    setting: str
    complaint: str


class Shot(_Written):
    """One shot.

    Args:
        title: shown in the picture; `narration` is its subtitle; both in the storyboard's language.
        prompt: for the video model, in English.
        persona: who is shown, where the use has personas.
    """

    title: str = Field(min_length=1, max_length=MAX_TITLE_CHARS)
    narration: str = Field(min_length=1, max_length=MAX_NARRATION_CHARS)
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS)
    persona: Persona | None = None


class Storyboard(_Written):
    """What a video shows and says.

    Args:
        use_version: of the use's template and rules.
        writer: "template", or the language model that wrote goal, audience, shots and statements.
        statements: what a person has to confirm before the video is finished.
        closing_title, closing: words of the last card, which every video of the use has.
        synthetic, draft: the marks in the picture.
    """

    use: UseName
    use_version: int
    language: Language
    topic: str
    patient_facing: bool
    writer: str
    goal: str
    audience: str
    shots: tuple[Shot, ...] = Field(min_length=1)
    statements: tuple[str, ...] = Field(min_length=1)
    closing_title: str
    closing: str
    synthetic: str
    draft: str
