"""Listings: how right the shipped text head is by language, as its own cross-validation put it on record.

The figures come from `models/weights/text_head.json`, which `medgen train-text` writes beside the head: each row is
judged by heads, weighings and a threshold that saw nothing of its repository.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from models.relevance.classifier import DEFAULT_HEAD

ENOUGH = 100  # rows of a language


def paragraphs() -> Iterator[str]:
    """Tables by language and by label file, and what they are worth."""
    card = json.loads(DEFAULT_HEAD.with_suffix(".json").read_text(encoding="utf-8"))
    validated = card["cross_validation"]
    yield "\n".join(_by_language(validated["by_language"]))
    yield "\n".join(_by_file(validated["by_file"]))
    for name, own in validated["by_file"].items():
        languages = own.get("by_language", {})
        if sum(language["rows"] >= ENOUGH for language in languages.values()) > 1:
            yield f"Of `{name}` alone:"
            yield "\n".join(_by_language(languages))
    rule = card["rule"]
    yield (
        "Cross-validated, whole repositories left out together; intervals by resampling repositories. “As discovered” "
        "counts what the dictionary lets through first. The threshold is the best that calls at most "
        f"{rule['max_background_rate']:.2%} of `{rule['background']}` medical: that file's figure is no test of it; "
        "that bound and those of doubt were chosen with these figures in view. "
        "The dictionary's terms were written without a look at these rows, but for some English ones, though it was "
        "known in which kinds of text most was missed; some were struck that let everyday titles of "
        "`youtube_trending_2020`, `medvidcl_titles` and `written_listings` through: false alarms elsewhere will be "
        "somewhat more."
    )


def _by_language(languages: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| language | rows | medical | recall | false alarms | recall as discovered | false alarms as discovered |"
    yield "|---|---|---|---|---|---|---|"
    for name, own in sorted(languages.items()):
        if own["rows"] >= ENOUGH:
            cells = [_share(of, key) for of in (own, own["discovered"]) for key in ("recall", "false_alarm_rate")]
            yield f"| {name} | {own['rows']} | {own['medical']} | " + " | ".join(cells) + " |"


def _by_file(files: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| file of labels | rows | medical | recall | false alarms |"
    yield "|---|---|---|---|---|"
    for name, own in files.items():
        shares = ("–" if own[key] is None else f"{own[key]:.3f}" for key in ("recall", "false_alarm_rate"))
        yield f"| {name} | {own['rows']} | {own['medical']} | " + " | ".join(shares) + " |"


def _share(figures: Mapping[str, Any], key: str) -> str:
    if figures[key] is None:
        return "–"
    interval = figures.get(f"{key}_interval")
    return f"{figures[key]:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
