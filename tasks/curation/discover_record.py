"""What discover puts on record, for all who read of it: steps, funnel and lists of failures."""

from typing import TypedDict

from medgen.handover import Handover


class DiscoverDetail(TypedDict):
    """What discover puts on record of a shard: its source, verdict → number of rows, and what judged them."""

    source: str
    kind: str
    uri: str
    counts: dict[str, int]
    keyword_filter: str
    text_classifier: str


class DiscoverOutputs(TypedDict):
    """Tables of all rows and of the kept ones."""

    verdicts: str
    hits: str


DISCOVER: Handover[DiscoverDetail, DiscoverOutputs] = Handover("discover")
