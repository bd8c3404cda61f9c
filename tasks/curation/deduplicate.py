"""Deduplicate: of clips that show the same, within a video or across videos, the best copy stays.

The one step that looks at all clips of a refresh at once: a copy can be anywhere, and no language model should be paid
for a clip that is dropped for it. What it finds depends on the clips alone, not on their order or on shards.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medgen.canonical import rounded
from medgen.ledger import Outcome, Record, StepIdentity, Work, open_ledger
from medgen.shard import Item, ShardResult, Step
from medgen.store import Store
from models.duplicates.fingerprint import Fingerprint
from models.duplicates.near_duplicates import NEAR_DUPLICATES, Candidate, duplicates
from tasks.prefect_step import run_in_prefect, step_task

# Words of overlay text over quality's five frames: a word that stands in all of them.
WRITTEN_OVER = 5


class DeduplicateParams(BaseModel):
    """Parameters of deduplicate."""

    model_config = ConfigDict(frozen=True)

    copies: Literal["drop", "keep"] = Field("drop", description="Drop near-duplicate clips but the best, or keep all.")


def deduplicate(work: Work, store: Store, params: DeduplicateParams) -> Outcome:
    """Keeps a clip unless a better copy of it is known."""
    found = work.context["copy_of"]
    if found is None:
        return Outcome("kept", detail={"duplicate_of": None})
    detail = {
        "duplicate_of": found["clip"],
        "metric": "duplicate_similarity",
        "score": found["similarity"],
        "threshold": found["threshold"],
        "overlap_s": found["overlap_s"],
    }
    if params.copies == "keep":
        return Outcome("kept", detail=detail)
    return Outcome("rejected", "duplicate", detail)


def find_copies(records: dict[str, tuple[Record, Record]]) -> dict[str, dict[str, Any]]:
    """clip → the better clip that it copies, with similarity (0..1), its threshold and the overlap in seconds.

    Args:
        records: clip → its records of cut and quality. The better of two copies has nothing written over it, then
            shows more detail whatever its size (`models.quality.spatial_detail`), then has more bits per second, then
            the smaller id.
    """
    candidates = []
    for clip, (cut, quality) in records.items():
        written_over = quality.scores["overlay_words"] >= WRITTEN_OVER
        rank = (float(written_over), -quality.scores["detail"], -cut.detail["bit_rate"], clip)
        candidates.append(Candidate(clip, Fingerprint.parse(quality.detail["fingerprint"]), rank))
    return {
        clip: {
            "clip": found.kept,
            "similarity": rounded(found.similarity),
            "threshold": found.threshold,
            "overlap_s": rounded(found.overlap_s),
        }
        for clip, found in duplicates(candidates).items()
    }


def step(params: DeduplicateParams) -> Step:
    """Deduplicate, ready to run."""
    identity = StepIdentity("deduplicate", 1, params.model_dump(mode="json"), {"near_duplicates": NEAR_DUPLICATES})
    return Step(identity, partial(deduplicate, params=params), "inline")


@step_task("deduplicate", "cpu")
def deduplicate_all(
    label: str, upstream: Sequence[ShardResult], params: DeduplicateParams, retry_quarantined: bool = False
) -> ShardResult:
    """Looks at the clips of all shards together."""
    # Two sources may list one video: its clips come twice and are no copies of themselves.
    items = sorted((item for result in upstream for item in result.kept), key=lambda item: item.subject)
    past = open_ledger().load({item.trail[step] for item in items for step in ("cut", "quality")})
    gone = open_ledger().forgotten(item.subject for item in items)  # their fingerprints are blank
    living = [item for item in items if item.subject not in gone]
    copies = find_copies({i.subject: (past[i.trail["cut"]], past[i.trail["quality"]]) for i in living})

    def work_of(item: Item, _past: Any) -> Work:
        return Work(item.subject, context={"copy_of": copies.get(item.subject)})

    return run_in_prefect(step(params), items, work_of, retry_quarantined=retry_quarantined)
