"""Feeds listed by yt-dlp from a real server: only what is new, once, whatever happens on the way."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from yt_dlp.extractor.common import InfoExtractor

from medgen.catalog import StepRun
from medgen.ledger import Ledger, open_ledger
from medgen.listings.read import batches
from medgen.listings.sources import open_feed
from medgen.store import open_store
from medgen.verify import verify
from tasks.curation.list_feed import ListedFeed, ListParams, list_feed
from tests.conftest import ROOT

PARAMS = ListParams(allowed_hosts=("127.0.0.1",), stall_limit_s=1.0)
PAGE = 10


class Server(ThreadingHTTPServer):
    """Serves `items` as an RSS feed at /rss and, newest first, in pages at /paged; `answer` replaces the former."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.items: list[Mapping[str, Any]] = []
        self.answer: bytes | int | str | None = None  # a body, a status, or where to redirect to
        self.trickles = self.endless = False
        self.broken_page: int | None = None
        self.closing = threading.Event()
        self.asked: list[str] = []

    @property
    def base(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def publish(self, *names: str) -> None:
        """Puts videos in front of the others."""
        new = [{"url": f"{self.base}/{name}.mp4", "title": f"Laparoscopy {name}", "id": name} for name in names]
        self.items = new[::-1] + self.items

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are expected."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = urlsplit(self.path)
        if path.path == "/paged":
            self._page(int(parse_qs(path.query)["page"][0]))
        elif isinstance(self.server.answer, int):
            self.send_error(self.server.answer)
        elif isinstance(self.server.answer, str):
            self.send_response(302)
            self.send_header("Location", self.server.answer)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send("application/rss+xml", self.server.answer or rss(self.server.items))

    do_HEAD = do_GET

    def _page(self, number: int) -> None:
        if number == self.server.broken_page:
            self.send_error(503)
            return
        start = number * PAGE
        if self.server.endless:
            items = [{"url": f"{self.server.base}/{start + i}.mp4"} for i in range(PAGE)]
        else:
            items = self.server.items[start : start + PAGE]
        self._send("application/json", json.dumps(items).encode())

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        while self.server.trickles and not self.server.closing.wait(0.05):
            self.wfile.write(b" ")
        self.wfile.write(body[half:])

    def log_message(self, *_: object) -> None:
        """Silent."""


class PagedIE(InfoExtractor):
    """An extractor like those of channels: a page is asked for when its entries are wanted."""

    _VALID_URL = r"http://127\.0\.0\.1:\d+/channel"

    def _real_extract(self, url: str) -> dict[str, Any]:
        return self.playlist_result(self._all(url), "channel", "A channel")

    def _all(self, url: str) -> Iterator[dict[str, Any]]:
        number = 0
        while items := self._download_json(url.replace("channel", f"paged?page={number}"), "channel"):
            for item in items:
                yield {"_type": "url", **item, "channel": "A channel", "duration": 12, "tags": ["one", None, "two"]}
            number += 1


def rss(items: list[Mapping[str, Any]]) -> bytes:
    """An RSS 2.0 document."""
    entries = "".join(
        f"<item><title>{escape(item['title'])}</title><link>{escape(item['url'])}</link><guid>{item['id']}</guid>"
        "<description>What is seen.</description><pubDate>Wed, 01 May 2024 10:00:00 GMT</pubDate></item>"
        for item in items
    )
    return f'<?xml version="1.0"?><rss version="2.0"><channel><title>Feed</title>{entries}</channel></rss>'.encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server, whose /channel yt-dlp knows."""
    from tasks.curation import list_feed as module

    class Downloader(module.GuardedYoutubeDL):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            others, self._ies = self._ies, {}
            self.add_info_extractor(PagedIE())
            self._ies |= others

    monkeypatch.setattr(module, "GuardedYoutubeDL", Downloader)
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.closing.set()
        running.shutdown()


def listed(server: Server, path: str = "rss", **changes: Any) -> ListedFeed:
    """One run."""
    feed = open_feed(f"feed={server.base}/{path}")
    return list_feed(open_ledger(), feed, PARAMS.model_copy(update=changes))


def entries(found: ListedFeed) -> list[dict[str, Any]]:
    """All rows of a feed's shards."""
    return [row for shard in found.shards for batch in batches(shard) for row in batch.rows.to_pylist()]


def names(found: ListedFeed) -> list[str]:
    """The videos of a feed's shards, as `Server.publish` calls them."""
    return [Path(row["url"]).stem for row in entries(found)]


def records(ledger: Ledger) -> list[tuple[str, str | None, bool]]:
    """(status, reason, superseded) of all step runs, oldest first."""
    with Session(ledger.engine) as session:
        rows = session.execute(select(StepRun.status, StepRun.reason, StepRun.superseded).order_by(StepRun.id))
        return [tuple(row) for row in rows]


def test_only_what_is_new_is_taken(home: Path, server: Server) -> None:
    server.publish("a", "b", "c")
    first = listed(server)
    assert (first.new, first.failure, names(first)) == (3, None, ["c", "b", "a"])
    assert entries(first)[0] == {
        "url": f"{server.base}/c.mp4", "title": "Laparoscopy c", "description": "What is seen.", "channel": None,
        "channel_url": None, "licence": None, "published": "20240501", "duration_s": None, "external_id": "c",
        "subtitles_url": None, "tags": [],
    }  # fmt: skip
    server.asked.clear()
    again = listed(server)
    assert (again.new, again.failure, again.shards) == (0, None, first.shards)
    assert len(records(open_ledger())) == 1 and set(server.asked) == {"/rss"}  # no entry was opened
    server.publish("d")
    server.items.reverse()
    later = listed(server)
    assert (later.new, later.shards[:1], names(later)) == (1, first.shards, ["c", "b", "a", "d"])
    other = list_feed(open_ledger(), open_feed(f"feed={server.base}/rss?other"), PARAMS)
    assert names(other) == ["a", "b", "c", "d"]  # another URL under the same name is another feed
    assert verify(open_ledger(), home / "releases") == []


def test_pages_are_read_until_known_entries_come(home: Path, server: Server) -> None:
    server.publish(*map(str, range(35)))
    assert listed(server, "channel", known_in_a_row=3).new == 35
    row = entries(listed(server, "channel"))[0]
    assert (row["channel"], row["duration_s"], row["tags"]) == ("A channel", 12.0, ["one", "two"])
    server.asked.clear()
    assert listed(server, "channel", known_in_a_row=3).new == 0
    assert server.asked == ["/paged?page=0"]
    pinned = [server.items.pop(), server.items.pop()]
    server.publish("new")
    server.items = pinned + server.items
    found = listed(server, "channel", known_in_a_row=3)
    assert (found.new, names(found)[-1]) == (1, "new")


def test_limits_lose_nothing(home: Path, server: Server) -> None:
    server.publish(*map(str, range(45)))
    runs = [listed(server, "channel", max_feed_entries=20, known_in_a_row=3) for _ in range(4)]
    assert [run.new for run in runs] == [20, 20, 5, 0]
    server.publish(*(f"new{i}" for i in range(25)))
    runs = [listed(server, "channel", max_feed_entries=20, known_in_a_row=3) for _ in range(2)]
    assert [run.new for run in runs] == [20, 5]
    server.publish("last")
    server.asked.clear()
    found = listed(server, "channel", known_in_a_row=3)
    assert server.asked == ["/paged?page=0"]
    assert sorted(names(found)) == sorted(Path(item["url"]).stem for item in server.items)


def test_a_feed_that_fails_hides_nothing(home: Path, server: Server) -> None:
    server.publish(*map(str, range(30)))
    server.broken_page = 2
    partly = listed(server, "channel")
    assert (partly.new, partly.failure.reason, partly.failure.transient) == (20, "http_503", True)
    server.broken_page = 0
    failed = [listed(server, "channel") for _ in range(2)]
    assert [(f.new, f.failure.reason, f.shards) for f in failed] == [(0, "http_503", partly.shards)] * 2
    server.broken_page = None
    whole = listed(server, "channel", known_in_a_row=1)
    assert (whole.new, whole.failure, len(names(whole))) == (10, None, 30)
    server.broken_page = 0
    assert listed(server, "channel").failure
    server.broken_page = None
    listed(server, "channel")
    known = [("kept", None, False), ("failed", "http_503", True), ("failed", "http_503", True), ("kept", None, False)]
    assert records(open_ledger()) == [*known, ("failed", "http_503", True), ("kept", None, False)]
    listed(server, "channel")
    assert len(records(open_ledger())) == 6
    assert verify(open_ledger(), home / "releases") == []


def test_a_lost_delta_is_listed_again(home: Path, server: Server) -> None:
    server.publish("a", "b")
    open_store().remove(listed(server).shards[0].digest)
    again = listed(server)
    assert (again.new, names(again)) == (2, ["b", "a"])
    assert names(listed(server)) == ["b", "a"]


def test_hostile_feeds(home: Path, server: Server) -> None:
    links = ["javascript:alert(1)", "file:///etc/passwd", "//host.invalid/x", "x#__youtubedl_smuggle=%7B", "http://[::1",
             f"{server.base}/rss", "http://h.invalid/" + "x" * 200_000]  # fmt: skip
    server.items = [{"url": link, "title": "T\u202e" * 1_000_000, "id": "&#55296;" * 0 + str(i)} for i, link in
                    enumerate(links[:3] + links[4:])]  # fmt: skip
    found = listed(server)
    assert found.failure is None and len(entries(found)) == 6
    assert all(len(row["title"]) == 100_000 for row in entries(found))
    (batch,) = batches(found.shards[0])
    assert {n: f.reason for n, f in batch.failures.items()} == dict.fromkeys((1, 2, 4, 6), "unsupported_url")
    server.items = [{"url": links[3], "title": "T", "id": "1"}]
    assert listed(server).failure.reason == "feed_unreadable"
    for answer, reason in {
        404: "http_404",
        b"<html><p>Nothing to see.</p></html>": "no_video_found",
        b"<rss><channel>": "no_video_found",
        b'<?xml version="1.0"?><rss><channel><title>' + b"T" * (65 << 20): "file_too_large",
        f"{server.base}/rss": "redirect_refused",
        server.base.replace("127.0.0.1", "localhost") + "/rss": "host_refused",
        "http://169.254.169.254/rss": "host_refused",
        "file:///etc/passwd": "redirect_refused",
    }.items():
        server.answer = answer
        failed = listed(server)
        assert (failed.new, failed.failure and failed.failure.reason) == (0, reason), answer[:80]
        assert failed.shards == found.shards
    server.answer = None
    refused = list_feed(open_ledger(), open_feed(f"{server.base}/rss"), ListParams())
    assert (refused.failure.reason, refused.shards) == ("host_refused", [])


def test_endless_feeds_end(home: Path, server: Server) -> None:
    server.endless = True
    assert listed(server, "channel", max_feed_entries=55).new == 55
    assert listed(server, "channel", max_feed_entries=55).new == 55
    held = listed(server, "channel", max_feed_requests=3)
    assert (held.new, held.failure.reason) == (0, "too_many_requests")
    server.publish("a")
    server.trickles = True
    slow = listed(server, feed_limit_s=0.5)
    assert (slow.new, slow.failure.reason) == (0, "time_limit")


def test_two_at_once_and_a_killed_run_list_everything_once(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(*map(str, range(8)))
    open_ledger()
    threads = [threading.Thread(target=listed, args=(server,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(listed(server))) == sorted(map(str, range(8)))
    server.publish("new")
    code = (
        "from medgen.listings.sources import open_feed\nfrom medgen.ledger import open_ledger\n"
        "from medgen.store import Store\n"
        "from tasks.curation.list_feed import *\nimport sys, time\nput = Store.put_file\n"
        "def stuck(*arguments):\n    put(*arguments)\n    print('stored', flush=True)\n    time.sleep(600)\n"
        "Store.put_file = stuck\n"
        "list_feed(open_ledger(), open_feed(sys.argv[1]), ListParams(allowed_hosts=('127.0.0.1',)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"feed={server.base}/rss"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "stored\n"
    process.kill()
    process.wait()
    assert len(records(open_ledger())) == 1
    assert sorted(names(listed(server))) == sorted([*map(str, range(8)), "new"])
    assert listed(server).new == 0
