"""Stage 1 of discovery: is a listing medical by its words?

A dictionary of weighted medical terms is looked up in the title, description and tags of many listings at once. All
terms are sought in one pass over the text (Hyperscan's multiple-literal matcher), so the cost of a listing does not
grow with the number of terms. It is a coarse sieve: it lets a good deal of other text through, for a later test to
judge. The dictionary is data (`weights/medical_terms.parquet`); `models/relevance/build_dictionary.py` makes it.

The score of a listing is the sum, over the distinct terms found, of the term's weight times the weight of the best
field that holds it (`FIELD_WEIGHTS`). A listing passes at `THRESHOLD`.

Speed, measured on one core of an AMD EPYC in microseconds per listing of 950 bytes (title, description, tags; three
quarters of them with letters beyond ASCII): 34,000 patterns took Hyperscan 1.0, daachorse 3.4, the DFA of
ahocorasick-rs 4.5 and its contiguous NFA 4.8. The whole judgement took 7 with 75,000 patterns, half of that folding and
two fifths matching, and 1.5 for a bare title. With the 225,000 patterns of the dictionary that is shipped it takes 1.3
times as long (17 beside 13 in alternating runs on a busy machine, of listings of 440 bytes): they are sought in parts,
see `models.relevance.patterns`.
"""

import hashlib
import json
import threading
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import hyperscan
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from platformdirs import user_cache_path

from medgen.memory import trim_heap
from models.relevance.folding import BETWEEN, UNSPACED, fold_char, fold_fields
from models.relevance.patterns import Patterns, bare

NAME = "medical_dictionary"
TERMS_PATH = Path(__file__).parents[1] / "weights" / "medical_terms.parquet"
MAX_TEXT_CHARS = 100_000
# Title, description, tags. A title says what a video is about; a description also advertises and thanks.
FIELD_WEIGHTS = (1.0, 0.5, 0.5)
THRESHOLD = 0.5
# Terms of at least this weight say by themselves that a text is medical.
STRONG_WEIGHT = 1.0
# The weights of weak, medium and strong terms, and of how many terms of each more would be no stronger evidence.
STRENGTHS, MOST_TERMS = (0.25, 0.5, STRONG_WEIGHT), 3
EVIDENCE = 2 * len(STRENGTHS)
# Raise when folding, plurals, hiding or scoring change, so that listings are judged anew.
RULES_VERSION = 4

TERMS_SCHEMA = pa.schema(
    [
        pa.field("term", pa.string(), nullable=False),  # folded, a hyphen where a word goes on, unique within a role
        pa.field("spelling", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),  # ISO 639-1
        pa.field("kind", pa.string(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_version", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),  # term, negative (hides terms), stop (kept out)
    ]
)
_CHUNK_BYTES = 2 << 20  # text that is folded at once: what stays in the cache of a core


class Judgement:
    """Scores of a batch of listings and the terms behind them.

    `score` has one float32 ≥ 0 for each listing, in the order of the batch.
    """

    def __init__(self, score: np.ndarray, first: np.ndarray, terms: np.ndarray, spellings: pa.StringArray) -> None:
        self.score = score
        self._first = first  # (N + 1,): where the terms of a row begin in `terms`
        self._terms = terms
        self._spellings = spellings

    def terms(self, row: int) -> list[str]:
        """The terms found in listing `row`, each once, sorted, as the dictionary spells them."""
        return sorted({self._spellings[term].as_py() for term in self._terms[self._first[row] : self._first[row + 1]]})


class MedicalDictionary:
    """Medical terms with weights, and the negative contexts that hide them.

    `name`, `version` and `digest` identify the dictionary in the ledger. Safe to use from several threads at once.
    """

    name = NAME

    def __init__(self, patterns: Patterns, version: str = "", digest: str = "") -> None:
        self.version = version
        self.digest = digest
        self._patterns = patterns
        self._of_thread = threading.local()

    @classmethod
    def of_rows(cls, table: pa.Table, version: str = "", digest: str = "") -> "MedicalDictionary":
        """Compiles the rows of `table` (columns of `TERMS_SCHEMA`; stop terms are passed over).

        Raises:
            ValueError: a column is missing; there is no term; a term or weight is faulty, see `Patterns.compiled`.
        """
        missing = set(TERMS_SCHEMA.names) - set(table.column_names)
        if missing:
            raise ValueError(f"a medical dictionary needs the column {min(missing)!r}")
        rows = [row for row in table.select(TERMS_SCHEMA.names).to_pylist() if row["role"] != "stop"]
        if all(row["role"] == "negative" for row in rows):
            raise ValueError("a medical dictionary needs at least one term")
        return cls(Patterns.compiled(rows), version, digest)

    def judge(self, title: pa.Array, description: pa.Array, tags: pa.Array) -> Judgement:
        """Scores N listings.

        Terms are found as whole words, or anywhere in languages without blanks; those that begin or end with a hyphen
        ("-ectomy", "kardiolog-") as the end or the beginning of a word, unless a longer one is found there. Case,
        accents, apostrophes within words and punctuation between them do not matter, and a term also stands for its
        regular plural, an Arabic one for itself with what is written as one with it. Occurrences inside a negative
        context do not count. Only the first `MAX_TEXT_CHARS` characters of a field are read. Bytes that are not UTF-8
        count as blanks.

        Args:
            title: N strings (any Arrow string type), nulls allowed; so are the other two.
            description: N strings.
            tags: N strings, the tags of each listing joined by line feeds.

        Raises:
            ValueError: the columns differ in length.
            pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError: a column is no text.
        """
        if not len(title) == len(description) == len(tags):
            raise ValueError(f"columns differ in length: {len(title)}, {len(description)}, {len(tags)}")
        count = len(title)
        fields = [_readable(column) for column in (title, description, tags)]
        owners, scores = [np.empty(0, np.int64)], []
        for start, stop in _chunks(fields):
            owner, score = self._judge([field[start:stop] for field in fields], start)
            owners.append(owner)
            scores.append(score)
        owned, spellings = np.concatenate(owners), self._patterns.spellings
        first = np.searchsorted(owned, np.arange(count + 1, dtype=np.int64) * len(spellings))
        return Judgement(np.concatenate([np.empty(0, np.float32), *scores]), first, owned % len(spellings), spellings)

    def evidence(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, `EVIDENCE`): of each strength (weak, medium, strong) 1 if a text has a term, then the share of
        `MOST_TERMS` terms that it has."""
        fields = [pa.array(texts, pa.large_string()).cast(pa.large_binary())]
        found = np.zeros((len(texts), len(STRENGTHS)), np.float32)
        for start, stop in _chunks(fields):
            key, _ = self._judge([fields[0][start:stop]], start)
            row, term = np.divmod(key, len(self._patterns.spellings))
            strength = np.searchsorted(STRENGTHS, self._patterns.weights[term], side="right") - 1
            np.add.at(found, (row, np.maximum(strength, 0)), 1)
        return np.hstack([found > 0, np.minimum(found, MOST_TERMS) / MOST_TERMS]).astype(np.float32)

    def match(self, text: str, min_weight: float = STRONG_WEIGHT) -> list[str]:
        """The whole terms of at least `min_weight` in one text, each once, sorted, as the dictionary spells them."""
        none = pa.array([""])
        judgement, patterns = self.judge(pa.array([text]), none, none), self._patterns
        enough = judgement._terms[patterns.weights[judgement._terms] >= min_weight]
        found = patterns.spellings.take(enough).to_pylist()
        return sorted({spelling for spelling in found if spelling == bare(spelling)})

    def _judge(self, fields: list[pa.Array], row: int) -> tuple[np.ndarray, np.ndarray]:
        """For the listings from `row` on: the keys row · T + term of the T terms found, sorted; and the scores."""
        text = fold_fields(fields)
        patterns, terms = self._patterns, len(self._patterns.spellings)
        pattern, end = self._scan(text)
        start = end - patterns.length[pattern]
        seen = ~(patterns.negative[pattern] | self._hidden(pattern, start, end))
        pattern, start, end = pattern[seen], start[seen], end[seen]
        longest = ~(patterns.part[pattern] & _within_another(start, end))
        pattern, start = pattern[longest], start[longest]
        field = np.searchsorted(np.flatnonzero(np.frombuffer(text, np.uint8) == BETWEEN), start)
        # A term counts once a listing, in its best field.
        key = (field // len(fields)) * terms + patterns.term[pattern]
        weight = np.array(FIELD_WEIGHTS)[field % len(fields)]
        order = np.lexsort((-weight, key))
        key, weight = key[order], weight[order]
        fresh = np.diff(key, prepend=-1) > 0
        key, weight = key[fresh], weight[fresh]
        term_weight = weight * patterns.weights[key % terms]
        score = np.bincount(key // terms, term_weight, minlength=len(fields[0]))
        return key + row * terms, score.astype(np.float32)

    def _scan(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Number and end of each pattern in `text`."""
        matchers = self._patterns.matchers
        scratches = getattr(self._of_thread, "scratches", None)
        if scratches is None:  # a thread needs its own working memory
            scratches = self._of_thread.scratches = tuple(map(hyperscan.Scratch, matchers))
        matches = array("q")
        append = matches.append

        def keep(pattern: int, _start: int, end: int, _flags: int, _context: object) -> None:
            append(end << 32 | pattern)

        for matcher, scratch in zip(matchers, scratches, strict=True):
            matcher.scan(text, match_event_handler=keep, scratch=scratch)
        packed = np.frombuffer(matches, np.int64) if matches else np.empty(0, np.int64)
        return packed & 0xFFFFFFFF, packed >> 32

    def _hidden(self, pattern: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Which occurrences lie inside a negative context."""
        negative = self._patterns.negative[pattern]
        if not negative.any():
            return np.zeros(len(negative), bool)
        order = np.argsort(start[negative], kind="stable")
        starts = start[negative][order]
        reach = np.maximum.accumulate(end[negative][order])  # furthest end of the contexts begun so far
        begun = np.searchsorted(starts, start, side="right")
        hidden: np.ndarray = (begun > 0) & (reach[begun - 1] >= end)
        return hidden


def _within_another(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """bool (N,), which of N different spans lie within another one."""
    order = np.lexsort((-end, start))
    reach = np.maximum.accumulate(end[order])
    within = np.zeros(len(start), bool)
    within[order[1:]] = reach[:-1] >= end[order[1:]]
    return within


@lru_cache(maxsize=1)
def _shipped() -> MedicalDictionary:
    digest = dictionary_digest()
    cache = user_cache_path("medgen") / f"medical-dictionary-{digest[:16]}-{version('hyperscan')}.npz"
    if patterns := Patterns.kept(cache):
        return MedicalDictionary(patterns, _version(pq.read_schema(TERMS_PATH)), digest)
    dictionary = load_medical_dictionary(TERMS_PATH)
    dictionary._patterns.keep(cache)
    trim_heap()  # the process that words captions lives long
    return dictionary


def load_medical_dictionary(path: Path | None = None) -> MedicalDictionary:
    """Read a dictionary (Parquet, `TERMS_SCHEMA`); without a path, the one that comes with the package.

    That one is compiled once for all processes of a user, see `models.relevance.patterns`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no Parquet file, or not a dictionary (see `MedicalDictionary`).
    """
    if path is None:
        return _shipped()
    table = pq.read_table(pa.BufferReader(path.read_bytes()))
    return MedicalDictionary.of_rows(table, _version(table.schema), dictionary_digest(path))


def _version(schema: pa.Schema) -> str:
    return str((schema.metadata or {}).get(b"version", b""), "utf-8")


def dictionary_digest(path: Path | None = None) -> str:
    """sha256 (hex) over the name, the bytes of the file and the rules of matching and scoring. Compiles nothing."""
    identity = {
        "name": NAME,
        "terms": hashlib.sha256((path or TERMS_PATH).read_bytes()).hexdigest(),
        "max_text_chars": MAX_TEXT_CHARS,
        "field_weights": FIELD_WEIGHTS,
        "rules": RULES_VERSION,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _chunks(fields: list[pa.Array]) -> Iterator[tuple[int, int]]:
    """First row and row after the last of pieces of about `_CHUNK_BYTES` of text."""
    count = len(fields[0])
    if count == 0:
        return
    size = sum(pc.binary_length(field).to_numpy(zero_copy_only=False) for field in fields)
    piece = np.cumsum(size) // _CHUNK_BYTES
    edges = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), count]
    yield from pairwise(edges)


def _readable(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as large_binary of valid UTF-8 without nulls, each value at most `MAX_TEXT_CHARS` long."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    column = pc.fill_null(column.cast(pa.large_string()), "")
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.cast(pa.large_binary()).to_pylist()
        column = pa.array([value.decode("utf-8", "replace") for value in raw], pa.large_string())
    # Bytes are no fewer than characters.
    if len(column) and pc.max(pc.binary_length(column)).as_py() > MAX_TEXT_CHARS:
        column = pa.array([_beginning(text) for text in column.to_pylist()], pa.large_string())
    return column.cast(pa.large_binary())


def _beginning(text: str) -> str:
    """The first `MAX_TEXT_CHARS` characters, less the word that the limit cuts: half a word is no match."""
    end = MAX_TEXT_CHARS
    if len(text) <= end:
        return text
    while end and fold_char(text[end - 1]) != " " != fold_char(text[end]) and not UNSPACED.match(text[end]):
        end -= 1
    return text[:end]
