"""Downloads: politely, within budgets, from nowhere else. Of whole refreshes over such a site tells test_nightly."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import av
import pytest
import yt_dlp
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from apps.evidence.pack import copy_source_page
from apps.verdicts import newest, verdicts
from medgen.catalog import open_catalog
from medgen.ledger import Record, open_ledger
from medgen.licences import creative_commons
from medgen.settings import current
from medgen.shard import ShardResult
from medgen.store import open_store
from medgen.truncation import missing_bytes
from medgen.web.failures import without_credentials
from medgen.web.guard import retry_after
from medgen.web.guarded_youtube_dl import GuardedYoutubeDL
from medgen.web.quotas import bytes_below, night_quota, store_quota
from medgen.web.rate_limits import HostBusy, HostRateLimiter, open_rate_limiter
from tasks.curation import discover
from tasks.curation.download import STEP as DOWNLOAD_STEP
from tasks.curation.download_policy import DownloadParams, licence_rejection
from tasks.curation.fetch import RejectedBySite, choose_picture
from tests.asking import ask
from tests.conftest import ROOT, discover_source, inline, numbered_video
from tests.site import HOSTS, Site
from tests.waiting import wait_until

ASK = "import sys; from tests.asking import ask; ask(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further attempts follow soon; more downloads at once than any host allows."""
    inline(monkeypatch)
    monkeypatch.setattr("medgen.shard.BACKOFF_S", 0.1)
    monkeypatch.setattr("tasks.curation.fetch.BACKOFF_S", 0.02)
    monkeypatch.setenv("MEDGEN_DOWNLOAD_WORKERS", "8")


@pytest.fixture(scope="module")
def site_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture
def site(site_folder: Path) -> Iterator[Site]:
    """A small site."""
    with Site(site_folder, good=24) as running:
        yield running


def listing_of(rows: list[dict[str, Any]], folder: Path) -> Path:
    path = folder / "listing.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def discovered(listing: Path) -> ShardResult:
    """The videos of a listing."""
    return discover_source(str(listing), keyword_filter="off", text_classifier="off")


def started(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)


def records() -> dict[str, Record]:
    """URL → newest record of its download."""
    by_subject = {record.subject: record for record in newest(open_ledger()) if record.step == "download"}
    return {
        entry["url"]: by_subject[discover.video_id(entry["url"])]
        for entry in verdicts(open_ledger())
        if discover.video_id(entry["url"]) in by_subject
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shard_budget_bytes", "byte_budget_shard"),
        ("night_budget_bytes", "byte_budget_night"),
        ("store_quota_bytes", "disk_quota"),
    ],
)
def test_what_does_not_fit_a_budget_waits_for_a_later_run(
    home: Path, tmp_path: Path, site: Site, name: str, reason: str
) -> None:
    rows = [row for row in site.listing() if "/good-" in row["url"]]
    size = {row["url"]: len(site.body(row["id"])) for row in rows}
    found = discovered(listing_of(rows, tmp_path))
    base = bytes_below(home / "store") if name == "store_quota_bytes" else 0
    limit = base + 5 * max(size.values()) + 100
    quota = store_quota(open_catalog(), open_store().folder, limit)
    quota.acquire(limit)  # as if killed downloads had left it
    first = DOWNLOAD_STEP.run(found, DownloadParams(**site.parameters, **{name: limit}))
    got = records()
    kept = sum(size[url] for url, record in got.items() if record.status == "kept")
    waiting = [url for url, record in got.items() if record.status == "failed"]
    assert {(got[url].reason, got[url].transient) for url in waiting} == {(reason, True)}
    assert base + kept <= limit < base + kept + min(size[url] for url in waiting)
    assert len(waiting) > len(rows) / 2  # which is no reason to fail the shard
    if name == "store_quota_bytes":
        assert bytes_below(home / "store") <= limit
    if name == "night_budget_bytes":
        assert night_quota(open_catalog(), limit).left() <= limit - kept  # what was begun in vain counts too
    assert all(site.asked(row["id"]) <= 2 for row in rows)  # none was tried again
    again = DOWNLOAD_STEP.run(found, DownloadParams(**site.parameters, **{name: 1 << 30}))
    assert again.executed == len(waiting) and len(first.kept) + len(waiting) == len(again.kept) == len(rows)


def test_a_body_of_unknown_length_stops_at_the_budget(home: Path, tmp_path: Path, site: Site) -> None:
    row = next(row for row in site.listing() if row["id"] == "/page-bomb")
    listing = listing_of([row], tmp_path)
    params = DownloadParams(**site.parameters, shard_budget_bytes=1000)
    DOWNLOAD_STEP.run(discovered(listing), params)
    assert records()[row["url"]].reason == "byte_budget_shard"


def test_hosts_are_asked_as_politely_by_all_processes_together(home: Path, site: Site) -> None:
    paced, crowded = HOSTS[0], HOSTS[1]
    urls = {host: site.url("/good-1.mp4", host) for host in (paced, crowded)}
    open_rate_limiter().back_off("nowhere", 0.0)  # makes the catalog, once
    other = started(ASK, urls[paced], paced, "5", "0.05")
    killed = started(ASK, urls[crowded], crowded, "100000", "0")

    def starts(host: str) -> list[float]:
        return sorted(request.started for request in site.log if request.host == host)

    wait_until(lambda: starts(paced) and starts(crowded), "nobody asks", every_s=0.01)
    # The pace is one for all, and so is a pause that a host asks for.
    open_rate_limiter().back_off(paced, 1.0)
    pushed = time.monotonic()
    ask(urls[paced], paced, 5, 0.05)
    assert other.wait(600) == 0
    assert len(starts(paced)) == 40
    assert len([start for start in starts(paced) if pushed < start < pushed + 0.9]) <= 2  # those under way
    after = [start for start in starts(paced) if start > pushed + 0.9]
    assert after[-1] - after[0] > 0.05 * (len(after) - 2)
    # A killed process gives back its slots at once.
    killed.kill()
    killed.wait()
    ask(urls[crowded], crowded, 5, 0.0)
    assert max(request.at_once for request in site.log) == 2
    open_rate_limiter().back_off(paced, 60.0)
    with pytest.raises(HostBusy, match="another"):
        _enter(open_rate_limiter(), paced, interval_wait_s=0.1)


def _enter(limiter: HostRateLimiter, host: str, **limits: float) -> Any:
    return limiter.enter(
        host, simultaneous=1, interval_s=0.0, **({"slot_wait_s": 0.1, "interval_wait_s": 1.0} | limits)
    )


def test_a_clock_that_jumped_blocks_a_host_for_no_more_than_a_pause(home: Path) -> None:
    limiter = HostRateLimiter(open_catalog())

    def pause(host: str, seconds: float) -> None:
        """Puts a pause on record, as a clock that was wrong would."""
        with open_catalog().begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO host_pace (host, next_at) VALUES (:host, clock_timestamp() + :s * interval '1 second')"
                    "ON CONFLICT (host) DO UPDATE SET next_at = excluded.next_at"
                ),
                {"host": host, "s": seconds},
            )

    def left(host: str) -> float:
        """Seconds until a host may be asked."""
        statement = "SELECT extract(epoch FROM next_at - clock_timestamp())::float FROM host_pace WHERE host = :host"
        with open_catalog().begin() as connection:
            return connection.scalar(text(statement), {"host": host})

    year = 366 * 86_400.0
    pause("jumped.example", year)
    _enter(limiter, "jumped.example").release()
    assert left("jumped.example") < 1.0
    pause("jumped.example", year)
    limiter.back_off("jumped.example", 100.0)  # what the host asks for now counts, not what the clock said
    assert 50.0 < left("jumped.example") <= 100.0
    for asked, most in ((3600.0, 3600.0), (year, 3600.0)):  # the longest pause that a host may have is obeyed
        limiter.back_off("slow.example", asked)
        with pytest.raises(HostBusy, match="another"):
            _enter(limiter, "slow.example")
        assert most - 60 < left("slow.example") <= most
    limiter.back_off("slow.example", 1.0)  # and not shortened by a shorter one
    assert left("slow.example") > 3500.0
    limiter.enter(
        "run.example", simultaneous=1, interval_s=year, slot_wait_s=0.1, interval_wait_s=1.0
    ).release()  # nor can a run ask for more
    assert left("run.example") <= 3600.0
    limiter.close()


def test_all_machines_have_the_night_of_the_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2041, 1, 1, tzinfo=tz)

    night_quota(open_catalog(), 1000).acquire(400)
    monkeypatch.setattr("medgen.web.quotas.datetime", Wrong, raising=False)
    assert night_quota(open_catalog(), 1000).left() == 600


COOKIES = "# Netscape HTTP Cookie File\n\n127.0.0.1\tFALSE\t/\tFALSE\t0\tmember\tsecret\n"


def test_the_cookies_of_the_operator_are_read_and_never_written(
    home: Path, tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookies = tmp_path / "cookies.txt"
    cookies.write_text(COOKIES)
    cookies.chmod(0o400)
    before = cookies.stat()
    monkeypatch.setenv("MEDGEN_YT_DLP_COOKIES", str(cookies))
    current.cache_clear()
    rows = [row for row in site.listing() if "/good-" in row["url"]]
    found = discovered(listing_of(rows, tmp_path))
    assert len(DOWNLOAD_STEP.run(found, DownloadParams(**site.parameters)).kept) == len(rows)
    assert cookies.read_text() == COOKIES
    assert (cookies.stat().st_mtime_ns, cookies.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    sent = {(request.host, request.cookie) for request in site.log}
    # Each session has the operator's cookies, and those that its site set; none has another session's.
    assert {cookie for host, cookie in sent if host == HOSTS[0]} <= {"member=secret", "member=secret; visitor=1"}
    assert {cookie for host, cookie in sent if host != HOSTS[0]} <= {None, "visitor=1"}
    assert all(request.cookie in ("member=secret", None) for request in _first_of_each(site))


def _first_of_each(site: Site) -> list[Any]:
    return list({request.path: request for request in reversed(site.log)}.values())


def test_cookies_that_cannot_be_read_fail_downloads_that_may_be_tried_again(
    home: Path, tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookies = tmp_path / "cookies.txt"
    monkeypatch.setenv("MEDGEN_YT_DLP_COOKIES", str(cookies))
    current.cache_clear()
    (row,) = [row for row in site.listing() if row["id"] == "/good-1.mp4"]
    found = discovered(listing_of([row], tmp_path))
    for make in (lambda: None, lambda: cookies.write_bytes(b"\xff\xfe")):
        make()
        DOWNLOAD_STEP.run(found, DownloadParams(**site.parameters))
        assert (records()[row["url"]].reason, records()[row["url"]].transient) == ("cookies_unreadable", True)
        assert site.log == []
    cookies.write_text(COOKIES)
    assert len(DOWNLOAD_STEP.run(found, DownloadParams(**site.parameters)).kept) == 1


def test_slots_survive_a_lost_connection(home: Path) -> None:
    mine, theirs = HostRateLimiter(open_catalog()), HostRateLimiter(open_catalog())
    slot = _enter(mine, "a.example")
    with pytest.raises(HostBusy, match="all 1 requests"):
        _enter(theirs, "a.example")
    _enter(theirs, "b.example").release()  # a host of its own
    with Session(open_catalog()) as session:  # as when Postgres is started anew
        session.execute(
            select(func.pg_terminate_backend(mine._connection.connection.driver_connection.info.backend_pid))
        )
    slot.release()
    slot.release()
    again = _enter(mine, "a.example")
    with pytest.raises(HostBusy):
        _enter(theirs, "a.example")
    again.release()
    _enter(theirs, "a.example").release()
    mine.close()
    theirs.close()


def test_a_name_that_resolves_anew_is_not_connected_to(
    home: Path, tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, answers = socket.getaddrinfo, iter(["192.88.99.1", *["127.0.0.1"] * 99])

    def rebinding(host: str, port: int, *rest: Any, **more: Any) -> Any:
        return real(next(answers) if host == "rebind.example" else host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    url = site.url("/good-1.mp4", "rebind.example")
    listing = listing_of([{"url": url, "title": "Laparoscopy"}], tmp_path)
    DOWNLOAD_STEP.run(discovered(listing), DownloadParams(allowed_hosts=("*",), stall_limit_s=0.5))
    assert records()[url].reason == "host_refused"
    assert site.log == []


def test_denied_hosts_are_denied_however_they_are_spelled(home: Path, tmp_path: Path, site: Site) -> None:
    hosts = ("127.0.0.2", "2130706434", "0x7f.0.0.2", "0177.0.0.2", "[::ffff:127.0.0.2]", "127。0。0。2")
    urls = [site.url("/good-1.mp4", host) for host in hosts]
    listing = listing_of([{"url": url, "title": "Laparoscopy"} for url in urls], tmp_path)
    params = DownloadParams(**site.parameters | {"allowed_hosts": ("*", "127.0.0.*")}, denied_hosts=("127.0.0.2",))
    DOWNLOAD_STEP.run(discovered(listing), params)
    assert {url: record.reason for url, record in records().items()} == dict.fromkeys(urls, "host_refused")
    assert site.log == []


@pytest.mark.parametrize(
    ("licence", "known"),
    [
        ("Creative Commons Attribution license (reuse allowed)", "CC-BY"),  # YouTube
        ("creativeCommon", "CC-BY"),
        ("Standard YouTube License", None),
        ("by-nc-sa", "CC-BY-NC-SA"),  # Vimeo
        ("cc0", "CC0"),
        ("//creativecommons.org/licenses/by/3.0/", "CC-BY-3.0"),
        ("http://creativecommons.org/licenses/by-nc-nd/3.0/us/", "CC-BY-NC-ND-3.0"),  # archive.org
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "PDM-1.0"),
        ("https://spdx.org/licenses/CC-BY-4.0.html", "CC-BY-4.0"),  # schema.org
        ("CC BY-SA 4.0", "CC-BY-SA-4.0"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International", "CC-BY-NC-SA-4.0"),
        ("Attribution-NonCommercial 3.0 Unported", "CC-BY-NC-3.0"),
        ("Licensed under Creative Commons Attribution 4.0", "CC-BY-4.0"),
        ("Creative Commons", "CC"),
        ("https://elsewhere.org/creativecommons.org/licenses/by/4.0/", None),
        ("https://creativecommons.org.elsewhere.org/licenses/by/4.0/", None),
        ("Not Creative Commons", None),
        ("Attribution required", None),
        ("by the hospital", None),
        ("All rights reserved", None),
        ("MIT", None),
    ],
)
def test_creative_commons_in_the_spellings_of_sites(licence: str, known: str | None) -> None:
    assert creative_commons(licence) == creative_commons(f"  {licence.upper()} ") == known
    common = DownloadParams(licence_policy="creative_commons")
    assert (licence_rejection(licence, common) is None) == (known is not None)
    listed = DownloadParams(licence_policy="listed", licences=("CC-BY", "CC-BY-[0-9]*", "mit"))
    allowed = known == "CC-BY" or ((known or "").startswith("CC-BY-") and known[6].isdigit()) or licence == "MIT"
    assert (licence_rejection(licence, listed) is None) == allowed
    assert licence_rejection(licence, DownloadParams()) is None
    assert licence_rejection(licence, DownloadParams(licences=("CC*",))) is None or not licence.lower().startswith("cc")
    assert licence_rejection(None, common).reason == "licence_unknown"


heights = st.one_of(st.none(), st.integers(100, 2400))


@given(formats=st.lists(st.tuples(heights, st.booleans()), min_size=1, max_size=8))
def test_the_smallest_format_that_reaches_the_wanted_height(formats: list[tuple[int | None, bool]]) -> None:
    params = DownloadParams(min_height=480, wanted_height=720, max_height=1080)
    offered = [
        {"height": height, "protocol": "https", "vcodec": "h264", "acodec": "aac" if sound else "none"}
        for height, sound in formats
    ]
    known = [height for height, _ in formats if height]
    within = [height for height in known if 480 <= height <= 1080]
    reaching = [height for height in within if height >= 720]
    try:
        chosen = choose_picture({"formats": offered}, params)
    except RejectedBySite as rejected:
        assert not within and len(known) == len(formats)
        assert rejected.outcome.reason in ("height_below_minimum", "height_above_maximum")
        return
    if not within:
        assert chosen["height"] is None
        return
    assert chosen["height"] == (min(reaching) if reaching else max(within))
    if any(f["height"] == chosen["height"] and f["acodec"] == "none" for f in offered):
        assert chosen["acodec"] == "none"


def test_heights_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="in order"):
        DownloadParams(min_height=720, wanted_height=480)
    with pytest.raises(ValueError, match="needs licences"):
        DownloadParams(licence_policy="listed")


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One video in several containers."""
    folder = tmp_path_factory.mktemp("containers")
    source = numbered_video(folder / "source.mp4", 25)
    made = {"mp4": source.read_bytes()}
    for name, options in {"mov": {"movflags": "faststart"}, "mkv": {}}.items():
        target = folder / f"video.{name}"
        with av.open(str(source)) as read, av.open(str(target), "w", container_options=options) as out:
            stream = out.add_stream_from_template(read.streams.video[0])
            for packet in read.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
        made[name] = target.read_bytes()
    with av.open(str(folder / "video.avi"), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(25):
            out.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        out.mux(stream.encode(None))
    return made | {"avi": (folder / "video.avi").read_bytes()}


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.2, 0.95))
@example(share=0.857421875)  # just before the index that comes last, of which six bytes are there
def test_a_file_that_was_cut_is_known_by_its_own_account(
    containers: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut"
    for name, data in containers.items():
        path.write_bytes(data)
        assert missing_bytes(path) == 0, name
        path.write_bytes(data + b"\0" * 100)  # padded
        assert missing_bytes(path) == 0, name
        length = int(len(data) * share)
        path.write_bytes(data[:length])
        assert 0 < missing_bytes(path) <= len(data) - length, name


def test_how_long_a_server_asks_to_wait() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < retry_after(soon) <= 100
    assert retry_after("7") == 7.0
    assert retry_after("-1") == retry_after(format_datetime(datetime(1999, 1, 1, tzinfo=UTC), usegmt=True)) == 0.0
    assert retry_after("1e12") == retry_after("inf") == 3600.0
    assert retry_after(None) is retry_after("soon") is retry_after("nan") is None


@given(secret=st.text("abc:@%$é", min_size=1, max_size=20), rest=st.text("abc/?@ ", max_size=20))
def test_credentials_never_stay_in_a_text(secret: str, rest: str) -> None:
    assert without_credentials(f"GET https://{secret}@host/{rest} failed") == f"GET https://host/{rest} failed"
    assert without_credentials("mail a@b.example about //host/path@2x") == "mail a@b.example about //host/path@2x"


def test_the_page_of_a_video_is_kept_as_it_was_where_that_is_wanted(home: Path, tmp_path: Path, site: Site) -> None:
    paths = ("page", "page-html5", "good-0.mp4", "stream.m3u8")
    rows = [row for row in site.listing() if row["url"].rsplit("/", 1)[1] in paths]
    found = discovered(listing_of(rows, tmp_path))
    assert len(DOWNLOAD_STEP.run(found, DownloadParams(**site.parameters)).kept) == len(paths)
    assert not any("page" in record.outputs for record in records().values())
    assert "keep_page" not in DownloadParams().model_dump(mode="json")  # so that downloads keep their keys
    DOWNLOAD_STEP.run(found, DownloadParams(**site.parameters, keep_page=True))
    got = {url.rsplit("/", 1)[1]: record for url, record in records().items()}
    store = open_store()
    for path in ("page", "page-html5"):
        kept = store.path(got[path].outputs["page"])
        assert b"/embedded-" in kept.read_bytes()
        facts = got[path].detail["page"]
        assert facts["url"].endswith(f"/{path}") and "problem" not in facts
        since = datetime.now(UTC) - datetime.fromisoformat(facts["fetched_at"])
        assert timedelta() <= since < timedelta(hours=1)
        outputs = [{"role": role, "sha256": digest} for role, digest in got[path].outputs.items()]
        copy_source_page(store, [{"step": "download", "superseded": False, "outputs": outputs}], tmp_path / "page.html")
        assert (tmp_path / "page.html").read_bytes() == kept.read_bytes()
    gone = {"step": "download", "superseded": False, "outputs": [{"role": "page", "sha256": "0" * 64}]}
    copy_source_page(store, [gone], tmp_path / "gone.html")  # after a takedown a pack is made all the same
    assert not (tmp_path / "gone.html").exists()
    for path in ("good-0.mp4", "stream.m3u8"):  # a file's own address has no page
        assert got[path].status == "kept" and "page" not in got[path].outputs
        assert got[path].detail["page"]["problem"]


def test_all_extractors_of_yt_dlp_are_there() -> None:
    class Nowhere:
        proxies = frozenset[str]()

    guarded = GuardedYoutubeDL({"quiet": True}, Nowhere())
    assert list(guarded._ies) == list(yt_dlp.YoutubeDL({"quiet": True})._ies)
