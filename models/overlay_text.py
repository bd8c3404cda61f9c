"""Where is text laid over the picture, and how much?

Two readers behind one interface. rapidocr (PP-OCR, weights inside its package) is the default: on burned-in lines it
reads nearly every word, where tesseract, which needs clean print, reads about two thirds after whitening.
"""

import hashlib
import importlib.metadata
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np

from medgen.canonical import digest_of
from models import ModelUnavailable

ReaderName = Literal["rapidocr", "tesseract"]
MIN_CONFIDENCE = 0.5
TESSERACT_LIMIT_S = 20.0
TESSERACT_SETTINGS = {"white_from": 180, "psm": 11, "language": "eng"}
# A detector side of 568 px reads burned-in lines as well as full size at a fraction of the cost.
RAPIDOCR_SETTINGS: dict[str, Any] = {
    "Det.limit_type": "max",
    "Det.limit_side_len": 568,
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    "Global.log_level": "error",
}


@dataclass(frozen=True)
class TextBox:
    """A piece of text in a frame: confidence in [0, 1], box in pixels."""

    text: str
    confidence: float
    x: int
    y: int
    width: int
    height: int


class OverlayText(Protocol):
    """Reads text in frames."""

    name: str
    digest: str

    def read(self, frames: Sequence[np.ndarray]) -> list[list[TextBox]]:
        """Text boxes of every frame, uint8 RGB (H, W, 3), in reading order."""
        ...


def load_overlay_text(name: ReaderName) -> OverlayText:
    """The reader of that name. Raises ModelUnavailable when it is not installed."""
    return RapidOcrReader() if name == "rapidocr" else TesseractReader()


def overlay_text_digest(name: ReaderName) -> str:
    """sha256 over name, version, weights and settings. Raises ModelUnavailable when it is not installed."""
    if name == "tesseract":
        return digest_of({"name": name, "version": _tesseract_version(), "settings": TESSERACT_SETTINGS})
    spec = find_spec("rapidocr")
    if spec is None or spec.origin is None:
        raise ModelUnavailable("the rapidocr package is not installed; install it or choose tesseract")
    weights = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (Path(spec.origin).parent / "models").glob("*")
    }
    version = importlib.metadata.version("rapidocr")
    return digest_of({"name": name, "version": version, "weights": weights, "settings": RAPIDOCR_SETTINGS})


class RapidOcrReader:
    """PP-OCR by rapidocr, on one thread."""

    name = "rapidocr"

    def __init__(self) -> None:
        self.digest = overlay_text_digest("rapidocr")

    def read(self, frames: Sequence[np.ndarray]) -> list[list[TextBox]]:
        """See `OverlayText`."""
        return [self._boxes(self._engine(np.ascontiguousarray(frame[:, :, ::-1]))) for frame in frames]

    @cached_property
    def _engine(self) -> Any:
        from rapidocr import RapidOCR

        return RapidOCR(params=RAPIDOCR_SETTINGS)

    @staticmethod
    def _boxes(result: Any) -> list[TextBox]:
        if result.boxes is None:  # an empty picture
            return []
        found = []
        for text, score, corners in zip(result.txts or (), result.scores or (), result.boxes, strict=True):
            (left, top), (right, bottom) = np.min(corners, axis=0), np.max(corners, axis=0)
            found.append(
                TextBox(text, round(float(score), 4), int(left), int(top), int(right - left), int(bottom - top))
            )
        return found


class TesseractReader:
    """tesseract on the whitened picture: burned-in text is nearly always white."""

    name = "tesseract"

    def __init__(self) -> None:
        self.digest = overlay_text_digest("tesseract")

    def read(self, frames: Sequence[np.ndarray]) -> list[list[TextBox]]:
        """See `OverlayText`."""
        import pytesseract

        found = []
        for frame in frames:
            grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            dark_on_white = np.where(grey >= TESSERACT_SETTINGS["white_from"], 0, 255).astype(np.uint8)
            data = pytesseract.image_to_data(
                dark_on_white,
                lang=str(TESSERACT_SETTINGS["language"]),
                config=f"--psm {TESSERACT_SETTINGS['psm']}",
                output_type=pytesseract.Output.DICT,
                timeout=TESSERACT_LIMIT_S,
            )
            found.append(
                [
                    TextBox(text, round(float(data["conf"][k]) / 100, 4), *(data[s][k] for s in _TESSERACT_BOX))
                    for k, text in enumerate(data["text"])
                    if text.strip() and float(data["conf"][k]) >= 0
                ]
            )
        return found


_TESSERACT_BOX = ("left", "top", "width", "height")


def count_words(frames: Sequence[Sequence[TextBox]]) -> int:
    """Words over all frames together, as the paper counts (MedGen: more than 20 over 5 frames is too much).

    Boxes below `MIN_CONFIDENCE` don't count. Chinese, Japanese and Korean write without spaces: two characters count
    as a word, rounded up per box.
    """
    return sum(_words(box.text) for boxes in frames for box in boxes if box.confidence >= MIN_CONFIDENCE)


def _words(text: str) -> int:
    dense = sum(_is_dense(character) for character in text)
    rest = "".join(" " if _is_dense(character) else character for character in text)
    return math.ceil(dense / 2) + len(re.findall(r"\w+(?:['’.-]\w+)*", rest))


def _is_dense(character: str) -> bool:
    return unicodedata.name(character, "").startswith(("CJK UNIFIED", "HIRAGANA", "KATAKANA", "HANGUL SYLLABLE"))


def _tesseract_version() -> str:
    import pytesseract

    try:
        return str(pytesseract.get_tesseract_version())
    except pytesseract.TesseractNotFoundError as error:
        raise ModelUnavailable(
            "tesseract is not installed: install the system package tesseract-ocr, or choose rapidocr"
        ) from error
