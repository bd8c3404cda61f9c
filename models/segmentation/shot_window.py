"""The stretch of a video whose frames are being judged, and what has been decided about it so far."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from models.segmentation.frame_comparison import SmallFrame, mean_difference, same_scene, structure_change


@dataclass(frozen=True)
class ShotSettings:
    """Thresholds of shot detection. Structure change is 1 - correlation of the evened-out pictures, 0 to 2.

    On about 50 labelled videos every cut changed the structure by 0.51 or more. Of all other changes that stood out
    from those around them one did so by more than 0.37: a jump in time within a scene, 0.63.

    Those from `most_stayed` on were chosen on the tuning part of `bench/made_shots.py`. Of 100 cuts there 5 % left more
    than 0.13 as it was, and at most 0.42 (one page of text for another); 2 % renewed less than 0.25; of 150, 5 % were
    more alike than 0.30, and TransNetV2 gave 0.86 or more to those that it was shown. Windows and menus that open on a
    screen left 0.6 to 0.9 of it, low frame rates and damaged pictures were alike by 0.72 to 0.98.
    """

    min_change: float = 0.45  # structure change of a cut that stands out
    adaptive_ratio: float = 3.0  # how far it stands out: PySceneDetect's default
    rapid_change: float = 0.5  # structure change of a cut among cuts, after the best shift,
    rapid_difference: float = 45.0  # and its mean difference, grey levels
    min_difference: float = 4.0  # grey levels; less is a step of a fade, or noise in the dark
    content_value: float = 15.0  # PySceneDetect's least content value of a cut; above it, a dropped change is reported
    blank_contrast: float = 1.5  # grey levels: a picture with less shows nothing
    same_picture: float = 0.5  # correlation, after the best shift, of pictures that show the same
    return_s: float = 2.5  # a flash, a dark spell or a hand is over by then
    flash_s: float = 0.15  # whatever comes and goes within this is a flash
    spans_s: tuple[float, ...] = (0.6, 1.2, 2.0)  # lengths of gradual transitions looked for
    mixture_error: float = 0.2  # squared error of the middle as a blend of the ends, over the ends' squared distance
    contrast_dip: float = 0.75  # squared contrast of the middle over the blend of the ends': 0.5 in a dissolve, 1 else
    transnet_threshold: float = 0.5  # the threshold of TransNetV2's authors
    most_stayed: float = 0.5  # share of a picture's filled cells that stay as they were over a cut
    moved_picture: float = 0.55  # correlation, after the best shift, from which it is the same picture, moved
    certain_stayed: float = 0.5  # a cut with less that stayed,
    certain_renewed: float = 0.2  # more of the picture renewed,
    certain_correlation: float = 0.5  # and less alike after the best shift needs no second opinion;
    confirmed: float = 0.6  # any other is one where TransNetV2 says so with this probability


@dataclass(frozen=True)
class Boundary:
    """A shot boundary.

    Args:
        frame: first frame of the new shot; of a gradual transition the middle.
        start, end: frames [start, end) mix both shots; empty for a cut.
        score: structure change (cut, fade) or TransNetV2's probability (dissolve).
    """

    frame: int
    kind: Literal["cut", "gradual"]
    start: int
    end: int
    score: float


Reason = Literal[
    "lighting", "flash", "dark spell", "occlusion", "part of the picture", "same picture", "unconfirmed"
]  # fmt: skip


@dataclass(frozen=True)
class DiscardedChange:
    """A change at `frame` that is no boundary, and why. `back` is the frame at which the old picture is there again."""

    frame: int
    why: Reason
    back: int
    score: float


@dataclass
class ShotWindow:
    """The frames of a video that may still be asked for, by their number in it.

    Attributes:
        first: number of the first frame kept.
        changes: frames that differ from the one before as after a cut.
        discarded: all changes of the video so far that are no boundaries.
    """

    fps: float
    settings: ShotSettings
    first: int = 0
    changes: list[int] = field(default_factory=list)
    discarded: list[DiscardedChange] = field(default_factory=list)
    frames: list[SmallFrame] = field(default_factory=list)

    @property
    def end(self) -> int:
        """One more than the number of the last frame."""
        return self.first + len(self.frames)

    def __getitem__(self, number: int) -> SmallFrame:
        return self.frames[number - self.first]

    def has_before(self, number: int) -> bool:
        """Whether the frame and the one before it are kept."""
        return self.first < number < self.end

    def add(self, bgr: np.ndarray) -> None:
        """Takes the next frame, uint8 BGR (h, w, 3)."""
        frame = SmallFrame.of(bgr)
        if self.frames:
            before = self.frames[-1]
            frame.difference = mean_difference(frame.rgb, before.rgb)
            frame.change = structure_change(before, frame, self.settings.blank_contrast)
        self.frames.append(frame)

    def drop_before(self, number: int) -> None:
        """Drops the frames before `number`."""
        del self.frames[: number - self.first]
        self.first = number

    def count(self, seconds: float) -> int:
        """Frames in so many seconds, at least 1."""
        return max(1, round(seconds * self.fps))

    def around(self, number: int, what: Literal["change", "difference"]) -> float:
        """Mean of a change over the two neighbours at each side, as in PySceneDetect's adaptive detector.

        Repeated frames are left out: in video whose frames were repeated to reach a frame rate, every real step would
        stand out.
        """
        values: list[float] = []
        reach = max(3, self.count(0.4))
        for step in (-1, 1):
            side: list[float] = []
            idle = 0
            for distance in range(1, reach + 1):
                place = number + step * distance
                if not self.has_before(place):
                    break
                frame = self[place]
                if frame.difference < 0.25:
                    idle += 1
                    continue
                side.append(frame.change if what == "change" else frame.difference)
                if len(side) == 2:
                    break
            side += [0.0] * min(2 - len(side), idle)
            values += side
        return sum(values) / len(values) if values else 0.0

    def same_scene(self, a: SmallFrame, b: SmallFrame, at_change: float = 0.0, unseen: bool = True) -> bool:
        """See `frame_comparison.same_scene`."""
        return same_scene(a, b, self.settings.same_picture, self.settings.blank_contrast, at_change, unseen)
