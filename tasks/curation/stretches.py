"""Stretches: the longest runs of a shot's medical, alike samples, and the clips that they are cut into.

The paper's rule (MedGen, section on segmentation): every sample of a stretch is medical, every neighbour similarity
exceeds τ; a stretch lasts at least 6 s and becomes clips of 6 to 10 s.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stretch:
    """Frames [start, end) of one shot, the samples [first, last] that lie in it, and those of them passed over."""

    start: int
    end: int
    first: int
    last: int
    bridged: tuple[int, ...] = ()


def stretches(
    medical: np.ndarray,
    alike: Callable[[int, int], bool],
    sample_frames: np.ndarray,
    sample_times: np.ndarray,
    sample_shots: np.ndarray,
    frame_shots: np.ndarray,
    *,
    gap_tolerance_s: float = 0.0,
    to_shot_edge: bool = True,
) -> list[Stretch]:
    """Longest runs of samples that are medical, alike and of one shot.

    From one sample a run goes on to the next medical sample of the shot that is like it. Samples in between are an
    interruption (a hand before the lens, a flash, a misjudged frame), which lasts from its first sample to the sample
    where the run goes on; it is bridged when that is no longer than `gap_tolerance_s`. So a picture that changes for
    good ends a run however long a gap is tolerated, and with 0 this is the paper's rule: neighbours only.

    With `to_shot_edge` a run reaches to the shot's edge where no other sample lies between: those frames are less
    than a sampling interval from a medical one and in the same shot. Otherwise it begins and ends with a sample.

    Args:
        medical: bool (N,), per sample.
        alike: (sample, later sample) → whether their similarity exceeds τ.
        sample_frames: int (N,), frame index of each sample.
        sample_times: float (N,), seconds.
        sample_shots: int (N,).
        frame_shots: int (F,), shot of every frame, growing.
    """
    runs: list[Stretch] = []
    first = 0
    count = len(medical)

    def following(sample: int) -> int | None:
        for later in range(sample + 1, count):
            gap_s = sample_times[later] - sample_times[sample + 1]
            if sample_shots[later] != sample_shots[sample] or gap_s > gap_tolerance_s + 1e-6:
                return None
            if medical[later] and alike(sample, later):
                return later
        return None

    while first < count:
        if not medical[first]:
            first += 1
            continue
        members = [first]
        while (later := following(members[-1])) is not None:
            members.append(later)
        last, shot = members[-1], sample_shots[first]
        alone_before = first == 0 or sample_shots[first - 1] != shot
        alone_after = last == count - 1 or sample_shots[last + 1] != shot
        start, end = int(sample_frames[first]), int(sample_frames[last]) + 1
        if to_shot_edge and alone_before:
            start = int(np.searchsorted(frame_shots, shot, "left"))
        if to_shot_edge and alone_after:
            end = int(np.searchsorted(frame_shots, shot, "right"))
        bridged = tuple(sorted(set(range(first, last + 1)) - set(members)))
        runs.append(Stretch(start, end, first, last, bridged))
        first = last + 1
    return runs


def pieces(times: np.ndarray, stretch: Stretch, min_s: float, max_s: float) -> list[tuple[int, int]]:
    """Frame ranges [start, end) of `min_s` to `max_s` seconds that fill a stretch as far as possible.

    Args:
        times: float (F + 1,), time of every frame and of the end of the last one, seconds.
    """
    length = times[stretch.end] - times[stretch.start]
    if length < min_s - 1e-6:
        return []
    count = math.ceil(length / max_s - 1e-6)
    each = length / count
    if each < min_s - 1e-6:  # between one and two clips: one of full length, the rest is left
        count, each = count - 1, max_s
    edges = [times[stretch.start] + each * k for k in range(count + 1)]
    cuts = [int(np.searchsorted(times, edge - 1e-6)) for edge in edges]
    cuts[0], cuts[-1] = stretch.start, min(cuts[-1], stretch.end)
    return [(a, b) for a, b in itertools.pairwise(cuts) if b > a]
