"""Trains the head of `models.relevance.classifier` on labelled texts, with grouped and stratified cross-validation.

Rows of one group are judged by a head that saw none of them. One label file may be the background: everyday listings of
which hardly any is medical, which bound the share of false alarms. The same files give the same head.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from medgen.canonical import rounded
from models.encoders import shown_name
from models.relevance.classifier import DEFAULT_MODEL, HEAD_CARD, LONG_TEXT, Head, arrays_of, facts_of
from models.relevance.features import FEATURES_VERSION
from models.relevance.fit import (
    BACKGROUND_WEIGHT,
    CONTEXT_WEIGHT,
    GAMMA,
    LANDMARKS,
    LEXICAL_SCALE,
    PHRASES,
    Instances,
    fit_titles,
    fit_words,
)
from models.relevance.labels import FOLDS, read_labels
from models.relevance.validation import (
    DOUBT,
    DOUBT_WITH_CONTEXT,
    MAX_BACKGROUND_RATE,
    MOST_CONTEXT,
    STRENGTHS,
    WAYS,
    validate,
)
from models.text_encoders import load_text_encoder, text_encoder_digest

RECIPE = {
    "folds": FOLDS,
    "gamma": GAMMA,
    "landmarks": LANDMARKS,
    "strengths": list(STRENGTHS),
    "lexical_scale": rounded(LEXICAL_SCALE, 6),
    "long_text": LONG_TEXT,
    "context_weight": CONTEXT_WEIGHT,
    "background_weight": BACKGROUND_WEIGHT,
    "doubt": list(DOUBT),
    "doubt_with_context": list(DOUBT_WITH_CONTEXT),
    "most_context": MOST_CONTEXT,
    "features": FEATURES_VERSION,
    "phrases": hashlib.sha256(PHRASES.read_bytes()).hexdigest(),
}


@dataclass(frozen=True)
class TrainedHead:
    """A head file's bytes, its scores and the list of its data (both JSON)."""

    head: bytes
    scores: dict[str, Any]
    data_list: dict[str, Any]


def train(
    paths: Sequence[Path],
    encoder: str = DEFAULT_MODEL,
    background: str = "",
    max_background_rate: float = MAX_BACKGROUND_RATE,
    titles: Sequence[str] = ("title",),
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> TrainedHead:
    """A calibrated head for `encoder` from label files.

    Args:
        background: name of the file, without suffix, that bounds the share of false alarms; none by default.
        max_background_rate: the bound, 0 to 1.
        progress: called with (stage, done, total).

    Raises:
        SourceUnreadable: as `read_labels`.
        ModelUnavailable: the encoder can't be had.
    """
    texts, files = read_labels(paths, background, titles)
    digest = text_encoder_digest(encoder)
    progress("embedding", 0, 1)
    instances = Instances(texts, load_text_encoder(encoder), background)
    progress("embedding", 1, 1)
    best, figures = validate(
        texts, instances, background, max_background_rate, lambda done, total: progress("validating", done, total)
    )
    every = np.ones(len(texts), bool)
    word_scorer = fit_words(instances, every, [best.words_strength])[best.words_strength]
    title_scorer = fit_titles(instances, every, [best.titles_strength])[best.titles_strength]
    head = Head(word_scorer, title_scorer, best.quick, best.careful, DOUBT, DOUBT_WITH_CONTEXT)
    card = {
        "encoder": shown_name(encoder),
        "encoder_digest": digest,
        "threshold": best.threshold,
        **facts_of(head),
    }
    rule = {"background": background, "max_background_rate": max_background_rate if background else None}
    return TrainedHead(
        head=save(arrays_of(head), metadata={HEAD_CARD: json.dumps(card, sort_keys=True)}),
        scores={
            **card,
            "strengths": [best.words_strength, best.titles_strength],
            "landmarks": len(title_scorer.kernel),
            "rule": rule,
            "cross_validation": figures[WAYS[0]],
            "ways": {way: _headline(own, background) for way, own in figures.items()},
        },
        data_list={"files": [file.row() for file in files]},
    )


def _headline(scores: dict[str, Any], background: str) -> dict[str, Any]:
    """F1 of all files but the background, by file, and the background's share of false alarms."""
    files = scores["by_file"]
    f1 = {name: figures["f1"] for name, figures in files.items() if figures["f1"] is not None and name != background}
    headline = {"f1": scores["f1"], "f1_by_file": f1}
    if background:
        own = files[background]
        headline["background_rate"] = own["false_alarm_rate"]
        headline["background_rate_by_title_alone"] = own.get("by_title_alone", own)["false_alarm_rate"]
    return headline
