"""Fits the scorers of a text head: by the words of titles and contexts, and by titles' words and embeddings."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from models.relevance.classifier import SCALE, TitleScorer, WordScorer, context_of, length_weight, likenesses
from models.relevance.features import COLUMNS, batches, features_of, words_of
from models.relevance.labels import LabelledText
from models.text_encoders import TextEncoder

GAMMA = 1.0  # of the kernel, for embeddings of length 1
LANDMARKS = 384
# What a feature of mean document frequency weighs next to a likeness; 1/14 makes a title's features of length 1 or so.
LEXICAL_SCALE = 1 / 14
CONTEXT_WEIGHT = 0.5  # of a context in training, where a title weighs 1
BACKGROUND_WEIGHT = 4.0
# Phrases that stand below videos of every kind. Rows without a description are trained with one that is made of the
# title and some of these, so that neither having a description nor such phrases speak for or against medicine.
# The file's bytes are part of every recipe, so its first line still names the module that read it first.
PHRASES = Path(__file__).parents[1] / "prompts" / "description_phrases_v1.txt"


class Instances:
    """What a head is trained on: each title, then each context or one that is made up, as hashed words; titles also
    as embeddings."""

    def __init__(self, texts: Sequence[LabelledText], encoder: TextEncoder, background: str) -> None:
        phrases = [line for line in PHRASES.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
        titles = [text.title for text in texts]
        both = titles + [text.context or _made_up(text.title, phrases) for text in texts]
        features = []
        for part in batches(both):
            words = words_of(both[part])
            text, column = features_of(words)
            ones = np.ones(len(text), np.float32)
            counted = sparse.csr_array((ones, (text, column)), shape=(words.texts, COLUMNS))
            counts = np.bincount(words.text, minlength=words.texts)
            features.append(sparse.diags_array(length_weight(counts)) @ counted)
        self.features: Any = sparse.vstack(features, format="csr").astype(np.float32)
        self.embeddings = encoder.embed(titles)
        self.count = len(texts)
        self.row = np.tile(np.arange(self.count), 2)
        self.medical = np.array([text.medical for text in texts])
        self.weight = np.array([BACKGROUND_WEIGHT if text.source == background else 1.0 for text in texts])


def _made_up(title: str, phrases: Sequence[str]) -> str:
    random = np.random.default_rng(int(hashlib.sha256(title.encode()).hexdigest()[:16], 16))
    chosen = [phrases[index] for index in random.choice(len(phrases), size=random.integers(1, 5), replace=False)]
    chosen.insert(int(random.integers(len(chosen) + 1)), title)
    return context_of("\n".join(chosen), "")


def fit_words(instances: Instances, among: np.ndarray, strengths: Sequence[float]) -> dict[float, WordScorer]:
    """strength → scorer from the titles and contexts of the rows `among`: see `_logistic`."""
    chosen = np.flatnonzero(among[instances.row])
    weight = instances.weight[instances.row[chosen]] * np.where(chosen < instances.count, 1.0, CONTEXT_WEIGHT)
    used, inverse = _inverse_frequency(instances.features[chosen])
    inputs = (instances.features[chosen][:, used] @ sparse.diags_array(inverse)).tocsr()
    scorers = {}
    for strength, (weights, bias) in _logistic(inputs, instances.medical[instances.row[chosen]], weight, strengths):
        scorers[strength] = WordScorer(_spread(weights * inverse, used), bias)
    return scorers


def fit_titles(instances: Instances, among: np.ndarray, strengths: Sequence[float]) -> dict[float, TitleScorer]:
    """strength → scorer from the titles of the rows `among`, by words and embedding: see `_logistic`.

    Landmarks are the centres of k-means. Likenesses are whitened (Nyström), so that the penalty is that of a kernel
    machine.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    chosen = np.flatnonzero(among)
    used, inverse = _inverse_frequency(instances.features[chosen])
    embeddings = instances.embeddings[chosen]
    count = min(LANDMARKS, len(np.unique(embeddings, axis=0)))
    with threadpool_limits(1):  # two threads on a busy machine are far slower than one
        centres = KMeans(count, random_state=0, n_init=1).fit(embeddings).cluster_centers_
    centres = centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
    landmarks = np.rint(centres * SCALE).astype(np.int16)
    own = likenesses(landmarks.astype(np.float32) / SCALE, landmarks, GAMMA).astype(np.float64)
    values, axes = np.linalg.eigh((own + own.T) / 2 + 1e-4 * np.eye(count))
    whitening = (axes / np.sqrt(np.maximum(values, 1e-6))) @ axes.T
    whitened = likenesses(embeddings, landmarks, GAMMA) @ whitening
    scaled = instances.features[chosen][:, used] @ sparse.diags_array(inverse)
    inputs = sparse.hstack([scaled, sparse.csr_array(whitened)]).tocsr()
    scorers = {}
    for strength, (weights, bias) in _logistic(inputs, instances.medical[chosen], instances.weight[chosen], strengths):
        words = WordScorer(_spread(weights[: len(used)] * inverse, used), bias)
        scorers[strength] = TitleScorer(words, landmarks, whitening @ weights[len(used) :], GAMMA)
    return scorers


def _inverse_frequency(features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Columns in use, and what a feature of each weighs: inverse document frequency (Spärck Jones 1972)."""
    frequency = np.bincount(features.indices, minlength=COLUMNS)
    used = np.flatnonzero(frequency)
    return used, (np.log((features.shape[0] + 1) / (frequency[used] + 1)) + 1) * LEXICAL_SCALE


def _spread(weights: np.ndarray, used: np.ndarray) -> np.ndarray:
    lexical = np.zeros(COLUMNS, np.float32)
    lexical[used] = weights
    return lexical


def _logistic(
    inputs: Any, medical: np.ndarray, weight: np.ndarray, strengths: Sequence[float]
) -> Iterator[tuple[float, tuple[np.ndarray, float]]]:
    """(strength, (weights, bias)): logistic regression with an L2 penalty, by L-BFGS."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(max_iter=2000, warm_start=True, tol=1e-6)
    for strength in sorted(strengths):
        model.set_params(C=strength)
        with threadpool_limits(1):
            model.fit(inputs, medical, sample_weight=weight)
        yield strength, (model.coef_[0].copy(), float(model.intercept_[0]))


def score_words(instances: Instances, chosen: np.ndarray, scorer: WordScorer) -> np.ndarray:
    """float64 (N,): scores by words of the chosen instances."""
    scores: np.ndarray = instances.features[chosen] @ scorer.lexical.astype(np.float64) + scorer.bias
    return scores


def score_titles(instances: Instances, chosen: np.ndarray, scorer: TitleScorer) -> np.ndarray:
    """float64 (N,): scores by words and embedding of the chosen titles."""
    likeness = likenesses(instances.embeddings[chosen], scorer.landmarks, scorer.gamma)
    scores: np.ndarray = score_words(instances, chosen, scorer.words) + likeness.astype(np.float64) @ scorer.kernel
    return scores
