"""The audit site against those who mean harm, and its search against its promises; over records made for that."""

import csv
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError
from starlette.testclient import TestClient

from apps.audit import search
from apps.audit.access import Visitors
from apps.audit.access_log import AccessLog
from apps.audit.application import create_site
from apps.audit.people import People, PeopleUnusable
from apps.audit.reading import TooSlow
from apps.audit.search import Filters
from medgen.catalog import ItemStatus
from medgen.ledger import Ledger, open_ledger
from tasks.operations.takedown import take_down
from tests.audit_addresses import hostile_addresses
from tests.browser import chromium, new_context
from tests.conftest import free_port, numbered_video
from tests.recorded import Recorder

TITLES = (
    "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 2'>",
    "'; DROP TABLE clip; -- \" onmouseover=\"window.harmed = 3",
    "\u202egnp.exe\u202c \u2067hidden\u2069 \u200bzero",
    "=HYPERLINK(\"http://example.org\"; \"click\")",
    "\x01\x07\x1b[31m bell {{ 7 * 7 }} ${7*7} <svg onload=window.harmed=4>",
    "]]><!-- --><style>body{display:none}</style><a href='javascript:window.harmed=5'>a</a>",
    "Arthroscopy of the knee",
)  # fmt: skip


@pytest.fixture
def hostile(home: Path, tmp_path: Path) -> Ledger:
    """A catalog of videos with hostile words in every place that a stranger may write in."""
    recorder = Recorder(open_ledger())
    clip_file = open_ledger().store.put_file(numbered_video(tmp_path / "clip.mp4", 150), "video/mp4")
    videos = [
        {
            "url": f"https://example.org/{n}?<script>window.harmed=6</script>",
            "title": title,
            "channel": title,
            "licence": title,
            "tags": [title, "knee"],
            "description": title + "d" * 100_000,
            "published": title[:40],
            "channel_url": "javascript:window.harmed=7",
        }
        for n, title in enumerate(TITLES)
    ]
    found = recorder.discover("<b>listing</b>", videos)
    kept = {}
    for n, video in enumerate(videos):
        _, lineages = recorder.cut(video["url"], clip_file, found, count=2, category="a <i>category</i>")
        for k, (clip, lineage) in enumerate(lineages):
            status, lineage = recorder.judge(clip, lineage, words=40.0 if k else float(n))
            if status == "kept":
                kept[clip] = recorder.caption(clip, lineage, video["title"])
    made = recorder.release("medgen-one", kept, {"<b>": TITLES[0]})
    recorder.release("medgen-two", dict(list(kept.items())[:3]), {"max": 1})
    recorder.model("<img src=x onerror=window.harmed=8>", "medgen-one", made)
    return open_ledger()


@pytest.fixture
def client(hostile: Ledger) -> Iterator[TestClient]:
    """The site, asked without a network. What it does not foresee raises here."""
    with TestClient(create_site(), base_url="http://localhost") as asked:
        yield asked


def test_nothing_executes_and_nothing_breaks(hostile: Ledger) -> None:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_site(), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    with hostile.engine.connect() as connection:
        clips = connection.scalars(text("SELECT id FROM clip ORDER BY id")).all()
        videos = connection.scalars(text("SELECT id FROM video ORDER BY id")).all()
        (digest,) = connection.scalars(text("SELECT digest FROM model_version")).all()
    addresses = [
        "/", "/items", "/items?q=knee", "/sources", "/models", f"/models/{digest}", "/releases/medgen-one",
        "/compare?a=medgen-one&b=medgen-two", *(f"/clips/{c}" for c in clips[::2]), *(f"/videos/{v}" for v in videos),
        f"/lineage/video/{videos[0]}", f"/lineage/model/{digest}", "/steps/1", "/steps/3",
    ]  # fmt: skip
    try:
        with chromium() as browser:
            page = new_context(browser, base_url=f"http://127.0.0.1:{port}").new_page()
            troubles: list[str] = []
            page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
            page.on("console", lambda m: troubles.append(m.text) if "Content Security" in m.text else None)
            page.on("request", lambda r: None if f":{port}/" in r.url else troubles.append(r.url))
            for address in addresses:
                answer = page.goto(address, wait_until="load")
                assert answer and answer.status == 200, address
                assert page.evaluate("window.harmed") is None, address
                assert page.evaluate("getComputedStyle(document.body).display") != "none"
                assert page.locator("a[href^='javascript:' i]").count() == 0
                assert not set("\u202e\u2067\u200b\x07") & set(page.content()), address
            assert troubles == []
            page.goto("/items?status=kept&kind=clip")
            assert page.get_by_text("U+202E").first.is_visible()
    finally:
        server.should_exit = True
        thread.join(10)


def test_no_address_is_answered_with_500_or_with_what_lies_elsewhere(client: TestClient) -> None:
    seen = set()
    for address in hostile_addresses(600, seed=1):
        answer = client.get(address, follow_redirects=False)
        seen.add(answer.status_code)
        assert answer.status_code < 500, address
        assert "root:" not in answer.text and "MEDGEN" not in answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src")
    assert seen <= {200, 307, 400, 404, 414, 422}
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert client.request(method, "/items").status_code == 405


def test_a_clip_is_given_in_any_range_that_makes_sense(client: TestClient, hostile: Ledger) -> None:
    with hostile.engine.connect() as connection:
        clip, digest = connection.execute(text("SELECT id, digest FROM clip LIMIT 1")).one()
    whole, address = hostile.store.read(digest), f"/media/clips/{clip}.mp4"
    assert client.get(address).content == whole

    def asked(value: str) -> tuple[int, bytes]:
        answer = client.get(address, headers={"Range": value})
        return answer.status_code, answer.content

    last = len(whole) - 1
    assert asked("bytes=0-9") == (206, whole[:10])
    assert asked(f"bytes=5-{last + 99}") == (206, whole[5:])
    assert asked("bytes=-7") == (206, whole[-7:])
    assert asked(f"bytes={last}-") == (206, whole[-1:])
    assert asked(f"bytes={last + 1}-")[0] == asked(f"bytes={10**14}-")[0] == 416
    # Many ranges, none, or nonsense: the whole file, once.
    for value in (
        "bytes=" + ",".join(f"{n}-{n}" for n in range(500)),
        "bytes=-",
        "bytes=a-b",
        "lines=1-2",
        "bytes=" + "9" * 500 + "-",
    ):
        assert asked(value) == (200, whole)
    assert asked("bytes=9-3")[0] in (200, 400, 416)
    head = client.head(address)
    assert head.headers["content-length"] == str(len(whole)) and head.content == b""


def test_only_those_who_know_the_token_may_look(hostile: Ledger) -> None:
    site = create_site(Visitors("a-long-token"), listening="0.0.0.0", allowed=("audit.example",))
    with TestClient(site, base_url="http://audit.example") as client:
        assert client.get("/").status_code == 401 and "knee" not in client.get("/items").text
        assert client.get("/static/medgen.css").status_code == 200
        assert client.get("/?token=another-token").status_code == 401
        assert client.get("/", headers={"Authorization": "Bearer a-long-tokem"}).status_code == 401
        assert client.get("/", headers={"Cookie": "medgen_audit=a-long-token"}).status_code == 401
        assert client.get("/", headers={"Authorization": "Bearer a-long-token"}).status_code == 200
        entered = client.get("/items?q=knee&token=a-long-token", follow_redirects=False)
        assert (entered.status_code, entered.headers["location"]) == (303, "/items?q=knee")
        assert "HttpOnly" in entered.headers["set-cookie"] and "a-long-token" not in entered.headers["set-cookie"]
        elsewhere = client.get("//evil.example/?token=a-long-token", follow_redirects=False)
        assert not elsewhere.headers.get("location", "/").startswith("//")
        assert client.get("/items").status_code == 200  # by the cookie
    with TestClient(create_site(), base_url="http://localhost") as client:
        assert client.get("/", headers={"Host": "rebound.example"}).status_code == 400
        assert client.get("/", headers={"Host": "127.0.0.1:4300"}).status_code == 200
        with pytest.raises(SQLAlchemyError), client.app.state.site.engine.begin() as connection:  # type: ignore[attr-defined]
            connection.execute(text("DELETE FROM caption"))


def test_who_looked_at_what_is_on_record_by_name(hostile: Ledger, tmp_path: Path) -> None:
    people = People(tmp_path / "people.json")
    tokens = {name: people.add(name) for name in ("Dr A", "Dr B")}
    assert not any(token in people.path.read_text() for token in tokens.values())
    assert people.path.stat().st_mode & 0o777 == 0o600
    log = AccessLog(tmp_path / "log")
    visitors = Visitors(people=people, named_by="X-Forwarded-User", proxies=("10.0.0.1",), log=log)
    site = create_site(visitors, listening="0.0.0.0", allowed=("audit.example",))

    def asking(address: str = "192.0.2.7") -> TestClient:
        return TestClient(site, base_url="http://audit.example", client=(address, 5000))

    with asking() as client:
        assert client.get("/items?q=secret").status_code == 401
        assert client.get("/", headers={"X-Forwarded-User": "Dr A"}).status_code == 401  # who says so is no proxy
        entered = client.get(f"/items?q=knee&token={tokens['Dr A']}")
        assert entered.status_code == 200 and entered.url.query == b"q=knee"
        assert client.get("/takedowns/none.json").status_code == 404
        # Nothing that is on file lets anybody in.
        for kept in people.by_digest():
            assert asking().get("/", headers={"Cookie": f"medgen_audit={kept}"}).status_code == 401
        people.remove("Dr A")
        assert client.get("/items").status_code == 401
        assert asking().get("/", headers={"Authorization": f"Bearer {tokens['Dr B']}"}).status_code == 200
    with asking("10.0.0.1") as client:
        seen = {"X-Forwarded-User": "Dr C", "X-Forwarded-For": "203.0.113.1, 203.0.113.9"}
        assert client.get("/items?q=echo", headers=seen).status_code == 200
        assert client.get("/").status_code == 401
    (file,) = (tmp_path / "log").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    looked = [(row["person"], row["from"], row["asked"], row["status"]) for row in rows if row["person"]]
    assert looked == [
        ("Dr A", "192.0.2.7", "/items?q=knee", 303),
        ("Dr A", "192.0.2.7", "/items?q=knee", 200),
        ("Dr A", "192.0.2.7", "/takedowns/none.json", 404),
        ("Dr B", "192.0.2.7", "/", 200),
        ("Dr C", "203.0.113.9", "/items?q=echo", 200),
    ]
    assert {row["status"] for row in rows if not row["person"]} == {401}
    assert not any(token in file.read_text() for token in tokens.values())
    for wrong in ("", "a\nb", "x" * 81):
        with pytest.raises(PeopleUnusable, match="is no name"):
            people.add(wrong)
    people.path.write_text("[]")
    with pytest.raises(PeopleUnusable, match="no list of people"):
        people.names()


def test_every_row_is_on_one_page_of_a_search(hostile: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, whatever its size, also where a search is too broad to look through everything at once."""

    def walked(filters: Filters, size: int) -> list[str]:
        after, found = None, []
        with hostile.engine.connect() as connection:
            while True:
                page = search.search(connection, filters, after, size)
                found += [row["id"] for row in page.rows]
                after = page.after
                if after is None:
                    return found

    with hostile.engine.connect() as connection:
        everything = connection.execute(
            select(ItemStatus).order_by(ItemStatus.decided_at.desc(), ItemStatus.id.desc())
        ).all()
    expected = {
        Filters(): lambda row: True,
        Filters(status="rejected"): lambda row: row.status == "rejected",
        Filters(kind="clip", reason="overlay_text", step="decide"): lambda row: row.reason == "overlay_text",
        Filters(q="arthros"): lambda row: "Arthroscopy" in row.title,
        Filters(q="knee arthroscopy"): lambda row: "Arthroscopy" in row.title,
        Filters(channel=TITLES[1]): lambda row: row.channel == TITLES[1],
        Filters(category="a <i>category</i>"): lambda row: row.kind == "clip",
        Filters(metric="overlay_words", low=30): lambda row: row.reason == "overlay_text",
        Filters(since="2001-01-01", until="2002-01-01"): lambda row: False,
        Filters(release="medgen-one"): lambda row: row.kind == "clip" and row.status == "kept",
        Filters(model="<img src=x onerror=window.harmed=8>"): lambda row: row.kind == "clip" and row.status == "kept",
    }
    for size in (3, 50):
        for filters, belongs in expected.items():
            assert walked(filters, size) == [row.id for row in everything if belongs(row)], filters

    def too_slow(*_: object) -> None:
        raise TooSlow

    monkeypatch.setattr(search, "limited", too_slow)
    monkeypatch.setattr(search, "WINDOW", 4)
    monkeypatch.setattr(search, "FEW", 1)
    for filters, belongs in expected.items():
        assert walked(filters, 3) == [row.id for row in everything if belongs(row)], filters


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40))
def test_any_words_can_be_searched_for(client: TestClient, words: str) -> None:
    answer = client.get("/items", params={"q": words.encode("utf-8", "ignore").decode()})
    assert answer.status_code in (200, 400)


def test_lists_are_exported_as_they_are_and_harmless_to_spreadsheets(client: TestClient) -> None:
    rows = list(csv.DictReader(io.StringIO(client.get("/items.csv?kind=video").text)))
    assert len(rows) == len(TITLES)
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    table = pq.read_table(io.BytesIO(client.get("/items.parquet?kind=video").content))
    assert {row["title"] for row in table.to_pylist()} == set(TITLES)
    scored = pq.read_table(io.BytesIO(client.get("/items.parquet?metric=overlay_words&low=30").content))
    assert set(scored["value"].to_pylist()) == {40.0}


def test_what_the_triggers_keep_is_what_the_records_say(hostile: Ledger) -> None:
    told = "SELECT * FROM item_status ORDER BY id"
    with hostile.engine.connect() as connection:
        video, url = connection.execute(text("SELECT id, url FROM video ORDER BY id LIMIT 1")).one()
    for taken_down in ({}, {video: url}):
        take_down(hostile, taken_down, "asked")
        with hostile.engine.begin() as connection:
            kept = connection.execute(text(told)).all()
            connection.execute(text("SELECT rebuild_item_status()"))
            assert connection.execute(text(told)).all() == kept


def test_a_takedown_shows_and_an_altered_record_does_too(client: TestClient, hostile: Ledger) -> None:
    with hostile.engine.connect() as connection:
        video, url, clip = connection.execute(
            text("SELECT v.id, v.url, c.id FROM video v JOIN clip c ON c.video_id = v.id ORDER BY v.id, c.id LIMIT 1")
        ).one()
        other = connection.scalar(text("SELECT id FROM clip WHERE video_id <> :v ORDER BY id LIMIT 1"), {"v": video})
    take_down(hostile, {video: url}, "asked by <b>the owner</b>")
    page = client.get(f"/clips/{clip}").text
    assert "Its video was taken down" in page and "records are as they were written" in page
    assert (
        client.get(f"/media/clips/{clip}.mp4").status_code
        == client.get(f"/posters/clips/{clip}.jpg").status_code
        == 404
    )
    assert {row["reason"] for row in csv.DictReader(io.StringIO(client.get(f"/items.csv?q={video}").text))} == {
        "forgotten"
    }
    report = client.get(f"/takedowns/{video}.json").json()
    assert report["releases"] == {"medgen-one": 1, "medgen-two": 1} or report["releases"].get("medgen-one") == 1
    assert report["models"] and clip in report["clips"] and report["finished"]
    assert "&lt;b&gt;the owner" in client.get(f"/takedowns/{video}").text
    assert "taken down" in client.get("/releases/medgen-one").text
    with hostile.engine.begin() as connection:
        connection.execute(
            text("UPDATE step_run SET detail = '{}' WHERE subject = :c AND step = 'decide'"), {"c": other}
        )
    assert "records are not as they were written" in client.get(f"/clips/{other}").text
    assert json.loads(client.get(f"/clips/{other}/prov.json").text)["activity"]
