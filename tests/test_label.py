"""`medgen label`: through a real browser, what it keeps, and what it must not do."""

import csv
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import expect

from apps.host_check import HostCheck
from apps.judge.labels import read_labels
from apps.label.answers import CHOICES, Answers, export, files_of
from apps.label.guesses import Guess, Guesses
from apps.label.queue import ANY_EVERY, next_file
from apps.label.site import label_site
from apps.serve import listen
from medgen.errors import SourceUnreadable
from models.segmentation.frames import load_frame_model
from models.segmentation.manifest import read_manifest
from tests.browser import chromium, new_context
from tests.conftest import medgen_here


def picture(path: Path, seed: int) -> Path:
    """Coloured noise, 64 by 48."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures of four places, a video that browsers play, one that they don't, and what is neither."""
    place = tmp_path / "to label"
    for number in range(4):
        picture(place / f"clinic {number}" / "frame<b>.jpg", number)
    for name in ("a.mp4", "b.mkv"):
        with av.open(str(place / name), "w") as out:
            stream = out.add_stream("libx264", rate=4)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for level in range(6):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * level, np.uint8), format="rgb24")
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    (place / "notes.txt").write_text("x")
    (place / "broken.png").write_bytes(b"no picture")
    (place / "secret.jpg").symlink_to(picture(tmp_path / "elsewhere.jpg", 9))
    return place


@contextmanager
def served(folder: Path, by: str, guesses: Guesses | None = None) -> Iterator[str]:
    """URL of the pages."""
    site = HostCheck(label_site(folder, files_of(folder), by, Answers(folder), guesses), "127.0.0.1")
    listening, url = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(site, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield url
    server.should_exit = True
    thread.join()


def test_a_folder_is_labelled_by_keys_in_a_browser_taken_up_again_and_exported(folder: Path) -> None:
    files = files_of(folder)
    assert len(files) == 7 and "secret.jpg" not in files
    guesses = Guesses(folder, files, load_frame_model())
    guesses.judge_all()
    assert set(guesses.failed) == {"broken.png"} and len(guesses.known()) == 6
    faults: list[str] = []
    with chromium() as browser:
        with served(folder, "Ada", guesses) as url:
            page = new_context(browser).new_page()
            page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
            page.on("request", lambda request: faults.append(request.url) if not request.url.startswith(url) else None)
            for number in range(3):
                if number:
                    expect(page.locator("#next")).to_be_focused()
                page.goto(url) if number == 0 else page.keyboard.press("Enter")
                expect(page.locator("legend")).to_have_text("What is it?")
                expect(page.locator("html")).to_have_attribute("data-keys", "ready")
                assert "The model" not in page.content()  # not before one's own answer
                page.keyboard.press("5" if number % 2 else "6")
                expect(page.locator("#guess")).to_contain_text("medical with probability")
            expect(page.locator("#next")).to_be_focused()
            page.keyboard.press("c")  # the last one was a mistake
            expect(page.locator("legend")).to_have_text("What is it?")
            expect(page.locator("html")).to_have_attribute("data-keys", "ready")
            assert page.locator("input:checked").get_attribute("value") == "non-medical"
            page.keyboard.press("1")
            expect(page.locator("h1")).to_have_text("You: medical teaching")
            assert page.evaluate("document.querySelectorAll('script:not([src]), [onclick], [style]').length") == 0
            page.goto(f"{url}/file/{files.index('b.mkv') + 1}")
            for still in page.locator(".stills img").all():
                still.scroll_into_view_if_needed()
                expect(still).to_have_js_property("naturalWidth", 64)
            page.goto(f"{url}/file/{files.index('a.mp4') + 1}")
            expect(page.locator("video")).to_have_js_property("videoWidth", 64)
            page.close()
        with served(folder, "Ada", guesses) as url:
            page = new_context(browser).new_page()
            page.goto(url)
            for choice in ("6", "5", "7", "7"):
                expect(page.locator("html")).to_have_attribute("data-keys", "ready")
                page.keyboard.press(choice)
                expect(page.locator("#next")).to_be_focused()
                page.keyboard.press("Enter")
                expect(page.locator("#next")).to_have_count(0)
            expect(page.locator("h1")).to_have_text("All files are labelled")
            page.get_by_role("button", name="Write MANIFEST.csv").click()
            expect(page.locator("#exported")).to_contain_text("3 medical, 2 non-medical")
    assert not faults
    labelled, left_out = read_manifest(folder)  # what train-frames reads
    assert len(labelled) == 5 and len(left_out) == 2
    assert sum(label.medical is True for label in read_labels(folder)) == 3  # and judge


def test_nothing_changes_by_get_or_from_another_sites_page(folder: Path) -> None:
    site = HostCheck(label_site(folder, files_of(folder), "Ada", Answers(folder), None), "127.0.0.1")
    client = TestClient(site, base_url="http://127.0.0.1:8009", follow_redirects=False)
    ours = {"Origin": "http://127.0.0.1:8009"}
    assert client.get("/file/1", params={"choice": CHOICES[0]}).status_code == 200
    assert client.get("/export").status_code == 405
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        assert client.post("/file/1", data={"choice": CHOICES[0]}, headers=headers).status_code in (400, 403)
        assert client.post("/export", headers=headers).status_code in (400, 403)
    assert client.post("/file/1", json={"choice": CHOICES[0]}, headers=ours).status_code == 415
    assert client.post("/file/1", data={"choice": "nice"}, headers=ours).status_code == 422
    for path in ("/file/0", "/file/8", "/media/99", "/still/1/9", "/media/..%2f..%2fetc", "/static/..%2fsite.py"):
        assert client.get(path).status_code in (404, 422), path
    assert sorted(path.name for path in folder.glob("*.*")) == [
        "a.mp4",
        "b.mkv",
        "broken.png",
        "notes.txt",
        "secret.jpg",
    ]
    assert client.post("/file/1", data={"choice": CHOICES[0]}, headers=ours).headers["location"] == "/file/1/said"
    shown = client.get("/file/1/said")
    assert "not looked at" in shown.text and shown.headers["content-security-policy"].startswith("default-src 'none'")
    escaped = client.get(f"/file/{files_of(folder).index('clinic 0/frame<b>.jpg') + 1}").text
    assert "frame&lt;b&gt;" in escaped and "frame<b>" not in escaped


def test_people_who_differ_leave_a_file_without_a_label_and_a_manifest_keeps_what_it_has(folder: Path) -> None:
    (folder / "MANIFEST.csv").write_text("file,source,licence\nclinic 0/frame<b>.jpg,a hospital,CC0\ngone.mp4,x,\n")
    said = Answers(folder)
    files = [file for file in files_of(folder) if file.startswith("clinic")]
    for by, choices in (("Ada", (4, 5, 0, 5)), ("Bo", (4, 4, 1, 6))):
        for file, choice in zip(files, choices, strict=True):
            said.add(file, by, CHOICES[choice], "doubt")
    with said.path.open("a") as stream:
        stream.write('{"file": "half')  # a process died here
    again = Answers(folder)
    assert again.of_all() == said.of_all()
    again.add(files[0], "Cy", CHOICES[6], "any")  # unsure
    made = json.loads(medgen_here("label", str(folder), "--export", "--json", home=folder.parent).stdout)
    assert made == {"medical": 2, "non_medical": 1, "disputed": [files[1]]}
    with (folder / "MANIFEST.csv").open(newline="") as stream:
        rows = {row["file"]: row for row in csv.DictReader(stream)}
    first = rows[files[0]]
    assert (first["source"], first["licence"], first["is_medical"], first["kind"]) == (
        "a hospital", "CC0", "yes", "medical imaging",
    )  # fmt: skip
    assert rows[files[1]]["is_medical"] == "" and rows[files[2]]["kind"] == "" and "gone.mp4" in rows
    assert rows[files[3]]["source"] == "clinic 3" and rows[files[0]]["labelled_by"] == "Ada; Bo; Cy"
    with pytest.raises(ValueError, match="no such choice"):
        again.add(files[0], "Ada", "nice", "any")
    lines = again.path.read_text().splitlines()
    again.path.write_text("\n".join(["[]", *lines]))
    with pytest.raises(SourceUnreadable, match=r"labels\.jsonl, line 1"):
        Answers(folder)
    (folder / "MANIFEST.csv").write_text("name\nx\n")
    with pytest.raises(SourceUnreadable, match="no column 'file'"):
        export(folder, files, said)
    with pytest.raises(SourceUnreadable, match="holds no video"):
        files_of(_empty(folder))


def _empty(folder: Path) -> Path:
    place = folder / "empty"
    place.mkdir()
    return place


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 12))
def test_the_most_doubtful_file_is_next_but_for_every_fifth(chances: list[float], judged: int) -> None:
    files = [f"{n}.jpg" for n in range(len(chances))]
    guesses = {file: Guess(p, "") for file, p in list(zip(files, chances, strict=True))[:judged]}
    answered: set[str] = set()
    while found := next_file(files, answered, guesses, "Ada"):
        file, because = found
        assert file not in answered and found == next_file(files, answered, guesses, "Ada")
        left = [guesses[other].doubt for other in files if other in guesses and other not in answered]
        assert (because == "doubt") == (bool(left) and len(answered) % ANY_EVERY != ANY_EVERY - 1)
        assert because == "any" or guesses[file].doubt == max(left)
        answered.add(file)
    assert answered == set(files)
