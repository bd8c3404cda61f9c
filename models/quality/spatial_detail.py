"""How much detail does a picture really show, however many pixels it has?

For telling an original from its copies; recorded as the score "detail". Detail is contrast at each scale of the
picture, as far as it stands out of noise: an enlarged copy has more pixels and nothing to fill them with, a reduced one
has lost its finest scales, and compression blurs the scales before them. Scales are given in cycles per picture, so
that copies of any size compare.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded

TILES = 8  # across and down
LEFT_OUT = 0.05  # of the tiles, those of most contrast at each scale: a logo that somebody laid over the picture
COARSEST = 16  # cycles per picture (geometric mean of its sides) from which detail counts
OCTAVES = 8
BANDS = 4  # an octave
REFERENCE = 2  # octaves, the coarsest, whose contrast is the unit: a brighter copy is none with more detail
# What is fainter, in that unit, counts as noise. Measured with LEFT_OUT on copies of 20 real videos.
NOISE = 0.2
FLAT = 0.1  # grey levels: a picture with less contrast at its coarse scales shows nothing
MIN_SIDE = 32
# An enlarged copy keeps its original's detail almost whole. So that it does not win by rounding, four times the pixels
# must show 0.4 % more detail.
PIXELS = 0.003
SPATIAL_DETAIL = digest_of(
    {
        "name": "detail",  # on record by this name
        "version": 1,
        "settings": [TILES, LEFT_OUT, COARSEST, OCTAVES, BANDS, REFERENCE, NOISE, FLAT, MIN_SIDE, PIXELS],
    }
)


def measure_spatial_detail(frames: Sequence[np.ndarray]) -> float:
    """Detail of a clip: contrast above noise, summed over octaves. Rounded to 4 decimals; 0 for empty pictures.

    Comparable between copies of one video only. Noise and sharpening count as detail. Measured in the discrete cosine
    transforms of the tiles of each frame; their power falls off towards fine scales as in all natural pictures (Field,
    "Relations between the statistics of natural images", JOSA A 1987), so that contrast per octave is about the same
    at all scales until it falls into noise.

    Args:
        frames: a few frames of the clip, uint8 RGB (H, W, 3) sides of 32 pixels and up.

    Raises:
        ValueError: no frames, another dtype or shape.
    """
    if not len(frames) or any(
        f.dtype != np.uint8 or f.ndim != 3 or f.shape[2] != 3 or min(f.shape[:2]) < MIN_SIDE for f in frames
    ):
        raise ValueError(f"need uint8 RGB frames (H, W, 3) with sides from {MIN_SIDE} pixels")
    power = np.mean([_power(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in frames], axis=0)
    plain = np.sort(power, axis=0)[: round((1 - LEFT_OUT) * len(power))].mean(axis=0)
    contrast = np.sqrt(plain)
    unit = float(contrast[: REFERENCE * BANDS].mean())
    if unit < FLAT:
        return 0.0
    above = float(np.maximum(0.0, contrast / unit - NOISE).sum()) / BANDS
    pixels = np.mean([frame.shape[0] * frame.shape[1] for frame in frames])
    return rounded(above * float(pixels) ** -PIXELS)


def _power(grey: np.ndarray) -> np.ndarray:
    """float64 (tiles, bands): variance of each tile per octave at each scale, squared grey levels."""
    height, width = grey.shape
    rows, columns = height // TILES // 2 * 2, width // TILES // 2 * 2  # OpenCV transforms even sizes
    bands = _bands(rows, columns, height, width)
    tiles = grey[: TILES * rows, : TILES * columns].astype(np.float32)
    powers = np.empty((TILES * TILES, OCTAVES * BANDS))
    for place in range(TILES * TILES):
        top, left = place // TILES * rows, place % TILES * columns
        waves = cv2.dct(np.ascontiguousarray(tiles[top : top + rows, left : left + columns]))
        power = np.bincount(bands, np.square(waves).ravel(), OCTAVES * BANDS + 1)
        powers[place] = power[1:] * (BANDS / (rows * columns))
    return powers


@lru_cache(64)
def _bands(rows: int, columns: int, height: int, width: int) -> np.ndarray:
    """int64 (rows * columns,): the band of each wave of a tile, from 1; 0 for coarser ones, finer ones in the last."""
    down, across = np.arange(rows) / (2 * rows), np.arange(columns) / (2 * columns)
    cycles = np.hypot(down[:, None], across[None]) * np.sqrt(height * width)
    band = np.floor(BANDS * np.log2(np.maximum(cycles, 1e-9) / COARSEST)).astype(np.int64) + 1
    clipped: np.ndarray = np.clip(band, 0, OCTAVES * BANDS).ravel()
    return clipped
