"""Decoding and cutting real files: to the frame, upright, and with a readable reason when it can't be done."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgen.errors import ItemFailed
from medgen.video.container import open_video
from medgen.video.cut import cut
from medgen.video.limits import Limits
from medgen.video.pictures import VideoReader, pictures
from medgen.video.probe import probe
from models.segmentation.shots import ShotDetector
from tasks.curation.segment import SegmentParams, decode_video
from tests.conftest import changing_video, frame_number, numbered_video, wide_pixels_video

LIMITS = Limits()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 numbered frames at 25 fps with B-frames and a key frame every 50."""
    return numbered_video(tmp_path_factory.mktemp("media") / "numbered.mp4", 200)


@settings(max_examples=12, deadline=None)
@given(bounds=st.tuples(st.integers(0, 199), st.integers(0, 199)).map(sorted))
def test_a_cut_holds_exactly_the_promised_frames(source: Path, bounds: list[int]) -> None:
    first, last = bounds
    pts = [picture.pts for picture in pictures(source, LIMITS)]
    target = source.with_name(f"cut-{first}-{last}.mp4")
    made = cut(source, target, times=pts[first : last + 1], crop=None, crf=18, preset="veryfast", limits=LIMITS)
    numbers = [frame_number(picture.rgb()) for picture in pictures(target, LIMITS)]
    assert numbers == list(range(first, last + 1))
    assert (made.frames, made.width, made.height) == (last - first + 1, 640, 480)
    target.unlink()


def test_the_same_cut_gives_the_same_bytes_and_cropping_moves_no_pixel(source: Path, tmp_path: Path) -> None:
    pts = [picture.pts for picture in pictures(source, LIMITS)]
    crop = (12, 180, 612, 81)  # odd height: a row is lost
    files = []
    for name in ("a", "b"):
        files.append(tmp_path / f"{name}.mp4")
        made = cut(source, files[-1], times=pts[60:91], crop=crop, crf=4, preset="veryfast", limits=LIMITS)
        assert (made.frames, made.width, made.height) == (31, 612, 80)
    assert files[0].read_bytes() == files[1].read_bytes()
    whole = list(pictures(source, LIMITS))[60].rgb()[180:260, 12:624].astype(int)
    cropped = next(iter(pictures(files[0], LIMITS))).rgb().astype(int)
    assert np.abs(whole - cropped).mean() < 3


def test_variable_frame_times_are_kept(tmp_path: Path) -> None:
    path, times = tmp_path / "vfr.mp4", [0, 40, 80, 200, 240, 500, 540, 580, 900, 940]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), time % 255, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, stream.codec_context.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    pts = [picture.pts for picture in pictures(path, LIMITS)]
    target = tmp_path / "cut.mp4"
    cut(path, target, times=pts[3:9], crop=None, crf=18, preset="veryfast", limits=LIMITS)
    kept = [round(picture.time_s, 3) for picture in pictures(target, LIMITS)]
    assert [round(time - kept[0], 3) for time in kept] == [0.0, 0.04, 0.3, 0.34, 0.38, 0.7]


def test_bad_files_get_a_reason(tmp_path: Path, source: Path) -> None:
    empty, text, truncated = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "truncated.mp4"
    empty.touch()
    text.write_text("not a video\n" * 1000)
    truncated.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    unknown = tmp_path / "unknown.mp4"
    unknown.write_bytes(source.read_bytes().replace(b"avc1", b"zzzz"))
    reasons = {empty: "empty_file", text: "not_a_video", truncated: "not_a_video", unknown: "undecodable"}
    for path, reason in reasons.items():
        with pytest.raises(ItemFailed) as failure:
            probe(path, LIMITS)
        assert failure.value.reason == reason and not failure.value.transient
    with pytest.raises(ItemFailed) as failure:
        probe(source, Limits(max_pixels=640 * 479))
    assert failure.value.reason == "resolution_above_limit"
    with pytest.raises(ItemFailed) as failure:
        probe(source, Limits(max_duration_s=7.9))
    assert failure.value.reason == "duration_above_limit"
    with pytest.raises(ItemFailed) as failure:
        cut(source, tmp_path / "x.mp4", times=[1, 2], crop=None, crf=18, preset="veryfast", limits=LIMITS)
    assert failure.value.reason == "frames_missing"


@pytest.mark.parametrize(
    ("size", "aspect", "reason"),
    [
        ((4000, 600), Fraction(100), "pixel_aspect_above_limit"),
        ((1600, 600), Fraction(1, 100), "pixel_aspect_above_limit"),
        ((4000, 600), Fraction(8), "resolution_above_limit"),  # 32000x600: too many in all
        ((4000, 16), Fraction(8), "resolution_above_limit"),  # 32000x16: too many a side
        ((4000, 600), Fraction(2), None),
        ((40, 600), Fraction(1, 8), None),
    ],
)
def test_the_limits_hold_for_pictures_as_they_are_shown(
    tmp_path: Path, size: tuple[int, int], aspect: Fraction, reason: str | None
) -> None:
    path = wide_pixels_video(tmp_path / "wide.mp4", *size, aspect)
    for look in (lambda: probe(path, LIMITS), lambda: list(pictures(path, LIMITS))):
        if reason:
            with pytest.raises(ItemFailed) as failure:
                look()
            assert failure.value.reason == reason
        else:
            look()
    if not reason:
        facts = probe(path, LIMITS)
        assert (facts.width, facts.height) == (size[0] * aspect, size[1])


@pytest.mark.parametrize(
    ("grown", "message"),
    [
        ((800, 600), "800x600 pixels"),
        ((4000, 3000), "pictures of far more"),  # which the decoder refused, before it took memory for them
    ],
)
def test_the_limits_hold_for_every_picture(tmp_path: Path, grown: tuple[int, int], message: str) -> None:
    path = changing_video(tmp_path / "grows.ts", ((640, 480), grown), 5)
    limits = Limits(max_pixels=640 * 480)
    assert probe(path, limits).width == 640
    sizes: list[int] = []
    with pytest.raises(ItemFailed, match=message) as failure:
        sizes.extend(picture.frame.width for picture in pictures(path, limits))
    assert failure.value.reason == "resolution_above_limit" and set(sizes) == {640}


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(4, 3)])
@pytest.mark.parametrize("sizes", [((640, 480), (320, 240)), ((320, 240), (640, 480))])
def test_pictures_that_change_their_size_are_decoded_but_no_clip(
    tmp_path: Path, sizes: tuple[tuple[int, int], ...], aspect: Fraction
) -> None:
    path = changing_video(tmp_path / "changes.ts", sizes, 5, aspect=aspect)
    found = list(pictures(path, LIMITS))
    assert {(p.frame.width, p.frame.height) for p in found} == {(round(w * aspect), h) for w, h in sizes}

    def cut_frames(first: int, last: int) -> tuple[int, int, int]:
        times = [picture.pts for picture in found[first : last + 1]]
        made = cut(path, tmp_path / "x.mp4", times=times, crop=None, crf=18, preset="veryfast", limits=LIMITS)
        return made.frames, made.width, made.height

    assert cut_frames(0, 2) == (3, round(sizes[0][0] * aspect) // 2 * 2, sizes[0][1])
    with pytest.raises(ItemFailed) as failure:
        cut_frames(0, len(found) - 1)
    assert failure.value.reason == "size_changes"


def test_a_narrow_strip_is_not_enlarged_to_look_for_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heights = []
    monkeypatch.setattr(ShotDetector, "process_frame", lambda _, index, bgr: heights.append(bgr.shape[0]))
    path = wide_pixels_video(tmp_path / "strip.mp4", 16, 8000, Fraction(1))
    with open_video(path, LIMITS) as video:
        decode_video(VideoReader(video, LIMITS), 1.0, SegmentParams(dissolves=False), lambda *sample: None)
    assert heights == [1024]
