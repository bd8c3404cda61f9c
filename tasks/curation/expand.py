"""Expand: what else is there in the channels of the videos that were found?

The paper's funnel grows here: 37 thousand videos found by their words lead to channels that hold 140 thousand. Each
channel is listed like any feed, newest first, until it has given enough or turns out to be about something else. Its
videos are then judged by discover as rows of any listing are, by their meaning alone: whoever films operations need
not say so in each title.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prefect.runtime import flow_run
from pydantic import Field

from medgen.errors import ItemFailed, SourceUnreadable
from medgen.ledger import open_ledger
from medgen.listings.sources import open_feed
from medgen.parameters import MOST_ITEMS, Parameters
from medgen.settings import current
from medgen.shard_results import ShardReference, ShardResults
from models.relevance.classifier import TextClassifier
from tasks.curation.discover import DiscoverParams, classifier_of, listed
from tasks.curation.discover_record import DISCOVER
from tasks.curation.list_feed import ListedFeed, ListParams, list_feed
from tasks.curation.list_sources import Listing
from tasks.prefect_step import step_task

log = logging.getLogger(__name__)

PAGE = 30  # entries that are judged at once; as many as YouTube gives at once


class ExpandParams(Parameters):
    """Parameters of expand."""

    expand_channels: bool = Field(False, description="Look for more in the channels of the videos that were found.")
    max_channel_videos: int = Field(
        500, ge=1, le=MOST_ITEMS, description="Newest videos of a channel that are looked at in a run."
    )
    channel_probe: int = Field(
        60, ge=1, le=MOST_ITEMS, description="Videos of a channel after which it is judged as a whole."
    )
    min_channel_share: float = Field(
        0.2, ge=0, le=1, description="A channel with a smaller share of medical videos is read no further."
    )


class StopRule:
    """Says when a channel has been read far enough; called with each new entry."""

    def __init__(self, classifier: TextClassifier, threshold: float, params: ExpandParams) -> None:
        self.classifier = classifier
        self.threshold = threshold
        self.params = params
        self.seen = self.medical = 0
        self._page: list[Mapping[str, Any]] = []

    def __call__(self, row: Mapping[str, Any]) -> str | None:
        """Why to stop, or None to go on."""
        self._page.append(row)
        self.seen += 1
        full = self.seen >= self.params.max_channel_videos
        if full or len(self._page) == PAGE or self.seen == self.params.channel_probe:
            probabilities = self.classifier.probability(
                [row["title"] for row in self._page],
                [row["description"] for row in self._page],
                ["\n".join(row["tags"]) for row in self._page],
            )
            self.medical += int((probabilities >= self.threshold).sum())
            self._page = []
            share = self.medical / self.seen
            if self.seen >= self.params.channel_probe and share < self.params.min_channel_share:
                return f"few_medical_videos: {self.medical} of {self.seen}"
        return f"enough_videos: {self.seen}" if full else None


def channels_of(found: Iterable[ShardReference]) -> list[str]:
    """URLs of the channels of all kept videos, sorted. What is no http(s) URL is left out."""
    ledger = open_ledger()
    results = ShardResults(ledger)
    urls = {
        row["channel_url"]
        for reference in found
        for record in ledger.load(results.result(reference).records).values()
        if record.status == "kept"
        for row in listed(DISCOVER.outputs(record)["hits"]).values()
    }
    return sorted(url for url in urls if url and url.lower().startswith(("http://", "https://")))


@step_task("list", "network")
def list_channels(
    label: str, found: Sequence[ShardReference], params: ExpandParams, listing: ListParams, discover: DiscoverParams
) -> Listing:
    """Lists the channels of what was found; gives their entries, those of earlier runs included."""
    classifier, threshold = classifier_of(discover)
    ledger = open_ledger()
    run = flow_run.id

    def one(url: str) -> ListedFeed | ItemFailed:
        try:
            feed = open_feed(url)
            if feed.kind != "web":
                raise SourceUnreadable("unknown_source_type", f"{url} is no feed")
            return list_feed(ledger, feed, listing, run, StopRule(classifier, threshold, params))
        except ItemFailed as failure:
            log.warning("list %s: %s", url, failure)
            return failure

    channels = channels_of(found)
    with ThreadPoolExecutor(current().download_workers) as pool:
        results = dict(zip(channels, pool.map(one, channels), strict=True))
    shards = {
        f"{shard.source}/{shard.name}": shard
        for result in results.values()
        if isinstance(result, ListedFeed)
        for shard in result.shards
    }
    return Listing("channels", shards=shards, by_words=False)
