"""What a clip shows is what its source showed: files of many kinds, each with a known truth, through probe and cut."""

import base64
import gc
import json
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from typer.testing import CliRunner

from apps.cli import app
from medgen.errors import ItemFailed
from medgen.store import Store
from medgen.video.container import open_video
from medgen.video.cut import CutClip, cut
from medgen.video.embedded_subtitles import embedded_subtitles
from medgen.video.limits import Limits
from medgen.video.pictures import Picture, VideoReader, pictures
from medgen.video.probe import probe
from models.captioning.transcript import transcript_between
from tests.browser import chromium, new_context
from tests.video_kinds import (
    BT601,
    H264,
    KINDS,
    PATCHES,
    SIZE,
    Kind,
    cover_first,
    ffmpeg,
    late_picture,
    number_of,
    patches_of,
    video,
)

LIMITS = Limits()
BY_NAME = {kind.name: kind for kind in KINDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files are made once."""
    return tmp_path_factory.mktemp("kinds")


def source_of(folder: Path, kind: Kind) -> Path:
    """The file of a kind."""
    path = folder / kind.name / f"{kind.name}.{kind.suffix}"
    if not path.exists():
        path.parent.mkdir()
        kind.make(path)
    return path


def seen(picture: Picture, kind: Kind) -> np.ndarray:
    """A picture as it was before it was marked as mirrored or turned."""
    return kind.undo(picture.rgb())


def cut_all(path: Path, target: Path, wanted: list[Picture], clock_start: int | None) -> CutClip:
    """A clip of these pictures."""
    return cut(
        path, target, times=[picture.pts for picture in wanted], clock_start=clock_start, crop=None, crf=14,
        preset="veryfast", limits=LIMITS,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_pictures_times_sizes_and_colours_are_right_and_a_clip_shows_the_same(kind: Kind, folder: Path) -> None:
    path = source_of(folder, kind)
    facts = probe(path, LIMITS)
    assert (facts.width, facts.height) == kind.size
    assert facts.fps == pytest.approx(kind.fps, abs=0.02)
    assert facts.duration_s == pytest.approx(len(kind.numbers) / kind.fps, abs=0.01)
    with open_video(path, LIMITS) as opened:
        reader = VideoReader(opened, LIMITS)
        found = list(reader)
        clock_start = reader.timeline.plain_start
    assert [number_of(seen(picture, kind)) for picture in found] == kind.numbers
    assert {picture.index: picture.after_break for picture in found if picture.after_break} == kind.breaks
    assert found[0].time_s == 0 and all(before.pts < after.pts for before, after in pairwise(found))
    assert (reader.decoder.decoded, reader.decoder.dropped) == (len(found), 0)
    assert bool(reader.timeline.repaired) == kind.repaired
    edges = [0, *kind.breaks, len(found)]
    for start, end in pairwise(edges):  # clips cross no break
        clip = path.with_name("clip.mp4")
        made = cut_all(path, clip, found[start:end], clock_start)
        shown = list(pictures(clip, LIMITS))
        assert [number_of(seen(picture, kind)) for picture in shown] == kind.numbers[start:end]
        assert (made.width, made.height) == (shown[0].frame.width, shown[0].frame.height)
        with av.open(str(clip)) as read:
            stream = read.streams.video[0]
            codec = stream.codec_context
            assert float(stream.average_rate) == pytest.approx(made.fps, abs=1e-3)
            assert float(stream.duration * stream.time_base) == pytest.approx(float(made.duration_s), abs=1e-3)
            assert read.duration / av.time_base == pytest.approx(float(made.duration_s), abs=2e-3)
            assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
        check_colours(kind, path, clip, shown)


def check_colours(kind: Kind, path: Path, clip: Path, shown: list[Picture]) -> None:
    """By medgen's reader and by FFmpeg's own program, which knows nothing of it."""
    height, width = shown[0].frame.height, shown[0].frame.width
    by_ffmpeg = np.frombuffer(rgb_by_ffmpeg(clip), np.uint8).reshape(-1, height, width, 3)
    for rgb in (shown[len(shown) // 2].rgb(), by_ffmpeg[0]):
        if kind.patches is not None:
            assert np.abs(patches_of(kind.undo(rgb)) - PATCHES).max() <= kind.patches
        if kind.white is not None:
            patches = patches_of(rgb)
            assert patches[6].min() >= kind.white and np.abs(patches[7] - 128).max() < 5
            # Colours stay as different from grey as they were.
            assert (np.ptp(patches[:6], axis=1) > 150).all()
    if kind.close is not None:
        source = np.frombuffer(rgb_by_ffmpeg(path), np.uint8).reshape(by_ffmpeg.shape)
        error = ((source.astype(float) - by_ffmpeg) ** 2).mean()
        assert 10 * np.log10(255**2 / error) >= kind.close


def rgb_by_ffmpeg(path: Path) -> bytes:
    """The first three pictures as rgb24."""
    exact = "scale=flags=accurate_rnd+full_chroma_int+full_chroma_inp"
    return ffmpeg("-i", path, "-frames:v", 3, "-vf", exact, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")


def test_a_browser_shows_the_colours_of_the_source(folder: Path, tmp_path: Path) -> None:
    names = ("bt709_tagged", "bt601_tagged", "untagged_sd", "full_range_h264", "bt601_in_hd")
    # As on a machine with a GPU. Without, Chromium converts by libyuv, whose blue is limited: BT.709's factor of 2.11
    # becomes 2, so that a full blue has 243.
    as_on_a_gpu = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
    with chromium(options=(*as_on_a_gpu, "--enable-gpu-rasterization")) as browser:
        page = new_context(browser).new_page()
        for kind in (BY_NAME[name] for name in names):
            path, clip = source_of(folder, kind), tmp_path / f"{kind.name}.mp4"
            cut_all(path, clip, list(pictures(path, LIMITS)), None)
            rgba = page.evaluate(READ_CANVAS, base64.b64encode(clip.read_bytes()).decode())
            width, height = kind.size
            shown = np.frombuffer(base64.b64decode(rgba), np.uint8).reshape(height, width, 4)[..., :3]
            assert np.abs(patches_of(shown) - PATCHES).max() <= 4, kind.name


READ_CANVAS = """async (base64) => {
  const video = document.createElement('video');
  video.muted = true;
  video.src = 'data:video/mp4;base64,' + base64;
  const shown = new Promise(done => video.requestVideoFrameCallback(done));
  await video.play();
  await shown;
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const context = canvas.getContext('2d');
  context.drawImage(video, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let text = '';
  for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
  return btoa(text);
}"""


@pytest.mark.parametrize(("codec", "suffix"), [("srt", "mkv"), ("ass", "mkv"), ("mov_text", "mp4"), ("webvtt", "webm")])
def test_subtitles_inside_a_file_are_read_on_the_scale_of_the_pictures(tmp_path: Path, codec: str, suffix: str) -> None:
    words = tmp_path / "words.srt"
    words.write_text(
        "1\n00:00:02,200 --> 00:00:02,900\nThe <i>mitral</i> valve\n\n"
        "2\n00:00:03,100 --> 00:00:03,800\nopens, then\nshuts.\n"
    )
    encoder = ("-c:v", "libvpx-vp9", "-cpu-used", 8) if suffix == "webm" else H264
    pictures_only = video(tmp_path / f"plain.{suffix}", *encoder)
    path = tmp_path / f"film.{suffix}"
    late = ("-itsoffset", 2, "-i", pictures_only) if suffix == "mkv" else ("-i", pictures_only)
    ffmpeg(*late, "-i", words, "-map", "0:v", "-map", "1:s", "-c:v", "copy", "-c:s", codec,
           "-metadata:s:s:0", "language=eng", path)  # fmt: skip
    facts = probe(path, LIMITS)
    starts = 2.0 if suffix == "mkv" else 0.0
    assert facts.clock_start_s == pytest.approx(starts)
    subtitles = embedded_subtitles(path, LIMITS, [[0.0, facts.clock_start_s]])
    assert subtitles is not None and (subtitles.language, subtitles.cues) == ("eng", 2)
    begins = 2.2 - starts
    assert transcript_between(subtitles.webvtt, begins, begins + 0.6) == "The mitral valve"
    assert transcript_between(subtitles.webvtt, begins + 0.8, begins + 1.4) == "opens, then shuts."


def test_sound_is_heard_where_its_picture_is_shown(tmp_path: Path) -> None:
    from medgen.audio import decode_audio

    path = tmp_path / "late.mkv"
    late_picture(path)
    facts = probe(path, LIMITS)
    assert (facts.start_s, facts.clock_start_s, facts.duration_s) == (0.0, pytest.approx(2.0), pytest.approx(2.0))
    heard = decode_audio(path, facts.clock_start_s + 1.0, facts.clock_start_s + 1.9, rate=16_000)
    assert heard is not None and np.abs(heard[-1000:]).max() > 0.05  # the tone goes on to second 4 of the file


def test_probe_and_cut_from_the_command_line(tmp_path: Path) -> None:
    path, clip = tmp_path / "film.mp4", tmp_path / "clip.mp4"
    cover_first(path)
    runner = CliRunner()
    done = runner.invoke(app, ["probe", str(path), "--json"])
    facts = json.loads(done.stdout)
    assert done.exit_code == 0 and facts["reason"] is None
    names = ("frames", "dropped", "repaired", "width", "height", "fps", "start_s", "duration_s", "stream")
    assert [facts[name] for name in names] == [50, 0, 0, *SIZE, 25.0, 0.0, 2.0, 1]
    assert facts["colour"]["matrix"] and "it moves" in facts["chosen_for"]
    shown = runner.invoke(app, ["probe", str(path)])
    assert "640x480" in shown.stdout and "25 frames a second" in shown.stdout
    done = runner.invoke(app, ["cut", str(path), "--start", "0.4", "--end", "1.2", "--out", str(clip), "--json"])
    made: dict[str, Any] = json.loads(done.stdout)
    assert (made["frames"], made["start_s"], made["end_s"], made["fps"]) == (20, 0.4, 1.2, 25.0)
    assert [number_of(picture.rgb()) for picture in pictures(clip, LIMITS)] == list(range(10, 30))
    nothing = runner.invoke(app, ["cut", str(path), "--start", "9", "--end", "10", "--out", str(tmp_path / "no.mp4")])
    assert nothing.exit_code == 1 and "no picture" in nothing.output and not (tmp_path / "no.mp4").exists()
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 100)
    refused = runner.invoke(app, ["probe", str(text), "--json"])
    assert refused.exit_code == 1 and json.loads(refused.stdout)["reason"] == "not_a_video"


def test_a_cut_by_hand_is_the_pipelines_cut_byte_for_byte(tmp_path: Path) -> None:
    """Borders too: the picture stands between black bars, of which enough remains."""
    from medgen.ledger import Work
    from medgen.settings import Settings
    from tasks.curation.cut import CutParams
    from tasks.curation.cut import cut as cut_step
    from tasks.curation.segment import SegmentParams, segment

    path = video(tmp_path / "film.mp4", "-vf", f"{BT601[1]},pad=640:680:0:100", *H264, count=75)
    store = Store(Settings(home=tmp_path / "home"))
    film = store.put_bytes(path.read_bytes(), "video/mp4").sha256
    segmented = segment(Work("v", {"video": film}, {"fps": 25.0}), store, SegmentParams(dissolves=False))
    inputs = {"video": film} | {role: made.sha256 for role, made in segmented.outputs.items()}
    context = {"start_frame": 5, "end_frame": 70, "start_s": 0.2, "end_s": 2.8, "size": [640, 680]}
    clip = cut_step(Work("v/5-70", inputs, context), store, CutParams()).outputs["clip"]
    by_hand = tmp_path / "clip.mp4"
    done = CliRunner().invoke(
        app, ["cut", str(path), "--start", "0.2", "--end", "2.8", "--out", str(by_hand), "--json"]
    )
    assert json.loads(done.stdout)["crop"] == [0, 100, 640, 480]
    assert by_hand.read_bytes() == store.path(clip.sha256).read_bytes()


def test_pictures_are_freed_one_by_one_without_the_garbage_collector(tmp_path: Path) -> None:
    path = video(tmp_path / "plain.mp4", *H264)
    gc.collect()
    gc.disable()
    try:
        with open_video(path, LIMITS) as opened:
            deque(VideoReader(opened, LIMITS), maxlen=0)
        held = sum(isinstance(thing, VideoFrame) for thing in gc.get_objects())
    finally:
        gc.enable()
    assert held <= 1


def test_dolby_visions_own_colours_are_refused_by_name(tmp_path: Path) -> None:
    from medgen.video.colour import colour_of

    frame = av.VideoFrame(64, 64, "yuv420p10le")
    frame.colorspace = 15  # IPT-C2: nobody but a Dolby decoder can show it
    with pytest.raises(ItemFailed) as failure:
        colour_of(frame, {"matrix": 2, "primaries": 2, "transfer": 2, "range": 1})
    assert failure.value.reason == "colour_unsupported" and "ipt-c2" in str(failure.value)
