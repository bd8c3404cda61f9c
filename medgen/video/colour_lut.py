"""Wide gamuts and high dynamic range to BT.709, as a table of colours for FFmpeg's `lut3d`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

POINTS = 49  # along each axis
# Exponents of light: of standard range as it is meant to be seen (ITU-R BT.1886), and of the sRGB displays on which
# readers show BT.709's values as they are (IEC 61966-2-1, about), for which HDR is brought to values.
SDR_GAMMA, SRGB_GAMMA = 2.4, 2.2
REFERENCE_WHITE = 203.0  # nits of HDR that become white: ITU-R BT.2408, table 1
# From here on (of 1: white) values are squeezed, so that what is brighter than white stays below 1.
KNEE = 0.95
HLG_PEAK, HLG_SYSTEM_GAMMA = 1000.0, 1.2  # nits, and its exponent: ITU-R BT.2100, table 5
# xy of red, green, blue: ITU-R BT.709, BT.2020; SMPTE RP 431-2, EG 432-1. White stays white: D65 for all, also DCI's.
CHROMATICITIES = {
    "bt709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    "bt2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "smpte431": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "smpte432": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
D65 = (0.3127, 0.3290)
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593])


def to_bt709(rgb: np.ndarray, primaries: str, transfer: str) -> np.ndarray:
    """BT.709 values of non-linear RGB, float (N, 3), 0..1, full range.

    Light is carried over as it is: greys of standard range keep their values, HDR's reference white becomes 1. Colours
    beyond BT.709 are cut off at its edge.

    Args:
        primaries: of `CHROMATICITIES`; others are taken for BT.709's.
        transfer: FFmpeg's name; all of standard range are taken for `SDR_GAMMA`.
    """
    gamma = SRGB_GAMMA
    if transfer == "smpte2084":
        light = _pq(rgb) / REFERENCE_WHITE
    elif transfer == "arib-std-b67":
        light = _hlg(rgb) / REFERENCE_WHITE
    else:
        gamma = SDR_GAMMA
        light = rgb**gamma
    light = np.clip(light @ _to_709(primaries).T, 0.0, None)
    values = light ** (1 / gamma)
    brightest = values.max(axis=-1, keepdims=True)
    shown: np.ndarray = np.clip(values * _squeezed(brightest) / np.maximum(brightest, 1e-9), 0.0, 1.0)
    return shown


@contextmanager
def lut_file(primaries: str, transfer: str) -> Iterator[str]:
    """Path of a table in Adobe's .cube format, which is gone afterwards: FFmpeg reads it when a graph is made."""
    with TemporaryDirectory(prefix="medgen-lut-") as folder:
        path = Path(folder) / "colours.cube"
        path.write_text(_cube(primaries, transfer))
        yield str(path)


@cache
def _cube(primaries: str, transfer: str) -> str:
    axis = np.linspace(0.0, 1.0, POINTS)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")  # red changes fastest
    table = to_bt709(np.stack([red, green, blue], axis=-1).reshape(-1, 3), primaries, transfer)
    rows = "\n".join(f"{r:.6f} {g:.6f} {b:.6f}" for r, g, b in table.tolist())
    return f"LUT_3D_SIZE {POINTS}\n{rows}\n"


def _squeezed(values: np.ndarray) -> np.ndarray:
    above = np.maximum(values - KNEE, 0.0)
    return np.where(values > KNEE, KNEE + (1 - KNEE) * (1 - np.exp(-above / (1 - KNEE))), values)


def _pq(values: np.ndarray) -> np.ndarray:
    """Nits of PQ values: SMPTE ST 2084, equation 4.1."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = values ** (1 / m2)
    nits: np.ndarray = 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    return nits


def _hlg(values: np.ndarray) -> np.ndarray:
    """Nits of HLG values of BT.2020 on a display of `HLG_PEAK`: ITU-R BT.2100, table 5."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)
    luminance = (scene @ BT2020_LUMA)[..., None]
    nits: np.ndarray = HLG_PEAK * np.maximum(luminance, 1e-9) ** (HLG_SYSTEM_GAMMA - 1) * scene
    return nits


@cache
def _to_709(primaries: str) -> np.ndarray:
    """Matrix from linear RGB to BT.709's, float (3, 3)."""
    known = primaries if primaries in CHROMATICITIES else "bt709"
    matrix: np.ndarray = np.linalg.inv(_to_xyz("bt709")) @ _to_xyz(known)
    return matrix


def _to_xyz(primaries: str) -> np.ndarray:
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in CHROMATICITIES[primaries]]).T
    x, y = D65
    white = np.array([x / y, 1.0, (1 - x - y) / y])
    return columns * np.linalg.solve(columns, white)
