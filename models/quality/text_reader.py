"""Which text stands on a frame, and where? Two readers behind one interface: RapidOCR and Tesseract."""

import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from medgen.devices import CPU
from medgen.inference import ask, onnx_has_gpus
from medgen.inference_process import Loaded, Served
from models import ModelUnavailable

ReaderName = Literal["rapidocr", "tesseract"]

RAPIDOCR_MODELS = {"Det": "PP-OCRv6_det_small.onnx", "Rec": "PP-OCRv6_rec_small.onnx"}
RAPIDOCR_SETTINGS = {
    # The longest side at detection. Measured on one core: 568 px misses caption panels with letters of 3 % of the
    # frame's height, 736 px finds them for 0.04 s a frame more, 960 px finds no more and costs 0.11 s.
    "Det.limit_type": "max",
    "Det.limit_side_len": 736,
    "Global.use_cls": False,  # overlay text stands upright
    "Global.text_score": 0.0,  # every box goes on record; the judgement filters
}
SAME_PICTURE_LEVELS = 24
"""A box or frame whose pixels (of 255, after a 3×3 mean) moved by no more since the frame before is not read again."""

TESSERACT_LANGUAGE = "eng"
TESSERACT_SETTINGS = {
    "oem": 1,  # the LSTM engine
    "psm": 11,  # sparse text in no particular order
    "white_threshold": 200,  # grey level from which a pixel counts as overlay letter
}
TESSERACT_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class TextBox:
    """A piece of text (a line or a word) on a frame.

    `confidence` is the reader's own for the letters (0..1), `detection` that here is text at all (0..1; readers
    without such a measure repeat `confidence`); `x`, `y`, `width`, `height` are pixels of the frame as given;
    `angle` is the tilt of the baseline in degrees (-90..90, 0: level; 0 where the reader does not say).
    """

    text: str
    confidence: float
    x: int
    y: int
    width: int
    height: int
    detection: float = 1.0
    angle: float = 0.0


class TextReader(Protocol):
    """A reader of text on frames; `name` and `digest` identify it in the ledger."""

    name: str
    digest: str

    def read(self, frames: Sequence[np.ndarray]) -> list[list[TextBox]]:
        """Text boxes of each frame (uint8 RGB (H, W, 3)), top to bottom; an empty list where there is none."""
        ...


def load_text_reader(name: ReaderName, device: str = CPU) -> TextReader:
    """Loads a reader.

    Args:
        device: of PyTorch; for RapidOCR a GPU where this ONNX Runtime knows it, else the CPU.

    Raises:
        ModelUnavailable: its package, model files or program are not installed.
        ValueError: unknown name.
    """
    digest = text_reader_digest(name)
    return _RapidOcr(digest, device) if name == "rapidocr" else _Tesseract(digest)


def served_text_reader(name: ReaderName) -> TextReader:
    """As `load_text_reader`; on a machine with GPUs RapidOCR runs in an inference process, see `medgen.inference`."""
    return ServedReader(name) if name == "rapidocr" else load_text_reader(name)


class ServedReader:
    """A reader in an inference process where there is a GPU for it, else in this one."""

    def __init__(self, name: ReaderName) -> None:
        self.name: str = name
        self.digest = text_reader_digest(name)
        self._model = Served(_served, (name,), packaged=True, onnx=True)

    def read(self, frames: Sequence[np.ndarray]) -> list[list[TextBox]]:
        boxes: list[list[TextBox]] = ask(self._model, [list(frames)])[0]
        return boxes


def _served(device: str, name: ReaderName) -> Loaded:
    """Answers frames that follow one another with the boxes of each."""
    reader = load_text_reader(name, device)
    return Loaded(lambda asked: [reader.read(frames) for frames in asked])


def text_reader_digest(name: ReaderName) -> str:
    """sha256 (hex) of the reader's name, version, model files (RapidOCR) or language (Tesseract), settings.

    Loads no model. Raises ModelUnavailable and ValueError as `load_text_reader` does.
    """
    if name == "rapidocr":
        files = {part: _sha256(path) for part, path in _rapidocr_models().items()}
        version = importlib.metadata.version("rapidocr")
        settings = RAPIDOCR_SETTINGS | {"same_picture_levels": SAME_PICTURE_LEVELS, "same_frames": True}
        return digest_of({"name": name, "version": version, "files": files, "settings": settings})
    if name == "tesseract":
        return digest_of(
            {
                "name": name,
                "version": tesseract_version(),
                "language": TESSERACT_LANGUAGE,
                "settings": TESSERACT_SETTINGS,
            }
        )
    raise ValueError(f"unknown reader of text {name!r}: choose 'rapidocr' or 'tesseract'")


class _RapidOcr:
    """PP-OCRv6 small (detection and recognition, Chinese and Latin) from the models inside the package.

    Text that stays is recognised once: a box that shows the same pixels as on the frame before keeps its text, and
    a frame that does is not looked at again.
    """

    name = "rapidocr"

    def __init__(self, digest: str, device: str) -> None:
        from rapidocr import RapidOCR

        self.digest = digest
        params: dict[str, Any] = {
            **RAPIDOCR_SETTINGS,
            "Global.log_level": "critical",  # an empty frame is no cause for a warning
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        if device != CPU and onnx_has_gpus():
            params |= {
                "EngineConfig.onnxruntime.use_cuda": True,
                "EngineConfig.onnxruntime.cuda_ep_cfg.device_id": int(device.partition(":")[2] or 0),
            }
        # Given as paths, the models are never looked for on the network.
        params |= {f"{part}.model_path": str(path) for part, path in _rapidocr_models().items()}
        self._engine = RapidOCR(params=params)

    def read(self, frames: Sequence[np.ndarray]) -> list[list[TextBox]]:
        read: list[list[TextBox]] = []
        before: np.ndarray | None = None
        for frame in frames:
            if before is not None and before.shape == frame.shape:
                still = _same_pixels(before, frame, slice(None), slice(None))
                read.append(read[-1] if still else self._read_frame(frame, before, read[-1]))
            else:
                read.append(self._read_frame(frame, None, []))
            before = frame
        return read

    def _read_frame(self, frame: np.ndarray, before: np.ndarray | None, known: list[TextBox]) -> list[TextBox]:
        from rapidocr.ch_ppocr_det.utils import TextDetOutput

        picture = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        detected = self._engine(picture, use_rec=False)
        if not isinstance(detected, TextDetOutput) or detected.boxes is None or detected.scores is None:
            return []  # without text the engine gives an output of another type
        boxes = [_unread(corners, float(score)) for corners, score in zip(detected.boxes, detected.scores, strict=True)]
        texts: list[tuple[str, float] | None] = [None] * len(boxes)
        for i, box in enumerate(boxes):
            same = next((k for k in known if _same_place(k, box)), None)
            if same is not None and before is not None and _same_pixels(before, frame, *_place(box)):
                texts[i] = (same.text, same.confidence)
        unread = [i for i, text in enumerate(texts) if text is None]
        if unread:
            crops = self._engine.crop_text_regions(picture, detected.boxes[unread])
            recognised = self._engine.recognize_txt(crops)
            for i, text, score in zip(unread, recognised.txts or (), recognised.scores, strict=True):
                texts[i] = (text.strip(), rounded(float(score)))
        lines = [
            TextBox(text[0], text[1], box.x, box.y, box.width, box.height, box.detection, box.angle)
            for box, text in zip(boxes, texts, strict=True)
            if text is not None
        ]
        return sorted(lines, key=lambda box: (box.y, box.x))


def _unread(corners: np.ndarray, detection: float) -> TextBox:
    """A box from its corners (4, 2): top left, top right, bottom right, bottom left along the reading direction."""
    left, top = np.floor(corners.min(axis=0)).astype(int)
    right, bottom = np.ceil(corners.max(axis=0)).astype(int)
    across, down = corners[1] - corners[0] + corners[2] - corners[3], corners[3] - corners[0] + corners[2] - corners[1]
    # The corners of a column of text start at its top as well: its baseline is level, not its longer side.
    along = across if np.hypot(*across) * 3 >= np.hypot(*down) else np.array([down[1], -down[0]])
    angle = (float(np.degrees(np.arctan2(along[1], along[0]))) + 90) % 180 - 90
    width, height = int(right - left), int(bottom - top)
    return TextBox("", 0.0, int(left), int(top), width, height, rounded(detection), rounded(angle, 3))


def _same_place(box: TextBox, other: TextBox) -> bool:
    near = max(3, other.height // 8)
    return (
        abs(box.x - other.x) <= near
        and abs(box.y - other.y) <= near
        and abs(box.width - other.width) <= near
        and abs(box.height - other.height) <= near
    )


def _place(box: TextBox) -> tuple[slice, slice]:
    return slice(max(box.y, 0), box.y + box.height), slice(max(box.x, 0), box.x + box.width)


def _same_pixels(before: np.ndarray, after: np.ndarray, rows: slice, columns: slice) -> bool:
    difference = cv2.blur(cv2.absdiff(before[rows, columns], after[rows, columns]), (3, 3))
    return bool(difference.size) and int(difference.max()) <= SAME_PICTURE_LEVELS


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
        """As the protocol, words of a line joined. Raises TimeoutError beyond TESSERACT_TIMEOUT_S for a frame."""
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
        columns = ("block_num", "par_num", "line_num", "text", "conf", "left", "top", "width", "height")
        lines: dict[tuple[int, int, int], list[TextBox]] = {}
        for block, paragraph, line, text, confidence, left, top, width, height in zip(
            *(table[column] for column in columns), strict=True
        ):
            sure = float(confidence) / 100
            if text.strip() and sure >= 0:  # -1 marks pages, blocks and lines
                word = TextBox(text.strip(), sure, left, top, width, height)
                lines.setdefault((block, paragraph, line), []).append(word)
        return sorted((_joined(words) for words in lines.values()), key=lambda box: (box.y, box.x))


def _joined(words: list[TextBox]) -> TextBox:
    """The line that these words make; its confidence is their mean weighted by length."""
    left, top = min(w.x for w in words), min(w.y for w in words)
    right, bottom = max(w.x + w.width for w in words), max(w.y + w.height for w in words)
    sure = rounded(sum(w.confidence * len(w.text) for w in words) / sum(len(w.text) for w in words))
    return TextBox(" ".join(w.text for w in words), sure, left, top, right - left, bottom - top, sure)


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
def tesseract_version() -> str:
    """Version of the Tesseract on this machine. Raises ModelUnavailable when there is none."""
    import pytesseract

    try:
        return str(pytesseract.get_tesseract_version())
    except pytesseract.TesseractNotFoundError as error:
        raise ModelUnavailable(
            "the program 'tesseract' is not on the PATH: install it (Debian: apt-get install tesseract-ocr), "
            "or choose 'rapidocr'"
        ) from error
