"""Import: a captioned video set as published becomes a release on record."""

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.futures import PrefectFuture
from pydantic import ConfigDict, Field

from flows.flow_signature import subset
from flows.make_flow import Summary, make_flow
from flows.release_choices import offer_releases
from flows.run_name import run_name
from flows.shards_in_flight import bridging_outages, gather
from medgen.among import pages
from medgen.catalog import open_catalog
from medgen.errors import RunStopped
from medgen.ledger import Record, open_ledger
from medgen.listings.rows import storable_text
from medgen.listings.source_identity import identified
from medgen.listings.sources import Feed
from medgen.published.layout import PublishedFile, PublishedSet, open_published
from medgen.settings import current
from medgen.shard_results import ShardReference, ShardResults
from tasks.curation.funnel import table_rows
from tasks.curation.release import RELEASE, ReleaseParams, read_funnel
from tasks.importing.import_clip import groups_of, import_rows
from tasks.importing.import_params import ImportParams
from tasks.importing.imported_release import counts_of, release_imported
from tasks.importing.list_published import LISTED, list_files

FILES_AT_ONCE = 16  # of a set, in a task run
PREFIX_LENGTH = 41


class ImportParameters(ImportParams):
    """Everything that an import can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        min_length=1,
        description="Folder of a published set, or the .csv, .json, .jsonl, .parquet or .tar that describes it. NAME= "
        "may stand before it.",
    )
    videos: str = Field(
        "", exclude=True, description="Folder of its videos, where they do not lie beside what describes them."
    )
    release_prefix: str = Field(
        "", pattern=r"^([a-z0-9][a-z0-9-]{0,40})?$", description="First part of the release's name; empty: the set's."
    )
    approval: Literal["none", "required"] = Field(
        "none", description="required: the release may not be used before a person approves it."
    )
    retry_quarantined: bool = Field(False, exclude=True, description="Try clips again that failed for good.")


class ImportFailed(RunStopped):
    """Nothing could be imported, or shards failed. What was done stays done."""


def _import_release(parameters: ImportParameters) -> Summary:
    """Read what describes the set, check and take in its clips with their captions, release them.

    Nothing of it is measured or judged: what the publisher says goes on record as given, with the file that says it.
    """
    log = get_run_logger()
    feed, published = _opened(parameters)
    videos = _folder(parameters.videos)
    params = subset(parameters, ImportParams)
    listed, errors = _listed(feed, published, params, parameters.retry_quarantined)
    if errors:
        raise ImportFailed("; ".join(errors) + ". What was done stays done: run again to go on.")
    _require_files(listed)
    taken, errors = _imported(published, videos, params, parameters.retry_quarantined, listed)
    if errors:
        raise ImportFailed("; ".join(errors) + ". What was done stays done: run again to go on.")
    results = [*listed, *taken]
    ledger = open_ledger()
    counts = counts_of(ledger, results)
    if not counts[-1]["kept"]:
        raise ImportFailed(f"nothing of {feed.name} could be imported: {_why(counts)}")
    release = ReleaseParams(
        release_prefix=parameters.release_prefix or _prefix(feed.name), approval=parameters.approval
    )
    run_id, folder, executed, reused = release_imported.submit(
        release.release_prefix, results, _policy(parameters, feed.name, listed), release
    ).result()
    record = ledger.load([run_id])[run_id]
    funnel = read_funnel(record)
    summary = {
        "source": feed.name,
        "executed": sum(result.executed for result in results) + executed,
        "reused": sum(result.reused for result in results) + reused,
        "release": RELEASE.detail(record)["name"],
        "digest": RELEASE.detail(record)["digest"],
        "clips": RELEASE.detail(record)["clips"],
        "captioner_kinds": RELEASE.detail(record)["captioner_kinds"],
        "folder": str(folder) if folder else "",
        "awaits_approval": folder is None,
        "funnel": funnel,
        "left_out": _reasons(counts),
    }
    offer_releases()
    create_table_artifact(table_rows(funnel), key="funnel", description="What was taken of the set, and why not all.")
    log.info("executed %d, reused %d; release %s", summary["executed"], summary["reused"], summary["release"])
    return summary


def _opened(parameters: ImportParameters) -> tuple[Feed, PublishedSet]:
    """The set under the name that it goes by on record, and its files. Raises ItemFailed: as `open_published`."""
    name, equals, rest = parameters.source.partition("=")
    if not equals or "/" in name:
        name, rest = "", parameters.source
    published = open_published(rest)
    described = published.files[0].path if len(published.files) == 1 and not Path(rest).is_dir() else published.folder
    label = storable_text(name or described.name)
    place = storable_text(Path(rest).expanduser().absolute())
    feed = Feed(label, "folder", described, place=place, label=label, named=bool(name))
    return bridging_outages(identified)(open_catalog(), [feed])[0], published


def _folder(text: str) -> Path | None:
    if not text:
        return None
    folder = Path(text).expanduser().resolve()
    if not folder.is_dir():
        raise ImportFailed(f"{text[:200]!r} is no folder: name the one that the videos lie in")
    return folder


def _listed(
    feed: Feed, published: PublishedSet, params: ImportParams, retry: bool
) -> tuple[list[ShardReference], list[str]]:
    """What the files of the set say."""
    groups: Iterator[list[PublishedFile]] = pages(published.files, FILES_AT_ONCE)
    futures = [
        list_files.submit(f"{feed.name}-{number}", feed.name, feed.uri, files, params, retry)
        for number, files in enumerate(groups, start=1)
    ]
    return gather(futures)


def _listings(results: Sequence[ShardReference]) -> Iterator[Record]:
    """The records of the files that could be read, some at a time."""
    ledger = open_ledger()
    for result in results:
        kept = bridging_outages(ShardResults(ledger).items)(result)
        records = ledger.load(item.lineage[LISTED.step] for item in kept)
        yield from (records[item.lineage[LISTED.step]] for item in kept)


def _require_files(results: Sequence[ShardReference]) -> None:
    """Raises ImportFailed when no file could be read: says why for each of some."""
    if any(result.kept for result in results):
        return
    ledger = open_ledger()
    records = [r for result in results for r in ledger.load(ShardResults(ledger).result(result).records).values()]
    messages = [f"{record.reason}: {record.detail.get('message', '')}" for record in records[:5]]
    raise ImportFailed("no file of the set could be read: " + "; ".join(messages))


def _imported(
    published: PublishedSet, videos: Path | None, params: ImportParams, retry: bool, listed: Sequence[ShardReference]
) -> tuple[list[ShardReference], list[str]]:
    """The clips of all files, a group of rows in a task run; only so many are under way at a time."""
    ledger, most = open_ledger(), 2 * current().workers
    under_way: deque[PrefectFuture[Any]] = deque()
    results: list[ShardReference] = []
    errors: list[str] = []

    def collect() -> None:
        made, broken = gather([under_way.popleft()])
        results.extend(made)
        errors.extend(broken)

    for listing in _listings(listed):
        for group in range(groups_of(ledger, listing)):
            while len(under_way) >= most:
                collect()
            under_way.append(
                import_rows.submit(
                    f"{LISTED.detail(listing)['file']}-{group + 1}", listing.id, group, str(published.folder),
                    str(videos or ""), params, retry,
                )
            )  # fmt: skip
    while under_way:
        collect()
    return results, errors


def _policy(parameters: ImportParameters, source: str, listed: Sequence[ShardReference]) -> dict[str, Any]:
    """What chose the clips: the set, its files with their digests, and the parameters. No path."""
    files = sorted([LISTED.detail(record)["file"], LISTED.detail(record)["digest"]] for record in _listings(listed))
    told = parameters.model_dump(mode="json", exclude={"source"})
    return {"imported": {"set": source, "files": files}} | told


def _prefix(name: str) -> str:
    """The name of a set as the beginning of a release's."""
    stem = name.rpartition(".")[0] or name
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:PREFIX_LENGTH].rstrip("-") or "imported"


def _reasons(counts: Sequence[dict[str, Any]]) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for entry in counts:
        reasons.update(entry["rejected"])
        reasons.update(entry["failed"])
    return dict(reasons.most_common())


def _why(counts: Sequence[dict[str, Any]]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in _reasons(counts).items()) or "it lists no clips"
    advice = ""
    if "file_not_found" in reasons:
        advice = "; name the folder of its videos with --videos"
    elif "caption_missing" in reasons or "missing_file" in reasons:
        advice = "; say which columns are what, for example --set 'columns=[\"detailed=long_caption\"]'"
    return f"{reasons}{advice}. `medgen status` has an example of each"


import_release = make_flow(
    _import_release,
    ImportParameters,
    "import_release",
    run_name("import", "source"),
    first=("source", "videos", "columns", "captioner", "licence", "release_prefix"),
)
PARAMETERS = ImportParameters
