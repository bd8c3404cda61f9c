"""Download: the bytes of a listed video, under the policy for licence, resolution, duration and hosts.

yt-dlp fetches from the web, a copy serves local folders; of a DICOM file there, its pictures as a video.
The file, its digest and what it says of itself go on record together with the metadata. Transient failures differ from
final ones: only the former are tried again, and what merely has to wait (for a quota, for a host) is left to a later
run.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast
from urllib.parse import urlsplit

from medgen.catalog import open_catalog
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work, open_ledger
from medgen.listings.read import DICOM_TITLE
from medgen.listings.sources import DICOM_SUFFIXES, FOLDER_SCHEME, Feed, folder_path
from medgen.shard import Item, Past, Step
from medgen.store import Artifact, Store, file_digest
from medgen.takedown import taken_down_digests
from medgen.truncation import missing_bytes
from medgen.video.dicom import MODALITIES, DicomFacts, dicom_to_video
from medgen.video.pictures import decode_all
from medgen.video.probe import probe
from medgen.web.quotas import GRANT_BYTES, DownloadQuota, Quota, ShardQuota, bytes_below, night_quota, store_quota
from medgen.worker_processes import decoded_apart
from medgen.workplace import sweep, workplace, workplaces
from tasks.curation.curation_step import CurationStep
from tasks.curation.discover import listed
from tasks.curation.discover_record import DISCOVER
from tasks.curation.download_policy import DownloadParams, duration_rejection, early_rejection, height_rejection
from tasks.curation.fetch import Fetched, RejectedBySite, fetch

PROBE_LIMIT_S = 600.0  # to read all packets of the largest file from a slow disk, and decode a frame
DICOM_LIMIT_S = 900.0  # to bring the pictures of a DICOM file into a video
DECODE_LIMIT_S = 60.0  # to decode the whole of a file that says that it is short
METADATA = (
    "title", "description", "tags", "channel", "channel_url", "licence", "published", "url", "external_id",
)  # fmt: skip


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
    """The fields of `medgen.video.probe.Probe`; of records of earlier versions only those that are always there."""

    container: str
    codec: str
    width: int
    height: int
    fps: float
    duration_s: float
    bit_rate: int
    rotation: int
    has_audio: bool
    mirrored: NotRequired[bool]
    pixel_aspect: NotRequired[str]
    interlaced: NotRequired[bool]
    colour: NotRequired[dict[str, Any]]
    stream: NotRequired[int]
    chosen_for: NotRequired[str]
    start_s: NotRequired[float]
    clock_start_s: NotRequired[float]
    file_start_s: NotRequired[float]
    subtitles: NotRequired[list[dict[str, Any]]]


class PageFacts(TypedDict):
    """Where the page of a video was asked for and when (ISO 8601, UTC); why it is not among the outputs."""

    url: str
    fetched_at: str
    problem: NotRequired[str]


class DownloadDetail(TypedDict):
    """What download puts on record; `dicom` of videos that were made of a DICOM file, `page` where it was wanted."""

    metadata: Metadata
    probe: ProbeFacts
    dicom: NotRequired[DicomFacts]
    page: NotRequired[PageFacts]


class DownloadOutputs(TypedDict):
    """The video as fetched, or as made of a DICOM file; its audio where that is a file of its own; WebVTT; the HTML of
    its page."""

    video: str
    sound: NotRequired[str]
    subtitles: NotRequired[str]
    page: NotRequired[str]


DOWNLOAD: Handover[DownloadDetail, DownloadOutputs] = Handover("download")


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
        ItemFailed: with the cause as reason, transient or not; see `medgen.web.failures` and `medgen.video.probe`.
    """
    row = dict(work.context)
    web = not row["url"].startswith(FOLDER_SCHEME)
    if rejection := early_rejection(row, params, web):
        return rejection
    quota = DownloadQuota(_quotas(params, store, quotas, web))
    quota.check()
    outputs: dict[str, Artifact] = {}
    dicom: DicomFacts | None = None
    with workplace(store) as folder:
        try:
            if web:
                files = fetch(row, folder, params, quota)
                row |= {name: value for name, value in files.metadata.items() if value and not row.get(name)}
                if missing := missing_bytes(files.video):
                    raise ItemFailed("truncated_file", f"by its own account the file lacks its last {missing} bytes")
            else:
                video, dicom = _from_folder(row, folder, params, quota)
                files = Fetched(video, None, None, {})
            if (taken_down := forgotten()) and file_digest(files.video)[0] in taken_down:
                return Outcome("rejected", "copy_of_forgotten", {"message": "the same file was taken down"})
            facts = decoded_apart(probe, files.video, params.limits, time_limit_s=PROBE_LIMIT_S)
            rejection = duration_rejection(facts.duration_s, params) or height_rejection(facts, params)
            if rejection:
                # Broken files look short too: decode the little there is, which tells the two apart.
                if rejection.reason == "too_short":
                    decoded_apart(decode_all, files.video, params.limits, time_limit_s=DECODE_LIMIT_S)
                return replace(rejection, decodes=1)
            outputs["video"] = store.put_file(files.video, "video/x-any")
            if files.audio:
                outputs["sound"] = store.put_file(files.audio, "audio/x-any")
            if files.subtitles:
                outputs["subtitles"] = store.put_file(files.subtitles, "text/vtt")
            if files.page and files.page.file:
                outputs["page"] = store.put_file(files.page.file, "text/html")
        except RejectedBySite as rejected:
            return rejected.outcome
        finally:
            quota.close(sum(artifact.bytes for artifact in outputs.values()))
    detail: DownloadDetail = {
        "metadata": cast(Metadata, {name: row.get(name) for name in METADATA}),
        "probe": cast(ProbeFacts, vars(facts)),
    }
    if files.page:
        detail["page"] = {"url": files.page.url, "fetched_at": files.page.fetched_at}
        if files.page.problem:
            detail["page"]["problem"] = files.page.problem
    if dicom:
        kind = MODALITIES.get(dicom["modality"])
        detail["metadata"]["title"] = f"{DICOM_TITLE} ({kind})" if kind else DICOM_TITLE
        detail["dicom"] = dicom
    return Outcome("kept", detail=detail, outputs=outputs)


def _quotas(params: DownloadParams, store: Store, others: Sequence[Quota], web: bool) -> list[Quota]:
    """Those that a download draws on: copies of local files cost the store's room alone."""
    drawn_on = list(others) if web else []
    if params.night_budget_bytes and web:
        drawn_on.append(night_quota(open_catalog(), params.night_budget_bytes))
    if params.store_quota_bytes:
        drawn_on.append(store_quota(open_catalog(), store.folder, params.store_quota_bytes))
    return drawn_on


def _from_folder(
    row: Mapping[str, Any], folder: Path, params: DownloadParams, quota: DownloadQuota
) -> tuple[Path, DicomFacts | None]:
    """A copy of a folder's file; of a DICOM file, which is never copied, the video made of it, and its facts."""
    source = folder_path(Feed(row["source"], "folder", Path(row["path"])), row["url"])
    target = folder / "video"
    try:
        size = source.stat().st_size
        if size > params.max_bytes:
            raise ItemFailed("file_too_large", f"{size} bytes, allowed {params.max_bytes}")
        if source.suffix.lower() in DICOM_SUFFIXES:
            facts = decoded_apart(
                dicom_to_video, source, target, params.limits, params.max_bytes, time_limit_s=DICOM_LIMIT_S
            )
            quota.acquire_all(target.stat().st_size)
            return target, facts
        quota.check(size)
        with source.open("rb") as read, target.open("wb") as written:
            while piece := read.read(GRANT_BYTES):
                quota.acquire_all(len(piece))
                written.write(piece)
        return target, None
    except (FileNotFoundError, PermissionError) as error:
        raise ItemFailed("file_unreadable", str(error.strerror), transient=True) from error


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
        looks_outside=_in_folders,
        runs_in="threads",
        queue_key=_host,
    )


def _make_room(store: Store, params: DownloadParams) -> None:
    """Sweeps what killed downloads left, and measures the store where it has a quota."""
    sweep(store)
    if params.store_quota_bytes:
        store_quota(open_catalog(), store.folder, params.store_quota_bytes).measure(lambda: _used(store))


def _in_folders(items: Sequence[Item | Work]) -> bool:
    """Whether any of these videos lies in a folder, where people may put another in its place."""
    listings = open_ledger().load(item.lineage["discover"] for item in items if isinstance(item, Item))
    return any(DISCOVER.detail(listing)["kind"] == "folder" for listing in listings.values())


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


STEP = CurationStep("download", DownloadParams, step, resource="network")
