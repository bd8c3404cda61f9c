"""The pipeline, from listings to captioned clips: every step once, in order. All else reads this list.

A name stands for the module of that name beside this file and for its `STEP`, which `curation_step.steps` gives.
Only names stand here: who reads what is on record must not wait for the libraries of those who do the work.
"""

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
