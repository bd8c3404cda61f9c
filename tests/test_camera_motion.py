"""How the camera moves, on made sequences: each kind over still scenes and over scenes in which things move."""

from collections import Counter
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
import skimage

from models.quality.camera_motion import CameraMotion, CameraPath, camera_motion, measure_camera

PICTURES = ("astronaut.png", "coffee.png", "chelsea.png", "ihc.png", "rocket.jpg", "coins.png", "camera.png")
STEPS, FPS = 24, 4  # frames of a clip, as quality samples them
WIDE, HIGH = 480, 270  # of the view that a frame of 160 by 90 pixels shows


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    folder = Path(skimage.__file__).parent / "data"
    return [cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE).astype(np.float32) for name in PICTURES]


def round_thing(picture: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A round piece of a picture and its mask."""
    side = min(picture.shape)
    mask = np.zeros((size, size), np.float32)
    cv2.circle(mask, (size // 2, size // 2), size // 2 - 1, 1, -1)
    return cv2.resize(picture[:side, :side], (size, size)), mask


def put(canvas: np.ndarray, thing: tuple[np.ndarray, np.ndarray], left: float, top: float) -> None:
    piece, mask = thing
    there = canvas[int(top) : int(top) + len(piece), int(left) : int(left) + len(piece)]
    there += mask * (piece - there)


def path_of(kind: CameraMotion, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where the camera looks at each step, (across, down, log scale, turn), in pixels of the scene and radians."""
    seconds, side = np.arange(STEPS) / FPS, random.choice((-1.0, 1.0))
    across, down, scale, turn = np.zeros((4, STEPS))
    if kind in ("pan", "tracking"):
        across = side * random.uniform(0.02, 0.13) * WIDE * seconds
    elif kind == "tilt":
        down = side * random.uniform(0.02, 0.07) * WIDE * seconds
    elif kind.startswith("zoom"):
        scale = (1 if kind == "zoom_in" else -1) * random.uniform(0.02, 0.11) * seconds
    elif kind == "roll":
        turn = side * np.deg2rad(random.uniform(2, 15)) * seconds
    elif kind == "handheld":
        waves = [
            sum(np.sin(2 * np.pi * random.uniform(0.4, 1.8) * seconds + random.uniform(0, 6)) for _ in range(4))
            for _ in range(3)
        ]
        across, down = (random.uniform(0.003, 0.011) * WIDE * wave for wave in waves[:2])
        turn = np.deg2rad(random.uniform(0.1, 0.4)) * waves[2]
    return across, down, scale, turn


def sequence(kind: CameraMotion, moving: bool, number: int, pictures: list[np.ndarray]) -> np.ndarray:
    """uint8 (STEPS, 90, 160) with a little noise; `moving` puts two things into the scene that go their own ways."""
    random = np.random.default_rng([list(get_args(CameraMotion)).index(kind), moving, number])
    picture = pictures[number % len(pictures)]
    fit = max(WIDE / picture.shape[1], HIGH / picture.shape[0])
    view = cv2.resize(picture, None, fx=fit, fy=fit)[:HIGH, :WIDE]
    scene = cv2.copyMakeBorder(view, HIGH, HIGH, WIDE, WIDE, cv2.BORDER_REFLECT)
    things = [round_thing(pictures[(number + n) % len(pictures)], int(random.uniform(40, 110))) for n in (1, 2)]
    place, speed = random.uniform(0.1, 0.9, (2, 2)), random.uniform(-0.12, 0.12, (2, 2))
    followed = round_thing(pictures[(number + 3) % len(pictures)], int(random.uniform(110, 150)))
    frames = []
    for step, (across, down, scale, turn) in enumerate(zip(*path_of(kind, random), strict=True)):
        canvas = scene.copy()
        for thing, (x, y), (dx, dy) in zip(things if moving else (), place, speed, strict=False):
            x, y = x + dx * step / FPS, y + dy * step / FPS
            put(canvas, thing, WIDE * (1 + x % 0.8), HIGH * (1 + y % 0.6))
        zoom, middle = np.exp(scale), np.array([WIDE * 1.5 + across, HIGH * 1.5 + down])
        turned = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        shift = np.array([WIDE / 2, HIGH / 2]) - turned @ middle
        shown = cv2.warpAffine(canvas, np.c_[turned, shift], (WIDE, HIGH), borderMode=cv2.BORDER_REFLECT)
        if kind == "tracking":
            put(shown, followed, (WIDE - len(followed[0])) / 2, (HIGH - len(followed[0])) / 2 + 3 * np.sin(2 * step))
        small = cv2.resize(shown, (160, 90), interpolation=cv2.INTER_AREA)
        frames.append(np.clip(small + random.normal(0, 1, small.shape), 0, 255).astype(np.uint8))
    return np.stack(frames)


def test_each_kind_is_told_over_still_and_moving_scenes(pictures: list[np.ndarray]) -> None:
    told: dict[str, Counter[str]] = {kind: Counter() for kind in get_args(CameraMotion)}
    for kind in get_args(CameraMotion):
        for moving in (False, True):
            for number in range(7):
                path = measure_camera(sequence(kind, moving, number, pictures), FPS)
                told[kind][camera_motion(path)] += 1
    right = sum(counted[kind] for kind, counted in told.items())
    assert right >= 0.95 * sum(counted.total() for counted in told.values()), told
    assert min(counted[kind] for kind, counted in told.items()) >= 11, told  # of 14


def test_speeds_are_those_of_the_camera(pictures: list[np.ndarray]) -> None:
    picture = cv2.resize(pictures[0], (640, 640))
    pan = np.stack([picture[100:190, 4 * i : 4 * i + 160] for i in range(20)]).astype(np.uint8)
    path = measure_camera(pan, FPS)
    assert path.pan == pytest.approx(FPS * 4 / 160, rel=0.05) and path.shake < 0.01
    turns = [cv2.getRotationMatrix2D((320, 320), 2.0 * i, 1.03**i) for i in range(12)]
    views = [cv2.warpAffine(picture, turn, (640, 640))[275:365, 240:400] for turn in turns]
    path = measure_camera(np.stack(views).astype(np.uint8), FPS)
    assert path.roll == pytest.approx(np.deg2rad(2.0) * FPS, rel=0.1)
    assert path.zoom == pytest.approx(np.log(1.03) * FPS, rel=0.1)


def test_where_nothing_can_be_tracked_the_camera_stands() -> None:
    random = np.random.default_rng(1)
    for frames in (
        np.zeros((1, 90, 160), np.uint8),
        np.full((9, 90, 160), 128, np.uint8),
        random.integers(0, 256, (9, 90, 160), dtype=np.uint8),
    ):
        assert camera_motion(measure_camera(frames, FPS)) == "static"
    assert camera_motion(CameraPath()) == "static"
