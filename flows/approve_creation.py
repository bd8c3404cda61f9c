"""A person confirms the statements of a video made for a use, and so approves it."""

from prefect import get_run_logger
from prefect.runtime import flow_run
from pydantic import ConfigDict, Field

from flows.make_flow import Summary, make_flow
from medgen.ledger import open_ledger
from medgen.parameters import Parameters
from tasks.creation import approve as step


class ApproveCreationParameters(Parameters):
    """What an approval needs."""

    model_config = ConfigDict(extra="forbid")

    creation: str = Field(description="Name of the creation, as the run that made it tells.")
    approved_by: str = Field(min_length=1, max_length=200, description="Who approves.")
    ticked: tuple[str, ...] = Field(
        (), description="Numbers of the statements that you confirm, all of them; `all` stands for each."
    )
    note: str = Field("", max_length=2000, description="What was looked at, and by which sources.")


def _approve_creation(parameters: ApproveCreationParameters) -> Summary:
    """Puts the approval of a video on record and lays the finished video out."""
    ledger = open_ledger()
    ticked = step.ticked_numbers(ledger, parameters.creation, parameters.ticked)
    approved = step.approve_creation(
        ledger, parameters.creation, parameters.approved_by, ticked, parameters.note, flow_run_id=flow_run.id
    )
    by = approved.record.detail["by"]
    get_run_logger().info("%s approved by %s; it lies in %s", approved.record.subject, by, approved.folder)
    return {
        "creation": approved.record.subject,
        "by": by,
        "video": str(approved.video),
        "step_run": approved.record.id,
    }


approve_creation = make_flow(
    _approve_creation,
    ApproveCreationParameters,
    "approve_creation",
    "approve-{creation}",
    first=("creation", "approved_by", "ticked"),
)
PARAMETERS = ApproveCreationParameters
