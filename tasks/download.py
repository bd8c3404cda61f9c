"""Download: the bytes of a listed video, under the policy for licence, duration and hosts.

yt-dlp fetches from the web, a copy serves local folders. The file, its digest and what it says of itself go on
record together with the metadata. Passing troubles are told apart from final ones: only the former are tried again.
"""

import http.client
import ipaddress
import logging
import shutil
import socket
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yt_dlp
from pydantic import BaseModel, ConfigDict, Field
from yt_dlp.networking import RequestDirector
from yt_dlp.networking import _urllib as yt_dlp_urllib
from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError
from yt_dlp.utils import (
    DownloadCancelled,
    ExtractorError,
    GeoRestrictedError,
    UnsupportedError,
    YoutubeDLError,
)

from medgen.errors import ItemFailed
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.listing import FOLDER_SCHEME, Feed, folder_path
from medgen.media import Limits, pictures, probe
from medgen.settings import current
from medgen.shard import Item, ShardResult, Step
from medgen.store import Artifact, Store
from tasks.discover import listed
from tasks.prefect_step import run_in_prefect, step_task

log = logging.getLogger(__name__)

METADATA = ("title", "description", "tags", "channel", "licence", "published", "url", "external_id")
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
UNFINISHED = (".part", ".ytdl", ".temp")
MAX_PAGE_BYTES = 64 << 20  # what is no video: pages, playlists
CHUNK = 1 << 16
# Formats that yt-dlp fetches by itself. For others (rtmp, rtsp, mms) it starts programs that no guard holds.
FETCHED = "[protocol~='^(http|m3u8)']"


class DownloadParams(BaseModel):
    """Parameters of download."""

    model_config = ConfigDict(frozen=True)

    licences: tuple[str, ...] = Field((), description="Allowed licences, with * as wildcard; none listed: any.")
    min_duration_s: float = Field(6.0, ge=0, description="Shorter videos are rejected (no clip fits), seconds.")
    max_duration_s: float = Field(4 * 3600.0, gt=0, description="Longer videos are rejected, seconds.")
    max_height: int = Field(1080, ge=144, description="Formats above this height are not fetched, pixels.")
    max_pixels: int = Field(4096 * 2304, gt=0, description="Videos with larger pictures are refused, pixels.")
    max_bytes: int = Field(4 * 2**30, gt=0, description="Larger downloads are stopped, bytes.")
    download_limit_s: float = Field(3600.0, gt=0, exclude=True, description="Slower downloads are stopped, seconds.")
    stall_limit_s: float = Field(
        20.0, gt=0, exclude=True, description="A server silent for longer counts as hanging, seconds."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Hosts to fetch from, with * as wildcard; none listed: any public host."
    )

    @property
    def limits(self) -> Limits:
        """For decoding."""
        return Limits(max_pixels=self.max_pixels, max_duration_s=self.max_duration_s)


def download(work: Work, store: Store, params: DownloadParams) -> Outcome:
    """Fetches one video and probes it.

    Raises:
        ItemFailed: with the cause as reason, transient or not; see `_failure` and `medgen.media.probe`.
    """
    row = dict(work.context)
    if rejection := _licence_rejection(row["licence"], params):
        return rejection
    if row["duration_s"] is not None and (rejection := _duration_rejection(row["duration_s"], params)):
        return rejection
    outputs: dict[str, Artifact] = {}
    with tempfile.TemporaryDirectory(dir=store.temporary) as folder:
        if row["url"].startswith(FOLDER_SCHEME):
            video = _copied(row, Path(folder), params)
        else:
            video, subtitles, found = _fetched(row, Path(folder), params)
            row |= {name: found[name] for name in METADATA if found.get(name) and not row.get(name)}
            if rejection := _licence_rejection(row["licence"], params):
                return rejection
            if subtitles:
                outputs["subtitles"] = store.put_file(subtitles, "text/vtt")
        facts = probe(video, params.limits)
        if rejection := _duration_rejection(facts.duration_s, params):
            # Broken files look short too: decode the little there is, which tells the two apart.
            if rejection.reason == "too_short":
                deque(pictures(video, params.limits), maxlen=0)
            return replace(rejection, decodes=1)
        outputs["video"] = store.put_file(video, "video/x-any")
    detail = {"metadata": {name: row.get(name) for name in METADATA}, "probe": vars(facts)}
    return Outcome("kept", detail=detail, outputs=outputs)


def _licence_rejection(licence: str | None, params: DownloadParams) -> Outcome | None:
    if not params.licences or (licence and any(fnmatch(licence.lower(), p.lower()) for p in params.licences)):
        return None
    if licence is None:
        return None if not params.licences else Outcome("rejected", "licence_unknown", {"allowed": params.licences})
    return Outcome("rejected", "licence_not_allowed", {"licence": licence, "allowed": list(params.licences)})


def _duration_rejection(seconds: float, params: DownloadParams) -> Outcome | None:
    if seconds < params.min_duration_s:
        return Outcome("rejected", "too_short", {"score": seconds, "threshold": params.min_duration_s})
    if seconds > params.max_duration_s:
        return Outcome("rejected", "too_long", {"score": seconds, "threshold": params.max_duration_s})
    return None


def _copied(row: Mapping[str, Any], folder: Path, params: DownloadParams) -> Path:
    source = folder_path(Feed(row["source"], "folder", Path(row["path"])), row["url"])
    try:
        if source.stat().st_size > params.max_bytes:
            raise ItemFailed("file_too_large", f"{source.stat().st_size} bytes, allowed {params.max_bytes}")
        return Path(shutil.copyfile(source, folder / "video"))
    except (FileNotFoundError, PermissionError) as error:
        raise ItemFailed("file_unreadable", str(error.strerror), transient=True) from error


def _fetched(row: Mapping[str, Any], folder: Path, params: DownloadParams) -> tuple[Path, Path | None, dict[str, Any]]:
    """(video file, WebVTT file or None, metadata as the site tells it)."""
    settings = current()
    deadline = time.monotonic() + params.download_limit_s
    low = f"[height<={params.max_height}]"

    def watch(state: Mapping[str, Any]) -> None:
        if time.monotonic() > deadline:
            raise _Stopped("time_limit", f"the download took longer than {params.download_limit_s:.0f} s")
        if (state.get("downloaded_bytes") or 0) > params.max_bytes:
            raise _Stopped("file_too_large", f"more than the {params.max_bytes} bytes allowed")

    options: dict[str, Any] = {
        # The name is ours: nothing that a site says becomes part of a path.
        "outtmpl": {"default": str(folder / "video.%(ext)s")},
        # Sound is not used: prefer a picture-only stream, which needs no merging.
        "format": "/".join(f"{kind}{FETCHED}" for kind in (f"bestvideo{low}", f"best{low}", "best")),
        "writesubtitles": True,
        "subtitleslangs": ["en.*", "en"],
        "subtitlesformat": "vtt",
        "max_filesize": params.max_bytes,
        "socket_timeout": params.stall_limit_s,
        "retries": 2,
        "fragment_retries": 2,
        "file_access_retries": 1,
        "extractor_retries": 1,
        "noplaylist": True,
        "playlist_items": "1",
        "match_filter": _refuse_live,
        "progress_hooks": [watch],
        "hls_prefer_native": True,
        "fixup": "never",
        # No ffmpeg: it would fetch by itself, past the guard on hosts, and from files too.
        "ffmpeg_location": str(folder / "none"),
        "cachedir": False,
        "ignoreconfig": True,
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "logger": logging.getLogger("yt_dlp"),
        "cookiefile": str(settings.yt_dlp_cookies) if settings.yt_dlp_cookies else None,
        "proxy": settings.yt_dlp_proxy.get_secret_value() if settings.yt_dlp_proxy else None,
    }
    logging.getLogger("yt_dlp").setLevel(logging.CRITICAL)  # its errors come back as exceptions
    try:
        with _GuardedYoutubeDL(options, _Guard(params, deadline)) as downloader:
            info = downloader.extract_info(row["url"], download=True) or {}
            subtitles = _subtitles(downloader, row.get("subtitles_url"), folder)
    except YoutubeDLError as error:
        raise _failure(error) from error
    info = (list(info.get("entries") or ()) or [info])[0]
    videos = [p for p in folder.iterdir() if p.name.startswith("video.") and p.suffix not in (*UNFINISHED, ".vtt")]
    if not videos:
        raise ItemFailed("nothing_downloaded", f"{row['url']} gave no file (too large, live, or empty)")
    found = {
        "title": info.get("title"),
        "description": info.get("description"),
        "tags": info.get("tags"),
        "channel": info.get("channel") or info.get("uploader"),
        "licence": info.get("license"),
        "published": info.get("upload_date"),
        "external_id": info.get("id"),
    }
    return videos[0], subtitles or next(iter(folder.glob("video*.vtt")), None), found


def _subtitles(downloader: yt_dlp.YoutubeDL, url: str | None, folder: Path) -> Path | None:
    """WebVTT that the listing names. A transcript is welcome but not needed: a missing one fails nothing."""
    if not url:
        return None
    try:
        data = downloader.urlopen(url).read(2**20)
    except YoutubeDLError as error:
        log.warning("no subtitles from %s: %s", url, error)
        return None
    path = folder / "listed.vtt"
    path.write_bytes(data)
    return path


class _Stopped(DownloadCancelled):
    """One of our limits ended a download."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class HostRefused(RequestError):
    """A request, or a redirect of one, leads to a host that the policy does not allow."""


def _refuse_live(info: Mapping[str, Any], *, incomplete: bool = False) -> None:
    if info.get("is_live"):
        raise _Stopped("live_stream", "live streams have no end")


class _GuardedYoutubeDL(yt_dlp.YoutubeDL):
    """yt-dlp whose every request, redirects included, is held to the allowed hosts, and every answer to bounds."""

    def __init__(self, options: dict[str, Any], guard: "_Guard") -> None:
        self._guard = guard
        super().__init__(options)

    def build_request_director(self, handlers: Any, preferences: Any = None) -> RequestDirector:
        guard = self._guard

        class UrllibRH(yt_dlp_urllib.UrllibRH):
            def _create_instance(self, *args: Any, **kwargs: Any) -> urllib.request.OpenerDirector:
                opener = super()._create_instance(*args, **kwargs)
                opener.add_handler(guard)
                return opener

        return super().build_request_director([UrllibRH], preferences)


class _Guard(urllib.request.BaseHandler):
    """Looks at every request before it is sent. urllib sends redirects through the same gate.

    Answers are read as they come, so that neither an endless page nor a server that drips can hold a download.
    """

    handler_order = 10

    def __init__(self, params: DownloadParams, deadline: float) -> None:
        self.allowed_hosts = params.allowed_hosts
        self.max_page = min(MAX_PAGE_BYTES, params.max_bytes)
        self.limit_s = params.download_limit_s
        self.deadline = deadline

    def http_response(
        self, request: urllib.request.Request, response: http.client.HTTPResponse
    ) -> http.client.HTTPResponse:
        def read(amount: int | None = None) -> bytes:
            data = bytearray()
            while piece := response.read1(CHUNK if amount is None else amount):
                if time.monotonic() > self.deadline:
                    raise _Stopped("time_limit", f"the download took longer than {self.limit_s:.0f} s")
                if amount is not None:
                    return piece
                data += piece
                if len(data) > self.max_page:
                    raise _Stopped("file_too_large", f"a page is larger than {self.max_page} bytes")
            if amount is None and response.length:
                raise http.client.IncompleteRead(bytes(data), response.length)
            return bytes(data)

        response.read = read  # type: ignore[method-assign]
        return response

    https_response = http_response

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        host = urlsplit(request.full_url).hostname or ""
        if self.allowed_hosts:
            if not any(fnmatch(host, pattern.lower()) for pattern in self.allowed_hosts):
                raise HostRefused(f"host {host!r} is not among those allowed: {', '.join(self.allowed_hosts)}")
        elif private := next((a for a in _addresses(host) if not a.is_global), None):
            raise HostRefused(f"host {host!r} is at {private}, which is no public address; list it to allow it")
        return request

    https_request = http_request

    def ftp_request(self, request: urllib.request.Request) -> urllib.request.Request:
        raise HostRefused(f"only http and https are fetched, not {request.full_url[:200]!r}")

    data_request = ftp_request


def _addresses(host: str) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            yield ipaddress.ip_address(str(address[0]).split("%")[0])
    except OSError:
        return  # the request itself will fail, with a better message


def _failure(error: BaseException) -> ItemFailed:
    """Our words for yt-dlp's errors: final, or worth another try?"""
    message = str(error).removeprefix("ERROR: ").split("; please report", 1)[0][:500]
    for cause in _causes(error):
        match cause:
            case _Stopped():
                return ItemFailed(cause.reason, str(cause.msg))
            case HostRefused():
                return ItemFailed("host_refused", str(cause))
            case HTTPError() if 300 <= cause.status < 400:
                return ItemFailed("redirect_refused", f"{message} (redirect loop, or to another protocol)")
            case HTTPError():
                phrase = HTTPStatus(cause.status).phrase if cause.status in set(HTTPStatus) else "unknown status"
                passing = cause.status in PASSING
                return ItemFailed(f"http_{cause.status}", f"the server answered {phrase}", transient=passing)
            case UnsupportedError():
                return ItemFailed("no_video_found", message)
            case GeoRestrictedError():
                return ItemFailed("geo_restricted", message)
            case TransportError() | TimeoutError() | ConnectionError():
                return ItemFailed("network_error", message, transient=True)
    for cause in _causes(error):
        if isinstance(cause, ExtractorError) and cause.expected:
            return ItemFailed("unavailable", message)
    if message.startswith("Did not get any data blocks"):
        return ItemFailed("empty_file", "the server sent 0 bytes")
    return ItemFailed("download_error", message, transient=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    queue = [error]
    while queue:
        one = queue.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        info = getattr(one, "exc_info", None)
        queue += [info[1] if info else None, getattr(one, "cause", None), one.__cause__, one.__context__]


def step(params: DownloadParams) -> Step:
    """Download, ready to run."""
    return Step(
        StepIdentity("download", 1, params.model_dump(mode="json"), {}), partial(download, params=params), "threads"
    )


def _work(item: Item, past: Mapping[str, Record]) -> Work:
    discovered = past["discover"]
    row = listed(discovered.outputs["verdicts"])[item.subject]
    context = {name: row[name] for name in (*METADATA, "duration_s", "subtitles_url")}
    if row["url"].startswith(FOLDER_SCHEME):
        folder = Path(discovered.detail["path"])
        context |= {"source": discovered.subject, "path": str(folder)}
        try:
            status = folder_path(Feed(discovered.subject, "folder", folder), row["url"]).stat()
            context |= {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
        except (ItemFailed, OSError):
            context |= {"bytes": None, "modified_ns": None}
    return Work(item.subject, context=context)


@step_task("download", "network")
def download_shard(
    label: str, upstream: ShardResult, params: DownloadParams, retry_quarantined: bool = False
) -> ShardResult:
    """Downloads a shard of videos."""
    return run_in_prefect(step(params), upstream.kept, _work, retry_quarantined=retry_quarantined)
