"""Stage 2 of discovery: is a listing medical by its meaning?

Two speeds. The words of every title, and those of its context (description and tags), are scored by linear models of
hashed words, pairs of words and word parts (`models.relevance.features`), some ten thousand listings a second. Where
that leaves doubt, the title is scored once more with its embedding (`models.text_encoders`) beside its words, compared
by a Gaussian kernel with a few hundred landmarks (Nyström approximation; Williams and Seeger 2001). Title and context
are scored apart, so that a long description cannot drown the title, then weighed together and calibrated. `medgen
train-text` makes heads for any encoder.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from medgen.canonical import digest_of
from models import ModelUnavailable
from models.encoders import shown_name
from models.hub_files import file_digest
from models.relevance.dictionary import EVIDENCE, dictionary_digest, load_medical_dictionary
from models.relevance.features import COLUMNS, FEATURES_VERSION, batches, features_of, words_of
from models.text_encoders import MINILM_INT8, TextEncoder, load_text_encoder, served_text_encoder, text_encoder_digest

# The key of a head file's metadata. One key only: safetensors writes several in random order.
HEAD_CARD = "text_head"
DEFAULT_MODEL = MINILM_INT8
DEFAULT_HEAD = Path(__file__).parents[1] / "weights" / "text_head.safetensors"
MAX_TITLE, MAX_DESCRIPTION, MAX_TAGS = 300, 500, 300  # characters that are read
# Unit vectors are rounded to 1/SCALE, so that a last bit of an embedding changes nothing.
SCALE = 4000
# Up to so many words a text counts by the square root of its words, above by their number: `length_weight`.
LONG_TEXT = 16


@dataclass(frozen=True)
class WordScorer:
    """Scores texts by their words and the dictionary's terms in them. A score is a log odds before calibration; above 0
    is medical.

    Args:
        lexical: float32 (COLUMNS,), weight of each hashed feature.
        evidence: float32 (EVIDENCE,), weight of what `MedicalDictionary.evidence` finds.
    """

    lexical: np.ndarray
    bias: float
    evidence: np.ndarray = field(default_factory=lambda: np.zeros(EVIDENCE, np.float32))

    def score(self, texts: Sequence[str], *, titles: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """float64 (N,) scores, and bool (N,), whether a text has a word at all; one that has none scores 0.

        Args:
            titles: whether the dictionary's terms count. A title names what a video is about; a description mentions
                much else.
        """
        words = words_of(texts)
        counts = np.bincount(words.text, minlength=words.texts)
        text, column = features_of(words)
        sums = np.bincount(text, weights=self.lexical[column], minlength=words.texts) * length_weight(counts)
        if titles and self.evidence.any():
            sums += (load_medical_dictionary().evidence(texts) * self.evidence).sum(axis=1)
        return np.where(counts > 0, sums + self.bias, 0.0), counts > 0


@dataclass(frozen=True)
class TitleScorer:
    """Scores titles by their words and their embedding.

    Args:
        landmarks: int16 (K, D), unit vectors times `SCALE`.
        kernel: float64 (K,), weight of the likeness to each landmark.
        gamma: likeness is exp(-gamma |x - landmark|²).
    """

    words: WordScorer
    landmarks: np.ndarray
    kernel: np.ndarray
    gamma: float

    def score(self, titles: Sequence[str], encoder: TextEncoder) -> np.ndarray:
        """float64 (N,) scores; 0 for titles without a word."""
        by_words, has_words = self.words.score(titles)
        likeness = likenesses(encoder.embed(titles), self.landmarks, self.gamma)
        return np.where(has_words, by_words + likeness.astype(np.float64) @ self.kernel, 0.0)


def length_weight(words: np.ndarray) -> np.ndarray:
    """float64 (N,): what the sum of a text's feature weights is multiplied by, from its number of words."""
    count = np.maximum(words, 1)
    weight: np.ndarray = 1 / np.sqrt(count * np.maximum(count / LONG_TEXT, 1))
    return weight


def likenesses(embeddings: np.ndarray, landmarks: np.ndarray, gamma: float) -> np.ndarray:
    """float32 (N, K): exp(-gamma |x - l|²) of embeddings (N, D) of length 1 or 0 and landmarks int16 (K, D)."""
    products = np.rint(embeddings * np.float32(SCALE)) @ landmarks.T.astype(np.float32)
    likeness: np.ndarray = np.exp((products * np.float32(1 / SCALE**2) - np.float32(1)) * np.float32(2 * gamma))
    return likeness


@dataclass(frozen=True)
class Weighing:
    """How the scores of title and context become P(medical): with context, title * t + context * c + both; one of
    them alone counts as it is. Then Platt scaling (Platt 1999): sigmoid(slope * score + offset)."""

    title: float
    context: float
    both: float
    slope: float
    offset: float

    def probability(
        self, title: np.ndarray, has_title: np.ndarray, context: np.ndarray, has_context: np.ndarray
    ) -> np.ndarray:
        """float64 (N,): calibrated."""
        joint = self.title * title + self.context * context + self.both
        score = np.where(has_context, np.where(has_title, joint, context), title)
        return 1 / (1 + np.exp(-np.clip(self.slope * score + self.offset, -50, 50)))


@dataclass(frozen=True)
class Head:
    """What `medgen train-text` makes. `quick` weighs the scores by words alone, `careful` those with an embedding.

    Args:
        doubt: listings whose quick probability lies between these two are looked at carefully.
        doubt_with_context: the same for listings with description or tags and no other evidence for medicine: their
            words alone go further.
    """

    words: WordScorer
    titles: TitleScorer
    quick: Weighing
    careful: Weighing
    doubt: tuple[float, float]
    doubt_with_context: tuple[float, float]


@dataclass(frozen=True)
class TextClassifier:
    """An encoder with its head: P(medical) of listings.

    Args:
        threshold: a listing with at least this probability is medical, by the rule that the head's card states.
    """

    name: str
    digest: str
    threshold: float
    encoder: TextEncoder
    head: Head

    def probability(
        self,
        titles: Sequence[str],
        descriptions: Sequence[str],
        tags: Sequence[str],
        closely: np.ndarray | None = None,
    ) -> np.ndarray:
        """float32 (N,): calibrated P(medical) of listings, rounded to 4 places; tags are joined by newlines.

        Texts are cut to `MAX_TITLE`, `MAX_DESCRIPTION` and `MAX_TAGS` characters. Memory is bounded whatever N is.
        Calibrated for listings half of which are medical. Raises ValueError when the three differ in length.

        Args:
            closely: bool (N,), where a description does not spare the closer look, because other evidence speaks for
                medicine. Without it every listing is looked at as one without a description.
        """
        if not len(titles) == len(descriptions) == len(tags):
            raise ValueError(f"{len(titles)} titles, {len(descriptions)} descriptions and {len(tags)} tags")
        head = self.head
        shown = [title[:MAX_TITLE] for title in titles]
        contexts = [context_of(*pair) for pair in zip(descriptions, tags, strict=True)]
        probability = np.zeros(len(shown))
        context, has_context = np.zeros(len(shown)), np.zeros(len(shown), bool)
        for part in batches(shown, contexts):
            title, has_title = head.words.score(shown[part])
            context[part], has_context[part] = head.words.score(contexts[part], titles=False)
            probability[part] = head.quick.probability(title, has_title, context[part], has_context[part])
            probability[part] = np.where(has_title | has_context[part], probability[part], 0.0)  # no word: no medicine
        bounds = (head.doubt, head.doubt_with_context, head.doubt)
        kind = np.where(has_context, 1 + closely, 0) if closely is not None else np.zeros(len(shown), int)
        left = np.flatnonzero(in_doubt(probability, bounds, kind))
        if len(left):
            doubtful = [shown[index] for index in left]
            score = head.titles.score(doubtful, self.encoder)
            has_title = np.array([bool(title.strip()) for title in doubtful])
            probability[left] = head.careful.probability(score, has_title, context[left], has_context[left])
        return np.round(probability, 4).astype(np.float32)


def in_doubt(quick: np.ndarray, bounds: Sequence[tuple[float, float]], kind: np.ndarray) -> np.ndarray:
    """bool (N,): which quick probabilities lie strictly between the bounds of their kind, an index into `bounds`."""
    low, high = np.array(bounds)[kind].T
    between: np.ndarray = (quick > low) & (quick < high)
    return between


def context_of(description: str, tags: str) -> str:
    """Description and tags as one text, cut to the characters that are read."""
    return f"{description[:MAX_DESCRIPTION]}\n{tags[:MAX_TAGS]}"


def load_text_classifier(model: str = DEFAULT_MODEL, head: str = "", *, served: bool = False) -> TextClassifier:
    """Loads encoder and head.

    Args:
        model: "minilm_int8", "minilm", "wordllama", or a transformers text-embedding model by hub name or folder.
        head: file of a head trained for that encoder; the packaged one by default.
        served: leave an encoder that is no package to an inference process, see `medgen.inference`.

    Raises:
        ModelUnavailable: the encoder's weights or the head are not to be had.
        ValueError: the head was trained for another encoder or is damaged.
    """
    digest = text_classifier_digest(model, head)
    card, weights = read_head(Path(head) if head else DEFAULT_HEAD)
    encoder = served_text_encoder(model) if served else load_text_encoder(model)
    return TextClassifier(shown_name(model), digest, card["threshold"], encoder, weights)


def text_classifier_digest(model: str = DEFAULT_MODEL, head: str = "") -> str:
    """sha256 over the encoder (weights and settings) and the head file. Loads no encoder; raises as
    `load_text_classifier`, so that a run stops before its first row when a part is missing."""
    path = Path(head) if head else DEFAULT_HEAD
    encoder = text_encoder_digest(model)
    card, _ = read_head(path)
    if card["encoder_digest"] != encoder:
        raise ValueError(
            f"the head {path.name} was trained for {card['encoder']!r} ({card['dimension']} numbers per text), not for "
            f"{model!r} as it is here: train one with `medgen train-text LABELS --encoder {model}`"
        )
    return head_model_digest(encoder, file_digest(path))


def head_model_digest(encoder: str, head: str) -> str:
    """The digest of a text classifier from the digest of its encoder and the sha256 of its head file, with that of the
    dictionary that comes along."""
    read = {"title": MAX_TITLE, "description": MAX_DESCRIPTION, "tags": MAX_TAGS}
    return digest_of({"encoder": encoder, "head": head, "dictionary": dictionary_digest(), "read": read})


def arrays_of(head: Head) -> dict[str, np.ndarray]:
    """The arrays of a head file. Of the hashed features only those with a weight are kept."""
    arrays = {"landmarks": head.titles.landmarks, "kernel": head.titles.kernel}
    for name, scorer in (("words", head.words), ("titles", head.titles.words)):
        columns = np.flatnonzero(scorer.lexical)
        arrays |= {f"{name}_columns": columns.astype(np.int32), f"{name}_weights": scorer.lexical[columns]}
        arrays[f"{name}_evidence"] = scorer.evidence
    return arrays


def facts_of(head: Head) -> dict[str, Any]:
    """The numbers of a head that stand in its card."""
    return {
        "features_version": FEATURES_VERSION,
        "dimension": head.titles.landmarks.shape[1],
        "words_bias": head.words.bias,
        "titles_bias": head.titles.words.bias,
        "gamma": head.titles.gamma,
        "quick": vars(head.quick),
        "careful": vars(head.careful),
        "doubt": list(head.doubt),
        "doubt_with_context": list(head.doubt_with_context),
    }


def read_head(path: Path) -> tuple[dict[str, Any], Head]:
    """Card and weights of a head file. Raises ModelUnavailable: no such file; ValueError: it is not a text head."""
    if not path.is_file():
        raise ModelUnavailable(f"no text head at {path}: train one with `medgen train-text`")
    try:
        with safe_open(path, framework="numpy") as file:
            card = json.loads(file.metadata()[HEAD_CARD])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no dictionary)
        if card["features_version"] != FEATURES_VERSION:
            raise ValueError(f"it was trained on features of version {card['features_version']}")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("it holds numbers that are not finite")
        landmarks, kernel = arrays["landmarks"], arrays["kernel"]
        if landmarks.shape != (len(kernel), card["dimension"]):
            raise ValueError(f"landmarks of shape {landmarks.shape} for {card['dimension']} numbers per text")
        words, own = (_word_scorer(arrays, card, name) for name in ("words", "titles"))
        quick, careful = (
            Weighing(**{name: float(value) for name, value in card[key].items()}) for key in ("quick", "careful")
        )
        doubts = [(float(low), float(high)) for low, high in (card["doubt"], card["doubt_with_context"])]
        if not (0 < float(card["threshold"]) <= 1 and all(0 <= low <= high <= 1 for low, high in doubts)):
            raise ValueError("a threshold or bound outside 0 to 1")
        card["encoder"], card["encoder_digest"]
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is not a head made by `medgen train-text`: {error}") from error
    titles = TitleScorer(own, landmarks, kernel.astype(np.float64), float(card["gamma"]))
    return card, Head(words, titles, quick, careful, *doubts)


def _word_scorer(arrays: dict[str, np.ndarray], card: dict[str, Any], name: str) -> WordScorer:
    # Heads of before know no evidence.
    evidence = arrays.get(f"{name}_evidence", np.zeros(EVIDENCE, np.float32))
    if evidence.shape != (EVIDENCE,):
        raise ValueError(f"{name}_evidence of shape {evidence.shape}")
    lexical = _dense(arrays[f"{name}_columns"], arrays[f"{name}_weights"])
    return WordScorer(lexical, float(card[f"{name}_bias"]), evidence)


def _dense(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if columns.shape != weights.shape or (len(columns) and not 0 <= columns.min() <= columns.max() < COLUMNS):
        raise ValueError(f"features beyond the {COLUMNS} columns")
    lexical = np.zeros(COLUMNS, np.float32)
    lexical[columns] = weights
    return lexical
