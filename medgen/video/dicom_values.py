"""What the values of DICOM's pixels look like: tables from stored values to 8-bit grey levels or colours.

Every transformation of grey pictures (modality LUT or rescale, VOI LUT or window, MONOCHROME1) looks at one value at a
time, so that all of them together are one table over the values that a pixel can hold. PS3.3 C.11.1, C.11.2, C.7.9.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, SupportsFloat

import numpy as np

from medgen.errors import ItemFailed

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Window = Literal["file", "voi_lut", "full_range"]

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # what pydicom gives as RGB
PALETTE = "PALETTE COLOR"
_CHANNELS = ("Red", "Green", "Blue")


@dataclass
class LevelTables:
    """Tables of uint8 levels of one file.

    Args:
        header: attributes of the image, with its functional groups.

    Attributes:
        low, high: the values that become black and white where the file says no window, see `see`.
    """

    header: "Dataset"
    low: float = math.inf
    high: float = -math.inf
    _last: "tuple[Dataset, Dataset, np.ndarray] | None" = field(default=None, repr=False)

    @property
    def window(self) -> Window:
        """What chooses the shades that are shown, by the first frame."""
        if self.header.PhotometricInterpretation not in GREY:
            return "full_range"
        shown = _group(self.header, 0, "FrameVOILUTSequence")
        return "voi_lut" if _voi_lut(shown) else "file" if _window(shown) else "full_range"

    @property
    def needs_range(self) -> bool:
        """Whether the range of the whole series must be known first: `see` every frame.

        Where there is no window, values of up to 8 bits are shown as they are, as devices store what they show.
        """
        return self.window == "full_range" and self.header.PhotometricInterpretation in GREY and self._bits > 8

    def see(self, index: int, frame: np.ndarray) -> None:
        """Widens the range by the values of a frame, all but its pixel padding value."""
        there = np.zeros(2 ** (8 * frame.dtype.itemsize), bool)
        there[_unsigned(frame)] = True
        stored = _stored_values(frame.dtype)
        padding = self.header.get("PixelPaddingValue")
        if padding is not None and np.any(there & (stored != int(padding))):
            there &= stored != int(padding)
        values = _rescaled(stored[there], _group(self.header, index, "PixelValueTransformationSequence"), self.header)
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def levels(self, index: int, frame: np.ndarray) -> np.ndarray:
        """The frame in uint8, as it is shown: (H, W) grey or (H, W, 3) RGB."""
        rescale = _group(self.header, index, "PixelValueTransformationSequence")
        shown = _group(self.header, index, "FrameVOILUTSequence")
        if self._last is None or self._last[0] is not rescale or self._last[1] is not shown:
            self._last = rescale, shown, self._table(frame.dtype, rescale, shown)
        return np.asarray(self._last[2][_unsigned(frame)])

    def _table(self, dtype: np.dtype, rescale: "Dataset", shown: "Dataset") -> np.ndarray:
        photometric, stored = self.header.PhotometricInterpretation, _stored_values(dtype)
        if photometric == PALETTE:
            return _palette(self.header, stored)
        if photometric in COLOUR:
            return _eight_bits(stored / (2**self._bits - 1))
        values = _rescaled(stored, rescale, self.header)
        if lut := _voi_lut(shown):
            entries, first, bits = lut
            share = _looked_up(entries, first, values) / (2**bits - 1)
        elif window := _window(shown):
            share = _windowed(values, *window)
        else:
            low, high = self.low, self.high
            if low > high:  # nobody looked: all that can be stored
                all_stored = np.clip(stored, *_storable(self._bits, signed=dtype.kind == "i"))
                possible = _rescaled(all_stored, rescale, self.header)
                low, high = float(possible.min()), float(possible.max())
            share = (values - low) / max(high - low, 1e-9)
        levels = _eight_bits(share)
        inverted: np.ndarray = 255 - levels
        return inverted if photometric == "MONOCHROME1" else levels

    @property
    def _bits(self) -> int:
        return int(self.header.BitsStored)


def _group(header: "Dataset", index: int, name: str) -> "Dataset":
    """The item of a functional group macro that holds for a frame, its own or that of all; else the header itself."""
    own = header.get("PerFrameFunctionalGroupsSequence")
    shared = header.get("SharedFunctionalGroupsSequence")
    for groups in (own[index] if own and index < len(own) else None, shared[0] if shared else None):
        if groups is not None and groups.get(name):
            item: Dataset = groups[name].value[0]
            return item
    return header


def _stored_values(dtype: np.dtype) -> np.ndarray:
    """Every value that a pixel can hold, at the place of its bits read as an unsigned number; float64."""
    return np.arange(2 ** (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}").view(dtype).astype(np.float64)


def _unsigned(frame: np.ndarray) -> np.ndarray:
    """The bits of values of 8 or 16 bits, read as unsigned numbers."""
    return np.ascontiguousarray(frame).view(f"u{frame.dtype.itemsize}")


def _storable(bits: int, *, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _eight_bits(share: np.ndarray) -> np.ndarray:
    """0 to 1 as 0 to 255; what lies beyond is clipped."""
    levels: np.ndarray = np.rint(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8)
    return levels


def _rescaled(stored: np.ndarray, rescale: "Dataset", header: "Dataset") -> np.ndarray:
    """PS3.3 C.11.1: the modality LUT, else rescale slope and intercept, else the stored values."""
    if luts := header.get("ModalityLUTSequence"):
        entries, first, _ = _lut(luts[0].LUTDescriptor, luts[0].LUTData, header)
        return _looked_up(entries, first, stored)
    slope, intercept = rescale.get("RescaleSlope"), rescale.get("RescaleIntercept")
    if slope is None or intercept is None:
        return stored
    return np.add(stored * float(slope), float(intercept))


def _window(shown: "Dataset") -> tuple[float, float, str] | None:
    """(centre, width, function) of the first window; None where there is no sound one."""
    centre, width = _first(shown.get("WindowCenter")), _first(shown.get("WindowWidth"))
    function = str(shown.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    least = 1.0 if function == "LINEAR" else 1e-9
    return (centre, width, function) if width >= least else None


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Shares of the way from black to white. PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2."""
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1.0
    if width == 0.0:
        return (values > centre).astype(np.float64)
    return (values - centre) / width + 0.5


def _voi_lut(shown: "Dataset") -> tuple[np.ndarray, int, int] | None:
    """(entries, first value, bits) of the first VOI LUT. It goes before a window, as in pydicom."""
    luts = shown.get("VOILUTSequence")
    if not luts or luts[0].get("LUTDescriptor") is None or luts[0].get("LUTData") is None:
        return None
    return _lut(luts[0].LUTDescriptor, luts[0].LUTData, shown)


def _lut(descriptor: "list[int]", data: "bytes | list[int]", holder: "Dataset") -> tuple[np.ndarray, int, int]:
    """(entries, first value mapped, bits of an entry) of a lookup table. PS3.3 C.11.1.1.1, C.7.6.3.1.5."""
    count, first, bits = (int(number) for number in descriptor)
    count = count or 2**16
    if isinstance(data, bytes):
        # An entry takes one byte or two, whatever the number of bits that count.
        order = "<" if holder.original_encoding[1] in (True, None) else ">"
        kind = "u1" if len(data) < 2 * count else f"{order}u2"
        data = np.frombuffer(data[: len(data) // int(kind[-1]) * int(kind[-1])], kind).tolist()
    entries = np.asarray(data, np.float64)[:count]
    if not len(entries) or not 1 <= bits <= 16:
        raise ItemFailed("dicom_unreadable", "a lookup table of it has no entries, or entries of too many bits")
    return entries, first, bits


def _looked_up(entries: np.ndarray, first: int, values: np.ndarray) -> np.ndarray:
    """Values below the first one get the first entry, those beyond the end the last one."""
    if first >= 2**15 and values.min() < 0:  # a negative number that was read as an unsigned one
        first -= 2**16
    places = np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.intp)
    found: np.ndarray = entries[places]
    return found


def _palette(header: "Dataset", stored: np.ndarray) -> np.ndarray:
    """uint8 (values, 3): the colours of a palette. PS3.3 C.7.6.3.1.5, C.7.6.3.1.6 and C.7.9.2."""
    descriptor = header.RedPaletteColorLookupTableDescriptor
    if header.get("RedPaletteColorLookupTableData") is None:
        return _segmented_palette(header, stored)
    colours = []
    for name in _CHANNELS:
        data = header[f"{name}PaletteColorLookupTableData"].value
        entries, first, bits = _lut(descriptor, data, header)
        # Files with entries of 8 bits that say 16 are common; their colours would all be black.
        bits = 8 if bits == 16 and entries.max() <= 255 else bits
        colours.append(_eight_bits(_looked_up(entries, first, stored) / (2**bits - 1)))
    return np.stack(colours, axis=-1)


def _segmented_palette(header: "Dataset", stored: np.ndarray) -> np.ndarray:
    from pydicom.pixels.processing import apply_color_lut

    count, first, bits = (int(number) for number in header.RedPaletteColorLookupTableDescriptor)
    count = count or 2**16
    if bits == 8 and count > 256:  # pydicom counts the places of such entries in 8 bits
        raise ItemFailed("dicom_undecodable", "a segmented palette of more than 256 entries of 8 bits")
    places = np.clip(stored - first, 0, count - 1).astype(np.intp)
    colours = apply_color_lut(np.arange(count, dtype=np.int64) + first, header)[..., :3]
    return _eight_bits(colours[places] / (2**bits - 1))


def _first(value: object) -> float | None:
    """The first of one or several numbers; None where there is none."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    if not isinstance(value, SupportsFloat):
        return None
    number = float(value)
    return number if math.isfinite(number) else None
