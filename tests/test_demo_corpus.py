"""The demo's videos, listing and server."""

import http.client
import itertools
import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
import pytest

from apps.demo.command import DEMO_LICENCES
from apps.demo.corpus import SUBTITLES, build_corpus, write_listing
from apps.demo.listing import PUBLISHED
from apps.demo.pictures import FPS
from apps.demo.server import serve
from apps.demo.training_part import TRAINING_CLASSES
from tests.conftest import demo_corpus

# name → (width, height, frames)
VIDEOS = {
    "bigbuckbunny.mp4": (1280, 720, 132),
    "bikes.mp4": (640, 272, 250),
    "doppler-window.mp4": (832, 576, 200),
    "echo-between.mp4": (640, 480, 425),
    "echo-reserved.mp4": (640, 480, 200),
    "echo-reupload.mp4": (768, 576, 200),
    "echo-screen.mp4": (640, 480, 200),
    "echo-sector.mp4": (640, 480, 200),
    "echo-still.mp4": (640, 480, 200),
    "echo-subtitled.mp4": (640, 480, 200),
    "mislabelled.mp4": (640, 480, 264),
    "mr-liver.mp4": (832, 480, 200),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return shutil.copytree(demo_corpus(), tmp_path_factory.mktemp("corpus") / "demo")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def listed(corpus: Path) -> list[dict]:
    return [json.loads(line) for line in write_listing(corpus, "http://127.0.0.1:1").read_text().splitlines()]


@pytest.mark.parametrize("name", VIDEOS)
def test_size_and_length(corpus, name):
    width, height, count = VIDEOS[name]
    with av.open(str(corpus / name)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (width, height, FPS)
        assert sum(1 for _ in container.decode(video=0)) == count


def test_the_heart_beats_and_the_still_does_not(corpus):
    # One frame a second, as a reader at that rate sees it: the loop must not look still.
    beating = frames_of(corpus / "echo-sector.mp4")[::FPS].astype(int)
    assert np.abs(np.diff(beating, axis=0)).mean(axis=(1, 2, 3)).min() > 1
    still = frames_of(corpus / "echo-still.mp4")[::FPS].astype(int)
    assert np.abs(np.diff(still, axis=0)).mean() < 0.5
    assert still[0].mean() > 10


def test_echo_colours_are_rgb(corpus):
    """An undone YBR conversion would tint the grey ultrasound."""
    frame = frames_of(corpus / "echo-sector.mp4")[0].astype(int)
    assert np.abs(frame[..., 0] - frame[..., 1]).mean() < 2
    assert np.abs(frame[..., 2] - frame[..., 1]).mean() < 2


def test_window_is_black_around_the_picture(corpus):
    frames = frames_of(corpus / "doppler-window.mp4")[::50]
    assert frames[:, 48:528, 96:736].mean() > 30
    outside = frames.copy()
    outside[:, 40:536, 88:744] = 0  # 8 pixels of margin: the edge rings
    assert outside.max() <= 8


def test_subtitles_are_the_only_difference(corpus):
    plain = frames_of(corpus / "echo-sector.mp4")[::40].astype(int)
    subtitled = frames_of(corpus / "echo-subtitled.mp4")[::40].astype(int)
    change = np.abs(plain - subtitled).mean(axis=(0, 2, 3))
    assert change[400:460].mean() > 10 > 2 > change[:380].mean()
    assert (corpus / SUBTITLES).read_text().startswith("WEBVTT\n")


def test_second_build_changes_nothing(corpus):
    before = bytes_of(corpus), {path: path.stat().st_ino for path in corpus.iterdir()}
    build_corpus(corpus)
    assert (bytes_of(corpus), {path: path.stat().st_ino for path in corpus.iterdir()}) == before


def test_lost_and_damaged_files_come_back_with_the_same_bytes(corpus):
    before = bytes_of(corpus)
    for name in ("echo-still.mp4", "mr-liver.mp4"):
        data = (corpus / name).read_bytes()
        (corpus / name).write_bytes(data[: len(data) // 2])
    (corpus / "notes.mp4").unlink()
    (corpus / "bikes.mp4").write_bytes(b"")
    build_corpus(corpus)
    assert bytes_of(corpus) == before


def test_bytes_do_not_depend_on_what_was_in_memory(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "copy")
    (tmp_path / "copy" / "mr-liver.mp4").unlink()
    command = "import sys, pathlib; from apps.demo.corpus import build_corpus; build_corpus(pathlib.Path(sys.argv[1]))"
    # glibc fills fresh memory with this byte.
    environment = os.environ | {"MALLOC_PERTURB_": "85"}
    subprocess.run([sys.executable, "-c", command, str(tmp_path / "copy")], env=environment, check=True)
    assert (tmp_path / "copy" / "mr-liver.mp4").read_bytes() == (corpus / "mr-liver.mp4").read_bytes()


@pytest.mark.parametrize("name", ["notes.mp4", "echo-truncated.mp4"])
def test_broken_files_are_no_videos(corpus, name):
    with pytest.raises((av.error.FFmpegError, EOFError)), av.open(str(corpus / name)):
        pass


def test_listing_is_stable_and_complete(corpus):
    path = write_listing(corpus, "http://127.0.0.1:1")
    first = path.read_bytes()
    assert write_listing(corpus, "http://127.0.0.1:1").read_bytes() == first
    rows = listed(corpus)
    assert len(rows) == 16 == len({row["id"] for row in rows})
    files = {Path(row["url"]).name for row in rows if row["url"]}
    made = {path.name for path in corpus.glob("*.mp4")}
    assert files - made == {"gone.mp4"}
    assert made - files == set()
    assert [row["id"] for row in rows if row["url"] is None] == ["no-url"]
    assert [row["id"] for row in rows if "subtitles_url" in row] == ["echo-sector"]


def test_listing_tells_the_truth(corpus):
    for row in listed(corpus):
        assert row["published"] == PUBLISHED
        assert row["title"] and row["channel"] and row["tags"]
        name = Path(row["url"]).name if row["url"] else None
        expected = VIDEOS[name][2] / FPS if name in VIDEOS else None
        assert row["duration"] == (pytest.approx(expected, abs=0.01) if expected else None)
        if row["id"] == "echo-reserved":
            assert row["licence"] == "All rights reserved"
            continue
        # The licence is one that the provenance names.
        assert row["licence"].removesuffix("-Clause") in row["description"]
        if "Blender" in row["description"]:
            assert row["licence"] == "CC-BY-3.0"
        elif ".dcm" in row["description"]:
            assert row["licence"] == "MIT" and "pydicom" in row["description"]


def test_training_part_has_its_kinds_and_every_video_shows_something_else(tmp_path, monkeypatch):
    # Seven pictures of each: the whole part takes half a minute to make.
    monkeypatch.setattr("apps.demo.training_part.TRAINING_SECONDS", 0.28)
    first, second = (build_corpus(tmp_path / name, training=True) for name in ("first", "second"))
    assert bytes_of(first) == bytes_of(second)
    rows = [json.loads(line) for line in write_listing(first, "http://x", training=True).read_text().splitlines()]
    assert {row["id"] for row in rows} == {name for names in TRAINING_CLASSES.values() for name in names}
    assert {Path(row["url"]).name for row in rows} == {path.name for path in first.glob("*.mp4")}
    assert not {row["id"] for row in rows} & {row["id"] for row in listed(second)}
    assert len(TRAINING_CLASSES) >= 4 and min(map(len, TRAINING_CLASSES.values())) >= 3
    for row in rows:
        assert any(fnmatch(row["licence"], allowed) for allowed in DEMO_LICENCES)
        assert row["licence"] in row["description"]
    for names in TRAINING_CLASSES.values():
        videos = [frames_of(first / f"{name}.mp4").astype(int) for name in names]
        assert {video.shape for video in videos} == {(7, 480, 720, 3)}
        assert all(np.abs(video[-1] - video[0]).mean() > 3 for video in videos)  # it moves
        for one, other in itertools.combinations(videos, 2):  # unlike in the middle, where both show most
            assert np.abs(one[3] - other[3]).mean() > 8


def request(url: str, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response, response.read()


def test_server_gives_files_ranges_and_404(corpus, capfd):
    whole = (corpus / "echo-still.mp4").read_bytes()
    with serve(corpus, 0) as url:
        response, body = request(url, "/echo-still.mp4")
        assert (response.status, response.headers["Content-Type"], body) == (200, "video/mp4", whole)
        assert response.headers["Accept-Ranges"] == "bytes"
        for asked, expected in {
            "bytes=0-99": whole[:100],
            "bytes=100-": whole[100:],
            "bytes=-100": whole[-100:],
            f"bytes=10-{len(whole) * 2}": whole[10:],
        }.items():
            response, body = request(url, "/echo-still.mp4", Range=asked)
            assert (response.status, body) == (206, expected), asked
            first = whole.index(expected)
            assert response.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/{len(whole)}"
        for asked in (f"bytes={len(whole)}-", "bytes=-0"):
            assert request(url, "/echo-still.mp4", Range=asked)[0].status == 416
        for ignored in ("bytes=5-2", "bytes=0-1,4-5", "lines=1-2", "bytes=-"):
            assert request(url, "/echo-still.mp4", Range=ignored)[0].status == 200
        assert request(url, "/gone.mp4")[0].status == 404
        assert request(url, "/")[0].status == 404
        assert request(url, "/../" * 9 + "etc/hostname")[0].status == 404
        assert request(url, f"/{SUBTITLES}")[0].headers["Content-Type"] == "text/vtt"
    assert capfd.readouterr() == ("", "")


def test_server_takes_another_port_when_its_own_is_taken(corpus):
    with serve(corpus, 0) as first:
        taken = urlsplit(first).port
        with serve(corpus, taken) as second:
            assert urlsplit(second).port != taken
            assert request(second, "/notes.mp4")[0].status == 200
    with serve(corpus, taken) as again:
        assert urlsplit(again).port == taken
