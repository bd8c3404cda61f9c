"""Which of the paper's categories do the words beside a video speak for, in any of the dictionary's eight languages?

Multinomial logistic regression on hashed words, pairs of words and word parts (`models.relevance.features`). It is
trained by `models.segmentation.train_category` on titles that are made of phrases, written for each language and
category, and of the terms of the medical dictionary. Title with tags, description and transcript are scored apart, so
that a long description cannot drown the title, and their log probabilities are added with the weights of fields.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from medgen.canonical import digest_of
from models import ModelUnavailable
from models.hub_files import file_digest
from models.relevance.classifier import length_weight
from models.relevance.dictionary import FIELD_WEIGHTS
from models.relevance.features import FEATURES_VERSION, features_of, words_of
from models.segmentation.heads import softmax

CATEGORY_HEAD = Path(__file__).parents[1] / "weights" / "category_head.safetensors"
CATEGORY_CARD = "category_head"
MAX_CHARS = 1000  # of each field that are read
MOST_WORDS = 5  # that are named as evidence
WORDS_SCORED = 60
CLEAR_WORD = 1.0  # log odds that a word must have to be named


@dataclass(frozen=True)
class CategoryText:
    """The classifier.

    Args:
        columns: int32 (F,), the hashed features that have weights, growing. weights: float32 (F, K). bias: (K,).
    """

    classes: tuple[str, ...]
    digest: str
    columns: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """float64 (N, K) of texts; those without a known feature have the bias alone."""
        words = words_of([text[:MAX_CHARS] for text in texts])
        text, column = features_of(words)
        place = np.minimum(np.searchsorted(self.columns, column), len(self.columns) - 1)
        known = self.columns[place] == column
        sums = np.zeros((len(texts), len(self.classes)))
        np.add.at(sums, text[known], self.weights[place[known]])
        counts = np.bincount(words.text, minlength=words.texts)
        found: np.ndarray = sums * length_weight(counts)[:, None] + self.bias
        return found

    def probabilities(self, title: str, tags: str = "", description: str = "", transcript: str = "") -> np.ndarray:
        """float32 (K,), adding up to 1: of the fields that hold words; even shares where none does."""
        fields = (f"{title}\n{tags}".strip(), description.strip(), transcript.strip())
        chosen = [(text, weight) for text, weight in zip(fields, FIELD_WEIGHTS, strict=True) if text]
        if not chosen:
            return np.full(len(self.classes), 1 / len(self.classes), np.float32)
        logits = self.logits([text for text, _ in chosen])
        joint: np.ndarray = np.array([weight for _, weight in chosen]) @ logits
        found: np.ndarray = softmax(joint[None])[0]
        return found

    def evidence(self, category: str, texts: Sequence[str]) -> tuple[str, ...]:
        """The words that speak most for a category, lower case, at most `MOST_WORDS`, the clearest first."""
        seen = words_of(list(texts))
        spans = zip(seen.start[:WORDS_SCORED], seen.end[:WORDS_SCORED], strict=True)
        words = list(dict.fromkeys("".join(map(chr, seen.codes[start:end])) for start, end in spans))
        if not words:
            return ()
        logits = self.logits(words) - self.bias
        own = logits[:, self.classes.index(category)] - logits.mean(axis=1)
        order = np.argsort(-own, kind="stable")[:MOST_WORDS]
        return tuple(words[place] for place in order if own[place] >= CLEAR_WORD)


@cache
def load_category_text() -> CategoryText:
    """The packaged classifier. Raises ModelUnavailable: it is missing or damaged."""
    try:
        with safe_open(CATEGORY_HEAD, framework="numpy") as file:
            card = json.loads(file.metadata()[CATEGORY_CARD])
            columns, weights, bias = (file.get_tensor(key) for key in ("columns", "weights", "bias"))
        if card["features_version"] != FEATURES_VERSION or weights.shape != (len(columns), len(card["classes"])):
            raise ValueError("it was made for other features")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelUnavailable(f"the category classifier {CATEGORY_HEAD.name} cannot be read: {error}") from error
    return CategoryText(tuple(card["classes"]), category_text_digest(), columns, weights.astype(np.float32), bias)


def category_text_digest() -> str:
    """sha256 of the packaged classifier and of what is read of each field."""
    return digest_of({"head": file_digest(CATEGORY_HEAD), "chars": MAX_CHARS, "fields": list(FIELD_WEIGHTS)})
