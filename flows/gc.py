"""Sweeps what killed runs left behind, and finishes takedowns that were cut short."""

from prefect import get_run_logger
from pydantic import ConfigDict, Field

from flows.make_flow import Summary, make_flow
from medgen.gc import collect_garbage
from medgen.ledger import open_ledger
from medgen.parameters import Parameters
from tasks.curation.clip_vectors import indexes, remove_taken_down
from tasks.operations.takedown import finish


class GcParameters(Parameters):
    """What a sweep can be told."""

    model_config = ConfigDict(extra="forbid")

    grace_minutes: float = Field(
        60.0, ge=0, le=36500 * 1440, description="Leave what is younger: work may be in progress."
    )
    dry_run: bool = Field(False, description="Only count.")


def _gc(parameters: GcParameters) -> Summary:
    """Removes objects without a record and scratch files of killed runs."""
    ledger = open_ledger()
    finished = [] if parameters.dry_run else finish(ledger)
    if not parameters.dry_run:
        for index in indexes(ledger.engine):  # with files, each machine has one of its own
            remove_taken_down(ledger.engine, index)
    swept = collect_garbage(ledger, grace_s=60 * parameters.grace_minutes, dry_run=parameters.dry_run)
    word = "would remove" if parameters.dry_run else "removed"
    get_run_logger().info(
        "%s %d objects and %d scratch files, %d bytes; finished %d takedowns",
        word, swept.objects, swept.scratch_files, swept.bytes, len(finished),
    )  # fmt: skip
    return vars(swept) | {"finished_takedowns": [takedown.video_id for takedown in finished]}


gc = make_flow(_gc, GcParameters, "gc", "gc-older-than-{grace_minutes}-min")
PARAMETERS = GcParameters
