"""Download: the bytes of a listed video, under the policy for licence, resolution, duration and hosts.

yt-dlp fetches from the web, a copy serves local folders. The file, its digest and what it says of itself go on
record together with the metadata. Transient failures differ from final ones: only the former are tried again,
and what merely has to wait (for a quota, for a host) is left to a later run.
"""

import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NotRequired, TypedDict, cast
from urllib.parse import urlsplit

import yt_dlp
from pydantic import Field, model_validator
from yt_dlp.utils import (
    DownloadCancelled,
    YoutubeDLError,
)

from medgen.catalog import open_catalog
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.licences import creative_commons
from medgen.listings.sources import FOLDER_SCHEME, Feed, folder_path
from medgen.media import Limits, Probe, pictures, probe
from medgen.shard import Item, Past, Step
from medgen.store import Artifact, Store, file_digest
from medgen.takedown import taken_down_digests
from medgen.truncation import missing_bytes
from medgen.web.failures import Stopped, failure_of, without_credentials
from medgen.web.guard import FetchLimits, WebGuard
from medgen.web.guarded_youtube_dl import GuardedYoutubeDL
from medgen.web.quotas import GRANT_BYTES, DownloadQuota, Quota, ShardQuota, bytes_below, night_quota, store_quota
from medgen.web.session import WebParams, options_of
from medgen.workplace import sweep, workplace, workplaces
from tasks.curation.curation_step import CurationStep
from tasks.curation.discover import DISCOVER, listed

log = logging.getLogger(__name__)

METADATA = (
    "title", "description", "tags", "channel", "channel_url", "licence", "published", "url", "external_id",
)  # fmt: skip
UNFINISHED = (".part", ".ytdl", ".temp")
MAX_SUBTITLES_BYTES = 4 << 20
# Protocols of formats that yt-dlp fetches by itself. For others (rtmp, rtsp, mms) it starts programs that no guard
# holds.
FETCHED = ("http", "m3u8")
RETRIES = 3  # of a broken connection, each going on where the last one broke
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 10.0  # before such a retry; doubled at each


class DownloadParams(WebParams):
    """Parameters of download."""

    former_names = MappingProxyType({"with_sound": "with_audio"})

    licence_policy: Literal["any", "creative_commons", "listed"] = Field(
        "any",
        description="Allowed licences: any (only those listed where some are), Creative Commons ones in any spelling "
        "and those listed, or only those listed, each in any spelling.",
    )
    licences: tuple[str, ...] = Field((), description="Allowed licences, with * as wildcard; see licence_policy.")
    min_duration_s: float = Field(6.0, ge=0, description="Shorter videos are rejected (no clip fits), seconds.")
    max_duration_s: float = Field(4 * 3600.0, gt=0, description="Longer videos are rejected, seconds.")
    with_audio: bool = Field(
        False,
        exclude_if=lambda wanted: not wanted,  # so that downloads without audio keep their keys
        description="Fetch the audio too, for speech_model. Files of folders come with theirs anyway.",
    )
    min_height: int = Field(480, ge=0, description="Videos with a shorter side below this are rejected, pixels.")
    wanted_height: int = Field(720, ge=0, description="The smallest format that reaches this is fetched, pixels.")
    max_height: int = Field(1080, ge=144, description="Formats above this height are not fetched, pixels.")
    max_pixels: int = Field(4096 * 2304, gt=0, description="Videos with larger pictures are refused, pixels.")
    max_bytes: int = Field(4 * 2**30, gt=0, description="Larger downloads are stopped, bytes.")
    download_limit_s: float = Field(3600.0, gt=0, exclude=True, description="Slower downloads are stopped, seconds.")
    min_speed: float = Field(
        4096.0, ge=0, exclude=True, description="Downloads slower than this over the stall limit end, bytes/second."
    )
    shard_budget_bytes: int = Field(0, ge=0, exclude=True, description="Fetched by a shard at most; 0: no limit.")
    night_budget_bytes: int = Field(0, ge=0, exclude=True, description="Fetched in a day (UTC) at most; 0: no limit.")
    store_quota_bytes: int = Field(
        0, ge=0, exclude=True, description="Downloads that the store's folder can't hold within this wait; 0: no limit."
    )

    @model_validator(mode="after")
    def _download_policy(self) -> "DownloadParams":
        if not self.min_height <= self.wanted_height <= self.max_height:
            raise ValueError("heights must be in order: min_height ≤ wanted_height ≤ max_height")
        if self.licence_policy == "listed" and not self.licences:
            raise ValueError("licence_policy=listed needs licences")
        return self

    @property
    def limits(self) -> Limits:
        """For decoding."""
        return Limits(max_pixels=self.max_pixels, max_duration_s=self.max_duration_s)


class Metadata(TypedDict):
    """What listing and site say of a video; None where neither says anything."""

    title: str | None
    description: str | None
    tags: list[str] | None
    channel: str | None
    channel_url: str | None
    licence: str | None
    published: str | None
    url: str | None
    external_id: str | None


class ProbeFacts(TypedDict):
    """The fields of `medgen.media.Probe`."""

    container: str
    codec: str
    width: int
    height: int
    fps: float
    duration_s: float
    bit_rate: int
    rotation: int
    has_audio: bool


class DownloadDetail(TypedDict):
    """What download puts on record."""

    metadata: Metadata
    probe: ProbeFacts


class DownloadOutputs(TypedDict):
    """The video as fetched; its audio where that is a file of its own; WebVTT."""

    video: str
    sound: NotRequired[str]
    subtitles: NotRequired[str]


DOWNLOAD: Handover[DownloadDetail, DownloadOutputs] = Handover("download")


class _Rejected(DownloadCancelled):
    """What the site says of a video rejects it."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


def download(
    work: Work,
    store: Store,
    params: DownloadParams,
    quotas: Sequence[Quota] = (),
    forgotten: Callable[[], Collection[str]] = frozenset,
) -> Outcome:
    """Fetches one video and probes it.

    Args:
        quotas: of bytes, beyond those that `params` set for the night and the store.
        forgotten: gives the digests of files that were taken down, which no other URL brings back.

    Raises:
        ItemFailed: with the cause as reason, transient or not; see `medgen.web.failures` and `medgen.media.probe`.
    """
    row = dict(work.context)
    web = not row["url"].startswith(FOLDER_SCHEME)
    if rejection := _early_rejection(row, params, web):
        return rejection
    quota = DownloadQuota(_quotas(params, store, quotas, web))
    quota.check()
    outputs: dict[str, Artifact] = {}
    with workplace(store) as folder:
        try:
            if web:
                video, sound, subtitles, found = _fetched(row, folder, params, quota)
                row |= {name: found[name] for name in METADATA if found.get(name) and not row.get(name)}
                if missing := missing_bytes(video):
                    raise ItemFailed("truncated_file", f"by its own account the file lacks its last {missing} bytes")
            else:
                video, sound, subtitles = _copied(row, folder, params, quota), None, None
            if (taken_down := forgotten()) and file_digest(video)[0] in taken_down:
                return Outcome("rejected", "copy_of_forgotten", {"message": "the same file was taken down"})
            facts = probe(video, params.limits)
            rejection = _duration_rejection(facts.duration_s, params) or _height_rejection(facts, params)
            if rejection:
                # Broken files look short too: decode the little there is, which tells the two apart.
                if rejection.reason == "too_short":
                    deque(pictures(video, params.limits), maxlen=0)
                return replace(rejection, decodes=1)
            outputs["video"] = store.put_file(video, "video/x-any")
            if sound:
                outputs["sound"] = store.put_file(sound, "audio/x-any")
            if subtitles:
                outputs["subtitles"] = store.put_file(subtitles, "text/vtt")
        except _Rejected as rejected:
            return rejected.outcome
        finally:
            quota.close(sum(artifact.bytes for artifact in outputs.values()))
    detail: DownloadDetail = {
        "metadata": cast(Metadata, {name: row.get(name) for name in METADATA}),
        "probe": cast(ProbeFacts, vars(facts)),
    }
    return Outcome("kept", detail=detail, outputs=outputs)


def _early_rejection(row: Mapping[str, Any], params: DownloadParams, web: bool) -> Outcome | None:
    """By what the listing says."""
    site_may_tell = web and params.licence_policy != "any"
    if (row["licence"] or not site_may_tell) and (rejection := _licence_rejection(row["licence"], params)):
        return rejection
    return None if row["duration_s"] is None else _duration_rejection(row["duration_s"], params)


def _licence_rejection(licence: str | None, params: DownloadParams) -> Outcome | None:
    if params.licence_policy == "any" and not params.licences:
        return None
    allowed = {"allowed": list(params.licences), "policy": params.licence_policy}
    if not licence:
        return Outcome("rejected", "licence_unknown", allowed)
    common = creative_commons(licence) if params.licence_policy != "any" else None
    if params.licence_policy == "creative_commons" and common:
        return None
    names = [name.lower() for name in (licence, common) if name]
    if any(fnmatch(name, pattern.lower()) for name in names for pattern in params.licences):
        return None
    return Outcome("rejected", "licence_not_allowed", {"licence": licence, **allowed})


def _duration_rejection(seconds: float, params: DownloadParams) -> Outcome | None:
    if seconds < params.min_duration_s:
        return Outcome("rejected", "too_short", {"score": seconds, "threshold": params.min_duration_s})
    if seconds > params.max_duration_s:
        return Outcome("rejected", "too_long", {"score": seconds, "threshold": params.max_duration_s})
    return None


def _height_rejection(facts: Probe, params: DownloadParams) -> Outcome | None:
    """By the shorter side: a phone's upright 1080 × 1920 is "1080p" too."""
    height = min(facts.width, facts.height)
    return _height_outcome("height_below_minimum", height, params.min_height) if height < params.min_height else None


def _height_outcome(reason: str, height: float, threshold: float) -> Outcome:
    return Outcome("rejected", reason, {"metric": "height", "score": float(height), "threshold": float(threshold)})


def _quotas(params: DownloadParams, store: Store, others: Sequence[Quota], web: bool) -> list[Quota]:
    """Those that a download draws on: copies of local files cost the store's room alone."""
    found = list(others) if web else []
    if params.night_budget_bytes and web:
        found.append(night_quota(open_catalog(), params.night_budget_bytes))
    if params.store_quota_bytes:
        found.append(store_quota(open_catalog(), store.folder, params.store_quota_bytes))
    return found


def _copied(row: Mapping[str, Any], folder: Path, params: DownloadParams, quota: DownloadQuota) -> Path:
    source = folder_path(Feed(row["source"], "folder", Path(row["path"])), row["url"])
    target = folder / "video"
    try:
        size = source.stat().st_size
        if size > params.max_bytes:
            raise ItemFailed("file_too_large", f"{size} bytes, allowed {params.max_bytes}")
        quota.check(size)
        with source.open("rb") as read, target.open("wb") as written:
            while piece := read.read(GRANT_BYTES):
                quota.acquire_all(len(piece))
                written.write(piece)
        return target
    except (FileNotFoundError, PermissionError) as error:
        raise ItemFailed("file_unreadable", str(error.strerror), transient=True) from error


def _fetched(
    row: Mapping[str, Any], folder: Path, params: DownloadParams, quota: DownloadQuota
) -> tuple[Path, Path | None, Path | None, dict[str, Any]]:
    """(video file, file of its sound where that stands apart, WebVTT file or None, metadata as the site tells it)."""
    limits = FetchLimits(params.max_bytes, params.download_limit_s, params.stall_limit_s, params.min_speed)
    guard = WebGuard(params.hosts, limits, params.rate_limits, quota)

    def watch(state: Mapping[str, Any]) -> None:  # all fragments of a stream together
        if (state.get("downloaded_bytes") or 0) > params.max_bytes:
            raise Stopped(ItemFailed("file_too_large", f"more than the {params.max_bytes} bytes allowed"))

    def judge(info: Mapping[str, Any], *, incomplete: bool = False) -> None:
        if info.get("is_live"):
            raise Stopped(ItemFailed("live_stream", "live streams have no end"))
        if incomplete:
            return
        licence = info.get("license") or row["licence"]
        if params.licence_policy != "any" and (rejection := _licence_rejection(licence, params)):
            raise _Rejected(rejection)
        if info.get("duration") and (rejection := _duration_rejection(info["duration"], params)):
            raise _Rejected(rejection)

    def pause(n: int) -> float:
        guard.leave()  # nobody waits for a host because we do
        longest: float = min(BACKOFF_S * 2**n, LONGEST_BACKOFF_S)
        return longest * random.uniform(0.5, 1.5)

    options = options_of(params) | {
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
    try:
        with GuardedYoutubeDL(options, guard) as downloader:
            info = downloader.extract_info(row["url"], download=True) or {}
            subtitles = _subtitles(downloader, row.get("subtitles_url"), folder)
    except _Rejected:
        raise
    except YoutubeDLError as error:
        raise failure_of(error, guard.last_error) from error
    finally:
        guard.leave()
    info = (list(cast(Iterable[Any], info.get("entries") or ())) or [info])[0]
    # Numbered in the order of fetching: the picture, then its sound.
    fetched = [p for p in folder.glob("video.*") if p.suffix not in (*UNFINISHED, ".vtt")]
    videos = [p for p in fetched if p.name.startswith("video.00001.")]
    if not videos:
        raise ItemFailed("nothing_downloaded", f"{without_credentials(row['url'])} gave no file (live, or empty)")
    found = {
        "title": info.get("title"),
        "description": info.get("description"),
        "tags": info.get("tags"),
        "channel": info.get("channel") or info.get("uploader"),
        "channel_url": info.get("channel_url") or info.get("uploader_url"),
        "licence": info.get("license"),
        "published": info.get("upload_date"),
        "external_id": info.get("id"),
    }
    sound = next((p for p in fetched if p.name.startswith("video.00002.")), None)
    return videos[0], sound, subtitles or next(iter(folder.glob("video*.vtt")), None), found


def choose_formats(context: Mapping[str, Any], params: DownloadParams) -> Iterator[dict[str, Any]]:
    """yt-dlp's format selector: a format with a picture, and its sound when that is wanted and stands apart.

    Both become files of their own, which need no merging. Raises as `choose_picture`.
    """
    yield choose_picture(context, params)
    if params.with_audio:  # the sound beside a picture that fits is often a worse one
        sounds = [f for f in context["formats"] if f.get("vcodec") == "none" and f.get("acodec") != "none"]
        yield from [f for f in sounds if str(f.get("protocol")).startswith(FETCHED)][-1:]


def choose_picture(context: Mapping[str, Any], params: DownloadParams) -> dict[str, Any]:
    """The smallest format that reaches the wanted height, else the largest below it.

    Of one height a picture-only stream is preferred. Where no height is told, yt-dlp's best is taken, and the file
    tells.

    Args:
        context: what yt-dlp knows: `formats`, worst to best.

    Raises:
        _Rejected: all heights are told, and none is within the policy.
        Stopped: there is no picture, or only by protocols that are not fetched.
    """
    formats = [f for f in context["formats"] if f.get("vcodec") != "none" and f.get("ext") != "mhtml"]
    usable = [f for f in formats if str(f.get("protocol")).startswith(FETCHED)]
    if not usable:
        what = "no format with a picture" if not formats else "only formats by protocols that are not fetched"
        raise Stopped(ItemFailed("no_usable_format", f"the site offers {what}"))
    small: list[dict[str, Any]] = [f for f in usable if (f.get("filesize") or 0) <= params.max_bytes] or usable
    heights = [_told_height(f) for f in small]
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
        raise _Rejected(_height_outcome("height_below_minimum", max(below), params.min_height))
    raise _Rejected(_height_outcome("height_above_maximum", min(heights), params.max_height))


def _told_height(one: Mapping[str, Any]) -> int:
    """The shorter side of a format's picture, pixels; 0 when its height is not told."""
    height, width = one.get("height") or 0, one.get("width") or 0
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


def _used(store: Store) -> int:
    """Bytes of the store's folder and of downloads in progress, each with the step that it may be about to write.

    A file on its way from one to the other is never missed, but may count twice.
    """
    downloads = workplaces(store)
    return len(downloads) * GRANT_BYTES + sum(map(bytes_below, downloads)) + bytes_below(store.folder)


def step(params: DownloadParams) -> Step:
    """Download, ready to run on a shard: the quota of a shard is this step's own."""
    quotas = [ShardQuota("byte_budget_shard", params.shard_budget_bytes)] if params.shard_budget_bytes else []
    return Step(
        StepIdentity("download", 2, params.model_dump(mode="json"), {}),
        partial(download, params=params, quotas=quotas, forgotten=cache(lambda: taken_down_digests(open_catalog()))),
        work_of=work_of,
        prepare=partial(_make_room, params=params),
        runs_in="threads",
        queue_key=_host,
    )


def _make_room(store: Store, params: DownloadParams) -> None:
    """Sweeps what killed downloads left, and measures the store where it has a quota."""
    sweep(store)
    if params.store_quota_bytes:
        store_quota(open_catalog(), store.folder, params.store_quota_bytes).measure(lambda: _used(store))


def _host(work: Work) -> str:
    try:
        return urlsplit(work.context["url"]).hostname or ""
    except (KeyError, ValueError):  # a video that was taken down has no facts any more
        return ""


def work_of(item: Item, past: Past) -> Work:
    """The listing's row of a video; of a folder's file also its size and time of change."""
    discovered = DISCOVER.detail(past)
    row = listed(DISCOVER.outputs(past)["hits"])[item.subject]
    context = {name: row.get(name) for name in (*METADATA, "duration_s", "subtitles_url")}
    if row["url"].startswith(FOLDER_SCHEME):
        source, folder = discovered["source"], Path(discovered["uri"])
        context |= {"source": source, "path": str(folder)}
        try:
            status = folder_path(Feed(source, "folder", folder), row["url"]).stat()
            context |= {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
        except (ItemFailed, OSError):
            context |= {"bytes": None, "modified_ns": None}
    return Work(item.subject, context=context)


STEP = CurationStep("download", "videos", DownloadParams, step, resource="network")
