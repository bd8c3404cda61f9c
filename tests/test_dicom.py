"""DICOM cine: shown as the file says, at its times; what names a patient stays in the file."""

import io
import logging
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.processing import apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless, generate_uid
from sqlalchemy import text

from apps.audit.reasons import WORDS
from apps.verdicts import newest, verdicts
from flows.flow_signature import subset
from flows.refresh import policy, refresh_parameters
from medgen.catalog import open_catalog
from medgen.errors import ItemFailed
from medgen.ledger import Outcome, Record, Work, open_ledger
from medgen.store import open_store
from medgen.video.dicom import DicomFacts, dicom_to_video
from medgen.video.limits import Limits
from medgen.video.pictures import Picture, pictures
from medgen.video.probe import probe
from tasks.curation.curation_step import steps
from tasks.curation.discover import video_id
from tasks.curation.privacy import BURNED_IN, PrivacyParams, privacy
from tasks.curation.release import ReleaseParams, make_release
from tests.conftest import discover_source, inline, stored

MARK = "Zyxwv"  # in every attribute that names a patient
PATIENT = {
    "PatientName": f"{MARK}^Anna", "PatientID": f"{MARK}-1", "PatientBirthDate": "19120304",
    "OtherPatientIDs": f"{MARK}2", "PatientAddress": f"{MARK} Street 1",
    "PatientComments": f"{MARK} c", "InstitutionName": f"{MARK} Clinic",
    "ReferringPhysicianName": f"{MARK}^Doctor", "AccessionNumber": f"{MARK}3", "StudyDescription": f"{MARK} heart",
    "SeriesDescription": f"{MARK} series", "OperatorsName": f"{MARK}^Op", "DeviceSerialNumber": f"{MARK}4",
    "ImageComments": f"{MARK} i", "Manufacturer": f"{MARK} Inc",
}  # fmt: skip


def cine(path: Path, frames: np.ndarray, *, stored: int = 0, syntax: str = ExplicitVRLittleEndian, **attributes: Any):
    """A multi-frame file of frames (N, H, W) or (N, H, W, 3); attributes go before the usual ones, None: none."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    bits = 8 * frames.dtype.itemsize
    usual = {
        **PATIENT,
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.3.1", "SOPInstanceUID": generate_uid(), "Modality": "US",
        "NumberOfFrames": len(frames), "Rows": frames.shape[1], "Columns": frames.shape[2],
        "SamplesPerPixel": 3 if frames.ndim == 4 else 1, "BitsAllocated": bits, "BitsStored": stored or bits,
        "HighBit": (stored or bits) - 1, "PixelRepresentation": int(frames.dtype.kind == "i"),
        "PhotometricInterpretation": "RGB" if frames.ndim == 4 else "MONOCHROME2", "FrameTime": 40.0,
    }  # fmt: skip
    if frames.ndim == 4:
        usual["PlanarConfiguration"] = 0
    for name, value in (usual | attributes).items():
        if value is not None:
            setattr(made, name, value)
    made.PixelData = frames.tobytes() if len(frames.tobytes()) % 2 == 0 else frames.tobytes() + b"\0"
    made["PixelData"].VR = "OB" if bits == 8 else "OW"
    if syntax == RLELossless:
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.compress(RLELossless, generate_instance_uid=False)
    made.save_as(path, enforce_file_format=True)
    return path


def looped(path: Path, times: int) -> Path:
    """Repeats the compressed frames of a cine, which takes seconds a frame to compress."""
    made = pydicom.dcmread(path)
    frames = list(generate_frames(made.PixelData, number_of_frames=made.NumberOfFrames))
    made.NumberOfFrames = times * len(frames)
    made.PixelData = encapsulate(times * frames)
    made.save_as(path)
    return path


def ramps(frames: int = 5, *, top: int = 4095, dtype: str = "uint16") -> np.ndarray:
    """Grey steps of 16 by 12 pixels, 10 a frame, from 0 up to `top`; each frame shows the next ones."""
    steps = np.linspace(0, top, 10 * frames).round().reshape(frames, 1, 10, 1)
    return np.broadcast_to(steps.repeat(16, 2).reshape(frames, 1, 160), (frames, 48, 160)).astype(dtype).copy()


def converted(source: Path, limits: Limits | None = None, max_bytes: int = 1 << 30) -> tuple[DicomFacts, list[Picture]]:
    """The facts of a file and its pictures as the pipeline sees them."""
    target = source.with_suffix(".mp4")
    facts = dicom_to_video(source, target, limits or Limits(), max_bytes)
    assert MARK.encode() not in target.read_bytes()
    return facts, list(pictures(target, Limits()))


def greys(seen: list[Picture]) -> np.ndarray:
    """(N, 10): the grey level of each step of `ramps`, in the middle of the step."""
    rgb = np.stack([picture.rgb() for picture in seen]).astype(int)
    assert np.ptp(rgb, axis=-1).max() <= 2
    return rgb[:, 24, 8::16, 1]


def near(found: np.ndarray, wanted: np.ndarray) -> bool:
    return float(np.abs(found - np.clip(wanted, 0, 255)).max()) <= 2.0


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_is_that_of_pydicom(tmp_path: Path, function: str) -> None:
    frames = ramps()
    path = cine(
        tmp_path / "a.dcm", frames, stored=12, WindowCenter=[1500, 20], WindowWidth=[1200, 5], VOILUTFunction=function,
        RescaleSlope=2.0, RescaleIntercept=-1000.0,
    )  # fmt: skip
    facts, seen = converted(path)
    assert (facts["window"], facts["photometric"], facts["frames"]) == ("file", "MONOCHROME2", 5)
    header = pydicom.dcmread(path)
    wanted = apply_voi_lut(frames[:, 24, 8::16] * 2.0 - 1000.0, header)
    low, high = -1000.0, 4095 * 2.0 - 1000.0
    assert near(greys(seen), 255 * (wanted - low) / (high - low))
    assert len(set(greys(seen).flatten())) > 5


def test_signed_values_inverted_ones_and_no_window(tmp_path: Path) -> None:
    """The range is that of the series, not of each frame; padding counts for nothing."""
    frames = (ramps().astype(int) - 1000).astype("int16")
    frames[0, 0, 0] = -2000
    path = cine(tmp_path / "a.dcm", frames, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=-2000)
    facts, seen = converted(path)
    wanted = 255 - 255 * (frames[:, 24, 8::16] + 1000.0) / 4095
    assert facts["window"] == "full_range" and near(greys(seen), wanted)
    assert greys(seen)[0].mean() > 200 > 60 > greys(seen)[-1].mean()


def test_eight_bits_without_a_window_are_shown_as_they_are(tmp_path: Path) -> None:
    frames = ramps(top=120, dtype="uint8")
    assert near(greys(converted(cine(tmp_path / "a.dcm", frames))[1]), frames[:, 24, 8::16])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_voi_lut_goes_before_a_window(tmp_path: Path, syntax: str) -> None:
    lut = Dataset()
    lut.LUTDescriptor = [4096, 0, 8]
    lut.LUTData = [255 - entry // 16 for entry in range(4096)]
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    frames = ramps()
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    path = cine(
        tmp_path / "a.dcm", frames.astype(f"{order}u2"), stored=12, syntax=syntax, VOILUTSequence=[lut],
        WindowCenter=100, WindowWidth=10,
    )  # fmt: skip
    facts, seen = converted(path)
    assert facts["window"] == "voi_lut" and near(greys(seen), 255 - frames[:, 24, 8::16] // 16)


def test_a_window_of_each_frame(tmp_path: Path) -> None:
    """Enhanced multi-frame files have it in functional groups."""
    groups = []
    for index in range(5):
        shown, group = Dataset(), Dataset()
        shown.WindowCenter, shown.WindowWidth = 500 + 700 * index, 800
        group.FrameVOILUTSequence = [shown]
        groups.append(group)
    rescale, shared = Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 1.0, 100.0
    shared.PixelValueTransformationSequence = [rescale]
    frames = ramps()
    path = cine(
        tmp_path / "a.dcm", frames, stored=12,
        PerFrameFunctionalGroupsSequence=groups, SharedFunctionalGroupsSequence=[shared],
    )  # fmt: skip
    facts, seen = converted(path)
    centres = 500 + 700 * np.arange(5)[:, None]
    wanted = 255 * ((frames[:, 24, 8::16] + 100.0 - (centres - 0.5)) / 799 + 0.5)
    assert facts["window"] == "file" and near(greys(seen), wanted)


COLOURS = np.array([[200, 30, 40], [30, 180, 60], [40, 50, 220], [128, 128, 128], [255, 255, 0]], np.uint8)


def patches(colours: np.ndarray) -> np.ndarray:
    """(5, 48, 80, 3): fields of the five colours, moved on by one from frame to frame."""
    rows = np.stack([np.roll(colours, shift, axis=0) for shift in range(5)])
    return np.broadcast_to(rows.repeat(16, axis=1)[:, None], (5, 48, 80, 3)).astype(np.uint8).copy()


def shades(seen: list[Picture]) -> np.ndarray:
    return np.stack([picture.rgb()[24, 8::16] for picture in seen]).astype(int)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_colours(tmp_path: Path, syntax: str) -> None:
    frames = patches(COLOURS)
    facts, seen = converted(cine(tmp_path / "a.dcm", frames, syntax=syntax))
    assert np.abs(shades(seen) - frames[:, 24, 8::16]).max() <= 4  # 4:2:0 in limited range rounds
    assert facts["transfer_syntax"] == ("RLE Lossless" if syntax == RLELossless else "Explicit VR Little Endian")


def test_colours_of_luma_and_chroma(tmp_path: Path) -> None:
    """YBR_FULL: PS3.3 C.7.6.3.1.2."""
    r, g, b = (COLOURS[:, k].astype(float) for k in range(3))
    ybr = np.stack(
        [
            0.299 * r + 0.587 * g + 0.114 * b,
            -0.168736 * r - 0.331264 * g + 0.5 * b + 128,
            0.5 * r - 0.418688 * g - 0.081312 * b + 128,
        ],
        axis=-1,
    )
    path = cine(tmp_path / "a.dcm", patches(np.clip(ybr.round(), 0, 255)), PhotometricInterpretation="YBR_FULL")
    assert np.abs(shades(converted(path)[1]) - patches(COLOURS)[:, 24, 8::16]).max() <= 5


def test_jpeg(tmp_path: Path) -> None:
    """As most ultrasound is kept: JPEG Baseline of halved chroma."""
    frames = patches(COLOURS)
    pieces = []
    for frame in frames:
        piece = io.BytesIO()
        Image.fromarray(frame).save(piece, "JPEG", quality=95, subsampling=1)
        pieces.append(piece.getvalue())
    made = pydicom.dcmread(cine(tmp_path / "a.dcm", frames, PhotometricInterpretation="YBR_FULL_422"))
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.PixelData = encapsulate(pieces)
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    made.save_as(tmp_path / "a.dcm")
    facts, seen = converted(tmp_path / "a.dcm")
    assert facts["transfer_syntax"] == "JPEG Baseline (Process 1)"
    assert np.abs(shades(seen) - frames[:, 24, 8::16]).max() <= 8


@pytest.mark.parametrize(("count", "dtype"), [(256, "uint8"), (512, "uint16")])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette(tmp_path: Path, count: int, dtype: str, bits: int) -> None:
    """Entries of 8 bits, too, may be more than 256."""
    entries = np.zeros((count, 3), np.uint8)
    entries[count - 5 :] = COLOURS
    places = np.stack([np.roll(np.arange(count - 5, count), shift) for shift in range(5)]).repeat(16, axis=1)
    frames = np.broadcast_to(places[:, None], (5, 48, 80)).astype(dtype)
    packed = entries if bits == 8 else entries.astype("<u2") * 257
    channels = dict(zip(("Red", "Green", "Blue"), packed.T, strict=True))
    attributes: dict[str, Any] = {f"{n}PaletteColorLookupTableData": c.tobytes() for n, c in channels.items()}
    attributes |= {f"{name}PaletteColorLookupTableDescriptor": [count, 0, bits] for name in channels}
    path = cine(tmp_path / "a.dcm", frames, PhotometricInterpretation="PALETTE COLOR", **attributes)
    assert np.abs(shades(converted(path)[1]) - patches(COLOURS)[:, 24, 8::16]).max() <= 4


@pytest.mark.parametrize(
    ("attributes", "times", "said_by"),
    [
        ({"FrameTime": 33.333}, [0.0, 0.033333, 0.066666, 0.099999, 0.133332], "frame_time"),
        (
            {"FrameTimeVector": [0.0, 40.0, 60.5, 20.0, 100.0], "FrameIncrementPointer": 0x00181065},
            [0.0, 0.04, 0.1005, 0.1205, 0.2205], "frame_time_vector",
        ),
        ({"FrameTimeVector": [0.0, 40.0, 60.0, 20.0, 100.0], "FrameIncrementPointer": 0x00181063},
         [0.0, 0.04, 0.08, 0.12, 0.16], "frame_time"),
        ({"FrameTimeVector": [0.0, 40.0, -60.0, 20.0, 100.0]}, [0.0, 0.04, 0.08, 0.12, 0.16], "frame_time"),
        ({"FrameTime": None, "CineRate": 10}, [0.0, 0.1, 0.2, 0.3, 0.4], "cine_rate"),
        ({"FrameTime": 0.0, "RecommendedDisplayFrameRate": 20}, [0.0, 0.05, 0.1, 0.15, 0.2],
         "recommended_display_frame_rate"),
    ],
)  # fmt: skip
def test_times_are_those_of_the_file(
    tmp_path: Path, attributes: dict[str, Any], times: list[float], said_by: str
) -> None:
    facts, seen = converted(cine(tmp_path / "a.dcm", ramps(), stored=12, **attributes))
    assert facts["frame_times"] == said_by
    assert [picture.time_s for picture in seen] == pytest.approx(times, abs=1e-6)
    last = times[-1] - times[-2] if said_by == "frame_time_vector" else times[1]
    assert probe(tmp_path / "a.mp4", Limits()).duration_s == pytest.approx(times[-1] + last, abs=0.0006)
    assert all(after > before for before, after in pairwise(picture.time_s for picture in seen))


@pytest.mark.parametrize(
    "attributes",
    [{"PixelAspectRatio": [2, 3]}, {"PixelSpacing": [0.2, 0.3]}, {"ImagerPixelSpacing": [1.0, 1.5]}],
)
def test_pixels_become_square(tmp_path: Path, attributes: dict[str, Any]) -> None:
    """Of two numbers the first is the vertical one."""
    _, seen = converted(cine(tmp_path / "a.dcm", ramps(), stored=12, **attributes))
    assert {(picture.frame.width, picture.frame.height) for picture in seen} == {(240, 48)}


def test_a_conversion_is_exact_repeatable_and_bare(tmp_path: Path) -> None:
    path = cine(tmp_path / "a.dcm", patches(COLOURS), PixelSpacing=[0.31, 0.31])
    made = []
    for name in ("one.mp4", "two.mp4"):
        dicom_to_video(path, tmp_path / name, Limits(), 1 << 30)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    with av.open(str(tmp_path / "one.mp4")) as video:
        assert set(video.metadata) == {"major_brand", "minor_version", "compatible_brands"}
        assert set(video.streams.video[0].metadata) <= {"language", "handler_name"}
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    assert np.array_equal(frames, patches(COLOURS))
    told = probe(tmp_path / "one.mp4", Limits())
    assert told.pixel_aspect == "1:1" and told.colour["range"] == "pc" and told.colour["assumed"] == []


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def text_file(path: Path) -> Path:
    path.write_text(f"{MARK} is no DICOM file\n" * 100)
    return path


BAD: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "one frame": ("no_moving_picture", lambda path: cine(path, ramps(1), stored=12)),
    "no frames": ("no_moving_picture", lambda path: cine(path, ramps(5), stored=12, Rows=None)),
    "no times": ("dicom_without_frame_time", lambda path: cine(path, ramps(), stored=12, FrameTime=None)),
    "no DICOM": ("dicom_unreadable", text_file),
    "empty": ("empty_file", lambda path: (path.touch(), path)[1]),
    "missing": ("file_unreadable", lambda path: path),
    "cut off": ("dicom_undecodable", lambda path: truncated(cine(path, ramps(), stored=12))),
    "patient as colour": (
        "dicom_undecodable", lambda path: cine(path, ramps(), stored=12, PhotometricInterpretation=MARK.upper()),
    ),
    "too large": ("resolution_above_limit", lambda path: cine(path, ramps(), stored=12, Rows=60000, Columns=60000)),
    "too long": ("duration_above_limit", lambda path: cine(path, ramps(), stored=12, FrameTime=1e7)),
    "too fast": ("frame_rate_above_limit", lambda path: cine(path, ramps(), stored=12, FrameTime=1.0)),
    "too many frames": ("frame_rate_above_limit", lambda path: cine(path, ramps(), NumberOfFrames=2**31 - 1)),
    "thin pixels": ("pixel_aspect_above_limit", lambda path: cine(path, ramps(), stored=12, PixelSpacing=[1, 50])),
    "patient as number": ("dicom_unreadable", lambda path: spoilt(path, b"NumberX", f"{MARK}^A".encode())),
}  # fmt: skip


def spoilt(path: Path, before: bytes, after: bytes) -> Path:
    """A file whose number of frames is a name: pydicom's own message would quote it."""
    cine(path, ramps(), stored=12, ImageComments="NumberX")
    whole = path.read_bytes()
    number = whole.index(b"\x28\x00\x08\x00IS")
    size = int.from_bytes(whole[number + 6 : number + 8], "little")
    path.write_bytes(whole[: number + 6] + len(after).to_bytes(2, "little") + after + whole[number + 8 + size :])
    return path


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_fail_with_a_reason_that_quotes_nothing(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    reason, make = BAD[kind]
    path = make(tmp_path / "a.dcm")
    with (
        warnings.catch_warnings(record=True) as warned,
        caplog.at_level(logging.DEBUG),
        pytest.raises(ItemFailed) as failed,
    ):
        converted(path)
    assert failed.value.reason == reason
    told = "".join(capfd.readouterr()) + caplog.text + str(failed.value) + "".join(str(one.message) for one in warned)
    assert MARK.lower() not in told.lower() and str(tmp_path) not in str(failed.value)
    assert reason in WORDS or reason == "file_unreadable" or "above_limit" in reason


def test_what_pydicom_can_not_decode_is_named(tmp_path: Path) -> None:
    made = pydicom.dcmread(cine(tmp_path / "a.dcm", ramps(), stored=12))
    jpeg, private = "1.2.840.10008.1.2.4.70", "1.2.3.4.5"
    for syntax, name in ((jpeg, "JPEG Lossless"), (private, "a transfer syntax that is not DICOM's")):
        whole = (tmp_path / "a.dcm").read_bytes()
        old = str(made.file_meta.TransferSyntaxUID).encode()
        old += b"\0" * (len(old) % 2)
        place = whole.index(b"\x02\x00\x10\x00UI") + 6
        new = syntax.encode() + b"\0" * (len(syntax) % 2)
        group = whole.index(b"\x02\x00\x00\x00UL") + 8
        length = int.from_bytes(whole[group : group + 4], "little") + len(new) - len(old)
        changed = whole[:place] + len(new).to_bytes(2, "little") + new + whole[place + 2 + len(old) :]
        (tmp_path / "b.dcm").write_bytes(changed[:group] + length.to_bytes(4, "little") + changed[group + 4 :])
        with pytest.raises(ItemFailed, match=name) as failed:
            converted(tmp_path / "b.dcm")
        assert failed.value.reason == "dicom_undecodable" and private not in str(failed.value)


def test_a_conversion_stays_within_its_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (5, 48, 160), np.uint8)
    with pytest.raises(ItemFailed, match="file_too_large"):
        converted(cine(tmp_path / "a.dcm", noise), max_bytes=20_000)


def test_without_pydicom_the_item_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cine(tmp_path / "a.dcm", ramps(), stored=12)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ItemFailed, match=r"pip install 'medgen\[dicom\]'") as failed:
        converted(path)
    assert (failed.value.reason, failed.value.later) == ("dicom_support_missing", True)


def test_files_of_pydicom(tmp_path: Path) -> None:
    """Only files that come inside the package."""
    for name in ("SC_rgb_rle_2frame.dcm", "SC_rgb_rle_16bit_2frame.dcm"):
        made = pydicom.dcmread(str(get_testdata_file(name, download=False)))
        wanted = made.pixel_array.astype(int) // (257 if made.BitsStored == 16 else 1)
        made.FrameTime = 50.0
        made.save_as(tmp_path / name)
        facts, seen = converted(tmp_path / name)
        assert facts["modality"] == "other" and len(seen) == 2
        with av.open(str((tmp_path / name).with_suffix(".mp4"))) as video:
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(video=0)]
        assert np.abs(np.stack(frames) - wanted).max() <= 1


def disc(path: Path, **attributes: Any) -> Path:
    """A bright disc that grows and shrinks, 12 bits with a window, over 7 s."""
    y, x = np.mgrid[:480, :512]
    radius = 100 + 50 * np.sin(np.arange(60) / 3)
    inside = ((y - 240) ** 2 + (x - 256) ** 2)[None] < (radius**2)[:, None, None]
    noise = np.random.default_rng(3).integers(-40, 40, (480, 512))
    values = (np.where(inside, 1400, 900) + noise).astype(np.uint16)
    return cine(path, values, stored=12, FrameTime=120.0, WindowCenter=1200, WindowWidth=800, **attributes)


def test_a_folder_of_dicom_is_released_without_its_patients(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All steps, from the folder to the release."""
    inline(monkeypatch)
    folder = tmp_path / "cines"
    folder.mkdir()
    echo = pydicom.dcmread(str(get_testdata_file("examples_ybr_color.dcm", download=False))).pixel_array
    large = echo.repeat(2, axis=1).repeat(2, axis=2)
    looped(cine(folder / "echo.dcm", large, syntax=RLELossless, BurnedInAnnotation="YES"), 6)
    disc(folder / "DISC.DCM", Modality=MARK.upper())
    cine(folder / "still.dcm", ramps(1), stored=12)
    truncated(cine(folder / "broken.dcm", ramps(), stored=12))
    with caplog.at_level(logging.DEBUG):
        got, released = refreshed(folder)
    assert {name: record.reason for name, record in got.items()} == {
        "echo.dcm": None, "DISC.DCM": None, "still.dcm": "no_moving_picture", "broken.dcm": "dicom_undecodable",
    }  # fmt: skip
    echo_detail, disc_detail = got["echo.dcm"].detail, got["DISC.DCM"].detail
    assert echo_detail["dicom"] == {
        "modality": "US", "photometric": "RGB", "transfer_syntax": "RLE Lossless", "frames": 180,
        "frame_times": "frame_time", "window": "full_range", "burned_in_annotation": "yes",
    }  # fmt: skip
    assert echo_detail["metadata"]["title"] == "DICOM cine (ultrasound)" and not echo_detail["metadata"]["external_id"]
    assert echo_detail["probe"]["duration_s"] == 7.2
    assert disc_detail["metadata"]["title"] == "DICOM cine"
    assert (disc_detail["dicom"]["window"], disc_detail["dicom"]["burned_in_annotation"]) == ("file", "unsaid")
    seen = next(iter(pictures(open_store().path(got["DISC.DCM"].outputs["video"]), Limits()))).rgb()
    assert abs(float(seen[200:280, 216:296].mean()) - 255 * ((1400 - 1199.5) / 799 + 0.5)) <= 2
    (row,) = pq.read_table(released / "metadata.parquet").to_pylist()
    assert row["title"] == "DICOM cine (ultrasound)"
    found = {record.step: record for record in newest(open_ledger())}["privacy"].detail["found"]
    assert found["identifiers"] == [BURNED_IN]
    assert MARK.lower() not in ("".join(capfd.readouterr()) + caplog.text).lower()
    assert_no_patient(home)


def refreshed(folder: Path) -> tuple[dict[str, Record], Path]:
    """File name → record of its download, and the folder of the release, as a refresh in this process makes them."""
    parameters = refresh_parameters(steps())(sources=(str(folder),), identifiers="keep")
    results = [discover_source(str(folder))]
    for step in steps()[1:]:
        results.append(step.run(results[-1], subset(parameters, step.params)))
    _, _, released = make_release.fn("cines", stored(results), policy(parameters), ReleaseParams())
    assert released
    by_subject = {record.subject: record for record in newest(open_ledger()) if record.step == "download"}
    urls = [entry["url"] for entry in verdicts(open_ledger()) if entry["url"]]
    return {url.rpartition("/")[2]: by_subject[video_id(url)] for url in urls}, released


def assert_no_patient(home: Path) -> None:
    """No file of the installation and no text of its catalog holds the mark."""
    files = [path for path in home.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    marks = [MARK.lower().encode(), MARK.lower().encode("utf-16-le"), PATIENT["PatientBirthDate"].encode()]
    for path in files:
        content = path.read_bytes().lower()
        assert not [mark for mark in marks if mark in content], path
    with open_catalog().connect() as connection:
        tables = connection.execute(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()")
        )
        for (table,) in tables.all():
            for (row,) in connection.execute(text(f'SELECT t::text FROM "{table}" t')):
                assert MARK.lower() not in row.lower() and PATIENT["PatientBirthDate"] not in row, table


def privacy_of(identifiers: str, boxes: list[dict[str, Any]], burned_in: bool) -> Outcome:
    clip = {"id": "c1", "start_frame": 0, "end_frame": 10, "fps": 25.0}
    context: dict[str, Any] = {"clip": clip, "bytes": 1, "bit_rate": 1, "faces": 0, "identifiers": boxes}
    if burned_in:
        context["burned_in"] = True
    params = PrivacyParams(identifiers=identifiers)  # type: ignore[arg-type]
    return privacy(Work("c1", context=context), None, params)  # type: ignore[arg-type]


@pytest.mark.parametrize("identifiers", ["keep", "blur", "reject"])
def test_the_policy_sees_what_a_file_says_of_burned_in_identifiers(identifiers: str) -> None:
    unmarked, marked = privacy_of(identifiers, [], False), privacy_of(identifiers, [], True)
    assert unmarked.status == "kept" and unmarked.detail["found"]["identifiers"] == []
    assert marked.detail["found"]["identifiers"] == [BURNED_IN]
    if identifiers == "reject":
        assert (marked.status, marked.reason) == ("rejected", "identifiers_found")
        assert (marked.detail["score"], marked.detail["threshold"]) == (1.0, 0.0)
    else:
        assert marked.status == "kept" and marked.detail["blurred"] == []
