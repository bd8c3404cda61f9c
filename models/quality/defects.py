"""Which technical defects does a clip have: frozen, black, flashing, interlaced, blocky, noisy or out of focus?

Hand-made measures, each with its own unit, so that a threshold can be explained to a person. They need no weights.
The limits below are defaults with a margin to every good clip of the sample set; `python -m bench.judgement` writes the
values behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from models.quality.motion import FULL_SPAN, LEAST_FLOOR, NOISE_FLOOR, noise_floor

# FFmpeg's freezedetect: mean difference to the first picture of the run, share of the range, and shortest run.
FREEZE_DIFFERENCE = 0.001 * 255
FREEZE_S = 2.0
# A picture is black when 99.9 % of it is darker than this (video black is 0 after conversion, its codec noise below
# 20). FFmpeg's blackdetect asks for 98 % only, which calls the ends of a CT sweep and dim fluorescence black.
BLACK_LEVEL = 32
BLACK_PERCENTILE = 99.9
# ITU-R BT.1702 counts as a flash a pair of opposing changes by a tenth of peak luminance (about 25 grey levels); half
# of that is seen as flicker already. A change of brightness counts when most of the picture takes part in it
# (coherence), so that motion is not taken for light.
FLASH_STEP = 0.05 * 255
COHERENCE = 0.6
# A line is combed when it stands out from both neighbours by more than this many grey levels while the next lines of
# its own field do not (Graft's comb test, as in the Decomb and TFM filters).
COMB_STEP = 12
BLOCK = 8
NOISE_BLOCK = 16
# Focus is judged on a picture of this short side: enough to see blur that matters, little enough to lose grain.
SHARPNESS_SIDE = 240
SHARPNESS_RADIUS = 6
SHARPNESS_MIN_RANGE = 20
MAX_SHARPNESS = SHARPNESS_SIDE / 2
MIN_SIDE = 32
# Combing, blocks and noise are looked for in this central part (longer and shorter side, pixels), at full resolution.
CENTRE = (1280, 720)

MAX_FREEZE_SHARE = 0.5
MAX_BLACK_SHARE = 0.5
MAX_FLASHES_PER_S = 3.0
MAX_COMBING = 0.01
MAX_BLOCKINESS = 1.8
MAX_NOISE = 15.0
# Of 83 pictures enlarged from 112 pixels none came to less than 45 and 95 % to 50 or more; blurred by 1/80 of the short
# side, they came to 40 at most.
MIN_SHARPNESS = 42.0


@dataclass(frozen=True)
class Defects:
    """Measures of one clip, rounded to 4 decimals.

    Attributes:
        freeze_share: share of the clip's time in freezes of at least 2 s, 0..1.
        longest_freeze_s: the longest run of pictures that do not change, seconds.
        black_share: share of black pictures, 0..1.
        flashes_per_s: pairs of opposing changes of the whole picture's brightness per second. ITU-R BT.1702 holds
            more than 3 to be harmful.
        combing: share of pixels that stand out as interlaced lines do, less the share that stands out so from
            column to column (texture, dithering), 0..1; of the five frames the worst.
        blockiness: mean step across the borders of the 8x8 grid over the mean step elsewhere, in the direction
            where that is smaller; 1 is none (after Wang, Bovik and Evans, ICIP 2000). Median of the frames.
        noise: standard deviation of noise in grey levels in the calmest fifth of the picture, 0..255 (Immerkaer,
            "Fast Noise Variance Estimation", CVIU 1996, by blocks). Dithering counts too. Median of the frames.
        sharpness: how many of its sharpest edges would fit side by side into the picture's short side, 0..120: the
            grey range around an edge over its steepest slope is the edge's width (after Marziliano et al., ICIP 2002;
            cf. ISO 12233's line widths per picture height). It does not depend on contrast or on the number of
            pixels, so a smooth X-ray with one sharp border is sharp, and an enlarged picture is as soft as before.
            Median of the frames; 120 for frames without any edge, of which it can't tell.
    """

    freeze_share: float
    longest_freeze_s: float
    black_share: float
    flashes_per_s: float
    combing: float
    blockiness: float
    noise: float
    sharpness: float


def measure_defects(frames: Sequence[np.ndarray], small: np.ndarray, fps: float) -> Defects:
    """Measures one clip.

    Args:
        frames: a few full-size frames of the clip, uint8 RGB (H, W, 3), sides of 32 pixels and up. Scaling hides
            combing and blocks.
        small: all frames of the clip, small and grey: uint8 (T, h, w), T >= 1, about 160 pixels wide.
        fps: frames per second of `small`.

    Raises:
        ValueError: no frames, other dtypes or shapes, or fps not above 0.
    """
    if not len(frames) or any(
        f.dtype != np.uint8 or f.ndim != 3 or f.shape[2] != 3 or min(f.shape[:2]) < MIN_SIDE for f in frames
    ):
        raise ValueError(f"need uint8 RGB frames (H, W, 3) with sides from {MIN_SIDE} pixels")
    if small.dtype != np.uint8 or small.ndim != 3 or len(small) == 0:
        raise ValueError(f"need uint8 small frames (T >= 1, h, w), got {small.dtype} {small.shape}")
    if not fps > 0:
        raise ValueError(f"fps must be above 0: {fps}")
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    central = [_centre(picture) for picture in grey]
    freezes = _freezes(small) / fps
    peaks = np.percentile(small.reshape(len(small), -1), BLACK_PERCENTILE, axis=1)
    return Defects(
        freeze_share=rounded(float(freezes[freezes >= FREEZE_S].sum() / (len(small) / fps))),
        longest_freeze_s=rounded(float(freezes.max(initial=0.0))),
        black_share=rounded(float((peaks < BLACK_LEVEL).mean())),
        flashes_per_s=rounded(_flashes(small) * fps / len(small)),
        combing=rounded(max(_combing(part) for part in central)),
        blockiness=rounded(float(np.median([_blockiness(part) for part in central]))),
        noise=rounded(float(np.median([_noise(part) for part in central]))),
        sharpness=rounded(float(np.median([_sharpness(picture) for picture in grey]))),
    )


def defects_digest() -> str:
    """sha256 (hex) of the definitions and their settings, without the limits."""
    settings = {
        "freeze": [FREEZE_DIFFERENCE, FREEZE_S, FULL_SPAN, LEAST_FLOOR],
        "black": [BLACK_LEVEL, BLACK_PERCENTILE],
        "flash": [FLASH_STEP, COHERENCE],
        "centre": CENTRE,
        "comb": COMB_STEP,
        "block": BLOCK,
        "noise": NOISE_BLOCK,
        "sharpness": [SHARPNESS_SIDE, SHARPNESS_RADIUS, SHARPNESS_MIN_RANGE],
    }
    return digest_of({"name": "defects", "version": 2, "settings": settings})


def _centre(grey: np.ndarray) -> np.ndarray:
    height, width = grey.shape
    most_width, most_height = CENTRE if width >= height else CENTRE[::-1]
    top, left = max(0, (height - most_height) // 2), max(0, (width - most_width) // 2)
    return grey[top : top + most_height, left : left + most_width]


def _freezes(small: np.ndarray) -> np.ndarray:
    """Lengths in pictures of the runs of at least two that equal their first."""
    # A dark picture changes by less: what moves in it is held against what it spans, as `motion.noise_floor` does.
    least = FREEZE_DIFFERENCE * noise_floor(small[0]) / NOISE_FLOOR
    lengths, start = [], 0
    for index in range(1, len(small) + 1):
        if index == len(small) or cv2.absdiff(small[index], small[start]).mean() > least:
            lengths.append(index - start)
            start = index
    return np.array([length for length in lengths if length > 1], float)


def _flashes(small: np.ndarray) -> float:
    """Pairs of opposing changes of brightness of at least `FLASH_STEP`."""
    level, turn, reversals, rising = 0.0, 0.0, 0, None
    for before, after in pairwise(small):
        step = after.astype(np.float32) - before
        size = float(np.abs(step).mean())
        if size == 0 or abs(float(step.mean())) < COHERENCE * size:
            continue
        level += float(step.mean())
        if rising is None:
            rising = level > turn if abs(level - turn) >= FLASH_STEP else None
            turn = level if rising is not None else turn
        elif (level > turn) == rising:
            turn = level
        elif abs(level - turn) >= FLASH_STEP:
            reversals, rising, turn = reversals + 1, not rising, level
    return (reversals + 1) // 2


def _combing(grey: np.ndarray) -> float:
    lines = grey.astype(np.int16)
    return max(0.0, _combed(lines) - _combed(lines.T))


def _combed(lines: np.ndarray) -> float:
    middle = lines[2:-2]
    above, below = middle - lines[1:-3], middle - lines[3:-1]
    step = np.minimum(np.abs(above), np.abs(below))
    own = np.maximum(np.abs(middle - lines[:-4]), np.abs(middle - lines[4:]))
    return float(((step > COMB_STEP) & ((above > 0) == (below > 0)) & (own < step // 2)).mean())


def _blockiness(grey: np.ndarray) -> float:
    """Ratio of the grid's strongest phase to the others: a crop shifts the grid. Half a level keeps flat ones at 1."""
    ratios = []
    for picture in (grey, grey.T):
        steps = np.minimum(cv2.absdiff(picture[:, 1:], picture[:, :-1]), 20).mean(axis=0)
        phases = steps[: len(steps) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=0)
        strongest = phases.max()
        ratios.append((strongest + 0.5) / ((phases.sum() - strongest) / (BLOCK - 1) + 0.5))
    return float(min(ratios))


def _noise(grey: np.ndarray) -> float:
    """Only blocks between black and white count: clipping hides noise."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    detail = np.abs(cv2.filter2D(grey, cv2.CV_32F, kernel))[1:-1, 1:-1]
    mean, level = _block_means(detail), _block_means(grey[1:-1, 1:-1].astype(np.float32))
    usable = mean[(level > 20) & (level < 235)]
    # Less than a twentieth of the picture says nothing.
    if len(usable) < max(4, mean.size / 20):
        return 0.0
    return float(np.percentile(usable, 20)) * float(np.sqrt(np.pi / 2)) / 6


def _block_means(values: np.ndarray) -> np.ndarray:
    rows, columns = values.shape[0] // NOISE_BLOCK, values.shape[1] // NOISE_BLOCK
    area = values[: rows * NOISE_BLOCK, : columns * NOISE_BLOCK]
    means: np.ndarray = area.reshape(rows, NOISE_BLOCK, columns, NOISE_BLOCK).mean(axis=(1, 3))
    return means


def _sharpness(grey: np.ndarray) -> float:
    scale = SHARPNESS_SIDE / min(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    # Takes single-pixel grain out, which would pass for sharp edges.
    picture = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 0.7)
    slope = np.hypot(cv2.filter2D(picture, -1, _SLOPE), cv2.filter2D(picture, -1, _SLOPE.T))
    window = np.ones((2 * SHARPNESS_RADIUS + 1,) * 2, np.uint8)
    spread = cv2.dilate(picture, window) - cv2.erode(picture, window)
    inside = slice(SHARPNESS_RADIUS + 2, -SHARPNESS_RADIUS - 2)
    slope, spread = slope[inside, inside], spread[inside, inside]
    edges = spread > SHARPNESS_MIN_RANGE
    if edges.sum() < 0.005 * edges.size or edges.sum() < 50:
        return MAX_SHARPNESS
    steep = edges & (slope >= np.percentile(slope[edges], 90))
    width = float(np.percentile(spread[steep] / np.maximum(slope[steep], 1e-3), 10))
    return min(MAX_SHARPNESS, float(min(grey.shape)) / width)


_SLOPE = np.array([[-0.5, 0.0, 0.5]], np.float32)
