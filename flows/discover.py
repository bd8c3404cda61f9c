"""Discovery: from sources to the videos that are worth downloading."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.futures import PrefectFuture
from pydantic import ConfigDict, Field

from flows.flow_signature import subset
from flows.make_flow import Summary, make_flow
from flows.run_name import run_name
from flows.shards_in_flight import gather
from medgen.canonical import digest_of
from medgen.errors import RunStopped
from medgen.ledger import Record, open_ledger
from medgen.shard_results import ShardReference, ShardResults
from tasks.curation import discover as discover_step
from tasks.curation import expand, list_feed, list_sources

Discovered = list[tuple[str, PrefectFuture[ShardReference]]]


class SourceParameters(expand.ExpandParams, list_feed.ListParams, discover_step.DiscoverParams):
    """Where listings come from, and what decides on their rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[str, ...] = Field(
        (),
        description="Folders of videos; listing files (.jsonl, .csv, .parquet, also .gz and .zst) or folders of them; "
        "s3://BUCKET/PREFIX; URLs of channels, playlists and RSS feeds; ytsearch50:WORDS. NAME= may stand before each.",
    )
    retry_quarantined: bool = Field(False, exclude=True, description="Try items again that failed for good.")


class DiscoveryFailed(RunStopped):
    """There is nothing to read, or shards failed. What was done stays done."""


def discover_sources(parameters: SourceParameters, futures: list[PrefectFuture[Any]]) -> Discovered:
    """(label, videos to come) of the shards of all sources, in their order. What is submitted joins `futures`."""
    if not parameters.sources:
        raise DiscoveryFailed("no sources: name at least one folder, listing file or feed")
    listed = subset(parameters, list_feed.ListParams)
    listings = [
        list_sources.list_source.submit(name, source, listed)
        for name, source in zip(list_sources.source_names(parameters.sources), parameters.sources, strict=True)
    ]
    futures += listings
    return [shard for listing in listings for shard in _judged(listing, parameters, futures)]


def expand_channels(
    parameters: SourceParameters, discovered: Discovered, futures: list[PrefectFuture[Any]]
) -> Discovered:
    """The same for the channels of the videos that were found, which are listed when all of these are known."""
    if not parameters.expand_channels:
        return []
    listing = expand.list_channels.submit(
        "channels",
        [future for _, future in discovered],  # type: ignore[misc]  # Prefect hands results on in place of futures
        subset(parameters, expand.ExpandParams),
        subset(parameters, list_feed.ListParams),
        subset(parameters, discover_step.DiscoverParams),
    )
    futures.append(listing)
    return list(_judged(listing, parameters, futures))


def _judged(
    listing: PrefectFuture[list_sources.Listing], parameters: SourceParameters, futures: list[PrefectFuture[Any]]
) -> Iterator[tuple[str, PrefectFuture[ShardReference]]]:
    known = listing.result(raise_on_failure=False)
    if not isinstance(known, list_sources.Listing):
        return  # `gather` names the cause
    groups = known.groups()
    for number, group in enumerate(groups, start=1):
        label = known.source if len(groups) == 1 else f"{known.source}-{number}"
        future = discover_step.discover_shards.submit(
            label,
            group,
            subset(parameters, discover_step.DiscoverParams),
            parameters.columns,
            parameters.retry_quarantined,
        )
        futures.append(future)
        yield label, future


def check_models(parameters: SourceParameters) -> None:
    """Raises ModelUnavailable or ValueError before any work when a model can't be had."""
    discover_step.step(subset(parameters, discover_step.DiscoverParams))


def check_sources(results: Sequence[ShardReference]) -> None:
    """One bad source is on record and the others go on; without any good one there is nothing to do.

    Raises:
        DiscoveryFailed: says why for each.
    """
    sources = [result for result in results if result.step == "discover"]
    if sources and all(result.ended and result.ended == result.records for result in sources):
        messages = [f"{record.reason}: {record.detail['message']}" for record in _records(sources)]
        raise DiscoveryFailed("no source could be read: " + "; ".join(messages))


def _records(results: Sequence[ShardReference]) -> Iterator[Record]:
    """The records of shards of listings, each once, a shard's at a time."""
    ledger = open_ledger()
    known: set[int] = set()
    for result in results:
        records = ledger.load({*ShardResults(ledger).result(result).records} - known)
        known |= records.keys()
        yield from records.values()


def _discover(parameters: SourceParameters) -> Summary:
    """List sources, judge every row by its words and its meaning, look into the channels of what was found.

    A refresh does the same before it downloads, so that what stands here is not done again.
    """
    log = get_run_logger()
    check_models(parameters)
    futures: list[PrefectFuture[Any]] = []
    expand_channels(parameters, discover_sources(parameters, futures), futures)
    results, errors = gather(futures)
    if errors:
        raise DiscoveryFailed("; ".join(errors) + ". What was done stays done: run again to go on.")
    check_sources(results)
    counts: Counter[str] = Counter()
    shards = []
    for record in _records(results):
        counts.update(record.detail.get("counts", {"failed " + (record.reason or ""): 1}))
        shards.append([record.subject, record.status, sorted(record.outputs.values())])
    summary = {
        "executed": sum(result.executed for result in results),
        "reused": sum(result.reused for result in results),
        "shards": len(shards),
        "rows": sum(counts.values()),
        "kept": counts["kept"],
        "counts": dict(sorted(counts.items())),
        "digest": digest_of(sorted(shards)),
    }
    create_table_artifact(
        [{"verdict": verdict, "rows": count} for verdict, count in counts.most_common()],
        key="discovery",
        description="What became of the rows of all sources.",
    )
    log.info("%d rows in %d shards, %d kept", summary["rows"], summary["shards"], summary["kept"])
    return summary


discover = make_flow(_discover, SourceParameters, "discover", run_name("discover", "sources"), first=("sources",))
PARAMETERS = SourceParameters
