"""Ways to find shot boundaries, on sequences made so that the boundaries are known (`bench.made_shots`)."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from bench.made_shots import MadeSequence, made_sequences
from bench.picture_pool import PARTS, load_pools
from models.segmentation.shot_window import ShotSettings
from models.segmentation.shots import ShotDetector
from models.segmentation.transnet import HEIGHT, WIDTH, WINDOW, load_transnet

COUNT = 4  # sequences of each kind and part
SEED = 10  # thresholds were chosen with sequences of other seeds in view
NEAR_S = 0.2

Found = list[tuple[int, bool]]  # (frame, whether it is said to be gradual)
Method = Callable[[MadeSequence], Found]


@dataclass
class Tally:
    """Boundaries found rightly, wrongly and not; transitions found, and found as such."""

    right: int = 0
    wrong: int = 0
    missed: int = 0
    gradual: int = 0
    named: int = 0

    def add(self, sequence: MadeSequence, found: Found) -> None:
        """Holds what was found in a sequence against its truth; further finds within a transition do not count."""
        near = max(2, round(NEAR_S * sequence.fps))
        free = list(found)
        for start, end in sequence.boundaries:
            here = [one for one in free if start - near <= one[0] <= end + near]
            self.right, self.missed = self.right + bool(here), self.missed + (not here)
            if start < end:
                self.gradual, self.named = self.gradual + 1, self.named + any(gradual for _, gradual in here)
                free = [one for one in free if one not in here]
            elif here:
                free.remove(min(here, key=lambda one: abs(one[0] - start)))
        self.wrong += len(free)

    def cells(self) -> str:
        """Counts, precision and recall."""
        precision, recall = self.right / max(1, self.right + self.wrong), self.right / max(1, self.right + self.missed)
        named = f"{self.named} of {self.gradual}" if self.gradual else ""
        return f"{self.right} | {self.wrong} | {self.missed} | {precision:.2f} | {recall:.2f} | {named}"


def tables(folder: Path, videos: Path | None, count: int = COUNT) -> Iterator[str]:
    """Markdown: methods on each part, and the choice by kind of sequence on the held-out part."""
    methods: Mapping[str, Method] = {
        "PySceneDetect adaptive, its defaults": _adaptive,
        "TransNetV2 on every frame, 0.5": _transnet,
        "structure, cells and fades, without TransNetV2": lambda made: _ours(made, gradual=False),
        "the same, TransNetV2 for dissolves and in doubt": lambda made: _ours(made, gradual=True),
    }
    by_kind: dict[str, Tally] = {}
    rows = [
        "| part | method | right | wrongly found | missed | precision | recall | named gradual | CPU ms a frame |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, (part, pool) in enumerate(load_pools(folder, videos).items()):
        tallies = {name: Tally() for name in methods}
        spent, frames = dict.fromkeys(methods, 0.0), 0
        for made in made_sequences(pool, count, SEED + seed):
            frames += len(made.frames)
            for name, method in methods.items():
                started = time.process_time()
                found = method(made)
                spent[name] += time.process_time() - started
                tallies[name].add(made, found)
                if part == PARTS[-1] and name == list(methods)[-1]:
                    by_kind.setdefault(made.kind, Tally()).add(made, found)
        for name, tally in tallies.items():
            rows.append(f"| {part} | {name} | {tally.cells()} | {1000 * spent[name] / max(1, frames):.2f} |")
    yield "\n".join(rows)
    head = (
        "| kind, held out | right | wrongly found | missed | precision | recall | named gradual |\n" + "|---" * 7 + "|"
    )
    yield "\n".join([head, *(f"| {kind} | {tally.cells()} |" for kind, tally in by_kind.items())])


def _adaptive(made: MadeSequence) -> Found:
    detector = AdaptiveDetector(min_scene_len=1)
    frames = enumerate(made.frames)
    return [(c.frame_num, False) for i, f in frames for c in detector.process_frame(FrameTimecode(i, made.fps), f)]


def _ours(made: MadeSequence, *, gradual: bool) -> Found:
    detector = ShotDetector(made.fps, ShotSettings(), gradual=gradual)
    for index, frame in enumerate(made.frames):
        detector.process_frame(index, frame)
    return [(boundary.frame, boundary.kind == "gradual") for boundary in detector.boundaries()]


def _transnet(made: MadeSequence) -> Found:
    """Peaks over half, as its authors take them: in windows of 100 frames of which the middle 50 count."""
    small = np.stack([cv2.resize(f, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[:, :, ::-1] for f in made.frames])
    quarter, parts = WINDOW // 4, []
    for start in range(0, len(small), WINDOW - 2 * quarter):
        numbers = np.clip(np.arange(start - quarter, start - quarter + WINDOW), 0, len(small) - 1)
        parts.append(load_transnet().probabilities(small[numbers])[0][quarter:-quarter])
    return _peaks(np.concatenate(parts)[: len(small)])


def _peaks(middle: np.ndarray) -> Found:
    edges: Sequence[int] = np.flatnonzero(np.diff(np.concatenate([[0], middle >= 0.5, [0]]))).tolist()
    runs = zip(edges[::2], edges[1::2], strict=True)
    # The net marks the last frame of a shot.
    return [(int(begin + np.argmax(middle[begin:end])) + 1, end - begin > 2) for begin, end in runs]
