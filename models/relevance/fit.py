"""Fits the scorers of a text head: by the words of titles and contexts, and by titles' words and embeddings."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from models.relevance.classifier import SCALE, TitleScorer, WordScorer, context_of, length_weight, likenesses
from models.relevance.dictionary import EVIDENCE, load_medical_dictionary
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
    """What a head is trained on: each title, then each context or one that is made up, as hashed words and the
    dictionary's evidence; titles also as embeddings."""

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
        of_titles = load_medical_dictionary().evidence(titles)
        evidence = sparse.csr_array(np.vstack([of_titles, np.zeros_like(of_titles)]))  # see `WordScorer.score`
        # Columns: the hashed features, then the evidence.
        self.features: Any = sparse.hstack([sparse.vstack(features), evidence], format="csr").astype(np.float32)
        self.embeddings = encoder.embed(titles)
        self.count = len(texts)
        self.row = np.tile(np.arange(self.count), 2)
        self.medical = np.array([text.medical for text in texts])
        self.weight = weights_of(texts) * [BACKGROUND_WEIGHT if text.source == background else 1.0 for text in texts]


def weights_of(texts: Sequence[LabelledText]) -> np.ndarray:
    """float64 (N,), 1 in the mean of each language.

    In each language that has both classes these weigh the same, so that a language, or its script, is no evidence. Rows
    of one kind and group weigh the square root of their number, so that a thousand names of diseases do not drown a few
    titles. Rows without a language weigh 1.
    """
    weight = np.ones(len(texts))
    language = np.array([text.language for text in texts])
    medical = np.array([text.medical for text in texts])
    of = np.unique([f"{t.language}\n{t.medical}\n{t.kind}\n{t.bundle}" for t in texts], return_inverse=True)[1]
    own = 1 / np.sqrt(np.bincount(of))[of]
    for name in sorted(set(language) - {""}):
        classes = [(language == name) & (medical == answer) for answer in (True, False)]
        for rows in classes:
            if rows.any():
                share = 0.5 if all(part.any() for part in classes) else 1.0
                weight[rows] = own[rows] / own[rows].sum() * share * (language == name).sum()
    return weight


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
        scorers[strength] = _word_scorer(weights * inverse, used, bias)
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
        words = _word_scorer(weights[: len(used)] * inverse, used, bias)
        scorers[strength] = TitleScorer(words, landmarks, whitening @ weights[len(used) :], GAMMA)
    return scorers


def _inverse_frequency(features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Columns in use, and what a feature of each weighs: inverse document frequency (Spärck Jones 1972), evidence 1."""
    frequency = np.bincount(features.indices, minlength=COLUMNS + EVIDENCE)
    used = np.flatnonzero(frequency)
    inverse = (np.log((features.shape[0] + 1) / (frequency[used] + 1)) + 1) * LEXICAL_SCALE
    return used, np.where(used < COLUMNS, inverse, 1.0)


def _word_scorer(weights: np.ndarray, used: np.ndarray, bias: float) -> WordScorer:
    spread = np.zeros(COLUMNS + EVIDENCE, np.float32)
    spread[used] = weights
    return WordScorer(spread[:COLUMNS], bias, spread[COLUMNS:])


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
    weights = np.concatenate([scorer.lexical, scorer.evidence]).astype(np.float64)
    scores: np.ndarray = instances.features[chosen] @ weights + scorer.bias
    return scores


def score_titles(instances: Instances, chosen: np.ndarray, scorer: TitleScorer) -> np.ndarray:
    """float64 (N,): scores by words and embedding of the chosen titles."""
    likeness = likenesses(instances.embeddings[chosen], scorer.landmarks, scorer.gamma)
    scores: np.ndarray = score_words(instances, chosen, scorer.words) + likeness.astype(np.float64) @ scorer.kernel
    return scores
