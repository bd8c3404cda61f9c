"""The nightly refresh over a site that does what sites do: one verdict each, politely, within the quota, killed or not.

All through the real command; the site is `tests.site`, whose log tells what it was asked for and when.
"""

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medgen.web.quotas import bytes_below
from tests.conftest import ROOT, kill_everything, medgen, medgen_here, medgen_running
from tests.site import HOSTS, HUGE, KEPT, LONG, Request, Site
from tests.waiting import wait_until

QUOTA = 20 << 20  # bytes: more than all that is kept, and than eight downloads take in advance; less than `HUGE`
# Some answers take longer than the interval, so that requests meet; the pieces of a stream would come much faster.
AT_ONCE, INTERVAL_S, SLOW_S = 2, 0.2, 1.0
ENVIRONMENT = {
    "MEDGEN_WORKERS": "1",
    "MEDGEN_DOWNLOAD_WORKERS": "8",  # more than all hosts together allow
    "PYTHONPATH": str(ROOT / "tests" / "plugins"),
}
# The numbered videos are no medical ones; their plain scenes look like still pictures with borders.
LOOSE = {
    "medical_threshold": 0,
    "frame_similarity": -1,
    "still_below": 0,
    "technical_threshold": 100,
    "max_freeze_share": 1,
    "min_sharpness": 0,
    "max_overlay_share": 1,
    "crop_borders": False,
    "keep_uncropped_borders": True,
}
STEPS_OF_A_CLIP = 8  # segment, classify, cut, quality, decide, deduplicate, privacy, caption


def command(site: Site, *sources: str) -> list[str]:
    parameters = site.parameters | LOOSE
    parameters |= {"max_bytes": HUGE + QUOTA, "store_quota_bytes": QUOTA, "shard_size": 100, "stall_limit_s": 3.0}
    parameters |= {"per_host_downloads": AT_ONCE, "request_interval_s": INTERVAL_S}
    pairs = [part for name, value in parameters.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    return ["refresh", "--json", *pairs, *(part for source in sources for part in ("--source", source))]


def told(home: Path, *arguments: str) -> Any:
    """What a command says as JSON."""
    flow = arguments[0] == "refresh"
    done = medgen(*arguments, home=home, **ENVIRONMENT) if flow else medgen_here(*arguments, home=home)
    assert "secret-word" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    return json.loads(done.stdout)


@contextmanager
def watched(home: Path) -> Iterator[list[int]]:
    """Bytes that the store and downloads under way held, looked at again and again."""
    seen, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            seen.append(bytes_below(home / "store") + sum(map(bytes_below, (home / "tmp").glob("download-*"))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def verdicts(home: Path) -> tuple[dict[str, tuple[str, str | None]], list[dict[str, Any]]]:
    """URL → its one verdict, and failures by reason."""
    status = told(home, "status", "--all", "--json")
    assert max(Counter(item["url"] for item in status["items"]).values()) == 1
    return {item["url"]: (item["status"], item["reason"]) for item in status["items"]}, status["failures"]


def ends(downloads: dict[str, tuple[str, str | None]]) -> dict[str, tuple[str, str | None]]:
    """URL → its verdict in the end, from that of its download: only the long ones are long enough for a clip."""
    found = {
        url: ("rejected", "no_medical_stretch") if verdict == KEPT and urlsplit(url).path not in LONG else verdict
        for url, verdict in downloads.items()
    }
    return found | {url: ("failed", "disk_quota") for url in found if url.endswith("/huge.mp4")}


def videos(requests: Sequence[Request], site: Site) -> set[str]:
    """URLs of the videos among the requests: not the pages of the channel."""
    return {site.url(r.path, r.host) for r in requests if r.path not in ("/channel", "/page-of-channel")}


def stored(home: Path, data: bytes) -> bool:
    digest = sha256(data).hexdigest()
    return (home / "store" / digest[:2] / digest).exists()


def assert_polite(log: Sequence[Request]) -> None:
    for host in HOSTS:
        here = [request for request in log if request.host == host]
        assert max(request.at_once for request in here) == AT_ONCE, host  # reached, and never exceeded
        starts = sorted(request.started for request in here)
        # A request is on its way for some time after its turn; but no more than AT_ONCE are, so that in any span of
        # time there come no more than those and what the interval allows.
        for first in range(len(starts)):
            for later in range(first + AT_ONCE + 1, len(starts)):
                least = (later - first - AT_ONCE) * INTERVAL_S
                assert starts[later] - starts[first] > 0.99 * least, (host, first, later)
    refused, again = [request for request in log if request.path == "/busy-once.mp4"][:2]
    assert again.started - refused.ended > 0.99  # its Retry-After says 1 s


def test_a_site_that_misbehaves_gets_one_verdict_each_and_nights_do_only_what_is_new(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Site(tmp_path / "site", good=234, frames=20) as site, watched(home) as held:
        site.slow_s = SLOW_S
        listing = tmp_path / "listing.jsonl"
        listing.write_text("\n".join(map(json.dumps, site.listing())))
        downloads = site.expected() | site.expected_in_channel()
        assert len(downloads) > 300
        expected = ends(downloads)

        # Killed in the middle, and run again.
        refresh = command(site, str(listing), f"channel={site.channel}")
        with medgen_running(*refresh, home=home, **ENVIRONMENT) as process:
            wait_until(lambda: len(site.log) >= 180 or process.poll() is not None, "no downloads", every_s=0.02)
            assert process.poll() is None
            kill_everything(home)
            process.wait()
        assert list((home / "tmp").glob("download-*"))  # what was under way
        before = len(site.log)
        first = told(home, *refresh)
        asked_again = videos(site.log[:before], site) & videos(site.log[before:], site)
        assert len(asked_again) < 100  # what was done before the kill stays done
        got, failures = verdicts(home)
        copies = [got.pop(site.url(f"/copy-{n}.mp4")) for n in ("one", "two")]
        assert sorted(copies) == [KEPT, ("rejected", "duplicate")]
        different = {url: (verdict, expected[url]) for url, verdict in got.items() if verdict != expected[url]}
        assert not different
        assert len(got) + len(copies) == len(expected)
        assert first["clips"] == 2

        # Nothing is left of what was under way; what is kept is what the site has, and within the quota.
        assert not [p for p in home.rglob("*") if p.name.endswith((".part", ".ytdl")) or p.name.startswith("download-")]
        for path in ("reset.mp4", "reset-no-range.mp4", "down-twice.mp4", "busy-once.mp4", "copy-one.mp4"):
            assert stored(home, site.body(f"/{path}")), path
        assert stored(home, site.body("/target-8.mp4")) and stored(home, site.body("/changed-9.mp4"))
        assert not stored(home, site.body("/changes.mp4")) and not stored(home, site.body("/good-7.mp4"))
        resumed = [request.span for request in site.log if request.path == "/reset.mp4" and request.span]
        assert resumed and not any(span.startswith("bytes=0-") for span in resumed)
        asked = Counter(request.path for request in site.log)
        assert asked["/hls/720-0.ts"] and not any(asked[f"/hls/{height}-0.ts"] for height in (240, 480, 1080))
        # Three pages and an empty one, once more where the run was killed before it had put them on record.
        assert 4 <= asked["/page-of-channel"] <= 2 * 4
        assert_polite(site.log)

        # Failures are told by reason; those that may pass are tried again the next night, and nothing else is.
        reasons = Counter(reason for status, reason in expected.values() if status == "failed")
        assert {entry["reason"]: entry["count"] for entry in failures} == reasons
        retried = {entry["reason"] for entry in failures if entry["retried"]}
        assert retried == {"http_429", "http_503", "too_slow", "cut_short", "network_error", "disk_quota"}
        transient = {url for url, (_, reason) in expected.items() if reason in retried}
        before = len(site.log)
        again = told(home, *refresh)
        assert videos(site.log[before:], site) == transient
        # The release stands on the records of the failures too, which are new ones; it comes out the same.
        assert (again["executed"], again["digest"]) == (len(transient) + 1, first["digest"])

        # A night with five new videos in the channel, one of which becomes a clip.
        site.published += 5
        new = set(site.in_channel()[-5:])
        before = len(site.log)
        night = told(home, *command(site, f"channel={site.channel}"))
        assert videos(site.log[before:], site) == new
        # The new part of the channel was judged, five videos were fetched, and a release was made.
        assert night["executed"] == 1 + len(new) + STEPS_OF_A_CLIP + 1
        assert (night["clips"], night["decodes"]) == (1, 7)
        # A night without news.
        before = len(site.log)
        quiet = told(home, *command(site, f"channel={site.channel}"))
        assert not videos(site.log[before:], site) and len(site.log) > before
        assert (quiet["executed"], quiet["digest"]) == (0, night["digest"])
        got, _ = verdicts(home)
        assert {url: got[url] for url in site.in_channel()} == ends(site.expected_in_channel())
        assert max(held) <= QUOTA < HUGE
    assert told(home, "verify", "--json") == {"clean": True, "faults": []}
    medgen_here("gc", "--grace-minutes", "-1", home=home)
    assert not list((home / "tmp").iterdir())
