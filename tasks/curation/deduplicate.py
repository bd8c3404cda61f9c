"""Deduplicate: of clips that show the same, within a video or across videos, the best copy stays.

The one step that looks at all clips of a refresh at once: a copy can be anywhere, and no language model should be paid
for a clip that is dropped for it. What it finds depends on the clips alone, not on their order or on shards; and on
takedowns: a clip that shows what was taken down is rejected, whatever address it came from, and is no better copy.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NotRequired, TypedDict

from pydantic import Field

from medgen.among import pages
from medgen.canonical import rounded
from medgen.catalog import open_catalog
from medgen.handover import Handover
from medgen.ledger import Outcome, Record, StepIdentity, Work, open_ledger
from medgen.parameters import Parameters
from medgen.shard import Item, Past, Step
from medgen.store import Store
from medgen.takedown import BLOCKED
from models.duplicates.fingerprint import Fingerprint
from models.duplicates.near_duplicates import NEAR_DUPLICATES, Candidate, duplicates
from tasks.curation.curation_step import CurationStep
from tasks.curation.cut import CUT
from tasks.curation.quality import QUALITY
from tasks.curation.takedown_block import TakedownBlock, takedown_block

# Words of overlay text over quality's five frames: a word that stands in all of them.
WRITTEN_OVER = 5


class DeduplicateParams(Parameters):
    """Parameters of deduplicate."""

    former_names = MappingProxyType({"copies": "near_duplicates"})

    near_duplicates: Literal["drop", "keep"] = Field(
        "drop", description="Drop near-duplicate clips but the best, or keep all."
    )


class DeduplicateDetail(TypedDict):
    """What deduplicate puts on record: the better clip that this one copies, or the one that was taken down, and how
    alike they are."""

    duplicate_of: str | None
    tombstone: NotRequired[str]  # id of the video that was taken down, whose clip `duplicate_of` is
    metric: NotRequired[str]
    score: NotRequired[float]
    threshold: NotRequired[float]
    overlap_s: NotRequired[float]


DEDUPLICATE: Handover[DeduplicateDetail] = Handover("deduplicate")


def deduplicate(work: Work, store: Store, params: DeduplicateParams) -> Outcome:
    """Keeps a clip unless a better copy of it is known, or it copies what was taken down."""
    better = work.context["copy_of"]
    detail: DeduplicateDetail
    if blocked := work.context.get("blocked_by"):
        detail = {
            "duplicate_of": blocked["clip"],
            "tombstone": blocked["tombstone"],
            "metric": "duplicate_similarity",
            "score": blocked["similarity"],
            "threshold": blocked["threshold"],
            "overlap_s": blocked["overlap_s"],
        }
        return Outcome("rejected", BLOCKED, detail)
    if better is None:
        detail = {"duplicate_of": None}
        return Outcome("kept", detail=detail)
    detail = {
        "duplicate_of": better["clip"],
        "metric": "duplicate_similarity",
        "score": better["similarity"],
        "threshold": better["threshold"],
        "overlap_s": better["overlap_s"],
    }
    if params.near_duplicates == "keep":
        return Outcome("kept", detail=detail)
    return Outcome("rejected", "duplicate", detail)


def compare(
    items: Iterable[Item],
    load: Callable[[Iterable[int]], Mapping[int, Record]],
    block: Callable[[], TakedownBlock] = TakedownBlock,
) -> dict[str, dict[str, Any]]:
    """clip → {"copy_of": the better clip that it copies, with similarity (0..1), its threshold and the overlap in
    seconds}, or {"blocked_by": what was taken down}; only of clips that copy something, so that a takedown changes the
    keys of no others.

    The better of two copies has nothing written over it, then shows more detail whatever its size
    (`models.quality.spatial_detail`), then has more bits per second, then the smaller id.

    Args:
        load: ids of step runs → their records.
        block: what was taken down.
    """
    candidates: dict[str, Candidate] = {}
    for page in pages(items):
        past = load({item.lineage[step] for item in page for step in ("cut", "quality")})
        candidates |= {item.subject: _candidate(item, past) for item in page}
    blocked = block().blocked({clip: candidate.fingerprint for clip, candidate in candidates.items()})
    copies = duplicates(candidate for clip, candidate in candidates.items() if clip not in blocked)
    found: dict[str, dict[str, Any]] = {clip: {"blocked_by": by} for clip, by in blocked.items()}
    for clip, copy in copies.items():
        found[clip] = {
            "copy_of": {
                "clip": copy.kept,
                "similarity": rounded(copy.similarity),
                "threshold": copy.threshold,
                "overlap_s": rounded(copy.overlap_s),
            }
        }
    return found


def _candidate(item: Item, past: Mapping[int, Record]) -> Candidate:
    cut, quality = past[item.lineage["cut"]], past[item.lineage["quality"]]
    scores = QUALITY.scores(quality)
    written_over = scores["overlay_words"] >= WRITTEN_OVER
    rank = (float(written_over), -scores["detail"], -CUT.detail(cut)["bit_rate"], item.subject)
    return Candidate(item.subject, Fingerprint.parse(QUALITY.detail(quality)["fingerprint"]), rank)


def step(params: DeduplicateParams) -> Step:
    """Deduplicate, ready to run."""
    return Step(
        StepIdentity("deduplicate", 1, params.model_dump(mode="json"), {"near_duplicates": NEAR_DUPLICATES}),
        partial(deduplicate, params=params),
        work_of=work_of,
        compare=lambda items: compare(items, open_ledger().load, lambda: takedown_block(open_catalog())),
        runs_in="inline",
    )


def work_of(item: Item, past: Past) -> Work:
    """A clip that copies none, unless `compare` knows better."""
    return Work(item.subject, context={"copy_of": None})


STEP = CurationStep("deduplicate", DeduplicateParams, step, scope="dataset")
