"""How good is a clip technically and aesthetically, as people rate videos? DOVER, through its ONNX export.

Wu et al., "Exploring Video Quality Assessment on User Generated Contents from Aesthetic and Technical Perspectives"
(ICCV 2023; github.com/VQAssessment/DOVER, S-Lab licence: not for commercial use). Their `convert_to_onnx.py` makes the
file from their weights. DOVER looks at two views of a clip: the whole picture, small (aesthetic), and a mosaic of
7x7 pieces at full resolution, which keeps blur, noise and blocks (technical).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from medgen.inference import ask, onnx_providers
from medgen.inference_process import Loaded, Served
from models import ModelUnavailable

OFFLINE_CHOICE = "piqe"
# From their dover.yml: 7x7 pieces of 32x32 pixels; 32 frames a clip, every second one; 3 clips.
GRID, PIECE, SIDE = 7, 32, 224
LENGTH, INTERVAL = 32, 2
CLIPS = 3
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
# Means, deviations and weights from `fuse_results` in their evaluate_a_set_of_videos.py.
TECHNICAL_MEAN, TECHNICAL_STD, TECHNICAL_WEIGHT = 0.1107, 0.07355, 0.6104
AESTHETIC_MEAN, AESTHETIC_STD, AESTHETIC_WEIGHT = -0.08285, 0.03774, 0.3896
INPUTS = ("aes_view", "tech_view")
SEED = 42


@dataclass(frozen=True)
class DoverScores:
    """Each 0..1, higher is better: the logistic of the standardised score, 0.5 for an average video of LSVQ."""

    technical: float
    aesthetic: float
    overall: float


class DoverViews:
    """The two views of one clip, gathered while it is decoded: 10 to 30 MB, whatever the picture's size.

    Their random places are fixed here, so that a clip always gets the same score: the middle of each range of frames,
    and pieces drawn with a seed of their own.

    Attributes:
        wanted: numbers of the frames that must be added.
    """

    def __init__(self, count: int, clips: int) -> None:
        self._aesthetic_at = _sampled(count, pieces=LENGTH, length=1)
        self._technical_at = _sampled(count, pieces=clips, length=LENGTH)
        self.wanted = frozenset(self._aesthetic_at) | frozenset(self._technical_at)
        self._clips = clips
        self._size: tuple[int, int] | None = None
        self._added: set[int] = set()
        self._aesthetic = np.zeros((LENGTH, SIDE, SIDE, 3), np.uint8)
        self._technical = np.zeros((clips * LENGTH, SIDE, SIDE, 3), np.uint8)

    def add(self, index: int, frame: np.ndarray) -> None:
        """Takes frame number `index`, uint8 RGB (H, W, 3); numbers that are not wanted are passed over.

        Raises:
            ValueError: for another dtype or shape, sides below 32 pixels, or another size than before.
        """
        if index not in self.wanted:
            return
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or min(frame.shape[:2]) < PIECE:
            raise ValueError(f"need uint8 RGB frames (H, W, 3) with sides from {PIECE} pixels, got {frame.shape}")
        if self._size is None:
            self._size = (frame.shape[0], frame.shape[1])
            self._offsets = _offsets(self._size, self._clips)
        if frame.shape[:2] != self._size:
            raise ValueError(f"frames of one size are needed: {self._size} and {frame.shape[:2]}")
        self._added.add(index)
        aesthetic = [place for place, at in enumerate(self._aesthetic_at) if at == index]
        if aesthetic:
            # Without antialiasing, as torchvision did for tensors when DOVER was trained.
            self._aesthetic[aesthetic] = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        for place in (place for place, at in enumerate(self._technical_at) if at == index):
            self._technical[place] = _fragments(frame, self._offsets[place // LENGTH])

    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 RGB (32, 224, 224, 3) and (clips * 32, 224, 224, 3).

        Raises:
            ValueError: wanted frames are missing.
        """
        if missing := self.wanted - self._added:
            raise ValueError(f"{len(missing)} of {len(self.wanted)} frames are missing, the first is {min(missing)}")
        return self._aesthetic, self._technical

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 (1, 3, 32, 224, 224) and (clips, 3, 32, 224, 224), normalised. Raises as `pictures`."""
        return normalised(self.pictures())


class Dover:
    """DOVER in ONNX Runtime, on one CPU thread or a GPU."""

    name = "dover"

    def __init__(self, session: Any, digest: str, clips: int, together: int) -> None:
        self.digest = digest
        self._session = session
        self._clips = clips
        self._together = together

    def views(self, count: int) -> DoverViews:
        """An empty pair of views for a clip of `count` frames. Raises ValueError for less than one."""
        return DoverViews(count, self._clips)

    def scores(self, views: DoverViews) -> DoverScores:
        """The clip's scores. Raises ValueError when frames are missing or the model's answer is not finite."""
        return fused(*self.raw(*views.arrays()))

    @property
    def clips(self) -> int:
        """How often a clip is sampled for the technical view."""
        return self._clips

    def raw(self, aesthetic_view: np.ndarray, technical_view: np.ndarray) -> tuple[float, float]:
        """Answers of the aesthetic and the technical branch, for `fused`; takes what `DoverViews.arrays` gives. Raises
        ValueError when they are not finite."""
        # Their export answers in this order; a model that takes fewer pieces at once is asked more often.
        answers = [
            self._session.run(None, {"aes_view": aesthetic_view, "tech_view": technical_view[at : at + self._together]})
            for at in range(0, self._clips, self._together)
        ]
        aesthetic = float(np.mean(answers[0][0]))
        technical = float(np.mean([np.mean(answer[1]) for answer in answers]))
        if not np.isfinite([aesthetic, technical]).all():
            raise ValueError("DOVER's answer is not a finite number")
        return aesthetic, technical


class ServedDover:
    """DOVER in an inference process, see `medgen.inference`. Raises as `load_dover`."""

    def __init__(self, path: Path) -> None:
        self.digest = dover_digest(path)
        self._model = Served(_served, (path,), most=8)
        self._clips = int(ask(self._model, [None])[0])

    def views(self, count: int) -> DoverViews:
        """See `Dover.views`."""
        return DoverViews(count, self._clips)

    def scores(self, views: DoverViews) -> DoverScores:
        """See `Dover.scores`."""
        return fused(*ask(self._model, [views.pictures()])[0])


def _served(device: str, path: Path) -> Loaded:
    """Answers pairs of pictures with the raw answers of the branches, and None with the number of clips."""
    dover = load_dover(path, device)

    def prepare(question: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray] | None:
        return None if question is None else normalised(question)

    def answer(questions: list[tuple[np.ndarray, np.ndarray] | None]) -> list[Any]:
        return [dover.clips if question is None else dover.raw(*question) for question in questions]

    return Loaded(answer, prepare)


def fused(aesthetic: float, technical: float) -> DoverScores:
    """Raw answers of the two branches on a common scale, and their weighted sum (`fuse_results`, see above).

    Their onnx_inference.py hands the two to that formula in the wrong order; here each branch gets its own constants.
    """
    t = (technical - TECHNICAL_MEAN) / TECHNICAL_STD
    a = (aesthetic - AESTHETIC_MEAN) / AESTHETIC_STD
    return DoverScores(
        technical=_logistic(t),
        aesthetic=_logistic(a),
        overall=_logistic(TECHNICAL_WEIGHT * t + AESTHETIC_WEIGHT * a),
    )


def load_dover(path: Path, device: str = "cpu") -> Dover:
    """Loads DOVER's ONNX export.

    The export fixes how many pieces of a clip go through at once (theirs: 4); a clip is then sampled that often.

    Args:
        path: the .onnx file, with the weights inside (no external data) and operators of ONNX only.
        device: of PyTorch; a GPU where this ONNX Runtime knows it, else the CPU.

    Raises:
        ModelUnavailable: the file is missing, or is no such model.
    """
    digest = dover_digest(path)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    content = path.read_bytes()
    # Handed over as bytes, so that external data could be read from the working folder at best: refuse it before.
    if _has_external_data(content):
        raise ModelUnavailable(_message(path, "its weights lie in other files; export it with the weights inside"))
    try:
        session = ort.InferenceSession(content, options, providers=onnx_providers(device))
    except Exception as error:
        raise ModelUnavailable(_message(path, f"not a usable ONNX model ({str(error)[:200]})")) from error
    shapes = {given.name: given.shape for given in session.get_inputs()}
    wanted = [LENGTH, SIDE, SIDE]
    if set(shapes) != set(INPUTS) or len(session.get_outputs()) != 2:
        raise ModelUnavailable(_message(path, f"inputs {sorted(shapes)}, expected {list(INPUTS)} and two outputs"))
    for name, shape in shapes.items():
        fits = len(shape) == 5 and all(
            not isinstance(have, int) or have == want for have, want in zip(shape[1:], [3, *wanted], strict=True)
        )
        if not fits or (name == "aes_view" and shape[0] not in (1, None) and isinstance(shape[0], int)):
            raise ModelUnavailable(_message(path, f"input {name} has shape {shape}, expected (N, 3, 32, 224, 224)"))
    fixed = shapes["tech_view"][0]
    together = fixed if isinstance(fixed, int) else CLIPS
    if together < 1:
        raise ModelUnavailable(_message(path, f"input tech_view has shape {shapes['tech_view']}"))
    return Dover(session, digest, clips=CLIPS if together == 1 else together, together=together)


def dover_digest(path: Path) -> str:
    """sha256 (hex) of the file and the sampling; imports no ONNX Runtime.

    Raises:
        ModelUnavailable: the file does not exist.
    """
    if not path.is_file():
        raise ModelUnavailable(_message(path, "there is no such file"))
    with path.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    sampling = [GRID, PIECE, LENGTH, INTERVAL, CLIPS, SEED]
    return digest_of({"name": Dover.name, "version": 2, "weights": weights, "sampling": sampling})


def _message(path: Path, cause: str) -> str:
    return (
        f"DOVER cannot be loaded: {cause}. Looked in: {path}. It is made by convert_to_onnx.py of "
        f"github.com/VQAssessment/DOVER. Without it choose {OFFLINE_CHOICE!r} as the technical model."
    )


def _has_external_data(content: bytes) -> bool:
    """Whether a tensor of the ONNX file says that its values lie elsewhere.

    Such a tensor carries the key "location" of its external data as a protobuf string: the key entry is field 1 of a
    StringStringEntryProto (tag 0x0A, length 8). A false alarm would need these ten bytes inside the weights.
    """
    return b"\x0a\x08location" in content


def _sampled(count: int, *, pieces: int, length: int) -> list[int]:
    """`UnifiedFrameSampler.get_frame_indices`, with the middle of each range in place of a random offset."""
    if count < 1:
        raise ValueError(f"a clip has at least one frame, not {count}")
    part = count // pieces
    slack = part - length * INTERVAL
    offset = (slack - 1) // 2 if slack > 0 else 0
    return [(part * piece + offset + step * INTERVAL) % count for piece in range(pieces) for step in range(length)]


def _offsets(size: tuple[int, int], clips: int) -> np.ndarray:
    """int (clips, 7, 7, 2): top and left of every piece, as `get_spatial_fragments` places them."""
    generator = np.random.default_rng(SEED)
    places = np.zeros((clips, GRID, GRID, 2), int)
    for axis, side in enumerate(size):
        cell = side // GRID
        start = np.array([min(cell * i, side - PIECE) for i in range(GRID)])
        start = start[:, None] if axis == 0 else start[None, :]
        slack = cell - PIECE
        places[..., axis] = start + (generator.integers(0, slack, (clips, GRID, GRID)) if slack > 0 else 0)
    return places


def _fragments(frame: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The mosaic (224, 224, 3). Smaller pictures are enlarged first, and cut where they would have been before, as
    theirs are."""
    scale = SIDE / min(frame.shape[:2])
    if scale > 1:
        height, width = (max(SIDE, int(side * scale)) for side in frame.shape[:2])
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    rows = [
        np.concatenate([frame[top : top + PIECE, left : left + PIECE] for top, left in row], axis=1) for row in places
    ]
    return np.concatenate(rows, axis=0)


def normalised(pictures: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """`DoverViews.pictures` as `DoverViews.arrays`."""
    aesthetic, technical = pictures
    return _normalised(aesthetic, 1), _normalised(technical, len(technical) // LENGTH)


def _normalised(frames: np.ndarray, clips: int) -> np.ndarray:
    values = (frames.astype(np.float32) - MEAN) / STD
    values = values.reshape(clips, LENGTH, SIDE, SIDE, 3).transpose(0, 4, 1, 2, 3)
    return np.ascontiguousarray(values)


def _logistic(value: float) -> float:
    return rounded(float(1 / (1 + np.exp(-np.clip(value, -60, 60)))))
