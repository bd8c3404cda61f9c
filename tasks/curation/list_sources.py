"""List: which shards does a source have now? Nothing is judged yet, and no file that is known is read."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from prefect.runtime import flow_run

from medgen.catalog import open_catalog
from medgen.errors import SourceUnreadable
from medgen.ledger import open_ledger
from medgen.listings.rows import storable_text
from medgen.listings.shard_file import Shard
from medgen.listings.shards import KnownFiles, shards
from medgen.listings.source_identity import identified
from medgen.listings.sources import Feed, open_feed
from tasks.curation.list_feed import ListParams, list_feed
from tasks.prefect_step import step_task

GROUP_BYTES = 256 << 20  # of listing files in a task run
GROUP_SHARDS = 64


@dataclass(frozen=True)
class Listing:
    """The shards of a source, each with the subject that it goes by, and why there are not more of them.

    Args:
        source: what the source goes by; as it was given, when it can't be opened.
        error: ``reason: message``; empty when all went well.
        transient: the error may pass: the next run tries again.
        by_words: False when rows are judged by their meaning alone.
    """

    source: str
    uri: str = ""
    shards: Mapping[str, Shard] = field(default_factory=dict)
    error: str = ""
    transient: bool = False
    by_words: bool = True

    def groups(self) -> list["Listing"]:
        """The same in pieces of about GROUP_BYTES of files; at least one, which may be empty."""
        groups: list[dict[str, Shard]] = []
        room = 0
        for subject, shard in self.shards.items():
            size = int(shard.mark.partition(" ")[0] or 0)
            if not groups or size > room or len(groups[-1]) >= GROUP_SHARDS:
                groups.append({})
                room = GROUP_BYTES
            groups[-1][subject] = shard
            room -= size
        return [replace(self, shards=group, error="") for group in groups] or [self]


def listing_of(feed: Feed, found: Sequence[Shard]) -> Listing:
    """The listing of a source that was opened."""
    alone = len(found) == 1 and feed.kind not in ("listings", "s3", "web")
    subjects = [feed.name if alone else f"{feed.name}/{shard.name}" for shard in found]
    return Listing(feed.name, feed.uri, dict(zip(subjects, found, strict=True)))


@step_task("list", "network")
def list_source(label: str, source: str, params: ListParams) -> Listing:
    """Finds the shards of a source. Only feeds of the web are asked for anything."""
    try:
        (feed,) = identified(open_catalog(), [open_feed(source)])
        if feed.kind == "web":
            listed = list_feed(open_ledger(), feed, params, flow_run.id)
            if listed.failure and not listed.shards:
                return Listing(feed.name, feed.uri, error=str(listed.failure), transient=True)
            return listing_of(feed, listed.shards)
        return listing_of(feed, shards(feed, KnownFiles(open_catalog())))
    except (SourceUnreadable, OSError) as error:
        return Listing(storable_text(source), error=storable_text(error))


def source_names(texts: Sequence[str]) -> list[str]:
    """The names that sources go by, given as people write them; the text of one that can't be opened.

    Names of new sources are settled here, for all of a run together, before any of them is listed.
    """
    feeds: dict[str, Feed] = {}
    for text in texts:
        with suppress(SourceUnreadable):
            feeds[text] = open_feed(text)
    names = dict(zip(feeds, (feed.name for feed in identified(open_catalog(), [*feeds.values()])), strict=True))
    return [names.get(text) or storable_text(text) for text in texts]
