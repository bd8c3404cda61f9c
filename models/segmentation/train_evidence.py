"""Learns how much words weigh beside pictures: `python -m models.segmentation.train_evidence SCORES TITLES`.

SCORES is `frame_head.json` of `medgen train-frames`, its head beside it: pictures judged by heads that saw none of
their sources. TITLES is a table with the columns title, description, lang, is_medical and kind, which the text head
must not have seen. To every medical picture titles are drawn that go with its category, to every other one titles that
are not medical; what the words say of the category is judged by a classifier that saw none of their phrases. The same
files give the same weights.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from medgen.canonical import rounded
from models.hub_files import file_digest
from models.relevance.classifier import load_text_classifier, text_classifier_digest
from models.relevance.labels import FOLDS
from models.segmentation.category import CATEGORIES, LEAST_SHARE
from models.segmentation.category_text import CategoryText
from models.segmentation.evidence import EVIDENCE, log_odds
from models.segmentation.heads import NON_MEDICAL
from models.segmentation.train_category import fit, made_titles, read_phrases

DRAWS = 5  # titles for each picture
LANGUAGES = ("en", "zh", "de", "es", "fr", "pt", "ja", "hi")
LECTURES = ("anatomy & physiology lecture", "nursing / pharmacology lecture", "exam question", "course subject")
# Kinds of the table's rows that are titles of videos of each category, or near to them.
KINDS = {
    "medical teaching": LECTURES,
    "clinical practice": ("procedure", "term: procedure", "clinical term"),
    "popular science": ("health sentence", "disease", "medical Q&A category", "public health term"),
    "medical animation": ("anatomy", "anatomy figure", "term: anatomy", "disease"),
    "medical imaging": ("imaging", "imaging software term", "ECG / bedside monitoring"),
}  # fmt: skip


def main(
    scores: Annotated[Path, typer.Argument(help="frame_head.json of `medgen train-frames`.")],
    titles: Annotated[Path, typer.Argument(help="Table of labelled titles, CSV.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = EVIDENCE,
) -> None:
    """Writes the packaged weights, and what was learnt from what."""
    judged = json.loads(scores.read_text(encoding="utf-8"))["judged"]
    with titles.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["lang"] in LANGUAGES]
    facts = {"medical": _medical(judged, rows), "category": _category(judged)}
    facts["learnt_from"] = {
        "frame_head": file_digest(scores.with_suffix(".safetensors")),
        "titles": file_digest(titles),
        "text_classifier": text_classifier_digest(),
        "pictures": len(judged),
        "draws": DRAWS,
    }
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def title_probabilities(rows: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
    """Category, or non-medical → P(medical) of the rows that go with it, by the packaged text classifier."""
    pools: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        if row["is_medical"] in ("0", "no"):
            pools[NON_MEDICAL].append(row)
        for name, kinds in KINDS.items():
            if row["kind"] in kinds and row["is_medical"] in ("1", "yes"):
                pools[name].append(row)
    classifier = load_text_classifier()
    return {
        name: classifier.probability([r["title"] for r in own], [r["description"] for r in own], [""] * len(own))
        for name, own in sorted(pools.items())
    }


def drawn(judged: Sequence[Mapping[str, Any]], pools: Mapping[str, np.ndarray], seed: int = 0) -> np.ndarray:
    """float64 (items, DRAWS): P(medical) of titles drawn for each picture; of any medical kind where it is unknown."""
    random = np.random.default_rng(seed)
    every = np.concatenate([pools[name] for name in KINDS])
    return np.stack(
        [
            random.choice(pools.get(j["kind"] or "", every) if j["medical"] else pools[NON_MEDICAL], DRAWS)
            for j in judged
        ]
    )


def weights_of(judged: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """float64 (items,), adding up to 1: half of it not medical, the other half shared evenly by the kinds."""
    count = Counter(j["kind"] if j["medical"] else NON_MEDICAL for j in judged)
    kinds = len(count) - (NON_MEDICAL in count)
    return np.array(
        [0.5 / kinds / count[j["kind"]] if j["medical"] else 0.5 / count[NON_MEDICAL] for j in judged]
    )  # fmt: skip


def fit_medical(
    judged: Sequence[Mapping[str, Any]], titles: np.ndarray, weight: np.ndarray
) -> tuple[float, float, float]:
    """(picture, text, offset) of the logistic curve, from P(medical) of pictures and of their titles (items, DRAWS)."""
    from sklearn.linear_model import LogisticRegression

    draws = titles.shape[1]
    inputs = np.stack(
        [np.repeat(log_odds(np.array([j["probability"] for j in judged])), draws), log_odds(titles).ravel()]
    )
    truth = np.repeat([j["medical"] for j in judged], draws)
    model = LogisticRegression(C=1e3).fit(inputs.T, truth, sample_weight=np.repeat(weight, draws) * len(truth))
    return float(model.coef_[0, 0]), float(model.coef_[0, 1]), float(model.intercept_[0])


def _medical(judged: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    picture, text, offset = fit_medical(judged, drawn(judged, title_probabilities(rows)), weights_of(judged))
    return {"picture": rounded(picture), "text": rounded(text), "offset": rounded(offset)}


def left_out_texts() -> dict[str, np.ndarray]:
    """Category → float64 (titles, 5), log shares that the words give each category, judged by classifiers that saw none
    of their phrases."""
    titles = made_titles(read_phrases())
    fold = {phrase: place % FOLDS for place, phrase in enumerate(dict.fromkeys((t.language, t.phrase) for t in titles))}
    of = np.array([fold[title.language, title.phrase] for title in titles])
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for number in range(FOLDS):
        arrays = fit([title for title, k in zip(titles, of, strict=True) if k != number])
        model = CategoryText(CATEGORIES, "", arrays["columns"], arrays["weights"].astype(np.float32), arrays["bias"])
        own = [title for title, k in zip(titles, of, strict=True) if k == number]
        logits = model.logits([title.title for title in own])
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        for title, row in zip(own, np.log(np.maximum(shares, LEAST_SHARE)), strict=True):
            found[title.category].append(row)
    return {name: np.stack(own) for name, own in found.items()}


def category_pairs(
    judged: Sequence[Mapping[str, Any]], texts: Mapping[str, np.ndarray], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log shares of pictures (N, 5) and of the words drawn for them (N, 5), and the place of the truth (N,)."""
    random, pictures, words, truth = np.random.default_rng(seed), [], [], []
    for item in judged:
        if not item["medical"] or item["kind"] not in CATEGORIES:
            continue
        shares = np.array([item["kinds"].get(name, 0.0) for name in CATEGORIES])
        shares = np.maximum(shares / max(shares.sum(), 1e-9), LEAST_SHARE)
        for place in random.integers(len(texts[item["kind"]]), size=DRAWS):
            pictures.append(np.log(shares / shares.sum()))
            words.append(texts[item["kind"]][place])
            truth.append(CATEGORIES.index(item["kind"]))
    return np.stack(pictures), np.stack(words), np.array(truth)


def fit_category(pictures: np.ndarray, words: np.ndarray, truth: np.ndarray) -> tuple[float, float, np.ndarray]:
    """(picture, text, bias (5,)) of the log-linear model, every category weighing the same."""
    from scipy.optimize import minimize

    weight = 1 / np.bincount(truth, minlength=len(CATEGORIES))[truth] / len(CATEGORIES)

    def loss(x: np.ndarray) -> float:
        logits = x[0] * pictures + x[1] * words + x[2:]
        logits = logits - logits.max(axis=1, keepdims=True)
        own = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(truth)), truth]
        return float(weight @ own + 1e-3 * (x[2:] ** 2).sum())

    found = minimize(loss, np.array([1.0, 1.0] + [0.0] * len(CATEGORIES)), method="L-BFGS-B").x
    return float(found[0]), float(found[1]), found[2:] - found[2:].mean()


def _category(judged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    picture, text, bias = fit_category(*category_pairs(judged, left_out_texts()))
    of = {name: rounded(value) for name, value in zip(CATEGORIES, bias, strict=True)}
    return {"picture": rounded(picture), "text": rounded(text), "bias": of}


if __name__ == "__main__":
    typer.run(main)
