"""Stage 1 of discovery: is a listing medical by its words?

A dictionary of weighted medical terms is looked up in the title, description and tags of many listings at once. All
terms are sought in one pass over the text (Hyperscan's multiple-literal matcher), so the cost of a listing does not
grow with the number of terms. It is a coarse sieve: it lets a good deal of other text through, for a later test to
judge. The dictionary is data (`weights/medical_terms.parquet`); `models/relevance/build_dictionary.py` makes it.

The score of a listing is the sum, over the distinct terms found, of the term's weight times the weight of the best
field that holds it (`FIELD_WEIGHTS`). A listing passes at `THRESHOLD`.

Speed, measured on one core of an AMD EPYC in microseconds per listing of 950 bytes (title, description, tags; three
quarters of them with letters beyond ASCII): 34,000 patterns took Hyperscan 1.0, daachorse 3.4, the DFA of
ahocorasick-rs 4.5 and its contiguous NFA 4.8. The whole judgement takes 7 with the dictionary that is shipped (75,000
patterns): half of that is folding, two fifths matching. A bare title takes 1.5.
"""

import hashlib
import json
import math
import re
import threading
from array import array
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import hyperscan
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medgen.memory import trim_heap
from models.relevance.folding import BETWEEN, BLANK, UNSPACED, fold_char, fold_fields

NAME = "medical_dictionary"
TERMS_PATH = Path(__file__).parents[1] / "weights" / "medical_terms.parquet"
MAX_TEXT_CHARS = 100_000
# Title, description, tags. A title says what a video is about; a description also advertises and thanks.
FIELD_WEIGHTS = (1.0, 0.5, 0.5)
THRESHOLD = 0.5
# Terms of at least this weight say by themselves that a text is medical.
STRONG_WEIGHT = 1.0
# Raise when folding, plurals, hiding or scoring change, so that listings are judged anew.
RULES_VERSION = 2

TERMS_SCHEMA = pa.schema(
    [
        pa.field("term", pa.string(), nullable=False),  # folded, unique within a role
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

    def __init__(self, score: np.ndarray, first: np.ndarray, terms: np.ndarray, spellings: list[str]) -> None:
        self.score = score
        self._first = first  # (N + 1,): where the terms of a row begin in `terms`
        self._terms = terms
        self._spellings = spellings

    def terms(self, row: int) -> list[str]:
        """The terms found in listing `row`, each once, sorted, as the dictionary spells them."""
        return sorted({self._spellings[term] for term in self._terms[self._first[row] : self._first[row + 1]]})


class MedicalDictionary:
    """Medical terms with weights, and the negative contexts that hide them.

    `name`, `version` and `digest` identify the dictionary in the ledger. Safe to use from several threads at once.
    """

    name = NAME

    def __init__(self, table: pa.Table, version: str = "", digest: str = "") -> None:
        """Compile the rows of `table` (columns of `TERMS_SCHEMA`; stop terms are passed over).

        Raises:
            ValueError: a column is missing; there is no term; a term is not in the form that `fold` gives, has less
                than two letters in a language without blanks, or has a weight that is not finite and > 0.
        """
        self.version = version
        self.digest = digest
        missing = set(TERMS_SCHEMA.names) - set(table.column_names)
        if missing:
            raise ValueError(f"a medical dictionary needs the column {min(missing)!r}")
        rows = [row for row in table.select(TERMS_SCHEMA.names).to_pylist() if row["role"] != "stop"]
        if all(row["role"] == "negative" for row in rows):
            raise ValueError("a medical dictionary needs at least one term")
        self._spellings = [row["spelling"] for row in rows]
        self._weights = np.array([row["weight"] for row in rows], np.float32)
        # One spelling may come from several rows: a negative context wins, then the greater weight.
        owner: dict[bytes, int] = {}
        _check(rows)
        for index, row in enumerate(rows):
            for key in _keys(row["term"], row["language"]):
                other = owner.setdefault(key, index)
                if _rank(rows[other]) < _rank(row):
                    owner[key] = index
        self._term = np.fromiter(owner.values(), np.int64, len(owner))
        self._length = np.fromiter(map(len, owner), np.int64, len(owner))
        self._negative = np.array([rows[index]["role"] == "negative" for index in owner.values()])
        self._literals = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        self._literals.compile(
            expressions=list(owner), ids=list(range(len(owner))), elements=len(owner), flags=0, literal=True
        )
        self._of_thread = threading.local()

    def judge(self, title: pa.Array, description: pa.Array, tags: pa.Array) -> Judgement:
        """Scores N listings.

        Terms are found as whole words, or anywhere in languages without blanks. Case, accents, apostrophes and
        punctuation between words do not matter, and a term also stands for its regular plural. Occurrences inside a
        negative context do not count. Only the first `MAX_TEXT_CHARS` characters of a field are read. Bytes that are
        not UTF-8 count as blanks.

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
        owned = np.concatenate(owners)
        first = np.searchsorted(owned, np.arange(count + 1, dtype=np.int64) * len(self._spellings))
        return Judgement(
            np.concatenate([np.empty(0, np.float32), *scores]), first, owned % len(self._spellings), self._spellings
        )

    def match(self, text: str, min_weight: float = STRONG_WEIGHT) -> list[str]:
        """The terms of at least `min_weight` in one text, each once, sorted, as the dictionary spells them."""
        none = pa.array([""])
        judgement = self.judge(pa.array([text]), none, none)
        return sorted({self._spellings[term] for term in judgement._terms if self._weights[term] >= min_weight})

    def _judge(self, fields: list[pa.Array], row: int) -> tuple[np.ndarray, np.ndarray]:
        """For the listings from `row` on: the keys row · T + term of the T terms found, sorted; and the scores."""
        text = fold_fields(fields)
        pattern, end = self._scan(text)
        start = end - self._length[pattern]
        seen = ~(self._negative[pattern] | self._hidden(pattern, start, end))
        pattern, start = pattern[seen], start[seen]
        field = np.searchsorted(np.flatnonzero(np.frombuffer(text, np.uint8) == BETWEEN), start)
        # A term counts once a listing, in its best field.
        key = (field // len(fields)) * len(self._spellings) + self._term[pattern]
        weight = np.array(FIELD_WEIGHTS)[field % len(fields)]
        order = np.lexsort((-weight, key))
        key, weight = key[order], weight[order]
        fresh = np.diff(key, prepend=-1) > 0
        key, weight = key[fresh], weight[fresh]
        term_weight = weight * self._weights[key % len(self._spellings)]
        score = np.bincount(key // len(self._spellings), term_weight, minlength=len(fields[0]))
        return key + row * len(self._spellings), score.astype(np.float32)

    def _scan(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Number and end of each pattern in `text`."""
        scratch = getattr(self._of_thread, "scratch", None)
        if scratch is None:  # a thread needs its own working memory
            scratch = self._of_thread.scratch = hyperscan.Scratch(self._literals)
        matches = array("q")
        append = matches.append

        def keep(pattern: int, _start: int, end: int, _flags: int, _context: object) -> None:
            append(end << 32 | pattern)

        self._literals.scan(text, match_event_handler=keep, scratch=scratch)
        packed = np.frombuffer(matches, np.int64) if matches else np.empty(0, np.int64)
        return packed & 0xFFFFFFFF, packed >> 32

    def _hidden(self, pattern: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Which occurrences lie inside a negative context."""
        negative = self._negative[pattern]
        if not negative.any():
            return np.zeros(len(negative), bool)
        order = np.argsort(start[negative], kind="stable")
        starts = start[negative][order]
        reach = np.maximum.accumulate(end[negative][order])  # furthest end of the contexts begun so far
        begun = np.searchsorted(starts, start, side="right")
        hidden: np.ndarray = (begun > 0) & (reach[begun - 1] >= end)
        return hidden


@lru_cache(maxsize=1)
def _shipped() -> MedicalDictionary:
    dictionary = load_medical_dictionary(TERMS_PATH)
    trim_heap()  # the process that words captions lives long
    return dictionary


def load_medical_dictionary(path: Path | None = None) -> MedicalDictionary:
    """Read a dictionary (Parquet, `TERMS_SCHEMA`); without a path, the one that comes with the package.

    To compile that takes seconds, so a process does it once.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no Parquet file, or not a dictionary (see `MedicalDictionary`).
    """
    if path is None:
        return _shipped()
    table = pq.read_table(pa.BufferReader(path.read_bytes()))
    version = (table.schema.metadata or {}).get(b"version", b"").decode()
    return MedicalDictionary(table, version, dictionary_digest(path))


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


def _rank(row: dict[str, Any]) -> tuple[bool, float]:
    return row["role"] == "negative", row["weight"]


def _check(rows: list[dict[str, Any]]) -> None:
    terms = [row["term"] for row in rows]
    between = bytes((BLANK, BETWEEN, BLANK))
    folded = fold_fields([pa.array(terms, pa.large_string()).cast(pa.large_binary())]).split(between)
    for row, term, again in zip(rows, terms, folded[:-1], strict=True):
        if not term or term.encode() != again.removeprefix(b" "):
            raise ValueError(f"a term is not folded: {term!r}")
        if len(term) < 2 and UNSPACED.search(term):
            raise ValueError(f"a term of one letter would be found everywhere: {term!r}")
        if row["role"] == "term" and not 0 < row["weight"] < math.inf:
            raise ValueError(f"the weight of {term!r} is {row['weight']}")


def _keys(term: str, language: str) -> list[bytes]:
    """What is sought for a term: its spellings as whole words, or the bare letters in a script without blanks."""
    if UNSPACED.search(term):
        before, after = ("" if UNSPACED.match(end) else " " for end in (term[0], term[-1]))
        return [f"{before}{term}{after}".encode()]
    return [f" {spelling} ".encode() for spelling in spellings(term, language)]


def spellings(term: str, language: str) -> set[str]:
    """A folded term and its regular plural: of English, Spanish, French and Portuguese."""
    if language == "en":
        return {term, _english_plural(term)}
    if language in ("es", "fr", "pt"):
        if term.endswith(("a", "e", "i", "o", "u")):
            return {term, f"{term}s"}
        if language == "es" and term.endswith(("d", "l", "n", "r")):
            return {term, f"{term}es"}
    return {term}


def _english_plural(term: str) -> str:
    if term.endswith("sis"):
        return f"{term[:-2]}es"
    if term.endswith(("ss", "us", "x", "ch", "sh")):
        return f"{term}es"
    if term.endswith("s"):
        return term
    if re.search(r"[^aeiou]y$", term):
        return f"{term[:-1]}ies"
    return f"{term}s"
