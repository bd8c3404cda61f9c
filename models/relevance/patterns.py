"""What a dictionary's terms become to be sought: byte strings in a compiled matcher.

To compile the dictionary that is shipped takes fifteen seconds of a processor and up to 650 MiB, and each process that
words captions or judges listings needs it. So it is kept, compiled, in the user's folder of caches.
"""

import io
import logging
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import hyperscan
import numpy as np
import pyarrow as pa

from models.relevance.folding import BETWEEN, BLANK, UNSPACED, fold_fields

# Hyperscan looks at the last bytes of its literals first. Of all patterns together nearly every byte of a text passes
# that look; a part whose patterns end alike lets few pass. For 225,000 patterns a listing of 440 bytes took one scan
# 19.8 microseconds and eight scans 7.3; in parts drawn by lot, or by beginnings or length, they took 15 to 32.
PARTS = 8
OPEN = "-"  # where a term ends in it or begins with it, the word may go on
# The article, conjunctions and prepositions that Arabic writes as one with the word that follows.
_ARABIC_PROCLITICS = ("", "ال", "و", "وال", "ب", "بال", "ل", "لل", "ف", "كال")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patterns:
    """T terms and the P byte strings that stand for them.

    Args:
        spellings: string (T,), as the dictionary spells the terms.
        weights: float32 (T,), 0 for negative contexts.
        term: int32 (P,), the term of each pattern.
        length: int32 (P,), its bytes.
        negative: bool (P,), whether it is a negative context.
        part: bool (P,), whether it is the beginning, the end or any part of a word.
        matchers: each finds some of the patterns, by their number.
    """

    spellings: pa.StringArray  # in each process: as Python's strings they would take four times the memory
    weights: np.ndarray
    term: np.ndarray
    length: np.ndarray
    negative: np.ndarray
    part: np.ndarray
    matchers: tuple[hyperscan.Database, ...]

    @classmethod
    def compiled(cls, rows: list[dict[str, Any]]) -> "Patterns":
        """Of the rows of a dictionary (columns of `TERMS_SCHEMA`) without stop terms.

        Raises:
            ValueError: a term is not in the form that `fold` gives, is one letter of weight 1 in a language without
                blanks or where the word may go on, or has a weight that is not finite and > 0.
        """
        _check(rows)
        # One spelling may come from several rows: a negative context wins, then the greater weight.
        owner: dict[bytes, int] = {}
        for index, row in enumerate(rows):
            for key in _keys(row["term"], row["language"]):
                other = owner.setdefault(key, index)
                if _rank(rows[other]) < _rank(row):
                    owner[key] = index
        keys = sorted(owner, key=lambda key: key[::-1])
        owned = [owner[key] for key in keys]
        return cls(
            spellings=pa.array([row["spelling"] for row in rows], pa.string()),
            weights=np.array([row["weight"] for row in rows], np.float32),
            term=np.array(owned, np.int32),
            length=np.array([len(key) for key in keys], np.int32),
            negative=np.array([rows[index]["role"] == "negative" for index in owned]),
            part=np.array([rows[index]["term"] != bare(rows[index]["term"]) for index in owned]),
            matchers=tuple(_matchers(keys)),
        )

    def keep(self, path: Path) -> None:
        """Writes them to a file, whole or not at all. Where that can't be done a line in the log says so."""
        content = io.BytesIO()
        _, offsets, letters = self.spellings.buffers()
        arrays: dict[str, Any] = {
            "offsets": np.frombuffer(offsets, np.int32),
            "letters": np.frombuffer(letters, np.uint8),
            "weights": self.weights,
            "term": self.term,
            "length": self.length,
            "negative": self.negative,
            "part": self.part,
            "matchers": np.array(len(self.matchers)),
        }
        for place, matcher in enumerate(self.matchers):
            arrays[f"matcher_{place}"] = np.frombuffer(hyperscan.dumpb(matcher), np.uint8)
        np.savez(content, **arrays)
        part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_bytes(content.getbuffer())
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            log.info("the compiled medical dictionary is not kept: %s", error)

    @classmethod
    def kept(cls, path: Path) -> "Patterns | None":
        """Those that `keep` wrote; None where there are none, or the matcher is not for this processor or version."""
        try:
            with np.load(path, allow_pickle=False) as content:
                offsets, letters = (pa.py_buffer(content[name]) for name in ("offsets", "letters"))
                spellings = pa.StringArray.from_buffers(len(content["weights"]), offsets, letters)
                spellings.validate(full=True)
                return cls(
                    spellings=spellings,
                    weights=content["weights"],
                    term=content["term"],
                    length=content["length"],
                    negative=content["negative"],
                    part=content["part"],
                    matchers=tuple(
                        hyperscan.loadb(content[f"matcher_{place}"].tobytes(), hyperscan.HS_MODE_BLOCK)
                        for place in range(int(content["matchers"]))
                    ),
                )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, hyperscan.error) as error:
            log.info("the compiled medical dictionary is compiled again: %s", error or type(error).__name__)
            return None


def _matchers(keys: list[bytes]) -> Iterator[hyperscan.Database]:
    """Compiles keys, which are sorted by their endings, in parts of one size. A key's number is its place."""
    for numbers in np.array_split(np.arange(len(keys)), min(PARTS, len(keys))):
        matcher = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        expressions = [keys[number] for number in numbers]
        matcher.compile(expressions=expressions, ids=numbers.tolist(), elements=len(expressions), flags=0, literal=True)
        yield matcher


def _rank(row: dict[str, Any]) -> tuple[bool, float]:
    return row["role"] == "negative", row["weight"]


def _check(rows: list[dict[str, Any]]) -> None:
    terms = [bare(row["term"]) for row in rows]
    between = bytes((BLANK, BETWEEN, BLANK))
    folded = fold_fields([pa.array(terms, pa.large_string()).cast(pa.large_binary())]).split(between)
    for row, term, again in zip(rows, terms, folded[:-1], strict=True):
        if not term or term.encode() != again.removeprefix(b" "):
            raise ValueError(f"a term is not folded: {term!r}")
        if len(term) < 2 and (row["weight"] >= 1 if UNSPACED.search(term) else term != row["term"]):
            raise ValueError(f"a term of one letter would be found everywhere: {term!r}")
        if row["role"] == "term" and not 0 < row["weight"] < math.inf:
            raise ValueError(f"the weight of {term!r} is {row['weight']}")


def bare(term: str) -> str:
    """A term without the marks that the word may go on."""
    return term.removeprefix(OPEN).removesuffix(OPEN)


def _keys(term: str, language: str) -> list[bytes]:
    """What is sought for a term: its spellings as whole words, or the bare letters where a word may go on and in a
    script without blanks."""
    letters = bare(term)
    before = "" if term.startswith(OPEN) or UNSPACED.match(letters[0]) else " "
    after = "" if term.endswith(OPEN) or UNSPACED.match(letters[-1]) else " "
    if UNSPACED.search(letters):
        return [f"{before}{letters}{after}".encode()]
    return [f"{before}{spelling}{after}".encode() for spelling in spellings(term, language)]


def spellings(term: str, language: str) -> set[str]:
    """A folded term, without its marks, and its regular plural: of English, Spanish, French and Portuguese; an
    Arabic one with what is written as one with it. Where the word may go on there is nothing to add."""
    if language == "ar" and not term.startswith(OPEN):
        return {f"{proclitic}{bare(term)}" for proclitic in _ARABIC_PROCLITICS}
    if term != bare(term):
        return {bare(term)}
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
