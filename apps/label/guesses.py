"""What the frame model says of the files to be labelled, judged in the background while people answer."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medgen.canonical import rounded
from medgen.errors import ItemFailed
from medgen.worker_processes import decoded_apart
from models.segmentation.category import CATEGORIES
from models.segmentation.frames import FrameModel
from models.segmentation.heads import NON_MEDICAL
from models.segmentation.training_frames import sampled_frames

DECODE_LIMIT_S = 300.0  # to sample a file; a stranger's may be made to take for ever


@dataclass(frozen=True)
class Guess:
    """A verdict of the model: P(medical), and the category that it finds likeliest, "" where it names none."""

    medical: float
    category: str

    @property
    def doubt(self) -> float:
        """How far from sure it is: 0 to 1, entropy of P(medical) in bits."""
        p = min(max(self.medical, 1e-9), 1 - 1e-9)
        return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


class Guesses:
    """Guesses that come in as the model gets to the files. Safe to use from several threads."""

    def __init__(self, folder: Path, files: Sequence[str], model: FrameModel) -> None:
        self.folder, self.files, self.model = folder, files, model
        self.failed: dict[str, str] = {}
        self._known: dict[str, Guess] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def judge_all(self) -> None:
        """Judges file by file, in order, until all are done or `stop` is called."""
        for file in self.files:
            if self._stopped.is_set():
                return
            try:
                guess = guess_of(self.folder / file, self.model)
            except (ItemFailed, OSError, ValueError) as error:
                with self._lock:
                    self.failed[file] = str(error)
                continue
            with self._lock:
                self._known[file] = guess

    def stop(self) -> None:
        """No further file is begun."""
        self._stopped.set()

    def known(self) -> dict[str, Guess]:
        """file → guess, of those judged so far."""
        with self._lock:
            return dict(self._known)


def guess_of(path: Path, model: FrameModel) -> Guess:
    """The model's verdict on a video or picture. Raises ItemFailed, OSError."""
    frames = decoded_apart(sampled_frames, path, time_limit_s=DECODE_LIMIT_S)
    probabilities = model.probabilities(model.features(frames)).mean(axis=0)
    by_class = dict(zip(model.classes, probabilities.tolist(), strict=True))
    medical = 1 - by_class.pop(NON_MEDICAL)
    likeliest = max(by_class, key=lambda name: by_class[name])
    category = NON_MEDICAL if medical < 0.5 else likeliest if likeliest in CATEGORIES else ""
    return Guess(rounded(medical), category)
