"""Nights over feeds and channels: what is new is judged and fetched once, and channels that lead away are left."""

import json
import threading
from collections.abc import Iterator
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from medgen.ledger import open_ledger
from medgen.shard import ShardResult
from medgen.store import open_store
from tasks.curation.discover import DiscoverParams
from tasks.curation.download import STEP as DOWNLOAD_STEP
from tasks.curation.download_policy import DownloadParams
from tasks.curation.expand import PAGE, ExpandParams, list_channels
from tasks.curation.list_feed import ListParams
from tasks.curation.list_sources import list_source
from tests.conftest import discover_source, inline, judged_listing, numbered_video, stored

MEDICAL = "Laparoscopic appendectomy in a patient with acute appendicitis, case {}"
OTHER = "Minecraft speedrun world record, episode {}"
LISTING = ListParams(allowed_hosts=("127.0.0.1",), request_interval_s=0.0)
DOWNLOAD = DownloadParams(allowed_hosts=("127.0.0.1",), request_interval_s=0.0, min_duration_s=1.0)


class Server(ThreadingHTTPServer):
    """RSS feeds by path, newest entry first, and one video under every other path."""

    daemon_threads = True

    def __init__(self, video: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.video = video
        self.feeds: dict[str, list[tuple[str, str]]] = {}  # (path of a video, title)
        self.asked: list[str] = []

    def url(self, path: str) -> str:
        """Of a feed or video."""
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        items = self.server.feeds.get(self.path)
        kind, body = "video/mp4", self.server.video
        if items is not None:
            entries = "".join(
                f"<item><title>{escape(title)}</title><link>{self.server.url(path)}</link></item>"
                for path, title in items
            )
            kind = "application/rss+xml"
            body = (
                f'<?xml version="1.0"?><rss version="2.0"><channel><title>f</title>{entries}</channel></rss>'.encode()
            )
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server."""
    inline(monkeypatch)
    with Server(numbered_video(tmp_path / "video.mp4", 50).read_bytes()) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def night(server: Server, path: str) -> tuple[ShardResult, ShardResult]:
    """What a refresh does with a feed, as far as the downloads."""
    listing = list_source.fn("feed", server.url(path), LISTING)
    found = judged_listing(listing, DiscoverParams())
    return found, DOWNLOAD_STEP.run(found, DOWNLOAD)


def test_a_night_takes_what_is_new_and_asks_for_nothing_else(home: Path, server: Server) -> None:
    server.feeds["/feed"] = [(f"/{n}.mp4", (MEDICAL if n % 3 == 0 else OTHER).format(n)) for n in range(30)]
    found, fetched = night(server, "/feed")
    assert (len(found.kept), fetched.executed, len(fetched.kept)) == (10, 10, 10)
    assert {path for path in server.asked if path.endswith(".mp4")} == {f"/{n}.mp4" for n in range(0, 30, 3)}
    server.asked.clear()
    found, fetched = night(server, "/feed")
    assert (found.executed, found.reused, fetched.executed, fetched.reused) == (0, 1, 0, 10)
    assert set(server.asked) == {"/feed"}
    server.feeds["/feed"] = [(f"/{n}.mp4", MEDICAL.format(n)) for n in range(100, 105)] + server.feeds["/feed"]
    server.asked.clear()
    found, fetched = night(server, "/feed")
    assert (found.executed, found.reused, fetched.executed, fetched.reused) == (1, 1, 5, 10)
    assert {path for path in server.asked if path.endswith(".mp4")} == {f"/{n}.mp4" for n in range(100, 105)}


def test_channels_of_hits_are_listed_until_they_lead_away(home: Path, tmp_path: Path, server: Server) -> None:
    server.feeds["/surgeon"] = [(f"/s{n}.mp4", MEDICAL.format(n)) for n in range(40)]
    server.feeds["/gamer"] = [(f"/g{n}.mp4", OTHER.format(n)) for n in range(200)]
    server.feeds["/big"] = [(f"/b{n}.mp4", (OTHER if n % 2 else MEDICAL).format(n)) for n in range(200)]
    rows: list[dict[str, Any]] = [
        {"url": server.url(f"/{name}-hit.mp4"), "title": MEDICAL.format(name), "channel_url": channel}
        for name, channel in (
            ("a", server.url("/surgeon")), ("b", server.url("/gamer")), ("c", server.url("/surgeon")),
            ("d", server.url("/big")), ("e", "/etc/passwd"), ("f", "ytsearch5:surgery"), ("g", "s3://bucket/x"),
            ("h", server.url("/surgeon").replace("//", "//user:word@")), ("i", None),
        )
    ]  # fmt: skip
    rows.append({"url": server.url("/off.mp4"), "title": OTHER, "channel_url": server.url("/not-asked")})
    listing = tmp_path / "listing.jsonl"
    listing.write_text("".join(json.dumps(row) + "\n" for row in rows))
    hits = discover_source(str(listing))
    assert len(hits.kept) == 9
    params = ExpandParams(expand_channels=True, channel_probe=20, max_channel_videos=120)

    def expanded() -> tuple[Any, ShardResult]:
        channels = list_channels.fn("channels", stored([hits]), params, LISTING, DiscoverParams())
        return channels, judged_listing(channels, DiscoverParams())

    channels, found = expanded()
    assert set(server.asked) == {"/surgeon", "/gamer", "/big"}
    sizes = {
        shard.source: pq.read_metadata(open_store().path(shard.digest)).num_rows for shard in channels.shards.values()
    }
    assert sizes == {server.url("/surgeon"): 40, server.url("/gamer"): 20, server.url("/big"): 120}
    assert len(found.kept) == 40 + 60
    kept = open_ledger().load(found.records).values()
    assert {record.detail["keyword_filter"] for record in kept} == {"none"}  # judged by their meaning alone
    (gamer,) = (record for record in kept if record.detail["source"] == server.url("/gamer"))
    assert gamer.detail["counts"] == {"rejected not_medical_by_text": 20}
    again, nothing = expanded()
    assert again.shards == channels.shards and (nothing.executed, nothing.reused) == (0, 3)
    server.feeds["/surgeon"].insert(0, ("/new.mp4", MEDICAL.format("new")))
    _, later = expanded()
    assert (later.executed, later.reused, len(later.kept)) == (1, 3, 101)


def test_a_page_of_a_channel_is_judged_at_once() -> None:
    from tasks.curation.expand import StopRule

    class Classifier:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def probability(self, titles: list[str], descriptions: list[str], tags: list[str]) -> Any:
            import numpy as np

            self.sizes.append(len(titles))
            return np.full(len(titles), 0.9)

    classifier = Classifier()
    rule = StopRule(classifier, 0.5, ExpandParams(max_channel_videos=100, channel_probe=45))  # type: ignore[arg-type]
    answers = [rule({"title": "t", "description": "", "tags": []}) for _ in range(100)]
    assert answers[:99] == [None] * 99 and answers[99] == "enough_videos: 100"
    assert classifier.sizes == [PAGE, 15, PAGE, 25]
