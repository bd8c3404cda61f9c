"""The uses that videos are made for: what the project wrote for each of them, in eight languages, with its version.

A use is a file of `templates/`. `common.toml` holds the marks and closing words that no video goes without.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from medgen.canonical import digest_of
from models.storyboards.storyboard import LANGUAGES, USES, Language, UseName


@dataclass(frozen=True)
class Use:
    """What is written for one use.

    Args:
        version: of its file; raise it when the file changes.
        patient_facing: patients may see what is made.
        personas: its shots are simulated patients.
        sentence_words: words of the longest sentence that its audience should have to read.
        rules: for a language model that writes the storyboard.
        prompts: for the video model, one a shot (one in all with personas), with {topic} and {persona} to fill in.
        texts: language → goal, audience, statements and (title, narration) of each shot; `common`: language → marks,
            closing words and names of personas.
    """

    name: UseName
    version: int
    patient_facing: bool
    personas: bool
    sentence_words: int
    rules: str
    prompts: tuple[str, ...]
    texts: Mapping[str, Mapping[str, Any]]
    common: Mapping[str, Mapping[str, str]]

    @property
    def digest(self) -> str:
        """sha256 (hex) over all that is written for the use."""
        facts = {
            "name": self.name, "version": self.version, "patient_facing": self.patient_facing,
            "personas": self.personas, "sentence_words": self.sentence_words, "rules": self.rules,
            "prompts": self.prompts, "texts": self.texts, "common": self.common,
        }  # fmt: skip
        return digest_of(facts)

    def closing(self, language: Language) -> str:
        """The words that every video of the use ends with."""
        own = self.common[language]
        return f"{own['closing']} {own['closing_patients']}" if self.patient_facing else own["closing"]


@cache
def load_use(name: UseName) -> Use:
    """What is written for a use. Raises ValueError for a name that is none."""
    if name not in USES:
        raise ValueError(f"no use is called {name!r}; there are {', '.join(USES)}")
    known, common = _read(name), _read("common")
    return Use(
        name=name,
        version=known["version"],
        patient_facing=known["patient_facing"],
        personas=known.get("personas", False),
        sentence_words=known["sentence_words"],
        rules=known["rules"].strip(),
        prompts=tuple(known["prompts"]),
        texts={language: known[language] for language in LANGUAGES},
        common={language: common[language] for language in LANGUAGES},
    )


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(files("models.storyboards").joinpath("templates", f"{name}.toml").read_text("utf-8"))
