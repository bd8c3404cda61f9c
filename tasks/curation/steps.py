"""The pipeline, from listings to captioned clips: every step once, in order. All else reads this list.

A name stands for the module of that name beside this file and for its `STEP`.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.curation.curation_step import CurationStep

UNITS = {
    "discover": "listed rows",
    "download": "videos",
    "segment": "videos",
    "classify": "videos",
    "cut": "clips",
    "quality": "clips",
    "decide": "clips",
    "deduplicate": "clips",
    "privacy": "clips",
    "caption": "clips",
}
"""Step → what it counts, in the plural."""

STEP_NAMES = tuple(UNITS)


@cache
def steps() -> "tuple[CurationStep[Any], ...]":
    """The steps themselves. Their modules are imported here, at the first call: who only reads what is on record must
    not wait for the libraries of those who do the work."""
    return tuple(import_module(f"tasks.curation.{name}").STEP for name in STEP_NAMES)
