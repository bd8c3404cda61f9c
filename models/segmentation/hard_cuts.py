"""Which changes from one frame to the next are hard cuts?

PySceneDetect's adaptive rule (a change stands out from those around it) on the change of structure between neighbouring
frames; what its own detector finds without a change of structure is a change of light. A change is no cut when the
picture from before is back soon (flash, lamp off and on, a hand before the lens), when part of the picture stays as it
was (a window opens on a screen, a line joins a slide, a packet was damaged), or when the picture is the same, moved. In
doubt TransNetV2 is asked.

Source: Castellano, PySceneDetect (content value, adaptive detector).
"""

import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from medgen.canonical import rounded
from models.segmentation.frame_comparison import best_correlation, cell_shares
from models.segmentation.shot_window import DiscardedChange, Reason, ShotWindow
from models.segmentation.transnet import load_transnet

CONTEXT = 30  # frames before and after a change that TransNetV2 is shown
NEAR = 3  # frames by which it may place a cut beside the change


class HardCuts:
    """Finds the hard cuts among the frames of a window.

    Args:
        by_net: ask TransNetV2 about changes that are neither clearly cuts nor clearly none.

    Attributes:
        frames_by_net: frames shown to the net so far.
    """

    def __init__(self, window: ShotWindow, *, by_net: bool = True) -> None:
        self._window = window
        self._by_net = by_net
        self.frames_by_net = 0
        self._before: np.ndarray | None = None
        self._detector: AdaptiveDetector | None = None
        self._detector_shape: tuple[int, ...] = ()
        self._by_detector: set[int] = set()  # frames that PySceneDetect takes for the first of a shot

    def process_frame(self, number: int, bgr: np.ndarray) -> None:
        """Shows the next frame, uint8 BGR (h, w, 3), which the window holds, to PySceneDetect's detector."""
        frame, s = self._window[number], self._window.settings
        if self._before is not None and frame.change >= min(s.min_change, s.rapid_change):
            frame.stayed, frame.renewed = cell_shares(self._before, bgr)
        self._before = bgr
        # A stream may change its picture size, and the detector compares pictures of one size only.
        if self._detector is None or self._detector_shape != bgr.shape:
            self._detector_shape = bgr.shape
            self._detector = AdaptiveDetector(s.adaptive_ratio, min_scene_len=0, min_content_val=s.content_value)
        cuts = self._detector.process_frame(FrameTimecode(number, self._window.fps), bgr)
        self._by_detector.update(cut.frame_num for cut in cuts)

    def drop_before(self, number: int) -> None:
        """Forgets what PySceneDetect said of the frames before `number`."""
        self._by_detector = {frame for frame in self._by_detector if frame >= number}

    def changes(self) -> list[int]:
        """The frames of the window that differ from the one before as after a cut."""
        return [number for number in range(self._window.first + 1, self._window.end) if self._is_change(number)]

    def lighting(self, start: int, end: int) -> list[DiscardedChange]:
        """Changes of frames [start, end) that PySceneDetect would take for cuts, of the light alone."""
        window = self._window
        discarded = []
        for number in range(max(start, window.first + 1), end):
            frame = window[number]
            known = frame.change >= window.settings.min_change or number in window.changes
            if number not in self._by_detector or known:
                continue
            if abs(frame.luma - window[number - 1].luma) >= 10:
                discarded.append(DiscardedChange(number, "lighting", number, rounded(frame.change)))
        return discarded

    def cuts(self, start: int, end: int) -> list[int]:
        """First frames of new shots among [start, end). Changes that are no cuts join the window's discarded ones."""
        window = self._window
        cuts: list[int] = []
        discarded = [change for change in window.discarded if change.back >= window.first]
        for number in window.changes:
            if not start <= number < end or any(change.frame <= number <= change.back for change in discarded):
                continue
            change = brief_change(window, number) or self._light_again(number) or self._no_new_picture(number)
            if change is None:
                cuts.append(number)
            else:
                window.discarded.append(change)
                discarded.append(change)
        return cuts

    def _light_again(self, number: int) -> DiscardedChange | None:
        """The end of a change of light whose begin left the structure visible."""
        window = self._window
        earliest = number - window.count(window.settings.return_s)
        for change in window.discarded:
            if change.why == "lighting" and earliest <= change.frame < number:
                before = best_correlation(window[number - 1].structure, window[number].structure)
                if window.same_scene(window[change.frame - 1], window[number], min(before, 0.5)):
                    return DiscardedChange(number, "lighting", number, rounded(window[number].change))
        return None

    def _no_new_picture(self, number: int) -> DiscardedChange | None:
        """Why a change leaves the picture the same as a whole; None where it is another one."""
        window, s = self._window, self._window.settings
        before, frame = window[number - 1], window[number]
        if min(before.contrast, frame.contrast) < s.blank_contrast:
            return None
        alike = best_correlation(before.structure, frame.structure)
        why: Reason | None = None
        if frame.stayed >= s.most_stayed:
            why = "part of the picture"
        elif alike >= s.moved_picture:
            why = "same picture"
        else:
            certain = frame.stayed < s.certain_stayed and frame.renewed >= s.certain_renewed
            if not (certain and alike < s.certain_correlation) and self._by_net and not self._confirmed(number):
                why = "unconfirmed"
        return DiscardedChange(number, why, number, rounded(frame.change)) if why else None

    def _confirmed(self, number: int) -> bool:
        """Whether TransNetV2 takes the change at a frame for a cut too."""
        window = self._window
        step = max(1, round(window.fps / 30))  # it knows 24 to 30 frames per second
        numbers = np.clip(number + step * np.arange(-CONTEXT, CONTEXT), window.first, window.end - 1)
        self.frames_by_net += len(numbers)
        middle, _ = load_transnet().probabilities(np.stack([window[int(near)].rgb for near in numbers]))
        return float(middle[CONTEXT - NEAR : CONTEXT + NEAR + 1].max()) >= window.settings.confirmed

    def _is_change(self, number: int) -> bool:
        window, s = self._window, self._window.settings
        frame = window[number]
        if frame.change < s.min_change or frame.difference < s.min_difference:
            return False
        if frame.change >= s.adaptive_ratio * max(0.05, window.around(number, "change")):
            return True
        if frame.change < s.rapid_change or frame.difference < s.rapid_difference:
            return False
        return 1 - best_correlation(window[number - 1].structure, frame.structure) >= s.rapid_change


def brief_change(window: ShotWindow, number: int) -> DiscardedChange | None:
    """Why the change at a frame is no boundary: a picture from before comes back soon. None where none does.

    What covers the lens slowly hides part of the picture already at the frame before; so earlier ones are compared too.
    """
    for early in (1, window.count(0.2), window.count(0.4)):
        reference = number - early
        if reference < window.first or any(reference < change < number for change in window.changes):
            break
        if window[reference].contrast >= window.settings.blank_contrast:
            change = _back_again(window, reference, number)
            if change is not None:
                return change
    return None


def _back_again(window: ShotWindow, reference: int, number: int) -> DiscardedChange | None:
    """The change at `number`, when the picture of `reference` is back within the time of return."""
    s = window.settings
    before, score = window[reference], rounded(window[number].change)
    at_change = best_correlation(before.structure, window[number].structure)
    last = min(number + window.count(s.return_s), window.end - 1)
    hidden: list[bool] = []
    for back in range(number, last + 1):
        frame = window[back]
        unseen = 2 * sum(hidden) > len(hidden)
        if back > number and window.same_scene(before, frame, at_change, unseen):
            break
        hidden.append(frame.luma > 239 or frame.contrast < max(s.blank_contrast, before.contrast / 3))
    else:
        return None
    luma = float(np.mean([window[place].luma for place in range(number, back)]))
    if unseen:
        why: Reason = "flash" if luma > before.luma + 20 else "dark spell" if luma < before.luma / 2 else "occlusion"
        return DiscardedChange(number, why, back, score)
    changes = [change for change in window.changes if number <= change <= back]
    if len(changes) > 2:
        return None  # one picture after another: rapid cuts
    if back - number <= window.count(s.flash_s):
        return DiscardedChange(number, "flash", back, score)
    # An inserted shot begins and ends from one frame to the next.
    if len(changes) == 2 and all(_is_sharp(window, change) for change in changes):
        return None
    return DiscardedChange(number, "occlusion", back, score)


def _is_sharp(window: ShotWindow, number: int) -> bool:
    beside = [window[place].change for place in (number - 1, number + 1) if window.has_before(place)]
    return window[number].change >= window.settings.adaptive_ratio * max([0.0, *beside])
