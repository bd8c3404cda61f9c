"""Words in a picture: drawn with a font that has all their letters, as large as there is room for.

Fonts come inside packages: DejaVu Sans (matplotlib), FreeSans for Devanagari (visvis), Noto Sans CJK for Chinese and
Japanese. Fonts of the system come after them.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medgen.canonical import digest_of
from medgen.store import file_digest

# Package → its font's place in it.
PACKAGED = {
    "matplotlib": "mpl-data/fonts/ttf/DejaVuSans.ttf",
    "visvis": "visvisResources/FreeSans.otf",
    "cvttf_NotoSansCJK_Regular": "NotoSansCJKtc-Regular.otf",
}
LINE_HEIGHT = 1.3  # of a font's size
SMALLEST = 8  # pixels

Colour = tuple[int, int, int, int]
WHITE: Colour = (255, 255, 255, 255)
CLEAR: Colour = (0, 0, 0, 0)


@cache
def packaged_fonts() -> tuple[Path, ...]:
    """The fonts of PACKAGED that are there, in order."""
    found = []
    for package, name in PACKAGED.items():
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(place) / name).is_file():
                found.append(path)
    return tuple(found)


@cache
def fonts_digest() -> str:
    """sha256 (hex) over the packaged fonts: the same words look the same with the same ones."""
    return digest_of([file_digest(path)[0] for path in packaged_fonts()])


def font_for(text: str) -> Path | None:
    """The first font that has all letters of a text; None when none has."""
    return _font_for(frozenset(char for char in text if unicodedata.category(char)[0] not in "CZ"))


@cache
def _font_for(letters: frozenset[str]) -> Path | None:
    return next((path for path in _fonts() if letters <= _letters(path)), None)


def _fonts() -> Iterator[Path]:
    yield from packaged_fonts()
    from matplotlib.font_manager import findSystemFonts

    yield from map(Path, sorted(findSystemFonts()))


@cache
def _letters(path: Path) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(str(path)).get_charmap()))
    except (OSError, RuntimeError):  # no font that can be read
        return frozenset()


def overlay(width: int, height: int, ground: Colour = CLEAR) -> Image.Image:
    """A picture to draw on, RGBA, of one colour."""
    return Image.new("RGBA", (width, height), ground)


def draw(
    picture: Image.Image,
    text: str,
    box: tuple[int, int, int, int],
    size: int,
    *,
    align: Literal["left", "center", "right"] = "left",
    ground: Colour | None = None,
    colour: Colour = WHITE,
) -> bool:
    """Draws words into a box of a picture, in as many lines as they need, smaller where they would not fit.

    Args:
        box: left, top, right, bottom, pixels.
        size: of the font, pixels; the largest.
        ground: behind each line, for words over pictures.

    Returns:
        Whether they were drawn: no font may have their letters.
    """
    path = font_for(text)
    if path is None or not text.strip():
        return False
    left, top, right, bottom = box
    while True:
        font = ImageFont.truetype(str(path), size)
        lines = _lines(text, font, right - left)
        if len(lines) * size * LINE_HEIGHT <= bottom - top or size <= SMALLEST:
            break
        size -= 1
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        length = font.getlength(line)
        free = right - left - length
        x = left + {"left": 0.0, "center": free / 2, "right": free}[align]
        y = top + number * size * LINE_HEIGHT
        if ground:
            pen.rectangle((x - size * 0.3, y, x + length + size * 0.3, y + size * LINE_HEIGHT), fill=ground)
        pen.text((x, y), line, font=font, fill=colour)
    return True


def _lines(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The text in lines that are no wider than `width`, where it can be broken."""
    lines, line = [], ""
    for part in _parts(text):
        if line and font.getlength((line + part).rstrip()) > width:
            lines.append(line.rstrip())
            line = part.lstrip()
        else:
            line += part
    return [*lines, line.rstrip()]


def _parts(text: str) -> Iterator[str]:
    """Pieces between which a line may break: words with the space after them, signs of scripts without spaces."""
    yield from _signs(text) if _unspaced(text) else re.findall(r"\S+\s*", text)


def _unspaced(text: str) -> bool:
    return any("\u3040" <= char <= "\u9fff" for char in text)


def _signs(text: str) -> Iterator[str]:
    """Single signs; letters of words in between stay together, and closing marks stay with what they close."""
    piece = ""
    for char in text:
        closing = unicodedata.category(char) in ("Pe", "Pf", "Po")
        joined = piece and (closing or (char.isascii() and not char.isspace() and piece[-1].isascii()))
        if piece and not joined:
            yield piece
            piece = ""
        piece += char
    yield piece


def blended(frame: np.ndarray, over: Image.Image) -> np.ndarray:
    """A frame, uint8 RGB (H, W, 3), with a picture of its size laid over it."""
    layer = np.asarray(over)
    alpha = layer[..., 3:].astype(np.uint16)
    mixed = (frame * (255 - alpha) + layer[..., :3] * alpha + 127) // 255
    return mixed.astype(np.uint8)
