"""Asks the sources of kept videos whether they still exist."""

from datetime import timedelta
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import ConfigDict, Field

from flows.parameters import part, takes
from flows.runner import task_runner
from medgen.ledger import open_ledger
from tasks.operations import recheck as step
from tasks.prefect_step import StepProgress


class RecheckParameters(step.RecheckParams):
    """What a recheck can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    older_than_days: float = Field(30.0, ge=0, le=36500, description="Leave out what was asked for since.")
    most_videos: int = Field(1000, ge=1, description="At most so many videos, the longest unasked first.")


def _recheck(**arguments: Any) -> dict[str, Any]:
    """Marks kept videos that vanished from their source."""
    parameters = RecheckParameters(**arguments)
    found = step.recheck_videos(
        open_ledger(),
        part(parameters, step.RecheckParams),
        older_than=timedelta(days=parameters.older_than_days),
        limit=parameters.most_videos,
        progress=StepProgress("recheck"),
    )
    get_run_logger().info("asked for %d videos: %d exist, %d are gone", found.asked, found.there, found.gone)
    create_table_artifact([vars(found)], key="recheck", description="What the sources of kept videos answered.")
    return dict(vars(found))


recheck = flow(
    takes(_recheck, "recheck", RecheckParameters, first=()),
    name="recheck",
    flow_run_name="recheck-at-most-{most_videos}-videos",
    task_runner=task_runner(),
    persist_result=False,
    validate_parameters=True,
)
PARAMETERS = RecheckParameters
