"""Simulated patients for consultations: cells of a grid of personas and complaints, chosen in balance.

Skin tone stands in three groups, because no more can be asked of a video model by words; ages in four.
"""

from collections.abc import Sequence
from itertools import combinations, product
from typing import TypedDict

import numpy as np

from models.storyboards.storyboard import Persona

# Level → how a prompt in English words it.
AGES = {"child": "child", "young_adult": "young", "middle_aged": "middle-aged", "older_adult": "elderly"}
SEXES = {"female": "female", "male": "male"}
SKIN_TONES = {"light": "light skin", "medium": "brown skin", "dark": "dark skin"}
SETTINGS = {"home": "at home", "clinic": "in a village clinic", "ward": "in a hospital ward"}
ATTRIBUTES = ("age", "sex", "skin_tone", "setting", "complaint")
MAX_PERSONAS = 500
MAX_COMPLAINTS = 20


class PairBalance(TypedDict):
    """Two attributes, and how often the rarest and the most frequent pair of their levels occur."""

    attributes: tuple[str, str]
    least: int
    most: int


class Balance(TypedDict):
    """How a set of personas is balanced: attribute → level → how many; pairs of attributes."""

    personas: int
    counts: dict[str, dict[str, int]]
    pairs: list[PairBalance]


def balanced_personas(count: int, complaints: Sequence[str]) -> tuple[Persona, ...]:
    """So many cells of the grid, in an order in which every beginning is balanced too.

    Levels of an attribute occur equally often, to within one. Among the cells that keep this, the one is taken whose
    pairs of levels occurred least, so that, for example, older patients are not all of one skin tone. The same
    arguments give the same cells; a cell comes again only where pairs are as rare as can be.

    Args:
        count: 1 to MAX_PERSONAS.
        complaints: 1 to MAX_COMPLAINTS different ones.

    Raises:
        ValueError: a number out of range.
    """
    if not 1 <= count <= MAX_PERSONAS or not 1 <= len(set(complaints)) == len(complaints) <= MAX_COMPLAINTS:
        raise ValueError(
            f"a grid has 1 to {MAX_PERSONAS} personas and 1 to {MAX_COMPLAINTS} different complaints, "
            f"not {count} and {len(complaints)}"
        )
    levels = [list(AGES), list(SEXES), list(SKIN_TONES), list(SETTINGS), list(complaints)]
    cells = np.array(list(product(*(range(len(names)) for names in levels))))
    singles: list[np.ndarray] = [np.zeros(len(names), int) for names in levels]
    pairs: dict[tuple[int, int], np.ndarray] = {
        (a, b): np.zeros((len(levels[a]), len(levels[b])), int) for a, b in combinations(range(len(levels)), 2)
    }
    chosen = []
    for _ in range(count):
        allowed = np.ones(len(cells), bool)
        for at, seen in enumerate(singles):
            allowed &= seen[cells[:, at]] == seen.min()
        # Squares, so that one very frequent pair weighs more than several of medium frequency.
        cost = sum(np.square(seen[cells[:, a], cells[:, b]]) for (a, b), seen in pairs.items())
        cell = cells[np.where(allowed, cost, np.iinfo(int).max).argmin()]
        for at, level in enumerate(cell):
            singles[at][level] += 1
        for (a, b), seen in pairs.items():
            seen[cell[a], cell[b]] += 1
        values = {name: levels[at][cell[at]] for at, name in enumerate(ATTRIBUTES)}
        chosen.append(Persona(**values))
    return tuple(chosen)


def balance_of(personas: Sequence[Persona]) -> Balance:
    """How these personas are balanced; a level that none has counts 0. Complaints are those that occur."""
    known: dict[str, list[str]] = {
        "age": list(AGES), "sex": list(SEXES), "skin_tone": list(SKIN_TONES), "setting": list(SETTINGS),
        "complaint": list(dict.fromkeys(persona.complaint for persona in personas)),
    }  # fmt: skip
    counts = {
        name: {level: sum(getattr(persona, name) == level for persona in personas) for level in levels}
        for name, levels in known.items()
    }
    pairs: list[PairBalance] = []
    for first, second in combinations(ATTRIBUTES, 2):
        often = [
            sum(getattr(persona, first) == a and getattr(persona, second) == b for persona in personas)
            for a, b in product(known[first], known[second])
        ]
        if often:
            pairs.append({"attributes": (first, second), "least": min(often), "most": max(often)})
    return {"personas": len(personas), "counts": counts, "pairs": pairs}


def in_english(persona: Persona) -> str:
    """The persona as a prompt words it, without the complaint."""
    person = {"child": {"female": "girl", "male": "boy"}}.get(persona.age, {"female": "woman", "male": "man"})
    age = "" if persona.age == "child" else f"{AGES[persona.age]} "
    article = "an" if age.startswith("e") else "a"
    return f"{article} {age}{person[persona.sex]} with {SKIN_TONES[persona.skin_tone]} {SETTINGS[persona.setting]}"
