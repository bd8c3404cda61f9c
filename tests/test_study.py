"""Studies: a whole one through a real browser, and what raters must not be able to see or do."""

import csv
import itertools
import json
import os
import random
import re
import select
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet
import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, Page, expect
from sklearn.metrics import cohen_kappa_score
from sqlalchemy import func
from sqlalchemy import select as query
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from apps.cli import app
from apps.study.ratings import read_ratings
from apps.study.results import results
from apps.study.site import study_site
from medgen.canonical import digest_of
from medgen.catalog import (
    Artifact,
    Evaluation,
    ModelVersion,
    StepRun,
    StudyAnswer,
    StudyPair,
    StudyRater,
    now,
    open_catalog,
)
from medgen.errors import ItemFailed, RunStopped
from medgen.gc import collect_garbage
from medgen.ledger import Outcome, StepIdentity, Work, open_ledger
from medgen.settings import current
from medgen.verify import verify
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models.generation.prompt_set import Prompt
from tasks.evaluation.study import AXES, StudyParams, new_study, showing
from tasks.evaluation.system_videos import videos_of
from tests.browser import chromium, new_context
from tests.conftest import forked, free_port, medgen_running

SYSTEMS = ("SecretAlpha", "SecretBeta")
SIDE = {"left": "1", "right": "2", "neither": "3", "both": "4"}  # the key for each


def tiny_video(path: Path, seed: int, *, codec: str = "libx264", frames: int = 4, comment: str = "") -> Path:
    """A moving square on a colour, 64×48, that names its maker wherever a file can."""
    colour = np.random.default_rng(seed).integers(40, 200, 3)
    with av.open(str(path), "w") as out:
        out.metadata.update({"title": "SecretAlpha SecretBeta", "comment": comment or "SecretAlpha SecretBeta"})
        stream = out.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1  # else it is encoded anew
        stream.metadata["handler_name"] = "SecretAlpha SecretBeta"
        for index in range(frames):
            picture = np.full((48, 64, 3), colour, np.uint8)
            picture[16:32, 8 * index : 8 * index + 16] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def folders(root: Path, prompts: int) -> dict[str, Path]:
    """A folder for each system: one with a table, one with records in the files."""
    made = {}
    for number, system in enumerate(SYSTEMS):
        made[system] = root / system
        made[system].mkdir(parents=True)
        rows = []
        for index in range(prompts):
            name, text = f"{system}-{index}.mp4", f"A surgeon ties knot {index} of {prompts} <script>alert(1)</script>"
            tiny_video(
                made[system] / name, 100 * number + index,
                comment=json.dumps({"prompt": text, "prompt_id": f"k-{index}", "model": system}),
            )  # fmt: skip
            rows.append((name, text, f"k-{index}"))
        if number == 0:
            with (made[system] / "videos.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("file", "prompt", "prompt_id"), *rows])
    return made


def study(name: str, made: Mapping[str, Path], **params: Any) -> dict[int, str]:
    """Makes a study in this process's installation → rater: token."""
    systems = [videos_of(open_ledger(), system, str(folder)) for system, folder in made.items()]
    return dict(new_study(open_ledger(), name, systems, StudyParams(**params), "I agree.").tokens)


@contextmanager
def opened(name: str, home: Path) -> Iterator[str]:
    """The pages of a study, served by the real command → their URL."""
    port = free_port()
    environment = {"MEDGEN_DATABASE_URL": os.environ["MEDGEN_DATABASE_URL"], **forked("apps.cli")}
    with medgen_running("study", "open", name, "--port", str(port), home=home, **environment) as process:
        assert process.stdout
        ready, _, _ = select.select([process.stdout], [], [], 120)
        line = process.stdout.readline() if ready else ""
        assert f"http://127.0.0.1:{port}" in line, line
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module", name="chromium")
def _chromium() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


class Simulated:
    """A rater who decides by a plan in terms of first and second, and presses what that means on their screen."""

    def __init__(self, name: str, rater: int, lazy: bool = False) -> None:
        with Session(open_catalog()) as session:
            row = session.get_one(StudyRater, (name, rater))
            self.pairs, self.swapped = row.showing["pairs"], row.showing["swapped"]
            rows = session.scalars(query(StudyPair).where(StudyPair.study_name == name)).all()
            kinds = {pair.number: (pair.kind, pair.expected) for pair in rows}
        self.plan: dict[int, dict[str, str]] = {}
        for number, (kind, expected) in kinds.items():
            common, own = random.Random(number), random.Random(f"{rater}/{number}")
            liked = {axis: common.choice(("first", "first", "second", "neither", "both")) for axis in AXES}
            other = {axis: own.choice(("first", "second", "neither", "both")) for axis in AXES}
            self.plan[number] = {axis: liked[axis] if own.random() < 0.7 else other[axis] for axis in AXES}
            if kind == "check":
                wrong = "first" if expected == "second" else "second"
                self.plan[number]["visual_quality"] = wrong if lazy else str(expected)

    def sides(self, position: int) -> dict[str, str]:
        """axis → left, right or neither at a position."""
        turn = {"first": "left", "second": "right", "neither": "neither", "both": "both"}
        if self.swapped[position - 1]:
            turn |= {"first": "right", "second": "left"}
        return {axis: turn[choice] for axis, choice in self.plan[self.pairs[position - 1]].items()}


def by_keys(page: Page, sides: Mapping[str, str]) -> None:
    expect(page.locator("fieldset.current")).to_have_count(1)  # the script is there
    for axis in AXES:
        page.keyboard.press(SIDE[sides[axis]])
    page.keyboard.press("Enter")


def by_mouse(page: Page, sides: Mapping[str, str]) -> None:
    for axis in AXES:
        page.locator(f'input[name="{axis}"][value="{sides[axis]}"]').check()
    page.get_by_role("button", name="Save and go on").click()


def expected_kappa(votes: list[list[str]]) -> float:
    """Fleiss' κ written out, of items with the same number of votes each."""
    n = len(votes[0])
    total = Counter(itertools.chain(*votes))
    agreement = sum((sum(v * v for v in Counter(item).values()) - n) / (n * (n - 1)) for item in votes) / len(votes)
    chance = sum((count / (n * len(votes))) ** 2 for count in total.values())
    return (agreement - chance) / (1 - chance)


def both_videos_go_by_one_hand(page: Page) -> None:
    """One slider, frame by frame, slow motion, and the width of a desktop."""
    videos = page.locator("video")
    page.get_by_role("slider").fill("0.2")
    page.keyboard.press("Tab")  # off the slider, whose keys are its own
    for video in videos.all():
        expect(video).to_have_js_property("paused", True)
        expect(video).to_have_js_property("currentTime", 0.2)
    page.get_by_role("button", name="Frame forward").click()
    times = [video.evaluate("video => video.currentTime") for video in videos.all()]
    assert times[0] == times[1] and 0.2 < times[0] < 0.41
    page.get_by_role("button", name="Frame back").click()
    assert videos.first.evaluate("video => video.currentTime") == pytest.approx(0.2, abs=1e-3)
    page.get_by_role("button", name="Speed: full").click()
    for video in videos.all():
        expect(video).to_have_js_property("playbackRate", 0.5)
    page.set_viewport_size({"width": 1440, "height": 900})
    left, right = (video.bounding_box() for video in videos.all())
    assert left and right and left["width"] == right["width"] > 600 and left["y"] == right["y"]
    page.get_by_role("button", name="Full width").click()
    left, right = (video.bounding_box() for video in videos.all())
    assert left and right and left["width"] == right["width"] > 1300 and left["y"] < right["y"]
    expect(page.get_by_label("Equally good")).to_have_count(3)


def test_a_study_of_20_pairs_with_3_raters_through_the_browser(home: Path, tmp_path: Path, chromium: Browser) -> None:
    tokens = study("knots", folders(tmp_path, 20), raters=3)
    people = {rater: Simulated("knots", rater, lazy=rater == 3) for rater in tokens}
    total = len(people[1].pairs)
    assert total == 22
    with opened("knots", home) as url:
        # The first answers by keys, closes the browser on the way, and comes back by the same link.
        link = f"{url}/r/{tokens[1]}"
        context = new_context(chromium)
        page = context.new_page()
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: faults.append(request.url) if not request.url.startswith(url) else None)
        page.goto(link)
        page.get_by_role("button", name="Begin").click()  # without the tick the browser does not send it
        expect(page).to_have_title("Instructions")
        page.get_by_label("I have read this and I agree to take part.").check()
        page.get_by_role("button", name="Begin").click()
        for position in range(1, 10):
            expect(page).to_have_title(f"Pair {position} of 22")
            by_keys(page, people[1].sides(position))
        expect(page).to_have_title("Pair 10 of 22")
        assert page.evaluate("document.querySelectorAll('script:not([src]), [onclick], [style]').length") == 0
        expect(page.locator("video")).to_have_count(2)
        for video in page.locator("video").all():
            expect(video).to_have_js_property("videoWidth", 64)  # waits; a function to wait for is against the policy
        expect(page.locator("fieldset.current")).to_have_count(1)
        both_videos_go_by_one_hand(page)
        page.keyboard.press("1")  # not saved: the page is closed before Enter
        context.close()
        context = new_context(chromium)
        page = context.new_page()
        page.goto(link)
        expect(page).to_have_title("Pair 10 of 22")
        # An answer is gone back to and changed, and a comment is written, by keys too.
        page.get_by_role("link", name="Back").click()
        expect(page).to_have_title("Pair 9 of 22")
        for axis, side in people[1].sides(9).items():
            assert page.locator(f'input[name="{axis}"][value="{side}"]').is_checked()
        expect(page.locator("fieldset.current")).to_have_count(1)
        page.keyboard.press("c")
        page.keyboard.type("123 =cmd() r")  # keys are letters there
        page.keyboard.press("Escape")
        page.keyboard.press("Enter")
        for position in range(10, 23):
            expect(page).to_have_title(f"Pair {position} of 22")
            by_keys(page, people[1].sides(position))
        expect(page).to_have_title("Thank you")
        page.goto(link)
        expect(page).to_have_title("Thank you")
        context.close()
        assert faults == []
        # The second clicks; the third has no JavaScript.
        for rater in (2, 3):
            context = new_context(chromium, java_script_enabled=rater == 2)
            page = context.new_page()
            page.goto(f"{url}/r/{tokens[rater]}")
            page.get_by_label("I have read this and I agree to take part.").check()
            page.get_by_role("button", name="Begin").click()
            for position in range(1, 23):
                expect(page).to_have_title(f"Pair {position} of 22")
                by_mouse(page, people[rater].sides(position))
            expect(page).to_have_title("Thank you")
            context.close()

    done = CliRunner().invoke(app, ["study", "results", "knots", "--json", "--export", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    with Session(open_catalog()) as session:
        rows = session.scalars(query(StudyPair).where(StudyPair.kind == "rated").order_by(StudyPair.number)).all()
        rated = {pair.number: (pair.first_system, pair.second_system) for pair in rows}
    assert len(rated) == 20
    blocks = {"all_raters": (1, 2, 3), "attentive_raters": (1, 2)}
    for block, raters in blocks.items():
        assert found[block]["raters"] == list(raters)
        for axis in AXES:
            facts = found[block]["axes"][axis]
            votes = [[people[rater].plan[pair][axis] for rater in raters] for pair in rated]
            flat = Counter(itertools.chain(*votes))
            rates = {row["system"]: row for row in facts["systems"]}
            for system, choice in zip(SYSTEMS, ("first", "second"), strict=True):
                assert rates[system]["wins"] == flat[choice]
                rate = rates[system]["win_rate"]
                assert rate["value"] == flat[choice] / (20 * len(raters))
                assert rate["low"] <= rate["value"] <= rate["high"]
            assert facts["both_lose"]["value"] == flat["neither"] / (20 * len(raters))
            assert facts["equally_good"]["value"] == flat["both"] / (20 * len(raters))
            assert facts["fleiss_kappa"]["value"] == pytest.approx(expected_kappa(votes), abs=1e-12)
            for row, (a, b) in zip(facts["cohen_kappa"], itertools.combinations(raters, 2), strict=True):
                mine, theirs = ([people[r].plan[pair][axis] for pair in rated] for r in (a, b))
                assert row["raters"] == [a, b] and row["pairs"] == 20
                assert row["value"] == pytest.approx(cohen_kappa_score(mine, theirs), abs=1e-12)
            even = (flat["neither"] + flat["both"]) / 2
            odds = (flat["first"] + even + 0.5) / (flat["second"] + even + 0.5)
            strengths = {row["system"]: row["log_strength"]["value"] for row in facts["bradley_terry"]}
            assert strengths[SYSTEMS[0]] - strengths[SYSTEMS[1]] == pytest.approx(np.log(odds), abs=1e-6)
    assert [row["checks_failed"] for row in found["raters"]] == [0, 0, 2]
    assert [row["answered"] for row in found["raters"]] == [22, 22, 22]
    assert found["raters"][0]["comments"] == 1 and found["raters"][0]["median_seconds"] is not None
    assert found["raters"][2]["median_seconds"] is None
    table = pyarrow.parquet.read_table(tmp_path / "out" / "answers.parquet").to_pylist()
    assert len(table) == 66
    assert {row["visual_quality"] for row in table if row["kind"] == "check"} == {"intact", "broken"}
    revised = [row for row in table if row["revisions"]]
    assert [(row["comment"], row["revisions"]) for row in revised] == [("123 =cmd() r", 1)]
    with (tmp_path / "out" / "answers.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 66
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
    shown = CliRunner().invoke(app, ["study", "results", "knots"])
    assert shown.exit_code == 0 and "failed the attention checks" in shown.output
    assert "rater 1, rater 2" in shown.output and "equally good" in shown.output


def urls_of(html: str) -> list[str]:
    return re.findall(r'(?:src|href|action)="([^"]*)"', html)


def test_what_a_rater_can_see_and_do(home: Path, tmp_path: Path) -> None:
    made = folders(tmp_path, 4)
    tiny_video(made[SYSTEMS[1]] / "SecretBeta-0.webm", 7, codec="libvpx-vp9", comment="x")  # of no prompt: left out
    tokens = study("secret", made, raters=2, checks=2)
    other = study("elsewhere", made, raters=1, checks=0)
    client = TestClient(study_site(open_ledger(), "secret"), follow_redirects=False, raise_server_exceptions=False)
    mine, theirs = f"/r/{tokens[1]}", f"/r/{tokens[2]}"

    # Nothing is shown before consent, nor to those who hold no link of this study.
    assert client.get(f"{mine}/1").headers["location"] == mine
    assert client.get(f"{mine}/1/left.mp4").status_code == 404
    assert client.post(f"{mine}/consent", data={"agree": "no"}).status_code == 422
    for stranger in (other[1], tokens[1][:-1], tokens[1] + "x", "a" * 5000, "%00", "é", "..%2f..", "none"):
        for path in ("", "/1", "/instructions", "/done", "/1/left.mp4"):
            assert client.get(f"/r/{stranger}{path}").status_code == 404, (stranger, path)
        assert client.post(f"/r/{stranger}/1", data={"x": "y"}).status_code == 404
    for link in (mine, theirs):
        assert client.post(f"{link}/consent", data={"agree": "yes"}).headers["location"] == f"{link}/1"

    answer = {"text_alignment": "left", "medical_accuracy": "neither", "visual_quality": "right", "comment": " a\x00b "}
    seen: list[bytes] = []

    def get(path: str, **headers: str) -> Any:
        response = client.get(path, headers=headers)
        seen.append(response.content + str(response.headers).encode())
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert not {"etag", "last-modified", "server", "set-cookie"} & set(response.headers), path
        return response

    # Pages and videos of all pairs, in order; no page is open ahead of its turn.
    for position in range(1, 7):
        page = get(f"{mine}/{position}")
        assert page.status_code == 200 and "&lt;script&gt;" in page.text and "alert(1)</script" not in page.text
        local = [url for url in urls_of(page.text) if not url.startswith(("/static/", "#"))]
        assert all(url.startswith(mine) for url in local)
        assert client.get(f"{mine}/{position + 1}").status_code in (303, 404)
        for side in ("left", "right"):
            whole = get(f"{mine}/{position}/{side}.mp4")
            assert whole.status_code == 200 and whole.headers["content-type"] == "video/mp4"
            part = get(f"{mine}/{position}/{side}.mp4", Range="bytes=4-11")
            assert part.status_code == 206 and part.content == whole.content[4:12]
            assert get(f"{mine}/{position}/{side}.mp4", Range="bytes=999999999-").status_code == 416
            (tmp_path / "served.mp4").write_bytes(whole.content)
            with av.open(str(tmp_path / "served.mp4")) as container:
                assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands"}
                assert container.streams.video[0].codec_context.name == "h264" and len(container.streams) == 1
            assert len(list(pictures(tmp_path / "served.mp4", Limits()))) == 4
        half = {axis: side for axis, side in answer.items() if axis != "visual_quality"}
        refused = client.post(f"{mine}/{position}", data=half)
        assert refused.status_code == 422 and "visual quality" in refused.text
        assert client.post(f"{mine}/{position}", data=answer | {"visual_quality": "first"}).status_code == 422
        # Sent twice, as by a double click: one answer, not revised.
        places = {client.post(f"{mine}/{position}", data=answer).headers["location"] for _ in range(2)}
        assert places == {f"{mine}/{position + 1}" if position < 6 else f"{mine}/done"}
    assert get(f"{mine}/done").status_code == get(f"{mine}/instructions").status_code == get("/").status_code == 200
    assert get("/static/study.css").status_code == get("/static/study.js").status_code == 200
    everything = b"".join(seen)
    for secret in (*SYSTEMS, "x264", "Lavf", "Lavc", "k-0", str(tmp_path)):
        assert secret.encode() not in everything, secret
    for sha256 in open_catalog_digests():
        assert sha256.encode() not in everything

    with Session(open_catalog()) as session:
        rows = session.scalars(query(StudyAnswer)).all()
        assert len(rows) == 6 and {row.revisions for row in rows} == {0}
        for row in rows:
            assert row.text_alignment == ("second" if row.swapped else "first")
            assert (row.visual_quality, row.medical_accuracy) == ("first" if row.swapped else "second", "neither")
            assert row.comment == "a\ufffdb" and row.seconds is None
    # The other rater sees none of it, and can't reach further than their own answers.
    page = get(f"{theirs}/1")
    assert "checked" not in page.text and "a\ufffdb" not in page.text
    assert client.get(f"{theirs}/2").headers["location"] == theirs
    assert client.post(f"{theirs}/6", data=answer).headers["location"] == theirs

    # What no page sends.
    for path in (
        "/1/left.mp4/../../../etc/passwd", "/1/..%2f..%2fleft.mp4", "/1/%2e%2e/left.mp4", "/1/first.mp4", "/1/left.MP4",
        "/0", "/-1", "/7", "/01", "/1e3", "/99999999999999999999", "/1/left.mp4%00", "/%F0%9F%98%80", "/٣", "/1/",
    ):  # fmt: skip
        assert client.get(mine + path).status_code in (404, 307), path
    assert client.get("/static/..%2fsite.py").status_code == client.get("/static/site.py").status_code == 404
    assert client.get("/openapi.json").status_code == client.get("/docs").status_code == 404
    assert client.post(f"{mine}/1", json=answer).status_code == 415
    assert client.post(f"{mine}/1", data={"comment": "x" * 70_000}).status_code == 413
    many = {f"f{index}": "x" for index in range(50)}
    assert client.post(f"{mine}/1", data=many).status_code == 400
    assert client.put(f"{mine}/1", data=answer).status_code == 405
    long = client.post(f"{mine}/1", data=answer | {"comment": "ü" * 5000, "seconds": "nan"})
    assert long.status_code == 303
    draw = random.Random(0)
    alphabet = "abc/.%0129_-~?&=<>\"'\\ üλ😀"
    for _ in range(300):
        path = "".join(draw.choices(alphabet, k=draw.randrange(1, 20)))
        start = draw.choice(["/", mine + "/", "/static/", "/r/"])
        assert client.get(start + path.lstrip("/")).status_code < 500, path


def test_a_study_of_errors_counts_as_the_paper_does(home: Path, tmp_path: Path, chromium: Browser) -> None:
    made = folders(tmp_path, 5)
    (made[SYSTEMS[1]] / "SecretBeta-4.mp4").write_bytes(b"no video")  # its prompt goes for both
    tokens = study("errors", made, kind="errors", raters=3, checks=2)
    with Session(open_catalog()) as session:
        rows = session.scalars(query(StudyPair).order_by(StudyPair.number)).all()
        videos = {row.number: row for row in rows}
        orders = {rater.number: rater.showing["pairs"] for rater in session.scalars(query(StudyRater))}
    rated = [number for number, row in videos.items() if row.kind == "rated"]
    assert len(rated) == 8 and len(videos) == 10 and all(row.first_sha256 == row.second_sha256 for row in rows)
    assert Counter(videos[number].first_system for number in rated) == {system: 4 for system in SYSTEMS}
    # What each of the three says of each video; the third does not watch.
    levels = {number: [(number * 7 + rater * (number % 3)) % 4 for rater in range(3)] for number in rated}
    levels |= {number: [3, 2, 0] for number in videos if number not in rated}
    client = TestClient(study_site(open_ledger(), "errors"), follow_redirects=False)
    for rater in (2, 3):
        link = f"/r/{tokens[rater]}"
        assert "four levels" in client.post(f"{link}/consent", data={"agree": "no"}).text
        client.post(f"{link}/consent", data={"agree": "yes"})
        for position, number in enumerate(orders[rater], 1):
            page = client.get(f"{link}/{position}").text
            assert page.count("<video") == 1 and page.count('type="radio"') == 4 and "Secret" not in page
            for wrong in ({"error_level": "4"}, {"error_level": ""}, dict.fromkeys(AXES, "left")):
                assert client.post(f"{link}/{position}", data=wrong).status_code == 422
            answer = {"error_level": str(levels[number][rater - 1]), "comment": "x"}
            assert client.post(f"{link}/{position}", data=answer).status_code == 303
        assert client.get(f"{link}/done").status_code == 200
    with opened("errors", home) as url:  # the first by keys
        page = new_context(chromium).new_page()
        page.goto(f"{url}/r/{tokens[1]}")
        page.get_by_label("I have read this and I agree to take part.").check()
        page.get_by_role("button", name="Begin").click()
        for position, number in enumerate(orders[1], 1):
            expect(page).to_have_title(f"Video {position} of 10")
            expect(page.locator("fieldset.current")).to_have_count(1)
            expect(page.locator("video")).to_have_js_property("videoWidth", 64)
            page.keyboard.press(str(levels[number][0] + 1))
            page.keyboard.press("Enter")
        expect(page).to_have_title("Thank you")

    done = CliRunner().invoke(
        app, ["study", "results", "errors", "--json", "--record", "--export", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [row["attentive"] for row in found["raters"]] == [True, True, False]
    for block, who in (("all_raters", (0, 1, 2)), ("attentive_raters", (0, 1))):
        votes = {number: [levels[number][rater] for rater in who] for number in rated}
        for row in found[block]["systems"]:
            mine = [number for number in rated if videos[number].first_system == row["system"]]
            for least in (1, 2, 3):
                wrong = sum(2 * sum(level >= least for level in votes[number]) > len(who) for number in mine)
                assert row["share_from"][str(least)]["value"] == wrong / 4
            assert row["error_share"] == row["share_from"]["2"] and row["videos"] == 4
            assert row["levels"] == [sum(votes[number].count(level) for number in mine) for level in range(4)]
        a, b = (row["error_share"]["value"] for row in found[block]["systems"])
        assert found[block]["differences"][0]["difference"]["value"] == pytest.approx(a - b)
        as_text = [[str(level) for level in each] for each in votes.values()]
        assert found[block]["fleiss_kappa_levels"]["value"] == pytest.approx(expected_kappa(as_text), abs=1e-12)
        as_text = [[str(level >= 2) for level in each] for each in votes.values()]
        assert found[block]["fleiss_kappa"]["value"] == pytest.approx(expected_kappa(as_text), abs=1e-12)
    (record,) = open_ledger().load([study_record("errors")]).values()
    assert set(record.detail["left_out"]) == {"SecretBeta: SecretBeta-4.mp4"}
    table = pyarrow.parquet.read_table(tmp_path / "out" / "answers.parquet").to_pylist()
    assert len(table) == 30 and {row["error_level"] for row in table} == {0, 1, 2, 3}
    assert {row["text_alignment"] for row in table} == {None}
    with Session(open_catalog()) as session:
        shares = {row.detail["system"]: row.value for row in session.scalars(query(Evaluation))}
    attentive = found["attentive_raters"]["systems"]
    assert shares == {row["system"]: row["error_share"]["value"] for row in attentive}
    shown = CliRunner().invoke(app, ["study", "results", "errors"])
    assert shown.exit_code == 0 and "share wrong" in shown.output and "four levels" in shown.output
    assert verify(open_ledger(), current().releases_folder) == []


def study_record(name: str) -> int:
    from medgen.catalog import Study

    with Session(open_catalog()) as session:
        return session.get_one(Study, name).step_run_id


def open_catalog_digests() -> list[str]:
    with Session(open_catalog()) as session:
        return list(session.scalars(query(Artifact.sha256)))


def test_links_are_replaced_added_and_ended(home: Path, tmp_path: Path) -> None:
    made = folders(tmp_path, 3)
    arguments = [f"--videos={system}={folder}" for system, folder in made.items()]
    run = CliRunner()
    done = run.invoke(app, ["study", "new", "s", *arguments, "--raters", "1", "--checks", "1", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["pairs"], facts["checks"], facts["left_out"]) == (3, 1, {})
    (first,) = (link.rpartition("/")[2] for link in facts["links"].values())
    with Session(open_catalog()) as session:
        written = [row.__dict__ for row in (*session.scalars(query(StudyRater)), *session.scalars(query(StepRun)))]
        assert first not in str(written)  # only a digest of it is kept
    client = TestClient(study_site(open_ledger(), "s"), follow_redirects=False)
    more = json.loads(run.invoke(app, ["study", "invite", "s", "--json"]).stdout)
    again = json.loads(run.invoke(app, ["study", "invite", "s", "--rater", "1", "--json"]).stdout)
    assert (more["rater"], again["rater"]) == (2, 1)
    paths = {name: "/r/" + facts["link"].rpartition("/")[2] for name, facts in (("more", more), ("again", again))}
    assert client.get(f"/r/{first}").status_code == 404
    answer = {"text_alignment": "left", "medical_accuracy": "left", "visual_quality": "left"}
    for path in paths.values():
        client.post(f"{path}/consent", data={"agree": "yes"})
        assert client.post(f"{path}/1", data=answer).headers["location"] == f"{path}/2"
    assert json.loads(run.invoke(app, ["study", "list", "--json"]).stdout)[0]["answers"] == 2
    assert run.invoke(app, ["study", "withdraw", "s", "2"]).exit_code == 1
    gone = json.loads(run.invoke(app, ["study", "withdraw", "s", "2", "--yes", "--json"]).stdout)
    assert gone["answers_removed"] == 1 and client.get(paths["more"]).status_code == 404
    assert run.invoke(app, ["study", "invite", "s", "--rater", "2"]).exit_code == 1
    midway = results(read_ratings(open_catalog(), "s"))
    assert [row["withdrawn"] for row in midway["raters"]] == [False, True]
    assert midway["all_raters"]["raters"] == [1]
    assert midway["all_raters"]["axes"]["visual_quality"]["fleiss_kappa"]["value"] is None

    # What a study shows is on record: nothing is swept, everything verifies, and a name is taken once.
    collect_garbage(open_ledger(), grace_s=0)
    assert verify(open_ledger(), current().releases_folder) == []
    assert client.get(f"{paths['again']}/1/left.mp4").status_code == 200
    twice = run.invoke(app, ["study", "new", "s", *arguments])
    assert twice.exit_code == 1 and "already" in twice.output
    assert "no study goes by" in run.invoke(app, ["study", "results", "t"]).output
    assert run.invoke(app, ["study", "open", "t"]).exit_code == 1


def test_orders_and_sides_are_balanced_and_drawn_for_each_rater() -> None:
    drawn = [showing(range(1, 24), 7, rater) for rater in range(1, 41)]
    assert all(sorted(one["pairs"]) == list(range(1, 24)) for one in drawn)
    assert {sum(one["swapped"]) for one in drawn} == {11, 12}
    assert len({tuple(one["pairs"]) for one in drawn}) == 40
    left = Counter(pair for one in drawn for pair, swapped in zip(one["pairs"], one["swapped"], strict=True) if swapped)
    assert min(left.values()) > 5 and max(left.values()) < 35
    assert showing(range(1, 24), 7, 3) == drawn[2] != showing(range(1, 24), 8, 3)


def test_folders_that_can_and_cannot_be_read(home: Path, tmp_path: Path) -> None:
    ledger = open_ledger()
    folder = tmp_path / "f"
    folder.mkdir()
    tiny_video(folder / "a.mp4", 1)
    tiny_video(folder / "b.webm", 2, codec="libvpx-vp9")
    (folder / "c.mp4").write_bytes(b"no video")
    prompts = [Prompt("a", "text of a"), Prompt("b", "text of b"), Prompt("c", "text of c")]
    named = videos_of(ledger, "A", str(folder), prompts)  # file names are ids
    assert set(named.videos) == {"text of a", "text of b", "text of c"}
    with pytest.raises(ItemFailed, match="nothing says its prompt"):
        videos_of(ledger, "A", str(folder))
    for name, text in {
        "videos.json": json.dumps({"a.mp4": "text of a", "c.mp4": "text  of\nc", "gone.mp4": "x"}),
        "videos.jsonl": '{"path": "a.mp4", "text": "text of a"}\n{"path": "c.mp4", "caption": "text of c"}\n'
        '{"path": "b.webm"}\n',
        "videos.csv": "video,id,prompt\na.mp4,7,text of a\nc.mp4,,text of c\na.mp4,9,text of a\n",
    }.items():
        (folder / name).write_text(text)
        told = videos_of(ledger, "A", str(folder))
        assert set(told.videos) == {"text of a", "text of c"} and len(told.left_out) == 1, name
        assert videos_of(ledger, "A", str(folder / name)).videos == told.videos
        (folder / name).unlink()
    for text, why in {
        "file,prompt\n../a.mp4,x\n": "leads out",
        "file,prompt\n/etc/passwd,x\n": "leads out",
        "file,prompt\n\x00,x\n": "no file name|can't be read",
        "name,prompt\na.mp4,x\n": "no file; name the column",
        'file,prompt\n"a.mp4,x\n': "can't be read",
        "file,prompt\na.mp4," + "x" * 5000 + "\n": "5000 characters",
    }.items():
        (folder / "videos.csv").write_text(text)
        with pytest.raises(ItemFailed, match=why):
            videos_of(ledger, "A", str(folder))
    (folder / "videos.csv").unlink()
    for source in ("/nowhere", "medgen:nothing", "medgen:", str(folder / "a.mp4")):
        with pytest.raises(ItemFailed, match="bad_videos"):
            videos_of(ledger, "A", source)

    # One that can't be decoded takes its pair out; VP9 is encoded anew; the study goes on with the rest.
    one, two = (videos_of(ledger, label, str(folder), prompts) for label in ("A", "B"))
    made = new_study(ledger, "bad", [one, two], StudyParams(raters=1, checks=0), "I agree.")
    assert made.pairs == 2 and set(made.left_out) == {"A: c.mp4", "B: c.mp4"}
    assert "not_a_video" in made.left_out["A: c.mp4"]
    with Session(open_catalog()) as session:
        anew = {run.detail["encoded_anew"] for run in session.scalars(query(StepRun).where(StepRun.status == "kept")
                                                                      .where(StepRun.step == "blind"))}  # fmt: skip
    assert anew == {True, False}
    with pytest.raises(RunStopped, match="3 pairs were asked for, but there are 2"):
        new_study(ledger, "more", [one, two], StudyParams(pairs=3), "I agree.")
    with pytest.raises(RunStopped, match="no name"):
        new_study(ledger, "A/../B", [one, two], StudyParams(), "I agree.")
    with pytest.raises(RunStopped, match="two or more systems"):
        new_study(ledger, "same", [one, one], StudyParams(), "I agree.")


def test_generated_videos_on_record_take_part_with_their_lineage(home: Path, tmp_path: Path) -> None:
    ledger = open_ledger()
    manifest = ledger.store.put_bytes(b"{}", "application/json")
    model = ModelVersion(
        digest=manifest.sha256, name="nano-abc", kind="text_to_video", checkpoint_sha256=manifest.sha256
    )
    base = Outcome("kept", outputs={"manifest": manifest}, rows=[model])
    trained = ledger.write(
        StepIdentity("train", 1, {}, {}), Work("model"), base, started_at=now(), flow_run_id=None
    )  # fmt: skip
    made = folders(tmp_path, 3)
    runs = []
    for index in range(3):
        text = f"A surgeon ties knot {index} of 3 <script>alert(1)</script>"
        video = ledger.store.put_file(tiny_video(tmp_path / f"{index}.mp4", 50 + index), "video/mp4")
        detail = {"prompt": text, "prompt_id": f"k-{index}", "category": "", "synthetic": True}
        work = Work(f"gen-{digest_of(text)[:32]}", inputs={"model": manifest.sha256}, parents={"model": trained.id})
        outcome = Outcome("kept", detail=detail, outputs={"video": video})
        runs.append(
            ledger.write(
                StepIdentity("generate", 1, {}, {}), work, outcome, started_at=now(), flow_run_id=None
            )
        )  # fmt: skip
    systems = [
        videos_of(ledger, "ours", "medgen:nano"),
        *(videos_of(ledger, system, str(folder)) for system, folder in made.items()),
    ]
    found = new_study(ledger, "three", systems, StudyParams(raters=1, checks=1, pairs=7), "I agree.")
    with Session(open_catalog()) as session:
        pairings = Counter(session.execute(query(StudyPair.first_system, StudyPair.second_system)
                                           .where(StudyPair.kind == "rated")).tuples())  # fmt: skip
    assert sorted(pairings.values()) == [2, 2, 3]
    # study ← copies ← generated videos ← model
    parents = {found.record.id}
    for _ in range(3):
        parents |= parents_of(parents)
    assert {run.id for run in runs} & parents and trained.id in parents
    empty = results(read_ratings(open_catalog(), "three"))
    json.dumps(empty, allow_nan=False)
    assert empty["all_raters"]["axes"]["visual_quality"]["votes"] == 0
    run = CliRunner()
    assert "nothing to put on record" in run.invoke(app, ["study", "results", "three", "--record"]).output
    client, link = TestClient(study_site(ledger, "three"), follow_redirects=False), f"/r/{found.tokens[1]}"
    client.post(f"{link}/consent", data={"agree": "yes"})
    for position in range(1, 9):
        client.post(f"{link}/{position}", data=dict.fromkeys(AXES, "neither"))
    # The rater saw both videos of the attention check lose: no attentive rater is left.
    assert "nothing to put on record" in run.invoke(app, ["study", "results", "three", "--record"]).output
    simulated = Simulated("three", 1)
    for position in range(1, 9):
        client.post(f"{link}/{position}", data=simulated.sides(position))
    for _ in range(2):  # the second time nothing is added
        done = run.invoke(app, ["study", "results", "three", "--record", "--json"])
        assert done.exit_code == 0, done.output
    with Session(open_catalog()) as session:
        rows = session.scalars(query(Evaluation).where(Evaluation.model_digest == manifest.sha256)).all()
        assert {row.metric for row in rows} == {f"study/three/{axis}/win_rate" for axis in AXES} and len(rows) == 3
        facts = json.loads(done.stdout)["all_raters"]["axes"]["visual_quality"]["systems"][0]
        assert facts["system"] == "ours"
        stands = next(row for row in rows if "visual_quality" in row.metric)
        assert stands.value == facts["win_rate"]["value"]
        assert found.record.id in parents_of({stands.step_run_id})
        assert session.scalar(query(func.count()).select_from(Evaluation)) == 9
    assert verify(ledger, current().releases_folder) == []


def parents_of(runs: set[int]) -> set[int]:
    from medgen.catalog import StepInput

    with Session(open_catalog()) as session:
        found = session.scalars(query(StepInput.parent_id).where(StepInput.step_run_id.in_(runs)))
        return {run for run in found if run is not None}
