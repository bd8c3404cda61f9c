"""Texts as hashed words and word parts: the lexical features of stage 2, vectorised over a batch of texts.

Millions of listings pass here, so nothing is done text by text but lower-casing: words are cut and hashed as slices
of one array of code points. A hash of a slice is the difference of two prefix sums of a polynomial (Karp and Rabin,
1987), so that a word, its beginnings and its endings cost the same. Features are hashed into a fixed number of
columns (Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning").
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

COLUMNS_LOG2 = 18
COLUMNS = 1 << COLUMNS_LOG2
AFFIXES = (3, 4, 5, 6)  # lengths of the beginnings and endings of a word that are features, in characters
BATCH_CHARS = 1 << 17  # texts are cut into batches of about so many characters: temporaries stay in the cache
# Raise when words or features are cut or hashed otherwise: heads and word vectors of before do not fit then.
FEATURES_VERSION = 1

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2**64
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # of splitmix64
_SEPARATOR, _LETTER, _IDEOGRAPH = 0, 1, 2
# Scripts written without spaces: each character is a word, so that pairs of words are pairs of characters.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF))


class Words(NamedTuple):
    """The words of N texts, in order.

    Args:
        texts: N.
        text: int64 (W,), which text each word is of.
        hashes: uint64 (W,) of the lower-case words.
        codes: uint32 (C,), the code points of all texts, the unit of `start` and `end`.
        start, end: int64 (W,), where each word lies in `codes`.
        sums: uint64 (C + 1,), prefix sums of the polynomial.
    """

    texts: int
    text: np.ndarray
    hashes: np.ndarray
    codes: np.ndarray
    start: np.ndarray
    end: np.ndarray
    sums: np.ndarray


def words_of(texts: Sequence[str]) -> Words:
    """Cuts texts into words: runs of letters, digits and marks; each ideograph is a word. Case does not matter."""
    lowered = [_plain(text) for text in texts]
    codes = np.frombuffer("\n".join(lowered).encode("utf-32-le", "surrogatepass"), np.uint32)
    kind = np.zeros(len(codes) + 2, np.uint8)
    kind[1:-1] = _kinds()[np.minimum(codes, 0xFFFF)]
    inner, alone = kind[1:-1], kind[1:-1] == _IDEOGRAPH
    inside = inner != _SEPARATOR
    start = np.flatnonzero(inside & ((inner != kind[:-2]) | alone))
    end = np.flatnonzero(inside & ((inner != kind[2:]) | alone)) + 1
    powers, _ = _powers(len(codes))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum((codes + np.uint64(1)) * powers[: len(codes)], out=sums[1:])
    ends = np.cumsum(np.fromiter(map(len, lowered), np.int64, len(lowered)) + 1)
    # Which text a word is of: texts end where `ends` says, and words come in order.
    counts = np.diff(np.searchsorted(start, ends), prepend=0)
    text = np.repeat(np.arange(len(lowered)), counts)
    return Words(len(lowered), text, _hash(sums, start, end), codes, start, end, sums)


def features_of(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """int64 (F,) text and int64 (F,) column of every feature: words, pairs of neighbours, beginnings and endings."""
    text, column = [words.text], [words.hashes >> np.uint64(64 - COLUMNS_LOG2)]
    if len(words.hashes) > 1:
        together = np.flatnonzero(words.text[1:] == words.text[:-1])
        pairs = _mixed(words.hashes[together] * _BASE + words.hashes[together + 1])
        text.append(words.text[together])
        column.append(pairs >> np.uint64(64 - COLUMNS_LOG2))
    length = words.end - words.start
    for size in AFFIXES:
        of = np.flatnonzero(length > size)
        start, end = words.start[of], words.end[of]
        for salt, first, last in ((2 * size, start, start + size), (2 * size + 1, end - size, end)):
            text.append(words.text[of])
            column.append(_hash(words.sums, first, last, salt) >> np.uint64(64 - COLUMNS_LOG2))
    return np.concatenate(text), np.concatenate(column).astype(np.int64)


def batches(*columns: Sequence[str]) -> list[slice]:
    """Slices of rows, of about `BATCH_CHARS` characters each and at least one row, that together are all rows.

    Args:
        columns: texts of the same rows.
    """
    chars = sum(np.fromiter(map(len, column), np.int64, len(column)) + 1 for column in columns)
    ends = np.cumsum(chars)
    slices, start = [], 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + BATCH_CHARS, side="right")))
        slices.append(slice(start, end))
        start = end
    return slices


def _plain(text: str) -> str:
    """Lower case; other than ASCII in compatibility form, so that 𝗯𝗼𝗹𝗱 or full-width letters are letters."""
    if not text.isascii() and not unicodedata.is_normalized("NFKC", text):
        text = unicodedata.normalize("NFKC", text)
    return text.lower()


def _hash(sums: np.ndarray, start: np.ndarray, end: np.ndarray, salt: int = 0) -> np.ndarray:
    _, inverses = _powers(len(sums))
    return _mixed((sums[end] - sums[start]) * inverses[start] + np.uint64(salt))


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    x ^= x >> np.uint64(31)
    return x


_cached_powers: list[np.ndarray] = [np.ones(0, np.uint64), np.ones(0, np.uint64)]


def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64 arrays of at least `length`: powers of the base, and of its inverse, modulo 2**64."""
    if len(_cached_powers[0]) < length:
        size = max(length, BATCH_CHARS + (1 << 14))
        for place, base in enumerate((_BASE, np.uint64(pow(int(_BASE), -1, 1 << 64)))):
            steps = np.full(size, base, np.uint64)
            steps[0] = 1
            _cached_powers[place] = np.multiply.accumulate(steps)
    return _cached_powers[0], _cached_powers[1]


@cache
def _kinds() -> np.ndarray:
    """uint8 (65536,): separator, letter or ideograph, by code point. Those beyond, emoji and rare ideographs, count
    as the last one: each is a word."""
    kinds = np.array([_LETTER if unicodedata.category(chr(c))[0] in "LNM" else _SEPARATOR for c in range(1 << 16)])
    for first, last in _UNSPACED:
        block = kinds[first : last + 1]
        block[block == _LETTER] = _IDEOGRAPH
    kinds[0xFE00:0xFE10] = _SEPARATOR  # variation selectors, which follow emoji
    kinds[0xFFFF] = _IDEOGRAPH
    return kinds.astype(np.uint8)
