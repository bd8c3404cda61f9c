"""List feed: what is new in a channel, playlist, search or RSS feed since it was last listed.

A feed is a series of deltas that only grows. Each is a step run whose output is a Parquet file in schema LISTING with
the entries that were not known before, newest first as the feed has them. A feed is read until it shows what is
known: one where nothing is new costs a request or two, leaves no record and makes nothing run again. No entry is
opened: that is for download.
"""

import http.client
import logging
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yt_dlp
from pydantic import Field, field_validator
from sqlalchemy import select
from sqlalchemy.orm import Session
from yt_dlp.utils import YoutubeDLError, sanitize_url, unsmuggle_url
from yt_dlp.version import __version__ as YT_DLP_VERSION

from medgen.among import among
from medgen.catalog import StepRun, now
from medgen.errors import ItemFailed
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.listings.rows import LISTING, column_mapping, parse_duration, storable_text
from medgen.listings.shard_file import Shard
from medgen.listings.shards import artifact_shard
from medgen.listings.sources import Feed
from medgen.parameters import MOST_ITEMS, MOST_SECONDS
from medgen.store import ArtifactLost, Store
from medgen.web.egress import each_confined
from medgen.web.failures import Refused, failure_of
from medgen.web.guard import MAX_PAGE_BYTES, FetchLimits, WebGuard
from medgen.web.guarded_youtube_dl import GuardedYoutubeDL
from medgen.web.quotas import DownloadQuota
from medgen.web.session import WebParams, options_of

log = logging.getLogger(__name__)

IDENTITY = StepIdentity("list", 1, {}, {})
PARQUET = "application/vnd.apache.parquet"
MAX_NESTED = 3  # a channel has tabs, a tab may have playlists
FLUSH_CHARACTERS = 4 << 20  # of texts held before they are written
# What yt-dlp's extractors raise on pages that are not as they expect, besides its own errors.
ODD_PAGE = (LookupError, TypeError, ValueError, AttributeError, RecursionError)


class ListParams(WebParams):
    """Parameters of listing sources."""

    columns: tuple[str, ...] = Field(
        (),
        description="What a listing calls its columns, as OURS=THEIRS, for example title=name; usual names are known.",
    )
    max_feed_entries: int = Field(
        20_000,
        gt=0,
        le=MOST_ITEMS,
        exclude=True,
        description="New entries of a feed taken in one run; the next run takes the rest.",
    )
    max_feed_requests: int = Field(
        1_000,
        gt=0,
        le=MOST_ITEMS,
        exclude=True,
        description="Requests (pages) that listing a feed may make in one run.",
    )
    feed_limit_s: float = Field(
        900.0, gt=0, le=MOST_SECONDS, exclude=True, description="Slower listings of a feed are stopped, seconds."
    )
    known_in_a_row: int = Field(
        100,
        gt=0,
        le=MOST_ITEMS,
        exclude=True,
        description="So many known entries one after another end the listing of a feed.",
    )

    @field_validator("columns")
    @classmethod
    def _understood(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        column_mapping(columns)
        return columns


@dataclass(frozen=True)
class ListedFeed:
    """What is known of a feed.

    Args:
        shards: a shard per delta, oldest first, those of earlier runs included.
        new: entries found in this run.
        failure: why this run did not see the whole feed, when that was nobody's intention. What it did see counts.
    """

    shards: list[Shard]
    new: int
    failure: ItemFailed | None


def list_feed(
    ledger: Ledger,
    feed: Feed,
    params: ListParams,
    flow_run_id: str | None = None,
    enough: Callable[[Mapping[str, Any]], str | None] = lambda row: None,
) -> ListedFeed:
    """Takes what is new in a feed, and gives all that is known of it.

    A run that ends at a limit, or early, is made good by the next, which then reads past what is known. Killed
    anywhere, or run twice at once, a feed's entries are in its deltas once.

    Args:
        enough: called with each new entry, a row of LISTING; says why to read no further, if so. What is older is
            then left out for good.

    Raises:
        StoreUnavailable: S3 does not answer.
    """
    past = _deltas(ledger, feed)
    known, whole = _known_urls(ledger.store, past)
    reading = _Reading(feed, params, known, whole, any(record.detail.get("left") for record in past), enough)
    started = now()
    previous = past[-1] if past else None
    work = Work(
        feed.name,
        context={"url": feed.url, "previous": previous.id if previous else None, "sequence": len(past) + 1},
        parents={"previous": previous.id} if previous else {},
    )
    key = IDENTITY.key(work)
    failed_before = ledger.find([key]).get(key)
    scratch = ledger.store.scratch(".parquet")
    try:
        _write(reading, scratch)
        # Whatever it was, tomorrow the feed may be another.
        failure = reading.failure and ItemFailed(reading.failure.reason, reading.failure.message, transient=True)
        # With nothing new a record is made only to end a failure, or of the fact that the feed was read to its end.
        outcome: Outcome | ItemFailed | None = None
        if reading.new or (failure is None and (failed_before or (reading.complete and _unfinished(past)))):
            outputs = {"entries": ledger.store.put_file(scratch, PARQUET)} if reading.new else {}
            outcome = Outcome("kept", detail=reading.detail, outputs=outputs)
        elif failure:
            outcome = failure
    finally:
        scratch.unlink(missing_ok=True)
    if failure:
        log.warning("list %s: %s", feed.name, failure)
    if outcome:
        ledger.write(IDENTITY, work, outcome, started_at=started, flow_run_id=flow_run_id, earlier=failed_before)
    return ListedFeed(_shards(ledger, feed), reading.new, failure)


def _shards(ledger: Ledger, feed: Feed) -> list[Shard]:
    deltas = {
        record.outputs["entries"]: f"{number:06d}"
        for number, record in reversed([*enumerate(_deltas(ledger, feed), start=1)])
        if record.outputs
    }  # one that was lost and found again as it was has two records: the first counts
    lost = ledger.missing(deltas)
    shards = [artifact_shard(feed.name, name, digest) for digest, name in deltas.items() if digest not in lost]
    return sorted(shards, key=lambda shard: shard.name)


def _deltas(ledger: Ledger, feed: Feed) -> list[Record]:
    """The deltas of a feed so far, oldest first."""
    with Session(ledger.engine) as session:
        ids = session.scalars(
            select(StepRun.id)
            .where(
                StepRun.step == IDENTITY.name,
                among(StepRun.subject, [feed.name, feed.label]),  # by its label before another source had that name
                StepRun.status == "kept",
                ~StepRun.superseded,
                StepRun.context["url"].astext == feed.url,
            )
            .order_by(StepRun.context["sequence"].as_integer(), StepRun.id)
        ).all()
    records = ledger.load(ids)
    return [records[run_id] for run_id in ids]


def _known_urls(store: Store, past: Sequence[Record]) -> tuple[set[str], bool]:
    """(URLs in a feed's deltas, whether it must be read to its end because there may be others)."""
    known: set[str] = set()
    whole = _unfinished(past) or not past
    for digest in [digest for record in past for digest in record.outputs.values()]:
        try:
            known.update(pq.read_table(store.path(digest), columns=["url"])["url"].to_pylist())
        except ArtifactLost as lost:
            log.warning("list: %s; its entries are listed again", lost)
            whole = True
    return known, whole


def _unfinished(past: Sequence[Record]) -> bool:
    return bool(past) and not past[-1].detail["complete"]


class _Reading:
    """One pass over a feed: gives the entries that are not known, as rows of LISTING.

    After it, `complete` says that nothing older is missing, and `failure` what went wrong.
    """

    def __init__(
        self,
        feed: Feed,
        params: ListParams,
        known: set[str],
        whole: bool,
        left: bool,
        enough: Callable[[Mapping[str, Any]], str | None],
    ) -> None:
        assert feed.url
        self.url = feed.url
        self.params = params
        self.known = known
        # Where the rest was left out for good, it must not be taken for new once all that is known was seen.
        self.known_in_a_row = min(params.known_in_a_row, max(1, len(known))) if left else params.known_in_a_row
        self.whole = whole
        self.enough = enough
        self.left: str | None = None  # why the rest was left out
        self.new = 0
        self.complete = False
        self.failure: ItemFailed | None = None
        self.guard = _FeedGuard(params)

    @property
    def detail(self) -> dict[str, Any]:
        """For the record."""
        return {
            "new": self.new,
            "complete": self.complete,
            "left": self.left is not None,
            "requests": self.guard.requests,
            "stopped_by": str(self.failure) if self.failure else self.left,
            "yt_dlp": YT_DLP_VERSION,
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            with GuardedYoutubeDL(options_of(self.params) | FLAT, self.guard) as downloader:
                yield from self._fresh(each_confined(_entries(downloader, self.url)))
        except ItemFailed as failure:
            self.failure = failure
        except (YoutubeDLError, OSError, http.client.HTTPException) as error:
            self.failure = self.guard.too_many or failure_of(error, self.guard.last_error)
        except ODD_PAGE as error:
            self.failure = ItemFailed("feed_unreadable", f"{self.url}: {type(error).__name__}: {error}"[:500])
        finally:
            self.guard.leave()

    def _fresh(self, entries: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        in_a_row = 0
        deadline = time.monotonic() + self.params.feed_limit_s
        for entry in entries:
            if time.monotonic() > deadline:
                raise ItemFailed("time_limit", f"listing took longer than {self.params.feed_limit_s:.0f} s")
            row = _row(entry)
            if row["url"] in self.known:
                in_a_row += 1
                if in_a_row >= self.known_in_a_row and not self.whole:
                    self.complete = True
                    return
                continue
            in_a_row = 0
            if self.new == self.params.max_feed_entries:
                return
            self.known.add(row["url"])
            self.new += 1
            yield row
            self.left = self.enough(row)
            if self.left:
                break
        self.complete = True


class _FeedGuard(WebGuard):
    """Counts requests too, redirects included."""

    def __init__(self, params: ListParams) -> None:
        limits = FetchLimits(MAX_PAGE_BYTES, params.feed_limit_s, params.stall_limit_s, min_speed=0.0)
        super().__init__(params.hosts, limits, params.rate_limits, DownloadQuota())
        self.max_requests = params.max_feed_requests
        self.requests = 0
        self.too_many: ItemFailed | None = None

    def enter(self, request: urllib.request.Request) -> None:
        if self.requests == self.max_requests:
            self.too_many = ItemFailed("too_many_requests", f"the feed takes more than {self.max_requests} requests")
            raise Refused(self.too_many)
        self.requests += 1
        super().enter(request)


FLAT = {"extract_flat": True, "lazy_playlist": True, "simulate": True, "default_search": "error", "retries": 2}


def _entries(downloader: yt_dlp.YoutubeDL, url: str) -> Iterator[Mapping[str, Any]]:
    """The entries of a feed as they come, page by page."""
    visited: set[str] = set()

    def opened(url: str, extractor: str | None, depth: int) -> Iterator[Mapping[str, Any]]:
        if url in visited or len(visited) >= 100:
            return
        visited.add(url)
        info = downloader.extract_info(url, download=False, ie_key=extractor, process=False) or {}
        yield from unfolded(info, depth)

    def unfolded(info: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
        match info.get("_type") or "video":
            case "playlist" | "compat_list":
                for entry in info.get("entries") or ():
                    if not isinstance(entry, Mapping):
                        continue
                    nested = _is_list(downloader, entry)
                    yield from unfolded(entry, depth + 1) if nested and depth < MAX_NESTED else iter((entry,))
            case "url" | "url_transparent":
                yield from opened(info["url"], info.get("ie_key"), depth)
            case _:
                yield info

    any_entry = False
    for entry in opened(url, None, 0):
        any_entry = True
        yield entry
    if not any_entry and len(visited) > 1:
        raise ItemFailed("redirect_refused", f"{url} leads to nothing but itself")


def _is_list(downloader: yt_dlp.YoutubeDL, entry: Mapping[str, Any]) -> bool:
    """Whether an entry is no video but a list of them, for example a tab of a channel."""
    match entry.get("_type") or "video":
        case "playlist" | "compat_list":
            return True
        case "url" | "url_transparent" if entry.get("ie_key") not in (None, "Generic"):
            return downloader.get_info_extractor(entry["ie_key"]).is_single_video(entry["url"]) is False
    return False


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A row of LISTING. What can't be understood is left out; whether its URL is one, discover says."""
    linked = (entry.get("_type") or "video") in ("url", "url_transparent")
    formats = entry.get("formats") or [{}]
    url = entry.get("url") if linked else entry.get("webpage_url") or entry.get("url") or formats[-1].get("url")
    url, hidden = _unsmuggled(storable_text(url))
    if entry.get("ie_key") == "Youtube" and "/" not in url:
        url = f"https://www.youtube.com/watch?v={url}"
    url = sanitize_url(url, scheme="https") or ""
    identity = entry.get("id") or hidden.get("force_videoid")
    tags = entry.get("tags")
    try:
        duration = parse_duration(entry.get("duration"))
    except ItemFailed:
        duration = None
    return {
        "url": url,
        "title": storable_text(entry.get("title")),
        "description": storable_text(entry.get("description")),
        "channel": storable_text(entry.get("channel") or entry.get("uploader")) or None,
        "channel_url": storable_text(entry.get("channel_url") or entry.get("uploader_url")) or None,
        "licence": storable_text(entry.get("license")) or None,
        "published": _published(entry),
        "duration_s": duration,
        "external_id": storable_text(identity) or None,
        "subtitles_url": None,
        "tags": [storable_text(tag) for tag in tags if tag] if isinstance(tags, list | tuple) else [],
    }


def _unsmuggled(url: str) -> tuple[str, Mapping[str, Any]]:
    """A URL without what yt-dlp's extractors tell one another behind it, and that."""
    try:
        url, hidden = unsmuggle_url(url, {})
    except ValueError:  # not theirs
        return url, {}
    return url, hidden if isinstance(hidden, Mapping) else {}


def _published(entry: Mapping[str, Any]) -> str | None:
    if entry.get("upload_date"):
        return storable_text(entry["upload_date"])
    try:
        return datetime.fromtimestamp(float(entry["timestamp"]), UTC).strftime("%Y%m%d")  # as upload_date is written
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def _write(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    held: list[Mapping[str, Any]] = []
    characters = 0
    with pq.ParquetWriter(path, LISTING, compression="zstd") as writer:
        for row in rows:
            held.append(row)
            characters += 1000 + len(row["title"]) + len(row["description"])
            if characters > FLUSH_CHARACTERS:
                writer.write_table(pa.Table.from_pylist(held, LISTING))
                held, characters = [], 0
        writer.write_table(pa.Table.from_pylist(held, LISTING))
