"""Which shots pass into one another gradually: by a fade or a dissolve?

Fades: a blank stretch between two different pictures. Dissolves: TransNetV2, and only where two pictures about a second
apart differ and those between look like a mixture.

Source: Lienhart, Comparison of automatic shot boundary detection algorithms, 1999 (contrast falls in the middle of a
dissolve).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from medgen.canonical import rounded
from models.segmentation.frame_comparison import SmallFrame, best_correlation, blend
from models.segmentation.hard_cuts import brief_change
from models.segmentation.shot_window import Boundary, DiscardedChange, ShotWindow
from models.segmentation.transnet import WINDOW, TransNet, load_transnet

LEAST_SEEN = 3  # times the contrast of a blank picture: what a fade comes from or leads to shows at least so much
LONGEST_FADE_S = 2.5
RAMP_ERROR = 0.15  # squared error of the picture half way as a dimmed one, over the squared size of the change
RAMP_ALIKE = 0.6  # correlation of its structure with the full picture's


class Fades:
    """Finds the fades among the frames of a window.

    Args:
        horizon: frames after which a blank stretch counts as endless: its entry and its exit are boundaries each.
    """

    def __init__(self, window: ShotWindow, horizon: int) -> None:
        self._window = window
        self._horizon = horizon

    def find(self, start: int, end: int) -> list[Boundary]:
        """Blank stretches between two different pictures that begin in frames [start, end).

        Those between two cuts need no more. A picture that comes back from the dark joins the window's discarded
        changes.
        """
        window, horizon = self._window, self._horizon
        blank = [frame.contrast < window.settings.blank_contrast for frame in window.frames]
        fades = []
        for number in range(max(start, window.first + 1), end):
            here = number - window.first
            if blank[here] and not blank[here - 1]:
                span = blank[here : here + horizon]
                if False in span:
                    fades += self._fade(number, number + span.index(False))
                elif number not in window.changes:  # endless, or to the end of the video
                    fades += self._one_sided(number, self._climb(number, -1))
            # The exit from a stretch so long that its entry was a boundary of its own, or with which the video begins.
            elif (
                not blank[here]
                and blank[here - 1]
                and all(blank[max(0, here - horizon) : here])
                and (here >= horizon or window.first == 0)
                and number not in window.changes
            ):
                fades += self._one_sided(number, self._climb(number - 1, 1))
        return fades

    def _one_sided(self, edge: int, full: int) -> list[Boundary]:
        """The boundary of a fade from or to a blank stretch without another picture at its far side.

        Args:
            edge: the first frame of the blank stretch, or the first one after it.
            full: the frame at which the picture stands in full.
        """
        if self._window[full].contrast < LEAST_SEEN * self._window.settings.blank_contrast:
            return []
        blank = (
            range(max(self._window.first, edge - self._horizon), edge)
            if full >= edge
            else range(edge, min(edge + self._horizon, self._window.end))
        )
        if not self._is_empty(blank) or not self._is_ramp(edge if full >= edge else edge - 1, full):
            return []
        start, end = (edge, full) if full >= edge else (full + 1, edge)
        return [Boundary(edge, "gradual", start, max(end, start + 1), 1.0)]

    def _fade(self, begin: int, stop: int) -> list[Boundary]:
        """The boundary that the blank frames [begin, stop) make, or none."""
        window = self._window
        change = brief_change(window, begin)
        if change is not None:
            window.discarded.append(change)
            return []
        if not self._is_empty(range(begin, stop)):
            return []
        entry, exit_ = begin in window.changes, stop in window.changes
        left = begin - 1 if entry else self._climb(begin, -1)
        right = stop if exit_ else self._climb(stop - 1, 1)
        seen = max(window[left].contrast, window[right].contrast)
        # Nothing more for two cuts, nor where hardly more is to be seen on either side than in between.
        if (entry and exit_) or seen < LEAST_SEEN * window.settings.blank_contrast:
            return []
        if window.same_scene(window[left], window[right]):
            window.discarded.append(DiscardedChange(begin, "dark spell", stop, 1.0))
            return []
        number = stop if entry else begin if exit_ else (begin + stop) // 2
        return [Boundary(number, "gradual", left + 1, right, 1.0)]

    def _is_ramp(self, edge: int, full: int) -> bool:
        """Whether the picture comes up or goes down as a whole, without becoming another: slices of a scan do not."""
        window = self._window
        between = range(min(edge, full), max(edge, full) + 1)
        half = min(between, key=lambda number: abs(window[number].contrast - window[full].contrast / 2))
        if abs(half - full) < 2:
            return True  # too fast to tell
        black = np.zeros_like(window[full].rgb) + np.uint8(255 * (window[edge].luma > 128))
        _, error = blend(window[full].rgb, window[half].rgb, black)
        return error <= RAMP_ERROR and best_correlation(window[half].structure, window[full].structure) >= RAMP_ALIKE

    def _is_empty(self, numbers: Iterable[int]) -> bool:
        """Whether a blank stretch comes to show nothing at all: a fade does, a clear sky does not."""
        return min(self._window[number].contrast for number in numbers) <= self._window.settings.blank_contrast / 2

    def _climb(self, blank: int, step: int) -> int:
        """The frame beside a blank stretch at which contrast has come to its level."""
        window = self._window
        number = blank + step
        for _ in range(window.count(LONGEST_FADE_S)):
            ahead = [place for n in (1, 2, 3) if window.first <= (place := number + n * step) < window.end]
            if max((window[place].contrast for place in ahead), default=0.0) <= 1.02 * window[number].contrast:
                break
            number += step
        return number


class Dissolves:
    """Finds the dissolves among the frames of a window with TransNetV2.

    Attributes:
        frames_by_net: frames shown to the net so far.
    """

    def __init__(self, window: ShotWindow) -> None:
        self._window = window
        self._net: TransNet | None = None
        self.frames_by_net = 0

    def find(self, start: int, end: int, boundaries: Sequence[Boundary]) -> list[Boundary]:
        """Gradual transitions in frames [start, end) that TransNetV2 confirms, apart from the known boundaries."""
        dissolves: list[Boundary] = []
        for span, places in self._mixtures(start, end, boundaries).items():
            # A long transition is shown in time lapse, so that the net, which knows short ones best, sees it whole.
            step = max(1, round(self._window.fps / 30 * max(1.0, span)))
            margin = WINDOW // 4 * step
            places = [p for p in places if not any(b.start - margin < p < b.end + margin for b in dissolves)]
            while places:
                group = [place for place in places if place < places[0] + 2 * margin]
                places = places[len(group) :]
                for boundary in self._ask_net(group[0] - margin, group[-1] + margin + 1, step, group):
                    if not any(b.start < boundary.end and boundary.start < b.end for b in dissolves):
                        dissolves.append(boundary)
        return dissolves

    def _mixtures(self, start: int, end: int, boundaries: Sequence[Boundary]) -> dict[float, list[int]]:
        """Frames where the picture may be a mixture of what was before and what comes after, by the length of that."""
        window, s = self._window, self._window.settings
        step = window.count(0.12)
        known = [(number, number) for number in window.changes]
        known += [(b.start, b.end) for b in boundaries if b.end >= window.first]
        known += [(change.frame, change.back) for change in window.discarded if change.back >= window.first]
        places: dict[float, list[int]] = {span: [] for span in s.spans_s}
        for number in range(-(-max(start, window.first) // step) * step, end, step):
            for span in s.spans_s:
                half = window.count(span / 2)
                a, b = number - half, number + half
                if a < window.first or b >= window.end:
                    continue
                if any(begin <= b + 1 and stop >= a - 1 for begin, stop in known):
                    continue
                if self._is_mixture(window[a], window[number], window[b]):
                    places[span].append(number)
                    break
        return places

    def _is_mixture(self, a: SmallFrame, middle: SmallFrame, b: SmallFrame) -> bool:
        """Is `middle` the picture of a dissolve from `a` to `b`? Motion keeps the contrast, a blend loses it."""
        s = self._window.settings
        if min(a.contrast, b.contrast) < s.blank_contrast:
            return False
        share, error = blend(a.rgb, middle.rgb, b.rgb)
        if not 0.2 <= share <= 0.8 or error > s.mixture_error:
            return False
        if middle.contrast**2 > s.contrast_dip * (share * a.contrast**2 + (1 - share) * b.contrast**2):
            return False
        return best_correlation(a.structure, b.structure) < s.same_picture

    def _ask_net(self, low: int, high: int, step: int, places: Sequence[int]) -> list[Boundary]:
        """Peaks of the net's probability near `places`, as boundaries. The net is shown frames low, low + step, …."""
        window, threshold = self._window, self._window.settings.transnet_threshold
        self._net = self._net or load_transnet()
        last = window.end - 1
        numbers = np.arange(low, high, step)
        pictures = np.stack([window[int(np.clip(number, window.first, last))].rgb for number in numbers])
        self.frames_by_net += len(numbers)
        middle, inside = self._net.probabilities(pictures)
        dissolves = []
        edges = np.flatnonzero(np.diff(np.concatenate([[0], middle >= threshold, [0]])))
        for begin, stop in zip(edges[::2], edges[1::2], strict=True):
            peak = int(begin + np.argmax(middle[begin:stop]))
            number = int(np.clip(numbers[peak], 0, last))
            if any(self._is_step(place) for place in range(number - 2 * step, number + 2 * step + 1)):
                continue
            if min(abs(number - place) for place in places) > window.count(max(window.settings.spans_s) / 2):
                continue
            left = right = peak
            while left > 0 and inside[left - 1] >= threshold:
                left -= 1
            while right + 1 < len(inside) and inside[right + 1] >= threshold:
                right += 1
            score = rounded(float(middle[peak]), 2)
            dissolves.append(Boundary(number, "gradual", int(numbers[left]), int(numbers[right]) + 1, score))
        return dissolves

    def _is_step(self, number: int) -> bool:
        """Does the picture change at once there (a cut, the light)? Nothing does in a dissolve."""
        window, s = self._window, self._window.settings
        if not window.has_before(number):
            return False
        difference = window[number].difference
        return difference >= s.min_difference and difference >= s.adaptive_ratio * window.around(number, "difference")
