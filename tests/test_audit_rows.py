"""What auditors look for and must find: rows that words turned down, titles without spaces, addresses, runs by name."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from typer.testing import CliRunner

from apps.audit import search
from apps.audit.application import create_site
from apps.cli import app
from medgen.catalog import Clip, Evaluation, FlowRun, StepRun, Video, now
from medgen.ledger import Outcome, open_ledger
from medgen.verify import record_faults
from tasks.curation.listed_rows import WantedRows, listed_rows
from tasks.operations.takedown import take_down
from tests.conftest import discover_source, numbered_video
from tests.recorded import Recorder

TITLES = ("腹腔鏡手術の基本", "胆囊切除术教学视频", "Arthroscopy of the knee " + "in full length " * 20)
DROPPED = "https://example.org/watch?v=garden"


@pytest.fixture
def listed(home: Path, tmp_path: Path) -> Iterator[TestClient]:
    """The site over a listing that was judged, and over three videos with a clip each, one of which was released."""
    rows = [
        {"url": DROPPED, "title": "A walk through my garden"},
        {"url": "https://example.org/heart", "title": "Echocardiography of the left ventricle"},
        {"title": "a row without an address"},
    ]
    listing = tmp_path / "list.jsonl"
    listing.write_text("\n".join(map(json.dumps, rows)))
    discover_source(str(listing), text_classifier="off")
    recorder = Recorder(open_ledger())
    clip_file = open_ledger().store.put_file(numbered_video(tmp_path / "clip.mp4", 30), "video/mp4")
    videos = [{"url": f"https://example.org/{n}", "title": title} for n, title in enumerate(TITLES)]
    found = recorder.discover("made-up", videos)
    for video in videos:
        _, [(clip, lineage)] = recorder.cut(video["url"], clip_file, found)
        recorder.step("quality", clip, Outcome("kept", scores={"faces": 1.0}, clip_id=clip), lineage)
    kept = recorder.caption(clip, lineage, "A knee.")
    recorder.step("privacy", clip, Outcome("kept", detail={}), kept, params={"looked": False})
    recorder.release("medgen-one", {clip: kept}, {"a": 1})
    recorder.release("medgen-two", {clip: kept}, {"a": 2})
    with Session(open_ledger().engine) as session, session.begin():
        at = now()
        session.add(
            FlowRun(id=recorder.flow_run_id, flow="refresh", name="refresh-medgen+list.jsonl-2026-11-29",
                    started_at=at, ended_at=at, outcome="completed")
        )  # fmt: skip
    with TestClient(create_site(), base_url="http://localhost") as asked:
        yield asked


def test_rows_that_words_turned_down_can_be_looked_at(listed: TestClient) -> None:
    page = listed.get("/listed", params={"status": "rejected", "reason": "no_medical_term"}).text
    assert "A walk through my garden" in page and "Echocardiography" not in page
    assert f'href="{DROPPED}" rel="noopener noreferrer nofollow external"' in page
    assert "a row without an address" in listed.get("/listed?status=failed").text
    assert "A walk through my garden" in listed.get("/listed", params={"q": DROPPED}).text
    assert "look for it in the listings" in listed.get("/items", params={"q": DROPPED}).text
    assert "/listed?" in listed.get("/sources?name=list.jsonl").text
    # Looked through piece by piece, each row comes once.
    seen, after = [], None
    while True:
        piece = listed_rows(open_ledger(), WantedRows(), most=2, seconds=60, after=after)
        seen += [(row["shard"], row["row"]) for row in piece.rows]
        if (after := piece.after) is None:
            break
    assert len(seen) == len(set(seen)) == 3
    hurried = listed_rows(open_ledger(), WantedRows(), most=50, seconds=0)
    assert len(hurried.rows) == 3 and hurried.after  # what is read is given, and where to go on

    told = CliRunner().invoke(app, ["show", DROPPED])
    assert told.exit_code == 0 and "no_medical_term" in told.stdout and "A walk through my garden" in told.stdout
    facts = json.loads(CliRunner().invoke(app, ["show", DROPPED, "--json"]).stdout)
    assert facts["kind"] == "listed" and facts["rows"][0]["reason"] == "no_medical_term"


def test_words_inside_a_title_and_addresses_are_found(listed: TestClient) -> None:
    for words, title in (("手術", TITLES[0]), ("切除", TITLES[1]), ("https://example.org/0", TITLES[0])):
        page = listed.get("/items.csv", params={"q": words, "kind": "video"}).text
        assert title in page and page.count("\n") == 2, words
    assert TITLES[0] not in listed.get("/items.csv", params={"q": "手術 knee"}).text


def test_results_are_sorted_have_pictures_and_are_gone_through(listed: TestClient) -> None:
    def order(**filters: str) -> list[str]:
        rows = csv.DictReader(io.StringIO(listed.get("/items.csv", params={"kind": "clip", **filters}).text))
        return [row["id"] for row in rows]

    newest = order()
    assert len(newest) == 3 and order(sort="oldest") == newest[::-1]
    by_score = order(metric="faces", sort="highest")
    assert sorted(by_score) == sorted(newest) and order(metric="faces", sort="lowest") == by_score[::-1]
    assert order(sort="highest") == newest  # of no score
    page = listed.get("/items", params={"kind": "clip", "metric": "faces", "sort": "highest"}).text
    assert f'<img class="thumbnail" src="/posters/clips/{newest[0]}.jpg"' in page
    scored = {"metric": "faces", "sort": "highest"}
    for filters, found in (({}, newest), (scored, by_score), ({"sort": "oldest"}, newest[::-1])):
        within = urlencode({"kind": "clip", **filters})
        page = listed.get(f"/clips/{found[1]}", params={"within": within}).text
        addresses = re.findall(r'<a class="button small" href="/clips/(\w+)\?within=[^"]*" rel="(prev|next)"', page)
        assert addresses == [(found[0], "prev"), (found[2], "next")]
        assert 'rel="prev">← before in results' not in listed.get(f"/clips/{found[0]}", params={"within": within}).text
    for made_up in ("", "kind=nonsense", "low=a", "sort=highest&metric=faces&within=1", "%00", "a" * 3000):
        assert listed.get(f"/clips/{newest[0]}", params={"within": made_up}).status_code == 200


@pytest.mark.parametrize("few", [search.FEW, 0])
def test_a_clip_counts_by_its_newest_score(listed: TestClient, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether those in range are asked for by name or not."""
    monkeypatch.setattr(search, "FEW", few)

    def found(low: float, high: float) -> set[str]:
        asked = {"kind": "clip", "metric": "faces", "low": low, "high": high}
        return {row["id"] for row in csv.DictReader(io.StringIO(listed.get("/items.csv", params=asked).text))}

    one, *others = found(1, 1)
    again = Outcome("kept", scores={"faces": 5.0}, clip_id=one)
    Recorder(open_ledger()).step("quality", one, again, params={"measured": "again"})
    assert (found(1, 1), found(4, 6), found(1, 6)) == ({*others}, {one}, {one, *others})


def test_notes_and_flags_are_on_record_and_found(listed: TestClient) -> None:
    clip = next(csv.DictReader(io.StringIO(listed.get("/items.csv?kind=clip").text)))["id"]

    def note(*arguments: str) -> None:
        done = CliRunner().invoke(app, ["note", clip[:9], *arguments, "--by", "A. Nurse"])
        assert done.exit_code == 0, done.output

    def flagged(flag: str) -> list[str]:
        return [row["id"] for row in csv.DictReader(io.StringIO(listed.get("/items.csv", params={"flag": flag}).text))]

    before = listed.get(f"/clips/{clip}").text.partition('id="why">')[2].partition("</p>")[0]
    note("A face at <b>0:03</b>.", "--flag", "privacy")
    page = listed.get(f"/clips/{clip}").text
    assert page.partition('id="why">')[2].partition("</p>")[0] == before  # no verdict changed
    assert "A face at &lt;b&gt;0:03&lt;/b&gt;." in page and "A. Nurse" in page and flagged("privacy") == [clip]
    note("Looked at again: it is a drawing.")
    assert flagged("privacy") == [clip]
    note("--flag", "cleared")
    assert flagged("privacy") == [] and flagged("cleared") == [clip]
    for bad in (["--by", "x"], ["a text"], ["x" * 10_001, "--by", "x"]):
        assert CliRunner().invoke(app, ["note", clip, *bad]).exit_code == 1
    with Session(open_ledger().engine) as session:
        video = session.get_one(Clip, clip).video_id
        url = session.get_one(Video, video).url
        assert not any(record_faults(session, session.scalars(select(StepRun.id)).all()).values())
    take_down(open_ledger(), {video: url}, "asked")
    with Session(open_ledger().engine) as session:
        notes = session.scalars(select(StepRun).where(StepRun.step == "note")).all()
        assert len(notes) == 3 and not any(note.detail["message"] or note.detail["by"] for note in notes)


def test_the_leaderboard_has_each_system_once_and_the_best_of_a_metric(listed: TestClient) -> None:
    recorder = Recorder(open_ledger())
    assert "Nothing was evaluated yet" in listed.get("/leaderboard").text
    made = recorder.release("medgen-three", {}, {"a": 3})
    for name in ("nano-1", "nano-2"):
        recorder.model(name, "medgen-three", made)
    values = {"another": {"imaging_quality [defects]": 0.5, "fid [inception]": 3.0, "dynamic_degree [dis]": 1.0},
              "third": {"imaging_quality [defects]": 0.7, "fid [inception]": 9.0}}  # fmt: skip
    for number, (system, metrics) in enumerate(values.items()):
        rows = [
            Evaluation(id=10_000 + 10 * number + k, metric=metric, value=value, detail={})
            for k, (metric, value) in enumerate(metrics.items())
        ]
        recorder.step("evaluate", system, Outcome("kept", detail={}, rows=rows))
    page = listed.get("/leaderboard").text
    body = page.partition("<tbody>")[2]
    assert body.index("third") < body.index("another")
    assert body.count("nano-1<") == body.count("nano-2<") == 1 and "0.58 to 0.64" in body
    assert "<strong>0.7</strong>" in body and "<strong>3</strong>" in body and "<strong>1</strong>" not in body
    by_distance = listed.get("/leaderboard", params={"by": "fid [inception]"}).text.partition("<tbody>")[2]
    assert by_distance.index("another") < by_distance.index("third")


def test_the_leaderboard_compares_systems_over_the_same_prompts(listed: TestClient) -> None:
    recorder = Recorder(open_ledger())
    several, few = (
        {"name": f"set <{taken}>", "version": "2", "digest": f"{taken}" * 64, "origin": "us", "prompts": taken, "of": 9}
        for taken in (9, 4)
    )
    old = {"name": "of before", "version": "", "digest": "e" * 64}
    measured = [
        ("Calm", several, 0.9, "one"),
        ("Calm", few, 0.2, "one"),
        ("shaken", few, 0.1, "two"),
        ("early", old, 0.7, "one"),
        ("shaken", several, 0.3, "one"),
        ("shaken", several, 0.4, "two"),
    ]
    for number, (system, prompts, value, release) in enumerate(measured):
        rows = [
            Evaluation(id=20_000 + 10 * number, metric="imaging_quality [defects]", value=value, detail={}),
            Evaluation(id=20_001 + 10 * number, metric="fid [inception]", value=value, detail={"against": release}),
        ]
        detail = {"system": system, "prompts": prompts}
        recorder.step("evaluate", f"evaluation-{number}", Outcome("kept", detail=detail, rows=rows))
    rows = [Evaluation(id=30_000, metric="study/knots/realism/win_rate", value=0.6, detail={})]
    recorder.step("study", "knots-1", Outcome("kept", detail={"system": "rated", "study": "knots"}, rows=rows))

    newest = listed.get("/leaderboard").text
    body = newest.partition("<tbody>")[2]
    assert body.count("Calm<") == body.count("shaken<") == 1 and "early<" not in body and "rated<" in body
    assert body.index("Calm<") < body.index("shaken<")
    assert "<strong>0.9</strong>" in body and ">0.2<" not in body and ">0.1<" not in body
    # Distances to two releases are two columns: of one there are two values to choose the best from.
    assert "fid [inception] against one" in newest and "fid [inception] against two" in newest
    assert newest.count("<option") == 3 and "set &lt;9&gt; 2 (9 prompts), 2 systems" in newest
    assert "set &lt;4&gt; 2 (4 of 9 prompts), 2 systems" in newest and ">of before, 1 system<" in newest
    other = listed.get("/leaderboard", params={"prompts": "4" * 64}).text.partition("<tbody>")[2]
    assert "<strong>0.2</strong>" in other and ">0.9<" not in other
    assert "early<" in listed.get("/leaderboard", params={"prompts": "e" * 64}).text
    assert listed.get("/leaderboard", params={"prompts": "<of nothing>"}).text.partition("<tbody>")[2] == body


def test_pages_say_what_is_known(listed: TestClient) -> None:
    clip = json.loads(CliRunner().invoke(app, ["release", "show", "medgen-one", "--json"]).stdout)["clip_ids"][0]
    page = listed.get(f"/clips/{clip}").text
    assert "on the frames that were measured" in page and "not looked at</dd>" not in page.partition("identifiers")[0]
    assert TITLES[2] in page  # in full, though the heading is cut
    assert 'href="https://example.org/2" rel="noopener' in page
    chosen = listed.get("/compare").text
    assert chosen.count(" selected>medgen-one") == chosen.count(" selected>medgen-two") == 1
    compared = listed.get("/compare?a=medgen-one&b=medgen-two").text
    assert compared.partition('id="funnel"')[2].partition("</thead>")[0].count("medgen-one</th>") == 1
    assert "refresh-medgen+list.jsonl-2026-11-29" in listed.get("/runs").text
    funnel = listed.get("/releases/medgen-one").text.partition('id="funnel"')[2]
    assert 'href="/listed?status=rejected&amp;reason=no_medical_term"' in funnel
    assert 'href="/items?step=decide&amp;status=rejected&amp;reason=overlay_text"' in funnel
    front = listed.get("/").text
    assert "1 clip<" in front and "1 clips" not in front
    for address in ("/", "/items", f"/clips/{clip}", "/releases/medgen-one/metadata.parquet", "/static/medgen.css"):
        head = listed.head(address)
        assert (head.status_code, head.headers["content-type"]) == (200, listed.get(address).headers["content-type"])
