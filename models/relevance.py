"""Stage 1 of discovery: is a listing medical by its words?

A dictionary of medical terms is looked up in the title, description and tags of a video, in one pass of
the Aho-Corasick automaton (Aho and Corasick, 1975), so the cost per listing does not grow with the number
of terms. It is a coarse sieve: it lets a good deal of non-medical text through, for a later test to judge.
"""

import hashlib
import json
import re
import unicodedata
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import ahocorasick

NAME = "keyword_dictionary"
TERMS_PATH = Path(__file__).with_name("weights") / "medical_terms.txt"
MAX_TEXT_CHARS = 100_000
# Raise when folding, plurals or hiding change, so that listings are judged anew.
RULES_VERSION = 1

_APOSTROPHES = re.compile("['\u2018\u2019\u02bc\uff07`]")
_NOT_WORD = re.compile(r"[\W_]+")


class _Form(NamedTuple):
    """One spelling in the automaton: the line it came from, whether it is a stop context, its length."""

    term: str
    is_stop: bool
    length: int


class KeywordDictionary:
    """Medical terms and the stop contexts that hide them.

    `name` and `digest` identify the dictionary in the ledger; `terms` and `stop_contexts` are the lines of
    the file, in its order.
    """

    name = NAME

    def __init__(self, terms: tuple[str, ...], stop_contexts: tuple[str, ...], digest: str) -> None:
        """Build the automaton. Raises ValueError when there is no term or one has no letter or digit."""
        if not terms:
            raise ValueError("a keyword dictionary needs at least one term")
        self.terms = terms
        self.stop_contexts = stop_contexts
        self.digest = digest
        self._automaton = ahocorasick.Automaton()
        # A spelling that is both a term and a stop context is hidden always: stop contexts come last.
        for is_stop, lines in ((False, terms), (True, stop_contexts)):
            for line in lines:
                for form in _spellings(line):
                    key = f" {form} "
                    self._automaton.add_word(key, _Form(line, is_stop, len(key)))
        self._automaton.make_automaton()

    def match(self, text: str) -> list[str]:
        """The terms found in `text` as whole words, each once, sorted, spelled as in the file.

        Case, accents, apostrophes and punctuation between words do not matter, and a term also stands for
        its regular English plural. Occurrences inside a stop context do not count. Only the first
        `MAX_TEXT_CHARS` characters are read. An empty list means: not medical by its words.
        """
        folded = _fold(text[:MAX_TEXT_CHARS])
        if len(text) > MAX_TEXT_CHARS:
            folded = folded.rpartition(" ")[0]  # the last word may be cut, and half a word is no match
        found: list[tuple[int, int, str]] = []
        hidden: list[tuple[int, int]] = []
        for last, form in self._automaton.iter(f" {folded} "):
            start, end = last + 1 - form.length, last + 1
            if form.is_stop:
                hidden.append((start, end))
            else:
                found.append((start, end, form.term))
        hidden.sort()
        starts = [start for start, _ in hidden]
        reach = list(accumulate((end for _, end in hidden), max))  # furthest end of the contexts begun so far

        def is_hidden(start: int, end: int) -> bool:
            begun = bisect_right(starts, start)
            return begun > 0 and reach[begun - 1] >= end

        return sorted({term for start, end, term in found if not is_hidden(start, end)})


def load_keyword_dictionary(path: Path | None = None) -> KeywordDictionary:
    """Read a term file (UTF-8; one term a line, `#` comments, `!` before a stop context).

    Without a path, the medical terms that come with the package. Raises OSError when the file cannot be
    read, ValueError when it is not UTF-8, has no term or has a term without a letter or digit.
    """
    source = path or TERMS_PATH
    terms: list[str] = []
    stop_contexts: list[str] = []
    for line in source.read_text(encoding="utf-8").splitlines():
        entry = line.partition("#")[0].strip()
        if entry.startswith("!"):
            stop_contexts.append(entry[1:].strip())
        elif entry:
            terms.append(entry)
    return KeywordDictionary(tuple(terms), tuple(stop_contexts), keyword_digest(source))


def keyword_digest(path: Path | None = None) -> str:
    """sha256 (hex) over the name, the bytes of the term file and the matching rules."""
    identity = {
        "name": NAME,
        "terms": hashlib.sha256((path or TERMS_PATH).read_bytes()).hexdigest(),
        "max_text_chars": MAX_TEXT_CHARS,
        "rules": RULES_VERSION,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _fold(text: str) -> str:
    """Lower-case words without accents or apostrophes, one space between them."""
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
        text = "".join(char for char in decomposed if not unicodedata.combining(char))
    return _NOT_WORD.sub(" ", _APOSTROPHES.sub("", text.lower())).strip()


def _spellings(line: str) -> set[str]:
    """The folded line and its regular English plural."""
    folded = _fold(line)
    if not folded:
        raise ValueError(f"a term needs a letter or a digit: {line!r}")
    if folded.endswith("sis"):
        plural = f"{folded[:-2]}es"
    elif folded.endswith(("ss", "us", "x", "ch", "sh")):
        plural = f"{folded}es"
    elif folded.endswith("s"):
        plural = folded
    elif re.search(r"[^aeiou]y$", folded):
        plural = f"{folded[:-1]}ies"
    else:
        plural = f"{folded}s"
    return {folded, plural}
