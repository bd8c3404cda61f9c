"""Where do the shots of a video begin and end?

Hard cuts (`hard_cuts`), fades and dissolves (`gradual`). Not boundaries: changes of light and what is over when the
first picture is back (flash, lamp off and on, a hand before the lens).
"""

from dataclasses import asdict

import numpy as np

from medgen.canonical import digest_of, rounded
from models.segmentation.gradual import Dissolves, Fades
from models.segmentation.hard_cuts import HardCuts
from models.segmentation.shot_window import Boundary, DiscardedChange, ShotSettings, ShotWindow
from models.segmentation.transnet import TRANSNET_SHA256, WINDOW, transnet_weights

BATCH = 512  # frames that are judged together; bounds the memory


def shots_digest(settings: ShotSettings | None = None, *, gradual: bool = True) -> str:
    """sha256 over method, settings and weights. Loads no model. Raises ModelUnavailable (when `gradual`)."""
    if gradual:
        transnet_weights()
    settings = settings or ShotSettings()
    return digest_of(
        {
            "name": "shots",
            "version": 2,
            "settings": asdict(settings) | {"spans_s": list(settings.spans_s)},
            "transnet": TRANSNET_SHA256 if gradual else None,
        }
    )


class ShotDetector:
    """Finds the shots of one video, fed with every frame in order.

    Args:
        fps: frames per second; 25 is taken where it is not positive.
        gradual: look for dissolves with TransNetV2 too, and ask it about doubtful cuts.
            Fades and cuts are found without.

    Raises:
        ModelUnavailable: the weights of TransNetV2 are not to be had (when `gradual`).
    """

    def __init__(self, fps: float, settings: ShotSettings | None = None, *, gradual: bool = True) -> None:
        if gradual:
            transnet_weights()
        self.window = ShotWindow(float(fps) if fps > 0 else 25.0, settings or ShotSettings())
        # A change is judged by what follows within the time of return, a transition by the net's window.
        self._horizon = max(self.window.count(self.window.settings.return_s + 0.5), WINDOW)
        self._hard_cuts = HardCuts(self.window, by_net=gradual)
        self._fades = Fades(self.window, self._horizon)
        self._dissolves = Dissolves(self.window) if gradual else None
        self._boundaries: list[Boundary] = []
        self._judged = 0  # frames before this one are judged

    @property
    def discarded(self) -> list[DiscardedChange]:
        """Changes that are no boundaries, in order once `boundaries` was asked."""
        return self.window.discarded

    @property
    def frames_by_net(self) -> int:
        """Frames shown to TransNetV2 so far."""
        return self._hard_cuts.frames_by_net + (self._dissolves.frames_by_net if self._dissolves else 0)

    def process_frame(self, index: int, bgr: np.ndarray) -> None:
        """Takes the next frame, uint8 BGR (h, w, 3), w about 256. `index` counts from 0 without a gap.

        Raises:
            ValueError: not such a picture, or not the next index.
        """
        if index != self.window.end:
            raise ValueError(f"frame {index} came, frame {self.window.end} was next")
        if bgr.dtype != np.uint8 or bgr.ndim != 3 or bgr.shape[2] != 3 or 0 in bgr.shape:
            raise ValueError(f"a frame must be uint8 (h, w, 3), not {bgr.dtype} {bgr.shape}")
        self.window.add(bgr)
        self._hard_cuts.process_frame(index, bgr)
        if len(self.window.frames) >= BATCH + 3 * self._horizon:
            self._judge(index + 1 - self._horizon)

    def boundaries(self) -> list[Boundary]:
        """All boundaries, in order, once the last frame has been processed."""
        self._judge(self.window.end)
        self.discarded.sort(key=lambda change: change.frame)
        return sorted(self._boundaries, key=lambda boundary: (boundary.frame, boundary.start))

    def _judge(self, end: int) -> None:
        """Judges the frames up to `end` and drops those that nobody will ask for again."""
        window, start = self.window, self._judged
        window.changes = self._hard_cuts.changes()
        window.discarded += self._hard_cuts.lighting(start, end)
        fades = self._fades.find(start, end)
        cuts = self._hard_cuts.cuts(start, end)
        # The first pictures out of the dark differ much from each other.
        cuts = [cut for cut in cuts if not any(fade.start < cut < fade.end and cut != fade.frame for fade in fades)]
        self._boundaries += fades
        self._boundaries += [Boundary(cut, "cut", cut, cut, rounded(window[cut].change)) for cut in cuts]
        if self._dissolves:
            self._boundaries += self._dissolves.find(start, end, self._boundaries)
        self._judged = end
        keep = max(window.first, end - 2 * self._horizon)
        window.drop_before(keep)
        self._hard_cuts.drop_before(keep)
