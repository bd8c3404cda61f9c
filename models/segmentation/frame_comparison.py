"""How alike are two small pictures, whatever the light?

Pictures are compared by their structure: brightness and contrast are evened out over a neighbourhood, so that a change
of light leaves little trace and a change of scene a deep one.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from models.segmentation.transnet import HEIGHT, WIDTH

NEIGHBOURHOOD = 9  # side of the square, pixels of 48 x 27, over which brightness and contrast are evened out
NOISE = 3.0  # grey levels: weaker contrast than this is noise and is not amplified
BLACK = 24  # grey levels: rows and columns at the edge that reach no more are bars
SHIFT = 3  # pixels of 48 x 27 that a picture may have moved and still be the same
CELL = 8  # side, pixels of 256 x 144, of the cells of which some may have stayed as they were
CELL_CONTRAST = 4.0  # grey levels: a cell with less has nothing in it by which it could be known again
LEAST_CELLS = 8  # fewer filled cells say little
CELL_CHANGE = 6.0  # grey levels: a cell whose mean difference is smaller has stayed


@dataclass
class SmallFrame:
    """What is kept of a frame until those around it have come."""

    rgb: np.ndarray  # uint8 (27, 48, 3)
    structure: np.ndarray  # float32 (27, 48)
    contrast: float  # grey levels
    luma: float  # mean, 0..255
    change: float = 0.0  # structure change against the frame before, 0..2
    difference: float = 0.0  # mean absolute difference to the frame before, grey levels
    stayed: float = 0.0  # share of the cells with something in them that are as on the frame before, 0..1
    renewed: float = 1.0  # share of all cells that are not, 0..1

    @classmethod
    def of(cls, bgr: np.ndarray) -> "SmallFrame":
        """From a picture uint8 BGR (h, w, 3); changes against the frame before are 0."""
        small = cv2.resize(bgr, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
        structure, contrast = _structure(grey)
        return cls(np.ascontiguousarray(small[:, :, ::-1]), structure, contrast, float(grey.mean()))


def structure_change(before: SmallFrame, after: SmallFrame, blank_contrast: float) -> float:
    """1 - correlation of the structures, 0 to 2. Flat pictures have no structure to compare, so there colour decides.

    Args:
        blank_contrast: grey levels; a picture with less shows nothing.
    """
    share = max(_structured_share(before.structure), _structured_share(after.structure))
    if before.contrast < blank_contrast and after.contrast < blank_contrast:
        change = 0.0
    elif min(before.contrast, after.contrast) < blank_contrast:
        change = min(1.0, abs(before.contrast - after.contrast) / (8 * blank_contrast))
    else:
        change = 1.0 - _correlation(before.structure, after.structure)
    if share < 0.15:
        change = max(change, min(1.0, colour_distance(before.rgb, after.rgb)))
    return change


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two pictures uint8 (h, w, 3), grey levels."""
    return sum(cv2.mean(cv2.absdiff(a, b))[:3]) / 3


def cell_shares(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """How much of a picture is as it was: pictures uint8 BGR (h, w, 3), w about 256.

    Returns:
        The share of cells that stayed among those with something in them, before or after, whichever is more; and the
        share of all cells that changed. A window that opens on a screen leaves the rest of what was there, one that
        closes adds to what stays; a cut leaves next to nothing.
    """
    if before.shape != after.shape:
        return 0.0, 1.0
    size = max(1, after.shape[1] // CELL), max(1, after.shape[0] // CELL)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.resize(values, size, interpolation=cv2.INTER_AREA)

    difference = mean(cv2.cvtColor(cv2.absdiff(before, after), cv2.COLOR_BGR2GRAY).astype(np.float32))
    greys = [cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32) for picture in (before, after)]
    filled = [mean(grey * grey) - mean(grey) ** 2 > CELL_CONTRAST**2 for grey in greys]
    alike = difference < CELL_CHANGE
    stayed = max(float((cells & alike).sum()) / max(LEAST_CELLS, int(cells.sum())) for cells in filled)
    return stayed, float(1 - alike.mean())


def best_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The highest correlation of two structures over shifts of up to `SHIFT` pixels each way, -1 to 1."""
    inner = np.ascontiguousarray(a[SHIFT:-SHIFT, SHIFT:-SHIFT])
    return float(cv2.matchTemplate(b, inner, cv2.TM_CCOEFF_NORMED).max())


def same_scene(
    a: SmallFrame,
    b: SmallFrame,
    least_correlation: float,
    blank_contrast: float,
    at_change: float = 0.0,
    unseen: bool = True,
) -> bool:
    """Do both show the same scene, whatever the light?

    Args:
        least_correlation: of pictures that show the same, after the best shift.
        blank_contrast: grey levels; a picture with less shows nothing.
        at_change: correlation of `a` to what came right after it; the scene that comes back is liker than that.
        unseen: nothing could be seen meanwhile, so that a camera held by hand may have moved on: then agreeing colours
            make up for some structure.
    """
    if min(a.contrast, b.contrast) < blank_contrast or not 1 / 3 < a.contrast / b.contrast < 3:
        return False
    alike = best_correlation(a.structure, b.structure)
    if alike < at_change + least_correlation / 2:
        return False
    if alike >= least_correlation:
        return colour_distance(a.rgb, b.rgb) < 0.5
    coloured = float(np.ptp(_chroma(a.rgb), axis=2).mean()) >= 0.1  # all grey pictures have the same palette
    return unseen and coloured and alike >= 0.6 * least_correlation and _palette_overlap(a.rgb, b.rgb) >= 0.8


def colour_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance of chromaticity, which brightness leaves alone: 0 the same, 1 as red to green at half
    saturation."""
    return float(2 * np.abs(_chroma(a) - _chroma(b)).sum(axis=2).mean())


def blend(a: np.ndarray, middle: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The share x for which x a + (1 - x) b comes nearest to `middle`, and its squared error over |a - b|²."""
    apart = a.astype(np.float32) - b
    rest = middle.astype(np.float32) - b
    size = float((apart * apart).sum()) + 1e-6
    share = float((apart * rest).sum()) / size
    rest -= share * apart
    return share, float((rest * rest).sum()) / size


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


def _chroma(rgb: np.ndarray) -> np.ndarray:
    values = rgb.astype(np.float32) + 8
    chroma: np.ndarray = values / values.sum(axis=2, keepdims=True)
    return chroma


def _palette_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of the chromaticity histograms, 0..1."""
    histograms = []
    for rgb in (a, b):
        c = _chroma(cv2.blur(rgb, (3, 3)))
        histogram = cv2.calcHist([c[:, :, 0], c[:, :, 1]], [0, 1], None, [16, 16], [0.1, 0.9, 0.1, 0.9])
        histograms.append(cv2.blur(histogram / WIDTH / HEIGHT, (3, 3)))
    return float(np.minimum(*histograms).sum() / max(1e-6, min(h.sum() for h in histograms)))
