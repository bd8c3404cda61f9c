"""Trains the head of `models.relevance.classifier` on labelled texts, with grouped and stratified cross-validation.

Label files are CSV, JSONL or Parquet with a title and a label or is_medical (1/0, yes/no, true/false) on each row,
and if they like description, tags, group (or channel) and language. Rows of one group are judged by a head that saw
none of them, and rows of one title belong to one group. One file may be the background: everyday listings of which
hardly any is medical, which bound the share of false alarms. The same files give the same head.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save
from scipy import sparse
from scipy.optimize import minimize

from medgen.canonical import rounded
from medgen.errors import SourceUnreadable
from medgen.listings.rows import storable_text
from medgen.listings.sources import SUFFIXES
from models.encoders import shown_name
from models.hub_files import file_digest
from models.relevance.classifier import (
    DEFAULT_MODEL,
    HEAD_CARD,
    LONG_TEXT,
    MAX_TITLE,
    SCALE,
    Head,
    TitleScorer,
    Weighing,
    WordScorer,
    arrays_of,
    context_of,
    facts_of,
    in_doubt,
    length_weight,
    likenesses,
)
from models.relevance.features import COLUMNS, FEATURES_VERSION, batches, features_of, words_of
from models.text_encoders import TextEncoder, load_text_encoder, text_encoder_digest

FOLDS = 5
MAX_ROWS = 1_000_000
GAMMA = 1.0  # of the kernel, for embeddings of length 1
LANDMARKS = 384
STRENGTHS = (3.0, 10.0)  # inverse L2 penalties that validation chooses from
# What a feature of mean document frequency weighs next to a likeness; 1/14 makes a title's features of length 1 or so.
LEXICAL_SCALE = 1 / 14
CONTEXT_WEIGHT = 0.5  # of a context in training, where a title weighs 1
BACKGROUND_WEIGHT = 4.0
MAX_BACKGROUND_RATE = 0.01
# Quick probabilities between which an embedding is asked for. Wider bounds gained nothing in cross-validation.
DOUBT = (0.1, 0.9)
# With a description or tags, and without a strong medical term, the words alone go further: in cross-validation a
# closer look from 0.1 to 0.2 and from 0.8 to 0.9 made next to no difference, and it doubles the cost of discovery.
DOUBT_WITH_CONTEXT = (0.2, 0.8)
MOST_CONTEXT = 0.4
# Phrases that stand below videos of every kind. Rows without a description are trained with one that is made of the
# title and some of these, so that neither having a description nor such phrases speak for or against medicine.
# The file's bytes are part of every recipe, so its first line keeps this module's former name.
PHRASES = Path(__file__).parents[1] / "prompts" / "description_phrases_v1.txt"

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

_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")
WAYS = ("two speeds", "words alone", "every title by its embedding")


@dataclass(frozen=True)
class LabelledText:
    """A row of a label file. Rows of the same group are never on both sides of a fold."""

    source: str
    title: str
    context: str
    medical: bool
    group: str
    language: str


@dataclass(frozen=True)
class LabelFile:
    """What a label file holds, as it stands in a data list."""

    name: str
    sha256: str
    rows: int
    medical: int
    left_out: dict[str, int]

    def row(self) -> dict[str, Any]:
        """JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class TrainedHead:
    """A head file's bytes and all there is to say of it (JSON)."""

    head: bytes
    scores: dict[str, Any]
    data_list: dict[str, Any]


def read_labels(
    paths: Sequence[Path], background: str = "", titles: Sequence[str] = ("title",)
) -> tuple[list[LabelledText], list[LabelFile]]:
    """The labelled texts of all files, in order, and what the files are.

    Args:
        background: name of the background file, without suffix; none by default.
        titles: columns that hold a title; a row gives a text for each that is filled.

    Raises:
        SourceUnreadable: file_unreadable, unknown_source_type, column_missing, file_twice, no_background,
            too_many_rows, too_few_rows.
    """
    texts: list[LabelledText] = []
    files: list[LabelFile] = []
    for path in paths:
        if path.stem in {file.name for file in files}:
            raise SourceUnreadable("file_twice", f"two label files are named {path.stem}: names tell files apart")
        left_out: Counter[str] = Counter()
        found = []
        for row in _rows(path, titles):
            answer = _text(row.get("is_medical", row.get("label"))).lower()
            own = [title for title in (_text(row.get(column)) for column in titles) if title]
            if answer not in _YES + _NO:
                left_out["no label"] += 1
            elif not own:
                left_out["no title"] += 1
            else:
                group = _text(row.get("group") or row.get("channel"))
                context = context_of(_text(row.get("description")), _tags(row.get("tags"))).strip()
                found += [
                    LabelledText(
                        source=path.stem,
                        title=title[:MAX_TITLE],
                        context=context,
                        medical=answer in _YES,
                        group=f"{path.stem}\n{group}" if group else title.casefold(),
                        language=_text(row.get("language")),
                    )
                    for title in own
                ]
            if len(texts) + len(found) > MAX_ROWS:
                raise SourceUnreadable("too_many_rows", f"{path} and the files before it hold more than {MAX_ROWS}")
        texts += found
        medical = sum(text.medical for text in found)
        files.append(LabelFile(path.stem, file_digest(path), len(found), medical, dict(sorted(left_out.items()))))
    if background and background not in {file.name for file in files}:
        raise SourceUnreadable(
            "no_background",
            f"no label file is named {background!r}; there are {', '.join(file.name for file in files)}",
        )
    for medical in (True, False):
        groups = len({t.group for t in texts if t.medical is medical})
        if groups < FOLDS:
            raise SourceUnreadable(
                "too_few_rows",
                f"{groups} groups of {'medical' if medical else 'non-medical'} rows: at least {FOLDS} of each are "
                "needed, and thousands to be good",
            )
    return texts, files


def _rows(path: Path, titles: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows as they stand in a file."""
    kind = SUFFIXES.get(path.suffix.lower())
    try:
        if kind == "csv":
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                reader = csv.DictReader(line.replace("\x00", "\ufffd") for line in file)
                _check_columns(path, reader.fieldnames or (), titles)
                yield from reader
        elif kind == "parquet":
            with pq.ParquetFile(path) as table:
                _check_columns(path, table.schema_arrow.names, titles)
                for batch in table.iter_batches(batch_size=10_000):
                    yield from batch.to_pylist()
        elif kind == "jsonl":
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                rows = (json.loads(line) for line in file if line.strip())
                for number, row in enumerate(rows):
                    if not isinstance(row, dict):
                        raise ValueError(f"row {number + 1} is not an object")
                    if number == 0:
                        _check_columns(path, list(row), titles)
                    yield row
        else:
            raise SourceUnreadable("unknown_source_type", f"{path} is none of {', '.join(SUFFIXES)}")
    except (OSError, csv.Error, pa.ArrowException, ValueError, RecursionError) as error:
        raise SourceUnreadable("file_unreadable", f"{path} cannot be read: {error}") from error


def _check_columns(path: Path, columns: Sequence[str], titles: Sequence[str]) -> None:
    if not {"label", "is_medical"} & set(columns) or not set(titles) & set(columns):
        raise SourceUnreadable(
            "column_missing",
            f"{path} needs a column {' or '.join(titles)} and a column label or is_medical; "
            f"it has {', '.join(columns)}",
        )


def _text(value: Any) -> str:
    # Parquet and JSON may hold labels as booleans or numbers.
    return storable_text(int(value) if isinstance(value, bool | float) and value in (0, 1) else value).strip()


def _tags(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "\n".join(_text(tag) for tag in value)
    text = _text(value)
    return "\n".join(part.strip() for part in text.split("|" if "|" in text else ","))


class _Instances:
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


def fit_words(instances: _Instances, among: np.ndarray, strengths: Sequence[float]) -> dict[float, WordScorer]:
    """strength → scorer from the titles and contexts of the rows `among`: see `_logistic`."""
    chosen = np.flatnonzero(among[instances.row])
    weight = instances.weight[instances.row[chosen]] * np.where(chosen < instances.count, 1.0, CONTEXT_WEIGHT)
    used, inverse = _inverse_frequency(instances.features[chosen])
    inputs = (instances.features[chosen][:, used] @ sparse.diags_array(inverse)).tocsr()
    found = {}
    for strength, (weights, bias) in _logistic(inputs, instances.medical[instances.row[chosen]], weight, strengths):
        found[strength] = WordScorer(_spread(weights * inverse, used), bias)
    return found


def fit_titles(instances: _Instances, among: np.ndarray, strengths: Sequence[float]) -> dict[float, TitleScorer]:
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
    found = {}
    for strength, (weights, bias) in _logistic(inputs, instances.medical[chosen], instances.weight[chosen], strengths):
        words = WordScorer(_spread(weights[: len(used)] * inverse, used), bias)
        found[strength] = TitleScorer(words, landmarks, whitening @ weights[len(used) :], GAMMA)
    return found


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


def _score_words(instances: _Instances, chosen: np.ndarray, scorer: WordScorer) -> np.ndarray:
    scores: np.ndarray = instances.features[chosen] @ scorer.lexical.astype(np.float64) + scorer.bias
    return scores


def _score_titles(instances: _Instances, chosen: np.ndarray, scorer: TitleScorer) -> np.ndarray:
    likeness = likenesses(instances.embeddings[chosen], scorer.landmarks, scorer.gamma)
    scores: np.ndarray = _score_words(instances, chosen, scorer.words) + likeness.astype(np.float64) @ scorer.kernel
    return scores


@dataclass(frozen=True)
class Scores:
    """Scores of all rows, by scorers that saw none of their group: float64 (N,), context 0 where there is none."""

    title: np.ndarray
    context: np.ndarray


@dataclass(frozen=True)
class Choice:
    """Penalties, weighings and threshold that are best for some rows."""

    words_strength: float
    titles_strength: float
    quick: Weighing
    careful: Weighing
    threshold: float


def validate(
    texts: Sequence[LabelledText],
    instances: _Instances,
    background: str,
    max_background_rate: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Choice, dict[str, Any]]:
    """Grouped, stratified cross-validation with `FOLDS` folds: what is best for the final head, and figures of each of
    `WAYS` that this choice could not make better: each fold is judged with what is best for the others.

    Args:
        progress: called with (folds done, folds in all).
    """
    rows = _Rows(texts, background)
    fold = _folds(rows)
    empty = np.zeros(len(texts))
    words = {strength: Scores(empty.copy(), empty.copy()) for strength in STRENGTHS}
    titles = {strength: empty.copy() for strength in STRENGTHS}
    for number in range(FOLDS):
        progress(number, FOLDS)
        own = np.flatnonzero(fold == number)
        with_context = own[rows.has_context[own]]
        for strength, by_words in fit_words(instances, fold != number, STRENGTHS).items():
            words[strength].title[own] = _score_words(instances, own, by_words)
            words[strength].context[with_context] = _score_words(instances, instances.count + with_context, by_words)
        for strength, by_title in fit_titles(instances, fold != number, STRENGTHS).items():
            titles[strength][own] = _score_titles(instances, own, by_title)
    progress(FOLDS, FOLDS)
    every = np.ones(len(texts), bool)
    figures = {}
    for way in WAYS:
        probability = {with_context: empty.copy() for with_context in (True, False)}
        called = {with_context: empty.astype(bool) for with_context in (True, False)}
        for number in range(FOLDS):
            own = fold == number
            chosen = _choose(rows, words, titles, ~own, max_background_rate, way)
            for with_context in (True, False):
                p = _probability(chosen, words, titles, rows.has_context & with_context, way)
                probability[with_context][own] = p[own]
                called[with_context][own] = p[own] >= chosen.threshold
        figures[way] = _figures(rows, probability, called)
    return _choose(rows, words, titles, every, max_background_rate, WAYS[0]), figures


class _Rows:
    """Labels and facts of the rows as arrays."""

    def __init__(self, texts: Sequence[LabelledText], background: str) -> None:
        self.medical = np.array([text.medical for text in texts])
        self.has_context = np.array([bool(text.context) for text in texts])
        self.source = np.array([text.source for text in texts])
        self.language = np.array([text.language for text in texts])
        self.background = self.source == background
        self.group = np.unique([text.group for text in texts], return_inverse=True)[1]
        # Both classes weigh the same, as where half of the listings are medical.
        self.weight = np.where(self.medical, 0.5 / self.medical.sum(), 0.5 / (~self.medical).sum())


def _folds(rows: _Rows) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold

    fold = np.zeros(len(rows.medical), int)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for number, (_, held_out) in enumerate(splitter.split(fold, rows.medical, rows.group)):
        fold[held_out] = number
    return fold


def _choose(
    rows: _Rows,
    words: dict[float, Scores],
    titles: dict[float, np.ndarray],
    among: np.ndarray,
    max_background_rate: float,
    way: str,
) -> Choice:
    """What is best for the rows `among`."""
    sign = np.where(rows.medical, 1.0, -1.0)

    def loss(scores: np.ndarray) -> float:
        return float((rows.weight * np.logaddexp(0, -sign * scores))[among].sum())

    by_words = min(words, key=lambda strength: loss(words[strength].title))
    by_titles = min(titles, key=lambda strength: loss(titles[strength]))
    quick = weigh(words[by_words], rows.has_context, rows.medical, among)
    with_embedding = Scores(titles[by_titles], words[by_words].context)
    careful = weigh(with_embedding, rows.has_context, rows.medical, among)
    choice = Choice(by_words, by_titles, quick, careful, 0.5)
    p = _probability(choice, words, titles, rows.has_context, way)
    alone = _probability(choice, words, titles, np.zeros_like(rows.has_context), way)
    bound = among & rows.background & ~rows.medical
    judged = among & ~rows.background
    threshold = operating_point(p[judged], rows.medical[judged], [p[bound], alone[bound]], max_background_rate)
    return replace(choice, threshold=threshold)


def _probability(
    choice: Choice, words: dict[float, Scores], titles: dict[float, np.ndarray], has_context: np.ndarray, way: str
) -> np.ndarray:
    every = np.ones(len(has_context), bool)
    own = words[choice.words_strength]
    quick = choice.quick.probability(own.title, every, own.context, has_context)
    careful = choice.careful.probability(titles[choice.titles_strength], every, own.context, has_context)
    if way == "words alone":
        return quick
    if way == "every title by its embedding":
        return careful
    return np.where(in_doubt(quick, (DOUBT, DOUBT_WITH_CONTEXT), has_context.astype(int)), careful, quick)


def weigh(scores: Scores, has_context: np.ndarray, medical: np.ndarray, among: np.ndarray) -> Weighing:
    """The weights of title and context, and Platt scaling, by logistic regression on the rows `among`.

    Both classes weigh the same. The weights stay near the half-and-half that they start from when few rows have a
    context, and are never below 0; so is the slope. A context never weighs more than MOST_CONTEXT: descriptions
    advertise and thank, and few label files have medical rows with typical ones.
    """

    def logistic(inputs: np.ndarray, of: np.ndarray, prior: Sequence[float], trust: float) -> np.ndarray:
        """argmin of the balanced log loss + trust * |x - prior|², each but the last at least 0."""
        truth = medical[of]
        weight = np.where(truth, 0.5 / max(1, truth.sum()), 0.5 / max(1, (~truth).sum()))
        sign = np.where(truth, 1.0, -1.0)

        def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
            margin = sign * (inputs @ x)
            slope = -sign * weight / (1 + np.exp(np.clip(margin, -50, 50)))
            total = weight @ np.logaddexp(0, -margin) + trust * ((x - prior) ** 2).sum()
            return float(total), inputs.T @ slope + 2 * trust * (x - prior)

        bounds = [(0.0, None), *[(0.0, MOST_CONTEXT)] * (len(prior) - 2), (None, None)]
        return minimize(loss, np.array(prior), jac=True, method="L-BFGS-B", bounds=bounds).x

    with_context = among & has_context
    inputs = np.stack([scores.title, scores.context, np.ones(len(medical))], axis=1)
    rows = min((with_context & medical).sum(), (with_context & ~medical).sum())
    title, context, both = logistic(inputs[with_context], with_context, (0.6, 0.6, 0.0), 1 / max(1, rows))
    joint = np.where(has_context, title * scores.title + context * scores.context + both, scores.title)
    slope, offset = logistic(np.stack([joint, np.ones(len(joint))], axis=1)[among], among, (1.0, 0.0), 1e-6)
    return Weighing(*(rounded(float(x), 6) for x in (title, context, both, slope, offset)))


def operating_point(
    probability: np.ndarray, medical: np.ndarray, background: Sequence[np.ndarray], max_background_rate: float
) -> float:
    """The threshold, to 4 places, with the highest F1 on labelled rows among those that call at most
    `max_background_rate` of each set of background probabilities medical; of equals the highest."""
    candidates = np.unique(np.round(np.concatenate([probability, [0.5, 1.0]]), 4))
    candidates = candidates[candidates > 0]
    order = np.sort(probability)
    of_medical = np.sort(probability[medical])
    called = len(order) - np.searchsorted(order, candidates)
    right = len(of_medical) - np.searchsorted(of_medical, candidates)
    f1 = 2 * right / np.maximum(called + len(of_medical), 1)
    for negatives in background:
        rate = np.array([(negatives >= threshold).mean() if len(negatives) else 0.0 for threshold in candidates])
        f1 = np.where(rate <= max_background_rate, f1, -1.0)
    return float(candidates[len(f1) - 1 - int(f1[::-1].argmax())])


def _figures(rows: _Rows, probability: dict[bool, np.ndarray], called: dict[bool, np.ndarray]) -> dict[str, Any]:
    """Cross-validated figures: over all rows, by label file, by language; as given and, where it differs, by title
    alone."""
    full, alone = called[True], called[False]
    by_file = {}
    for name in dict.fromkeys(rows.source):
        own = rows.source == name
        by_file[str(name)] = figures_of(full[own], rows.medical[own])
        if rows.has_context[own].any():
            by_file[str(name)]["by_title_alone"] = figures_of(alone[own], rows.medical[own])
    languages = [name for name in dict.fromkeys(rows.language) if name]
    by_language = {
        str(name): figures_of(full[rows.language == name], rows.medical[rows.language == name]) for name in languages
    }
    return {
        **figures_of(full[~rows.background], rows.medical[~rows.background]),
        "calibration_error": rounded(calibration_error(probability[True], rows.medical, rows.weight)),
        "by_file": by_file,
        "by_language": by_language,
    }


def figures_of(called: np.ndarray, medical: np.ndarray) -> dict[str, Any]:
    """rows, medical, f1, recall and false_alarm_rate (share of non-medical rows called medical); None where the rows
    do not say."""
    right = int((called & medical).sum())
    positives, negatives = int(medical.sum()), int((~medical).sum())
    return {
        "rows": len(medical),
        "medical": positives,
        "f1": rounded(2 * right / (int(called.sum()) + positives)) if positives and negatives else None,
        "recall": rounded(right / positives) if positives else None,
        "false_alarm_rate": rounded(float(called[~medical].mean())) if negatives else None,
    }


def calibration_error(probability: np.ndarray, medical: np.ndarray, weight: np.ndarray) -> float:
    """Expected calibration error, 0 to 1, over 10 equal bins (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"); `weight` adds up to 1."""
    bins = np.minimum((probability * 10).astype(int), 9)
    return float(sum(abs((weight * (probability - medical))[bins == index].sum()) for index in range(10)))


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
    instances = _Instances(texts, load_text_encoder(encoder), background)
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
