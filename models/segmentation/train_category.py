"""Trains `models.segmentation.category_text`: `python -m models.segmentation.train_category`. The same inputs give the
same bytes."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import save

from models.relevance.classifier import length_weight
from models.relevance.dictionary import TERMS_PATH
from models.relevance.features import COLUMNS, FEATURES_VERSION, features_of, words_of
from models.segmentation.category import CATEGORIES
from models.segmentation.category_text import CATEGORY_CARD, CATEGORY_HEAD

PHRASES = Path(__file__).parents[1] / "prompts" / "category_phrases_v1.txt"
TITLES = 20  # made of each phrase; a quarter of that of one without a term
CURATED_SHARE = 0.65  # of terms that are drawn from the curated part of the dictionary, where a language has both
LEAST = 2  # titles that a feature must stand in
STRENGTH = 10.0  # inverse of the L2 penalty
LEXICAL_SCALE = 1 / 14  # as in `models.relevance.fit`
KINDS = {
    "disease": ("disease",),
    "procedure": ("procedure",),
    "anatomy": ("anatomy",),
    "imaging": ("imaging",),
    "drug": ("drug",),
    "symptom": ("symptom",),
    "specialty": ("specialty",),
    "care": ("first_aid", "care"),
}
_SECTION = re.compile(r"\[(\w\w) (.+)\]")
_SLOT = re.compile(r"\{(\w+)\}")


class MadeTitle(NamedTuple):
    """A title, what it was made of, and what it is of."""

    title: str
    category: str
    language: str
    phrase: str


def read_phrases(path: Path = PHRASES) -> list[tuple[str, str, str]]:
    """(language, category, phrase) of a file of phrases. Raises ValueError for a section of no known category."""
    found, section = [], ("", "")
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _SECTION.fullmatch(line.strip()):
            section = (match[1], match[2])
            if section[1] not in CATEGORIES:
                raise ValueError(f"{path.name}: {section[1]!r} is no category; there are {', '.join(CATEGORIES)}")
        elif line.strip() and not line.startswith("#"):
            found += [(*section, phrase.strip()) for phrase in line.split(";") if phrase.strip()]
    return found


def made_titles(phrases: Sequence[tuple[str, str, str]]) -> list[MadeTitle]:
    """Titles made of phrases and of the terms of the dictionary, always the same."""
    terms, random = _terms(), np.random.default_rng(0)
    titles = []
    for language, category, phrase in phrases:
        for _ in range(TITLES if _SLOT.search(phrase) else TITLES // 4):
            title = _SLOT.sub(lambda slot, language=language: _filled(slot[1], language, terms, random), phrase)  # type: ignore[misc]  # bound now
            titles.append(MadeTitle(title, category, language, phrase))
    return titles


def _terms() -> dict[tuple[str, str], tuple[list[str], list[str]]]:
    """(language, slot) → curated terms, other terms."""
    table = pq.read_table(TERMS_PATH).to_pylist()
    by_kind: Mapping[tuple[str, str, bool], list[str]] = defaultdict(list)
    for row in table:
        if row["role"] == "term":
            by_kind[row["language"], row["kind"], row["source"] == "curated"].append(row["spelling"])
    languages = {row["language"] for row in table}
    return {
        (language, slot): (
            [term for kind in kinds for term in by_kind[language, kind, True]],
            [term for kind in kinds for term in by_kind[language, kind, False]],
        )
        for language in sorted(languages)
        for slot, kinds in KINDS.items()
    }


def _filled(
    slot: str, language: str, terms: Mapping[tuple[str, str], tuple[list[str], list[str]]], random: np.random.Generator
) -> str:
    if slot == "number":
        return str(random.integers(1, 31))
    curated, other = terms[language, slot]
    pool = curated if curated and (not other or random.random() < CURATED_SHARE) else other
    return pool[random.integers(len(pool))] if pool else ""


def features(titles: Sequence[str]) -> Any:
    """Sparse float32 (N, COLUMNS) of hashed features, weighed by the length of each title."""
    from scipy import sparse

    words = words_of(titles)
    text, column = features_of(words)
    ones = np.ones(len(text), np.float32)
    counted = sparse.csr_array((ones, (text, column)), shape=(words.texts, COLUMNS))
    counts = np.bincount(words.text, minlength=words.texts)
    return (sparse.diags_array(length_weight(counts)) @ counted).tocsr()


def fit(titles: Sequence[MadeTitle]) -> dict[str, np.ndarray]:
    """columns int32 (F,), weights float16 (F, K) and bias float64 (K,) of the classes `CATEGORIES`."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    counted = features([title.title for title in titles])
    frequency = np.bincount(counted.indices, minlength=COLUMNS)
    used = np.flatnonzero(frequency >= LEAST)
    inverse = (np.log((counted.shape[0] + 1) / (frequency[used] + 1)) + 1) * LEXICAL_SCALE
    truth = np.array([CATEGORIES.index(title.category) for title in titles])
    model = LogisticRegression(C=STRENGTH, max_iter=300)
    with threadpool_limits(1):
        model.fit((counted[:, used] @ sparse.diags_array(inverse)).tocsr(), truth)
    weights = (model.coef_ * inverse).T
    return {"columns": used.astype(np.int32), "weights": weights.astype(np.float16), "bias": model.intercept_}


def main() -> None:
    """Writes the packaged head."""
    titles = made_titles(read_phrases())
    card = {
        "classes": list(CATEGORIES),
        "features_version": FEATURES_VERSION,
        "phrases": hashlib.sha256(PHRASES.read_bytes()).hexdigest(),
        "terms": hashlib.sha256(TERMS_PATH.read_bytes()).hexdigest(),
        "titles": len(titles),
    }
    CATEGORY_HEAD.write_bytes(save(fit(titles), metadata={CATEGORY_CARD: json.dumps(card, sort_keys=True)}))


if __name__ == "__main__":
    main()
