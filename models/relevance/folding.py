"""Text as dictionary terms are matched in it: lower-case words without accents or apostrophes, one blank between them.

One text as a string (`fold`), or the texts of many listings at once as one buffer of bytes (`fold_fields`).
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_APOSTROPHES = frozenset("'`\u2018\u2019\u02bc\uff07")
# Before a vowel or h an apostrophe parts words (l'hypertension, dell'arteria, Ankara'ya); else it is within one (it's).
_PARTING = re.compile("'(?=[aeiouyh])")
_IS_PARTED = np.array([byte < 0x80 and chr(byte) in "aeiouyh" for byte in range(256)])
_VIRAMA = 9  # the combining class of the mark that joins consonants in Indian scripts: part of a word as a vowel is
# What Unicode takes for letters of their own. The capital of the Turkish ı is I.
_AS_WRITTEN = {"œ": "oe", "Œ": "oe", "æ": "ae", "Æ": "ae", "ı": "i"}
# Scripts written without blanks: Thai, Lao, Burmese, Khmer, Han, kana.
_UNSPACED_RANGES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
)
UNSPACED = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _UNSPACED_RANGES) + "]")
_BESIDE_LATIN = re.compile(f"(?<=[a-z0-9])(?={UNSPACED.pattern})|(?<={UNSPACED.pattern})(?=[a-z0-9])")
_PLANES = 0x20000  # code points above, rare Han characters, are left as they are

# Bytes that no UTF-8 text holds: one stands between fields, one for what is to be deleted.
BETWEEN, _GONE = 0xFF, 0xFE
BLANK = 0x20
_APOSTROPHE, _BACKTICK = b"'`"
# Lower case; what is no letter or digit becomes a blank, but for apostrophes.
_ASCII = bytes(
    byte if byte >= 0x80 or byte == _APOSTROPHE else ord(chr(byte).lower()) if chr(byte).isalnum()
    else _APOSTROPHE if byte == _BACKTICK else BLANK
    for byte in range(256)
)  # fmt: skip
_IS_LATIN = np.array([byte < 0x80 and chr(byte).isalnum() for byte in range(256)])


def fold(text: str) -> str:
    """`text` as it is matched: lower-case words without accents or apostrophes, one blank between them.

    Latin letters beside a script without blanks are words of their own.
    """
    letters = _PARTING.sub(" ", "".join(map(fold_char, text))).replace("'", "")
    return " ".join(_BESIDE_LATIN.sub(" ", letters).split())


@lru_cache(1 << 16)
def fold_char(char: str) -> str:
    """One character, folded: letters and digits of its compatibility decomposition, or a blank, an apostrophe, nothing.

    No result takes more bytes in UTF-8 than the character itself: the few that would (½, Hangul syllables) only lose
    their case. So text is folded in place.
    """
    if ord(char) >= _PLANES:
        return char
    if char in _APOSTROPHES:
        return "'"
    if char in _AS_WRITTEN:
        return _AS_WRITTEN[char]
    if unicodedata.category(char) == "Cf" or unicodedata.combining(char) not in (0, _VIRAMA):
        return ""
    if "\ufe00" <= char <= "\ufe0f" or char == "\u20e3":  # variation selectors, keycap
        return ""
    if not _is_word(char):
        return " "
    if "\u3041" <= char <= "\u30ff":
        return char  # a mark on kana makes another letter: がん (cancer) is not かん
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    letters = (part for part in decomposed if unicodedata.combining(part) in (0, _VIRAMA))
    folded = "".join(part if _is_word(part) else " " for part in letters)
    return folded if len(folded.encode()) <= len(char.encode()) else char.lower()


def _is_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LNM"


class _FoldingTable:
    """Characters beyond ASCII, folded, each when it is first met: all of them would take a second.

    Args:
        folded: uint8 (code points, 4), UTF-8 padded with `_GONE`; of those that were met.
        unspaced: bool (code points,), which are of scripts without blanks.
    """

    def __init__(self) -> None:
        self.folded = np.full((_PLANES, 4), _GONE, np.uint8)
        self._met = np.zeros(_PLANES, bool)
        self.unspaced = np.zeros(_PLANES, bool)
        for first, last in _UNSPACED_RANGES:
            self.unspaced[first : last + 1] = True

    def letters(self, code: np.ndarray) -> np.ndarray:
        """uint8 (N, 4): characters of these code points (int64 (N,)), folded."""
        for new in np.unique(code[~self._met[code]]).tolist():
            raw = b"" if 0xD800 <= new < 0xE000 else fold_char(chr(new)).encode()
            self.folded[new, : len(raw)] = list(raw)
            self._met[new] = True  # last, for other threads
        found: np.ndarray = self.folded[code]
        return found


_folding_table = cache(_FoldingTable)


def fold_fields(fields: list[pa.Array]) -> bytes:
    """The fields of all rows, folded as by `fold`, each with a blank around it and followed by `BETWEEN`.

    The text stays one buffer throughout; only letters beyond ASCII are looked at one by one.
    """
    between = bytes((0x20, BETWEEN, 0x20))
    joined = pc.binary_join_element_wise(
        *fields, pa.scalar(b"", pa.large_binary()), pa.scalar(between, pa.large_binary())
    )
    offsets = np.frombuffer(joined.buffers()[1], np.int64)
    text = np.empty(offsets[-1] + 1, np.uint8)
    text[0] = 0x20
    text[1:] = np.frombuffer(joined.buffers()[2], np.uint8)[: offsets[-1]]
    table = _folding_table()
    has_unspaced = False
    for size, at, code in _beyond_ascii(text):
        at, code = at[code < _PLANES], code[code < _PLANES]
        has_unspaced |= bool(table.unspaced[code].any())
        letters = table.letters(code)
        for place in range(size):
            text[at + place] = letters[:, place]
    words = _parted(text.tobytes().translate(_ASCII, bytes([_GONE])))
    return _single_blanks(_beside_latin(words) if has_unspaced else words)


def _parted(words: bytes) -> bytes:
    """Without apostrophes, see `_PARTING`."""
    if _APOSTROPHE not in words:
        return words
    text = np.frombuffer(words, np.uint8).copy()
    at = np.flatnonzero(text == _APOSTROPHE)
    text[at] = np.where(_IS_PARTED[text[at + 1]], BLANK, _GONE)  # a field ends with a blank, so one byte follows
    return text.tobytes().translate(None, bytes([_GONE]))


def _beyond_ascii(text: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Size in bytes, positions and code points of the characters of two, three and four bytes in UTF-8 `text`."""
    leads = np.flatnonzero((text >= 0xC2) & (text != BETWEEN))
    heads = text[leads]
    for size, low, high in ((2, 0xC2, 0xDF), (3, 0xE0, 0xEF), (4, 0xF0, 0xF4)):
        at = leads[(heads >= low) & (heads <= high)]
        if len(at):
            code = text[at].astype(np.int64) & (0x7F >> size)
            for place in range(1, size):
                code = code << 6 | text[at + place] & 0x3F
            yield size, at, code


def _beside_latin(words: bytes) -> bytes:
    """Puts a blank where a Latin letter or digit meets a script without blanks."""
    text = np.frombuffer(words, np.uint8)
    unspaced = _folding_table().unspaced
    gaps = []
    for size, at, code in _beyond_ascii(text):
        if size == 3:  # all those scripts
            at = at[unspaced[code]]
            gaps += [at[_IS_LATIN[text[at - 1]]], at[_IS_LATIN[text[at + size]]] + size]
    return np.insert(text, np.concatenate(gaps), BLANK).tobytes() if gaps else words


def _single_blanks(words: bytes) -> bytes:
    text = np.frombuffer(words, np.uint8).copy()
    blank = text == BLANK
    text[1:] |= (blank[1:] & blank[:-1]).view(np.uint8) * np.uint8(_GONE)  # a blank | _GONE is _GONE
    return text.tobytes().translate(None, bytes([_GONE]))
