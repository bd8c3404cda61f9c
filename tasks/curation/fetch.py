"""Fetch: the files of one video from the web, by yt-dlp, in the format that the policy wants."""

import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import yt_dlp
from yt_dlp.utils import DownloadCancelled, YoutubeDLError

from medgen.errors import ItemFailed
from medgen.ledger import Outcome
from medgen.web.failures import Stopped, failure_of, without_credentials
from medgen.web.guard import FetchLimits, WebGuard
from medgen.web.guarded_youtube_dl import GuardedYoutubeDL
from medgen.web.quotas import DownloadQuota
from medgen.web.session import options_of
from tasks.curation.download_policy import DownloadParams, duration_rejection, height_outcome, licence_rejection

log = logging.getLogger(__name__)

UNFINISHED = (".part", ".ytdl", ".temp")
MAX_SUBTITLES_BYTES = 4 << 20
MAX_KEPT_PAGE_BYTES = 8 << 20
PAGES = ("text/html", "application/xhtml+xml")
# Protocols of formats that yt-dlp fetches by itself. For others (rtmp, rtsp, mms) it starts programs that no guard
# holds.
FETCHED = ("http", "m3u8")
RETRIES = 3  # of a broken connection, each going on where the last one broke
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 10.0  # before such a retry; doubled at each


class RejectedBySite(DownloadCancelled):
    """What the site says of a video rejects it."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


@dataclass(frozen=True)
class Page:
    """The page on which a site shows a video, and mostly its licence.

    Args:
        file: its HTML, byte by byte; None where there is none.
        fetched_at: ISO 8601, UTC.
        problem: why there is none.
    """

    url: str
    file: Path | None
    fetched_at: str
    problem: str = ""


@dataclass(frozen=True)
class Fetched:
    """What a site gave of a video.

    Args:
        audio: a file of its own, where the site has it apart from the picture.
        subtitles: WebVTT.
        metadata: as the site tells it; None where it tells nothing.
        page: where it was wanted.
    """

    video: Path
    audio: Path | None
    subtitles: Path | None
    metadata: Mapping[str, Any]
    page: Page | None = None


def fetch(row: Mapping[str, Any], folder: Path, params: DownloadParams, quota: DownloadQuota) -> Fetched:
    """Fetches the video of a listing's row into a folder.

    Raises:
        RejectedBySite: what the site says of the video rejects it.
        ItemFailed: as `medgen.web.failures`; nothing_downloaded, file_too_large, live_stream.
    """
    limits = FetchLimits(params.max_bytes, params.download_limit_s, params.stall_limit_s, params.min_speed)
    guard = WebGuard(params.hosts, limits, params.rate_limits, quota)
    try:
        with GuardedYoutubeDL(_options(row, folder, params, guard), guard) as downloader:
            answer = downloader.extract_info(row["url"], download=True) or {}
            subtitles = _subtitles(downloader, row.get("subtitles_url"), folder)
            info = (list(cast(Iterable[Any], answer.get("entries") or ())) or [answer])[0]
            page = _page(downloader, info, folder) if params.keep_page else None
    except RejectedBySite:
        raise
    except YoutubeDLError as error:
        raise failure_of(error, guard.last_error) from error
    finally:
        guard.leave()
    # Numbered in the order of fetching: the picture, then its audio.
    files = [path for path in folder.glob("video.*") if path.suffix not in (*UNFINISHED, ".vtt")]
    videos, audio = ([path for path in files if path.name.startswith(f"video.{n:05d}.")] for n in (1, 2))
    if not videos:
        raise ItemFailed("nothing_downloaded", f"{without_credentials(row['url'])} gave no file (live, or empty)")
    return Fetched(
        videos[0],
        next(iter(audio), None),
        subtitles or next(iter(folder.glob("video*.vtt")), None),
        {
            "title": info.get("title"),
            "description": info.get("description"),
            "tags": info.get("tags"),
            "channel": info.get("channel") or info.get("uploader"),
            "channel_url": info.get("channel_url") or info.get("uploader_url"),
            "licence": info.get("license"),
            "published": info.get("upload_date"),
            "external_id": info.get("id"),
        },
        page,
    )


def _options(row: Mapping[str, Any], folder: Path, params: DownloadParams, guard: WebGuard) -> dict[str, Any]:
    """Options of yt-dlp for one video."""

    def watch(state: Mapping[str, Any]) -> None:  # all fragments of a stream together
        if (state.get("downloaded_bytes") or 0) > params.max_bytes:
            raise Stopped(ItemFailed("file_too_large", f"more than the {params.max_bytes} bytes allowed"))

    def judge(info: Mapping[str, Any], *, incomplete: bool = False) -> None:
        if info.get("is_live"):
            raise Stopped(ItemFailed("live_stream", "live streams have no end"))
        if incomplete:
            return
        licence = info.get("license") or row["licence"]
        if params.licence_policy != "any" and (rejection := licence_rejection(licence, params)):
            raise RejectedBySite(rejection)
        if info.get("duration") and (rejection := duration_rejection(info["duration"], params)):
            raise RejectedBySite(rejection)

    def pause(n: int) -> float:
        guard.leave()  # nobody waits for a host because we do
        longest: float = min(BACKOFF_S * 2**n, LONGEST_BACKOFF_S)
        return longest * random.uniform(0.5, 1.5)

    return options_of(params) | {
        # The name is ours: nothing that a site says becomes part of a path.
        "outtmpl": {"default": str(folder / "video.%(autonumber)s.%(ext)s")},
        "format": partial(choose_formats, params=params),
        "writesubtitles": True,
        "subtitleslangs": ["en.*", "en"],
        "subtitlesformat": "vtt",
        "retries": RETRIES,
        "fragment_retries": RETRIES,
        "skip_unavailable_fragments": False,  # a video with holes is no video
        "file_access_retries": 1,
        "retry_sleep_functions": dict.fromkeys(("http", "fragment", "extractor"), pause),
        "noplaylist": True,
        "playlist_items": "1",
        "match_filter": judge,
        "progress_hooks": [watch],
        "hls_prefer_native": True,
        "fixup": "never",
        # No ffmpeg: it would fetch by itself, past the guard on hosts, and from files too.
        "ffmpeg_location": str(folder / "none"),
    }


def choose_formats(context: Mapping[str, Any], params: DownloadParams) -> Iterator[dict[str, Any]]:
    """yt-dlp's format selector: a format with a picture, and its audio when that is wanted and stands apart.

    Both become files of their own, which need no merging. Raises as `choose_picture`.
    """
    yield choose_picture(context, params)
    if params.with_audio:  # the audio beside a picture that fits is often a worse one
        tracks = [f for f in context["formats"] if f.get("vcodec") == "none" and f.get("acodec") != "none"]
        yield from [f for f in tracks if str(f.get("protocol")).startswith(FETCHED)][-1:]


def choose_picture(context: Mapping[str, Any], params: DownloadParams) -> dict[str, Any]:
    """The smallest format that reaches the wanted height, else the largest below it.

    Of one height a picture-only stream is preferred. Where no height is told, yt-dlp's best is taken, and the file
    tells.

    Args:
        context: what yt-dlp knows: `formats`, worst to best.

    Raises:
        RejectedBySite: all heights are told, and none is within the policy.
        Stopped: there is no picture, or only by protocols that are not fetched.
    """
    formats = [f for f in context["formats"] if f.get("vcodec") != "none" and f.get("ext") != "mhtml"]
    usable = [f for f in formats if str(f.get("protocol")).startswith(FETCHED)]
    if not usable:
        what = "no format with a picture" if not formats else "only formats by protocols that are not fetched"
        raise Stopped(ItemFailed("no_usable_format", f"the site offers {what}"))
    small: list[dict[str, Any]] = [f for f in usable if (f.get("filesize") or 0) <= params.max_bytes] or usable
    heights = [_height_of(f) for f in small]
    within = [n for n, height in enumerate(heights) if height and params.min_height <= height <= params.max_height]
    if reaching := [n for n in within if heights[n] >= params.wanted_height]:
        within, lowest = reaching, 1
    else:
        lowest = -1
    if within:
        return small[min(within, key=lambda n: (lowest * heights[n], small[n].get("acodec") != "none", -n))]
    if unknown := [f for f, height in zip(small, heights, strict=True) if not height]:
        return unknown[-1]
    below = [height for height in heights if height < params.min_height]
    if below:
        raise RejectedBySite(height_outcome("height_below_minimum", max(below), params.min_height))
    raise RejectedBySite(height_outcome("height_above_maximum", min(heights), params.max_height))


def _height_of(video_format: Mapping[str, Any]) -> int:
    """The shorter side of a format's picture, pixels; 0 when its height is not told."""
    height, width = video_format.get("height") or 0, video_format.get("width") or 0
    return min(height, width) if height and width else height


def _subtitles(downloader: yt_dlp.YoutubeDL, url: str | None, folder: Path) -> Path | None:
    """WebVTT that the listing names. A transcript is welcome but not needed: a missing one fails nothing."""
    if not url:
        return None
    try:
        data = downloader.urlopen(url).read()
    except YoutubeDLError as error:
        log.warning("no subtitles: %s", without_credentials(str(error)))
        return None
    if len(data) > MAX_SUBTITLES_BYTES:
        log.warning("no subtitles: more than %d bytes", MAX_SUBTITLES_BYTES)
        return None
    path = folder / "listed.vtt"
    path.write_bytes(data)
    return path


def _page(downloader: yt_dlp.YoutubeDL, info: Mapping[str, Any], folder: Path) -> Page:
    """The page of a video, asked for anew: what yt-dlp read may have been an interface for programs.

    It is evidence, not needed for anything: one that can't be had fails nothing, and the record says why.
    """
    url = str(info.get("webpage_url") or "")
    shown, at = without_credentials(url), datetime.now(UTC).isoformat(timespec="seconds")
    if info.get("url") == url or not url.startswith(("http://", "https://")):
        return Page(shown, None, at, "the address is the video's own, it has no page")
    try:
        with closing(downloader.urlopen(url)) as answer:
            kind = str(answer.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
            if kind not in PAGES:
                return Page(shown, None, at, f"the address answers with {kind[:80] or 'something'}, not with a page")
            data = answer.read(MAX_KEPT_PAGE_BYTES + 1)
    except (YoutubeDLError, OSError) as error:
        return Page(shown, None, at, without_credentials(str(error))[:500])
    if len(data) > MAX_KEPT_PAGE_BYTES:
        return Page(shown, None, at, f"the page has more than {MAX_KEPT_PAGE_BYTES} bytes")
    path = folder / "page.html"
    path.write_bytes(data)
    return Page(shown, path, at)
