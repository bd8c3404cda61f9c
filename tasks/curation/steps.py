"""The pipeline, from listings to captioned clips: every step once, in order. All else reads this list.

A name stands for the module of that name beside this file and for its `STEP`.
"""

from importlib import import_module
from typing import Any

from tasks.curation.curation_step import CurationStep

STEP_NAMES = (
    "discover",
    "download",
    "segment",
    "classify",
    "cut",
    "quality",
    "decide",
    "deduplicate",
    "privacy",
    "caption",
)
STEPS: tuple[CurationStep[Any], ...] = tuple(import_module(f"tasks.curation.{name}").STEP for name in STEP_NAMES)
