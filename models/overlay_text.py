"""What text stands on the frames, and how many words is that? Two readers: RapidOCR and Tesseract."""

import hashlib
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from models import ModelUnavailable

ReaderName = Literal["rapidocr", "tesseract"]

LEAST_CONFIDENCE = 0.5
"""Boxes read with less confidence are not counted as words: mostly texture taken for letters."""

RAPIDOCR_MODELS = {"Det": "PP-OCRv6_det_small.onnx", "Rec": "PP-OCRv6_rec_small.onnx"}
RAPIDOCR_SETTINGS = {
    # The longest side at detection: at 568 px burned-in lines of 720p video are found as well as at full size
    # and three times as fast.
    "Det.limit_type": "max",
    "Det.limit_side_len": 568,
    "Global.use_cls": False,  # overlay text stands upright
    "Global.text_score": 0.0,  # every box goes on record; count_words filters
}

TESSERACT_LANGUAGE = "eng"
TESSERACT_SETTINGS = {
    "oem": 1,  # the LSTM engine
    "psm": 11,  # sparse text in no particular order
    "white_threshold": 200,  # grey level from which a pixel counts as overlay letter
}
TESSERACT_TIMEOUT_S = 20.0

# Chinese characters, Japanese kana and their compatibility forms: written without spaces. Hangul has spaces.
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")


@dataclass(frozen=True)
class TextBox:
    """A piece of text (a line or a word) on a frame.

    `confidence` is the reader's own (0..1); `x`, `y`, `width`, `height` are pixels of the frame as given.
    """

    text: str
    confidence: float
    x: int
    y: int
    width: int
    height: int


class OverlayText(Protocol):
    """A reader of text on frames; `name` and `digest` identify it in the ledger."""

    name: str
    digest: str

    def read(self, frames: Sequence[np.ndarray]) -> list[list[TextBox]]:
        """Text boxes of each frame (uint8 RGB (H, W, 3)), top to bottom; an empty list where there is none."""
        ...


def load_overlay_text(name: ReaderName) -> OverlayText:
    """Loads a reader.

    Raises:
        ModelUnavailable: its package, model files or program are not installed.
        ValueError: unknown name.
    """
    digest = overlay_text_digest(name)
    return _RapidOcr(digest) if name == "rapidocr" else _Tesseract(digest)


def overlay_text_digest(name: ReaderName) -> str:
    """sha256 (hex) of the reader's name, version, model files (RapidOCR) or language (Tesseract), settings.

    Loads no model. Raises ModelUnavailable and ValueError as `load_overlay_text` does.
    """
    if name == "rapidocr":
        files = {part: _sha256(path) for part, path in _rapidocr_models().items()}
        version = importlib.metadata.version("rapidocr")
        return digest_of({"name": name, "version": version, "files": files, "settings": RAPIDOCR_SETTINGS})
    if name == "tesseract":
        return digest_of(
            {
                "name": name,
                "version": _tesseract_version(),
                "language": TESSERACT_LANGUAGE,
                "settings": TESSERACT_SETTINGS,
            }
        )
    raise ValueError(f"unknown reader of overlay text {name!r}: choose 'rapidocr' or 'tesseract'")


def count_words(frames_boxes: Iterable[Iterable[TextBox]]) -> int:
    """Total number of words over all frames given, as the paper counts them (it drops more than 20 over 5).

    A word is a run of characters between spaces with at least one letter or digit. Chinese and Japanese are
    written without spaces: there every two characters, rounded up per box, count as a word, which is about
    the mean length of a Chinese word. A word that stands on several frames counts on each. Boxes with less
    confidence than LEAST_CONFIDENCE are left out.
    """
    words = 0
    for boxes in frames_boxes:
        for box in boxes:
            if box.confidence < LEAST_CONFIDENCE:
                continue
            words += math.ceil(len(_CJK.findall(box.text)) / 2)
            words += sum(any(c.isalnum() for c in word) for word in _CJK.sub(" ", box.text).split())
    return words


class _RapidOcr:
    """PP-OCRv6 small (detection and recognition, Chinese and Latin) from the models inside the package."""

    name = "rapidocr"

    def __init__(self, digest: str) -> None:
        from rapidocr import RapidOCR

        self.digest = digest
        params: dict[str, Any] = {
            **RAPIDOCR_SETTINGS,
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        # Given as paths, the models are never looked for on the network.
        params |= {f"{part}.model_path": str(path) for part, path in _rapidocr_models().items()}
        self._engine = RapidOCR(params=params)

    def read(self, frames: Sequence[np.ndarray]) -> list[list[TextBox]]:
        return [self._read_frame(frame) for frame in frames]

    def _read_frame(self, frame: np.ndarray) -> list[TextBox]:
        found = self._engine(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        texts = getattr(found, "txts", None)
        if not texts:
            return []
        boxes = []
        for corners, text, confidence in zip(found.boxes, texts, found.scores, strict=True):
            left, top = np.floor(corners.min(axis=0)).astype(int)
            right, bottom = np.ceil(corners.max(axis=0)).astype(int)
            boxes.append(
                TextBox(
                    text.strip(),
                    rounded(float(confidence)),
                    int(left),
                    int(top),
                    int(right - left),
                    int(bottom - top),
                )
            )
        return sorted(boxes, key=lambda box: (box.y, box.x))


class _Tesseract:
    """Tesseract on the bright pixels of the frame: overlays are mostly white; dark letters are not seen."""

    name = "tesseract"

    def __init__(self, digest: str) -> None:
        import pytesseract

        languages = pytesseract.get_languages()
        if TESSERACT_LANGUAGE not in languages:
            raise ModelUnavailable(
                f"tesseract has no language {TESSERACT_LANGUAGE!r} (it has: {', '.join(languages) or 'none'}); "
                f"install its data (Debian: tesseract-ocr-{TESSERACT_LANGUAGE})"
            )
        # The program reads this from its environment; its threads slow each other down on small frames.
        os.environ.setdefault("OMP_THREAD_LIMIT", "1")
        self.digest = digest

    def read(self, frames: Sequence[np.ndarray]) -> list[list[TextBox]]:
        """As the protocol. Raises TimeoutError when a frame takes longer than TESSERACT_TIMEOUT_S."""
        return [self._read_frame(frame) for frame in frames]

    def _read_frame(self, frame: np.ndarray) -> list[TextBox]:
        import pytesseract

        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        _, page = cv2.threshold(grey, TESSERACT_SETTINGS["white_threshold"] - 1, 255, cv2.THRESH_BINARY_INV)
        try:
            table = pytesseract.image_to_data(
                page,
                lang=TESSERACT_LANGUAGE,
                config=f"--oem {TESSERACT_SETTINGS['oem']} --psm {TESSERACT_SETTINGS['psm']}",
                output_type=pytesseract.Output.DICT,
                timeout=TESSERACT_TIMEOUT_S,
            )
        except pytesseract.TesseractError:
            raise
        except RuntimeError as error:  # so pytesseract says that time is over
            raise TimeoutError(f"tesseract took more than {TESSERACT_TIMEOUT_S:.0f} s on a frame") from error
        rows = zip(
            table["text"],
            table["conf"],
            table["left"],
            table["top"],
            table["width"],
            table["height"],
            strict=True,
        )
        boxes = [
            TextBox(text.strip(), rounded(float(confidence) / 100), left, top, width, height)
            for text, confidence, left, top, width, height in rows
            if text.strip() and float(confidence) >= 0  # -1 marks pages, blocks and lines
        ]
        return sorted(boxes, key=lambda box: (box.y, box.x))


def _rapidocr_models() -> dict[str, Path]:
    """Paths of the model files inside the package, found without importing it."""
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or spec.origin is None:
        raise ModelUnavailable("RapidOCR is not installed: pip install rapidocr onnxruntime, or choose 'tesseract'")
    folder = Path(spec.origin).parent / "models"
    paths = {part: folder / file for part, file in RAPIDOCR_MODELS.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise ModelUnavailable(
            f"this version of rapidocr does not contain {', '.join(missing)} (looked in {folder}): "
            "install rapidocr 3.10, or choose 'tesseract'"
        )
    return paths


@lru_cache(maxsize=8)
def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=1)
def _tesseract_version() -> str:
    import pytesseract

    try:
        return str(pytesseract.get_tesseract_version())
    except pytesseract.TesseractNotFoundError as error:
        raise ModelUnavailable(
            "the program 'tesseract' is not on the PATH: install it (Debian: apt-get install tesseract-ocr), "
            "or choose 'rapidocr'"
        ) from error
