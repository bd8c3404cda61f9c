"""Films of real scans that come inside Python packages: the pictures of the demo's training part.

Whoever reads a scan scrolls through its slices; that is what these films show, with the patient's right on the left of
axial and coronal pictures and the face to the left of sagittal ones. The volumes are the ICBM 152 average brain and
the maps of its tissues (nilearn), an echo-planar scan of one head (nibabel) and a CT of an aorta with a stent
(visvis).
"""

import base64
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from PIL import Image

Plane = Literal["axial", "coronal", "sagittal"]
VolumeName = Literal["t1", "echo-planar", "tissues", "grey-matter", "aorta"]

SIZE = (720, 480)
_AXES: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
_ICBM = "datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"

_DARKEST_IN_T1 = 0.235  # of its brightest: what is below is black, which brings out grey and white matter
_FAINT = np.float32(0.08)  # probability of a tissue that is shown like none, and short of 1 like 1: firmer edges
_MOST_IN_AORTA = 12  # of its levels: blood with contrast agent is grey, the wires of the stent are white
_GREY_MATTER, _WHITE_MATTER = (40, 60, 220), (240, 220, 60)


@dataclass(frozen=True)
class Scroll:
    """A way through a volume, at even speed.

    Args:
        volume: which one.
        plane: of the slices.
        start, end: the slices between which it goes, in voxels along the axis that the plane is normal to; axes run to
            the patient's left → right, back → front and foot → head.
        centre: the voxel in the middle of the picture (across, up) in the two axes of the plane.
        height: of the picture, in voxels; its width is half as much again.
    """

    volume: VolumeName
    plane: Plane
    start: float
    end: float
    centre: tuple[float, float]
    height: float

    def frames(self, count: int) -> Iterator[Image.Image]:
        """`count` RGB pictures of `SIZE`; between two slices they blend."""
        axis = _AXES[self.plane]
        slices = np.moveaxis(_volume(self.volume), axis, 0)
        across, up = slices.shape[1] - 1 - self.centre[0], slices.shape[2] - 1 - self.centre[1]
        slices = slices[:, ::-1, ::-1].swapaxes(1, 2)
        width = self.height * SIZE[0] / SIZE[1]
        left, top = across + 0.5 - width / 2, up + 0.5 - self.height / 2
        for position in np.linspace(self.start, self.end, count):
            lower = min(int(position), len(slices) - 2)
            share = position - lower
            picture = slices[lower] * (1 - share) + slices[lower + 1] * share
            yield _window(picture, left, top, width, self.height)


def data_file(package: str, inside: str) -> Path:
    """A file inside an installed package, found without importing it. Raises FileNotFoundError."""
    spec = find_spec(package)
    path = Path(spec.origin).parent / inside if spec and spec.origin else None
    if path is None or not path.is_file():
        raise FileNotFoundError(f"the package {package} does not carry {inside}")
    return path


def _window(picture: np.ndarray, left: float, top: float, width: float, height: float) -> Image.Image:
    """A box of a slice, which may reach over its edges (black there), enlarged to `SIZE`."""
    margin = round(max(width, height))
    padding = ((margin, margin), (margin, margin), *((0, 0),) * (picture.ndim - 2))
    padded = np.pad(np.clip(np.round(picture), 0, 255).astype(np.uint8), padding)
    box = (left + margin, top + margin, left + margin + width, top + margin + height)
    return Image.fromarray(padded).resize(SIZE, Image.Resampling.BICUBIC, box=box).convert("RGB")


@cache
def _volume(name: VolumeName) -> np.ndarray:
    """float32 (X, Y, Z) or (X, Y, Z, 3), 0..255, axes to the right, to the front and to the head."""
    if name == "t1":
        return _grey(_icbm("t1"), _DARKEST_IN_T1)
    if name == "echo-planar":
        return _grey(_canonical(data_file("nibabel", "tests/data/example4d.nii.gz"))[..., 0], 0)
    if name == "tissues":
        grey, white = (_tissue(short)[..., None] for short in ("gm", "wm"))
        colours: np.ndarray = grey * np.array(_GREY_MATTER, np.float32) + white * np.array(_WHITE_MATTER, np.float32)
        return colours
    if name == "grey-matter":
        grey = _icbm("gm")[..., None]
        # Black, red, yellow, white: the "hot" colours of most viewers.
        return np.clip(grey * np.float32(3 / grey.max()) - np.array((0, 1, 2), np.float32), 0, 1) * np.float32(255)
    return _aorta()


def _tissue(short: str) -> np.ndarray:
    """Probability of a tissue, 0..1, with the faint ends of the scale cut off."""
    values = _icbm(short)
    shares: np.ndarray = np.clip((values / values.max() - _FAINT) / np.float32(1 - 2 * _FAINT), 0, 1)
    return shares


def _icbm(short: str) -> np.ndarray:
    return _canonical(data_file("nilearn", _ICBM.format(short)))


def _canonical(path: Path) -> np.ndarray:
    image = nibabel.as_closest_canonical(nibabel.load(path))  # type: ignore[no-untyped-call]  # has no types
    values: np.ndarray = image.get_fdata(dtype=np.float32)
    return values


def _grey(values: np.ndarray, darkest: float) -> np.ndarray:
    """Grey levels from a share of the brightest value (the 99.8th percentile) up to it."""
    brightest = np.float32(np.percentile(values, 99.8))
    return np.clip((values / brightest - np.float32(darkest)) / np.float32(1 - darkest), 0, 1) * np.float32(255)


def _aorta() -> np.ndarray:
    """visvis keeps its volume (foot → head, front → back, right → left) as text: pieces of zlib behind base 64."""
    text = data_file("visvis", "visvisResources/stent_vol.ssdf").read_bytes()
    volume = re.search(rb"^vol = array (\d+)x(\d+)x(\d+) uint8 (\S+)$", text, re.MULTILINE)
    if volume is None:
        raise FileNotFoundError("visvis does not carry the volume of its stent as it is known to")
    shape = [int(side) for side in volume.groups()[:3]]
    parts = [zlib.decompress(base64.b64decode(part)) for part in volume[4].split(b";")]
    values = np.frombuffer(b"".join(parts), np.uint8).reshape(shape)
    turned = values.transpose(2, 1, 0)[::-1, ::-1].astype(np.float32)
    return np.minimum(turned / _MOST_IN_AORTA, 1) * np.float32(255)
