"""DICOM cine as video: the pictures of a multi-frame file as they are shown, at its frame times, nothing else of it.

What comes out is a lossless video for all that reads videos: H.264 with quantizer 0, full-range grey or RGB of 8 bits,
in MP4, which knows times to the microsecond and the aspect of pixels (Matroska counts milliseconds). Of the file's
attributes only a fixed list of technical facts is told, and no message, warning or log quotes a value, as any of them
may name a patient.

Tags and rules are those of DICOM PS3.3: C.7.6.3 (pixels), C.7.6.5 (cine), C.7.6.6 (multi-frame), C.11 (grey levels).
"""

import logging
import math
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, SupportsFloat, TypedDict, cast

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from medgen.errors import ItemFailed
from medgen.video.colour import BT709
from medgen.video.dicom_values import COLOUR, GREY, PALETTE, LevelTables, Window
from medgen.video.geometry import Geometry
from medgen.video.limits import Limits

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Defined terms of Modality (PS3.3 C.7.3.1.1.1) under which moving pictures are found, in words.
MODALITIES = {
    "CT": "computed tomography", "DX": "digital radiography", "ES": "endoscopy", "GM": "microscopy",
    "IVOCT": "intravascular optical coherence tomography", "IVUS": "intravascular ultrasound",
    "MG": "mammography", "MR": "magnetic resonance", "NM": "nuclear medicine", "OP": "ophthalmic photography",
    "OPT": "ophthalmic tomography", "PT": "positron emission tomography", "RF": "radiofluoroscopy",
    "US": "ultrasound", "XA": "X-ray angiography", "XC": "photography",
}  # fmt: skip
FrameTimes = Literal["frame_time_vector", "frame_time", "cine_rate", "recommended_display_frame_rate"]
FRAME_TIME, FRAME_TIME_VECTOR = 0x00181063, 0x00181065  # what Frame Increment Pointer may name
MICROSECOND = Fraction(1, 1_000_000)
LEAST_MS = 0.001  # shorter frames would be shown at one time
FULL_RANGE, RGB_MATRIX = 2, 0  # code points of ITU-T H.273, by FFmpeg's numbers
# All that is read of a file, beside its pixels.
_READ = [
    "Modality", "BurnedInAnnotation", "NumberOfFrames", "FrameIncrementPointer", "FrameTime", "FrameTimeVector",
    "CineRate", "RecommendedDisplayFrameRate", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing",
    "PixelPaddingValue", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "WindowCenter",
    "WindowWidth", "VOILUTFunction", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
]  # fmt: skip


class DicomFacts(TypedDict):
    """What goes on record of a DICOM file. All words come from fixed lists, none from the file.

    Args:
        modality: a key of MODALITIES, else "other".
        photometric: as the file has it: MONOCHROME2, RGB, ….
        transfer_syntax: its name in PS3.6.
        frame_times: the attribute that tells when frames are shown.
        window: what chose the shades: the file's window, its VOI LUT, or the full range of its values.
        burned_in_annotation: whether the file says that its pictures hold what identifies a patient.
    """

    modality: str
    photometric: str
    transfer_syntax: str
    frames: int
    frame_times: FrameTimes
    window: Window
    burned_in_annotation: Literal["yes", "no", "unsaid"]


@dataclass(frozen=True)
class _Cine:
    """A multi-frame file that can be shown.

    Args:
        starts: microseconds from the first frame at which each is shown; at the end, when the last one ends.
        aspect: width over height of a pixel.
    """

    header: "Dataset"
    facts: DicomFacts
    rows: int
    columns: int
    starts: tuple[int, ...]
    aspect: Fraction


def dicom_to_video(source: Path, target: Path, limits: Limits, max_bytes: int) -> DicomFacts:
    """Writes the moving picture of a DICOM file. The same file always gives the same bytes.

    Args:
        target: an MP4 file that is made.
        max_bytes: of the target.

    Raises:
        ItemFailed: empty_file, file_unreadable (transient), dicom_unreadable, no_moving_picture,
            dicom_without_frame_time, dicom_undecodable, file_too_large, resolution_above_limit,
            pixel_aspect_above_limit, duration_above_limit, frame_rate_above_limit; dicom_support_missing, which waits
            for a later run, where pydicom is not installed.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ItemFailed(
            "dicom_support_missing", "pydicom is not installed: pip install 'medgen[dicom]'", later=True
        ) from error
    try:
        file = source.open("rb")
    except OSError as error:
        raise ItemFailed("file_unreadable", str(error.strerror), transient=True) from None
    with closing(file), _pydicom_silent():
        cine = _checked(_header(file), limits)
        _write(file, target, cine, max_bytes)
        return cine.facts


@contextmanager
def _pydicom_silent() -> Iterator[None]:
    """Its warnings and logs quote values of the file."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _failures_as(reason: str, message: str) -> Iterator[None]:
    """What goes wrong inside, with the kind of error but not its words, which may quote the file."""
    try:
        yield
    except ItemFailed:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises all kinds on broken files
        raise ItemFailed(reason, f"{message} ({type(error).__name__})") from None


def _header(file: BinaryIO) -> "Dataset":
    from pydicom import dcmread

    if not file.read(1):
        raise ItemFailed("empty_file", "the file has 0 bytes")
    file.seek(0)
    with _failures_as("dicom_unreadable", "no sound DICOM file"):
        return dcmread(file, stop_before_pixels=True, specific_tags=list(_READ))


def _checked(header: "Dataset", limits: Limits) -> _Cine:
    """Everything that the header tells, before a picture is decoded. Raises ItemFailed as `dicom_to_video`."""
    with _failures_as("dicom_unreadable", "its header can't be understood"):
        frames = int(header.get("NumberOfFrames") or 1)
        rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        if frames < 2 or rows < 1 or columns < 1:
            raise ItemFailed("no_moving_picture", "the file holds no pictures, or a single one")
        limits.check_size(columns, rows)
        limits.check_progress(frames, 0.0)
        starts, frame_times = _frame_starts(header, frames)
        _check_times(frames, starts[-1], limits)
        aspect = _pixel_aspect(header)
        if round(columns * aspect) == columns:
            aspect = Fraction(1)
        Geometry(False, False, False, aspect).filters(columns, rows, limits)
        photometric = _photometric(header)
        transfer_syntax = _transfer_syntax(header)
        modality, said = str(header.get("Modality") or ""), str(header.get("BurnedInAnnotation") or "").strip().upper()
        facts: DicomFacts = {
            "modality": modality if modality in MODALITIES else "other",
            "photometric": photometric,
            "transfer_syntax": transfer_syntax,
            "frames": frames,
            "frame_times": frame_times,
            "window": LevelTables(header).window,
            "burned_in_annotation": "yes" if said == "YES" else "no" if said == "NO" else "unsaid",
        }
        return _Cine(header, facts, rows, columns, tuple(round(1000 * start) for start in starts), aspect)


def _check_times(frames: int, length_ms: float, limits: Limits) -> None:
    limits.check_progress(frames, length_ms / 1000.0)
    if 1000.0 * frames > limits.max_fps * length_ms:
        raise ItemFailed("frame_rate_above_limit", f"more than {limits.max_fps:.0f} frames a second")


def _frame_starts(header: "Dataset", frames: int) -> tuple[list[float], FrameTimes]:
    """(milliseconds at which frames begin, and at which the last one ends; the attribute that says so).

    What Frame Increment Pointer names goes first. What is not positive, or not finite, or no vector of one increment
    for each frame, is passed over. Raises ItemFailed: dicom_without_frame_time.
    """
    pointer = header.get("FrameIncrementPointer")
    pointed = [int(tag) for tag in pointer] if isinstance(pointer, Sequence) else [int(pointer)] if pointer else []
    vector = _numbers(header.get("FrameTimeVector"))
    lengths: dict[FrameTimes, list[float]] = {
        # The first increment is that of the first frame, always 0. The last frame is shown as long as the one before.
        "frame_time_vector": [*vector[1:], vector[-1]] if len(vector) == frames else [],
        "frame_time": _numbers(header.get("FrameTime"))[:1] * frames,
    }
    order: list[FrameTimes] = ["frame_time_vector", "frame_time"]
    if FRAME_TIME in pointed and FRAME_TIME_VECTOR not in pointed:
        order.reverse()
    rates: tuple[tuple[FrameTimes, str], ...] = (
        ("cine_rate", "CineRate"), ("recommended_display_frame_rate", "RecommendedDisplayFrameRate"),
    )  # fmt: skip
    for name, keyword in rates:
        lengths[name] = [1000.0 / rate for rate in _numbers(header.get(keyword))[:1] if rate > 0.0] * frames
        order.append(name)
    for name in order:
        if lengths[name] and all(math.isfinite(one) and one >= LEAST_MS for one in lengths[name]):
            return [0.0, *accumulate(lengths[name])], name
    raise ItemFailed(
        "dicom_without_frame_time",
        "the file tells no usable frame time: neither Frame Time Vector, Frame Time, Cine Rate nor "
        "Recommended Display Frame Rate",
    )


def _numbers(value: object) -> list[float]:
    """An attribute of one number, several or none."""
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [float(one) for one in several if isinstance(one, SupportsFloat)]


def _pixel_aspect(header: "Dataset") -> Fraction:
    """Width over height of a pixel. All attributes tell the vertical size first, then the horizontal one."""
    shared = header.get("SharedFunctionalGroupsSequence")
    measures = shared[0].get("PixelMeasuresSequence") if shared else None
    sizes = [header.get(name) for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing")]
    for size in [*sizes, measures[0].get("PixelSpacing") if measures else None]:
        numbers = _numbers(size)
        if len(numbers) == 2 and all(math.isfinite(one) and one > 0.0 for one in numbers):
            ratio = numbers[1] / numbers[0]
            if not 1e-3 < ratio < 1e3:
                raise ItemFailed("pixel_aspect_above_limit", "pixels more than a thousand times as long as wide")
            return Fraction(ratio).limit_denominator(1000)
    return Fraction(1)


def _photometric(header: "Dataset") -> str:
    """The photometric interpretation, if its pixels are read. Raises ItemFailed: dicom_undecodable."""
    photometric, samples = str(header.get("PhotometricInterpretation")), int(header.SamplesPerPixel)
    bits, stored = int(header.BitsAllocated), int(header.BitsStored)
    known = (*GREY, PALETTE) if samples == 1 else COLOUR if samples == 3 else ()
    if photometric not in known:
        raise ItemFailed("dicom_undecodable", f"its photometric interpretation of {samples} samples is not read")
    if bits not in (1, 8, 16) or not 1 <= stored <= bits:
        raise ItemFailed("dicom_undecodable", f"values of {stored} bits in {bits} are not read")
    return photometric


def _transfer_syntax(header: "Dataset") -> str:
    """The name of the transfer syntax, if it can be decoded. Raises ItemFailed: dicom_unreadable, dicom_undecodable."""
    from pydicom.pixels.decoders.base import get_decoder

    uid = header.file_meta.get("TransferSyntaxUID")
    if not uid:
        raise ItemFailed("dicom_unreadable", "the file doesn't say its transfer syntax")
    name = uid.name if not uid.is_private and uid.type == "Transfer Syntax" else "a transfer syntax that is not DICOM's"
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        raise ItemFailed("dicom_undecodable", f"{name}: pydicom doesn't decode it") from None
    if not decoder.is_available:
        raise ItemFailed("dicom_undecodable", f"{name}: no decoder for it is installed beside pydicom")
    return str(name)


def _write(file: BinaryIO, target: Path, cine: _Cine, max_bytes: int) -> None:
    tables = LevelTables(cine.header)
    if tables.needs_range:
        for index, stored in enumerate(_stored_frames(file, cine)):
            tables.see(index, stored)
    grey = cine.facts["photometric"] in GREY
    lengths = {start: end - start for start, end in pairwise(cine.starts)}
    written = 0
    with av.open(str(target), "w", format="mp4", options={"fflags": "+bitexact"}) as out:
        stream = _lossless(out, cine, grey)

        def mux(packets: "Iterable[Packet[VideoStream]]") -> None:
            nonlocal written
            for packet in packets:
                assert packet.pts is not None
                packet.duration = lengths[packet.pts]
                written += packet.size
                if written > max_bytes:
                    raise ItemFailed("file_too_large", f"more than {max_bytes} bytes as a lossless video")
                out.mux(packet)

        for index, stored in enumerate(_stored_frames(file, cine)):
            with _failures_as("dicom_undecodable", "its values can't be brought to shades"):
                levels = tables.levels(index, stored)
            frame = VideoFrame.from_ndarray(levels, format="gray" if grey else "rgb24")
            frame = frame if grey else frame.reformat(format="bgr0")
            frame.pts, frame.time_base, frame.color_range = cine.starts[index], MICROSECOND, FULL_RANGE
            mux(stream.encode(frame))
        mux(stream.encode(None))


def _lossless(out: OutputContainer, cine: _Cine, grey: bool) -> VideoStream:
    """H.264 that keeps every value: quantizer 0, RGB as it is. One thread, no B-frames: always the same bytes."""
    options = {"qp": "0", "preset": "ultrafast", "bf": "0"}
    stream = out.add_stream("libx264" if grey else "libx264rgb", rate=30, options=options)
    codec = stream.codec_context
    codec.width, codec.height, codec.pix_fmt = cine.columns, cine.rows, "gray" if grey else "bgr0"
    codec.time_base, codec.thread_count = MICROSECOND, 1
    codec.sample_aspect_ratio = cine.aspect
    codec.color_range, codec.color_primaries, codec.color_trc = FULL_RANGE, BT709, BT709
    codec.colorspace = BT709 if grey else RGB_MATRIX
    return stream


def _stored_frames(file: BinaryIO, cine: _Cine) -> Iterator[np.ndarray]:
    """The frames one after another, as stored; colours as RGB. Raises ItemFailed: dicom_undecodable."""
    from pydicom.pixels.utils import iter_pixels

    shape, syntax = (cine.rows, cine.columns), cine.facts["transfer_syntax"]
    grey = cine.facts["photometric"] in (*GREY, PALETTE)
    with closing(cast(Generator[np.ndarray], iter_pixels(file))) as frames:
        for count in range(cine.facts["frames"]):
            with _failures_as("dicom_undecodable", f"{syntax}: frame {count + 1} can't be decoded"):
                stored = next(frames, None)
            if stored is None:
                raise ItemFailed("dicom_undecodable", f"{syntax}: only {count} of the frames are there")
            if stored.shape != (shape if grey else (*shape, 3)) or stored.dtype.kind not in "iu":
                raise ItemFailed("dicom_undecodable", f"{syntax}: frame {count + 1} is not as the header says")
            yield stored.astype(stored.dtype.newbyteorder("="), copy=False)
