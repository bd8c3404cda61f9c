"""The pipeline, from listings to captioned clips: every step once, in order. All else reads this list."""

from typing import Any

from tasks.curation import (
    caption,
    classify,
    cut,
    decide,
    deduplicate,
    discover,
    download,
    privacy,
    quality,
    segment,
)
from tasks.curation.curation_step import CurationStep

STEPS: tuple[CurationStep[Any], ...] = (
    discover.STEP,
    download.STEP,
    segment.STEP,
    classify.STEP,
    cut.STEP,
    quality.STEP,
    decide.STEP,
    deduplicate.STEP,
    privacy.STEP,
    caption.STEP,
)
STEP_NAMES = tuple(step.name for step in STEPS)
