"""Deduplicate: of clips that show the same, within a video or across videos, the best copy stays; and, where that is
asked for, of clips that show the same kind of thing.

The one step that looks at all clips of a refresh at once: a copy can be anywhere, and no language model should be paid
for a clip that is dropped for it. What it finds depends on the clips alone, not on their order or on shards; and on
takedowns: a clip that shows what was taken down is rejected, whatever address it came from, and is no better copy.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from pydantic import Field

from medgen.canonical import rounded
from medgen.catalog import open_catalog
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.parameters import Parameters
from medgen.shard import Item, Past, Step
from medgen.store import Store
from medgen.takedown import BLOCKED
from models.duplicates.index import FingerprintIndex
from models.duplicates.near_duplicates import NEAR_DUPLICATES, SAME_COURSE
from models.duplicates.search import duplicates
from tasks.curation.curation_step import CurationStep
from tasks.curation.fingerprints import Read, fill, index_folder, newest, read_entries, searched
from tasks.curation.semantic_copies import EMBEDDING_COSINE, semantic_copies
from tasks.curation.takedown_block import TakedownBlock, takedown_block

# Words of overlay text over quality's five frames: a word that stands in all of them.
WRITTEN_OVER = 5


class DeduplicateParams(Parameters):
    """Parameters of deduplicate."""

    former_names = MappingProxyType({"copies": "near_duplicates"})

    near_duplicates: Literal["drop", "keep"] = Field(
        "drop", description="Drop near-duplicate clips but the best, or keep all."
    )
    # Left out of records where it is not set.
    semantic_duplicates: float = Field(
        0.0,
        ge=0,
        le=1,
        exclude_if=lambda threshold: not threshold,
        description="Cosine of their embeddings from which clips count as duplicates too, though they are other "
        "recordings; 0: they do not. NeMo Curator's eps of 0.01 is 0.99.",
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
    semantic = better.get("metric") == EMBEDDING_COSINE
    detail = {
        "duplicate_of": better["clip"],
        "metric": EMBEDDING_COSINE if semantic else "duplicate_similarity",
        "score": better["similarity"],
        "threshold": better["threshold"],
    }
    if not semantic:
        detail["overlap_s"] = better["overlap_s"]
    if params.near_duplicates == "keep":
        return Outcome("kept", detail=detail)
    return Outcome("rejected", "semantic_duplicate" if semantic else "duplicate", detail)


def compare(
    items: Iterable[Item],
    folder: Path,
    read: Read,
    block: Callable[[], TakedownBlock] = TakedownBlock,
    semantic: Callable[[Sequence[str], int], Mapping[str, Mapping[str, Any]]] | None = None,
) -> dict[str, dict[str, Any]]:
    """clip → {"copy_of": the better clip that it copies, with similarity (0..1), its threshold and the overlap in
    seconds}, or {"blocked_by": what was taken down}; only of clips that copy something, so that a takedown changes the
    keys of no others.

    Args:
        folder: of the index of fingerprints.
        read: of the clips that the index does not hold yet, what it shall.
        block: what was taken down.
        semantic: (clips that copy none, the best first; a run of classify) → of the semantic duplicates among them the
            better clip, as above, with its metric in place of an overlap.

    Raises:
        ValueError: a clip has no usable fingerprint.
    """
    classified: list[int] = []  # of one clip: all of a refresh are classified by one encoder

    def noted() -> Iterator[tuple[int, str]]:
        for item in items:
            if semantic and not classified:
                classified.append(item.lineage["classify"])
            yield item.lineage["quality"], item.subject

    ids, clips = newest(noted())

    def search(index: FingerprintIndex) -> dict[str, dict[str, Any]]:
        held = fill(index, ids, clips, read)
        if not held.all():
            raise ValueError(f"{(~held).sum()} clips have no usable fingerprint, such as {clips[~held][0].decode()}")
        found: dict[str, dict[str, Any]] = {
            clip: {"blocked_by": by} for clip, by in block().blocked(index, ids, read).items()
        }
        stopped = np.isin(clips, np.array([clip.encode() for clip in found], clips.dtype))
        for place, (kept, match) in duplicates(index, _best_first(index, ids[~stopped])).items():
            found[index.clip(place)] = {
                "copy_of": {
                    "clip": index.clip(kept),
                    "similarity": rounded(match.similarity),
                    "threshold": SAME_COURSE,
                    "overlap_s": rounded(match.overlap_s),
                }
            }
        if semantic and classified:
            copies = np.isin(clips, np.array([clip.encode() for clip in found], clips.dtype))
            left = index.column("clip")[_best_first(index, ids[~copies])]
            better = semantic([clip.decode() for clip in left], classified[0])
            found |= {clip: {"copy_of": dict(facts)} for clip, facts in better.items()}
        return found

    return searched(folder, search)


def _best_first(index: FingerprintIndex, ids: np.ndarray) -> np.ndarray:
    """int64 (N,), places of clips, the best first: one with nothing written over it, then one that shows more detail
    whatever its size (`models.quality.spatial_detail`), then with more bits per second, then the smaller id."""
    places = index.places(ids)
    words, detail, bit_rate = index.column("facts")[places].T
    order = np.lexsort((index.column("clip")[places], -bit_rate, -detail, words >= WRITTEN_OVER))
    best_first: np.ndarray = places[order]
    return best_first


def step(params: DeduplicateParams) -> Step:
    """Deduplicate, ready to run."""
    threshold = params.semantic_duplicates
    return Step(
        StepIdentity("deduplicate", 1, params.model_dump(mode="json"), {"near_duplicates": NEAR_DUPLICATES}),
        partial(deduplicate, params=params),
        work_of=work_of,
        compare=lambda items: compare(
            items,
            index_folder(),
            partial(read_entries, open_catalog()),
            lambda: takedown_block(open_catalog()),
            partial(semantic_copies, threshold=threshold) if threshold else None,
        ),
        runs_in="inline",
    )


def work_of(item: Item, past: Past) -> Work:
    """A clip that copies none, unless `compare` knows better."""
    return Work(item.subject, context={"copy_of": None})


STEP = CurationStep("deduplicate", DeduplicateParams, step, scope="dataset")
