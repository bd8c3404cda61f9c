"""Asks the sources of kept videos whether they still exist."""

from datetime import timedelta

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import ConfigDict, Field

from flows.flow_signature import subset
from flows.make_flow import Summary, make_flow
from medgen.ledger import open_ledger
from medgen.parameters import MOST_ITEMS
from tasks.operations import recheck as step
from tasks.prefect_step import StepProgress


class RecheckParameters(step.RecheckParams):
    """What a recheck can be told."""

    model_config = ConfigDict(extra="forbid")

    older_than_days: float = Field(30.0, ge=0, le=36500, description="Leave out what was asked for since.")
    most_videos: int = Field(
        1000, ge=1, le=MOST_ITEMS, description="At most so many videos, the longest unasked first."
    )


def _recheck(parameters: RecheckParameters) -> Summary:
    """Marks kept videos that vanished from their source."""
    rechecked = step.recheck_videos(
        open_ledger(),
        subset(parameters, step.RecheckParams),
        older_than=timedelta(days=parameters.older_than_days),
        limit=parameters.most_videos,
        progress=StepProgress("recheck"),
    )
    get_run_logger().info(
        "asked for %d videos: %d exist, %d are gone", rechecked.asked, rechecked.there, rechecked.gone
    )
    create_table_artifact([vars(rechecked)], key="recheck", description="What the sources of kept videos answered.")
    return dict(vars(rechecked))


recheck = make_flow(_recheck, RecheckParameters, "recheck", "recheck-at-most-{most_videos}-videos")
PARAMETERS = RecheckParameters
