"""List: which shards does a source have now? Nothing is judged yet, and no file that is known is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prefect.runtime import flow_run
from sqlalchemy.orm import Session

from medgen.catalog import Source, open_catalog
from medgen.errors import SourceUnreadable
from medgen.ledger import open_ledger
from medgen.listings.rows import storable_text
from medgen.listings.shard_file import Shard
from medgen.listings.shards import KnownFiles, shards
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
        feed = open_feed(source)
        if other := _owner(feed):
            raise SourceUnreadable(
                "source_name_taken", f"{feed.name!r} already stands for {other}; give this one a name: NAME=PATH"
            )
        if feed.kind == "web":
            listed = list_feed(open_ledger(), feed, params, flow_run.id)
            if listed.failure and not listed.shards:
                return Listing(feed.name, feed.uri, error=str(listed.failure), transient=True)
            return listing_of(feed, listed.shards)
        return listing_of(feed, shards(feed, KnownFiles(open_catalog())))
    except (SourceUnreadable, OSError) as error:
        return Listing(storable_text(source), error=storable_text(error))


def source_name(text: str) -> str:
    """The name that a source goes by; its text as given when it can't be opened."""
    try:
        return open_feed(text).name
    except SourceUnreadable:
        return storable_text(text)


def _owner(feed: Feed) -> str | None:
    """The other folder that goes by this feed's name. Names are part of a folder's video ids."""
    with Session(open_catalog()) as session:
        known = session.get(Source, feed.name)
    if known is None or not known.kind == feed.kind == "folder" or known.uri == feed.uri:
        return None
    return known.uri if Path(known.uri).exists() else None
