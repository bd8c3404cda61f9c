"""A person approves a release that waits for it."""

from typing import Any

from prefect import flow, get_run_logger
from pydantic import BaseModel, ConfigDict, Field

from flows.parameters import takes
from flows.runner import task_runner
from medgen.ledger import open_ledger
from tasks.curation import approve as step


class ApproveParameters(BaseModel):
    """What an approval needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: str = Field(description="Name of the release, as the refresh that made it tells.")
    approved_by: str = Field(min_length=1, max_length=200, description="Who approves.")
    note: str = Field("", max_length=2000, description="What was looked at, and why it is fit for use.")


def _approve(**arguments: Any) -> dict[str, Any]:
    """Puts the approval on record and lays the release out for use."""
    parameters = ApproveParameters(**arguments)
    record, folder = step.approve(open_ledger(), parameters.release, parameters.approved_by, parameters.note)
    get_run_logger().info("%s approved by %s; it lies in %s", parameters.release, record.detail["by"], folder)
    return {"release": parameters.release, "by": record.detail["by"], "folder": str(folder), "step_run": record.id}


approve = flow(
    takes(_approve, "approve", ApproveParameters, first=("release", "approved_by")),
    name="approve",
    flow_run_name="approve-{release}",
    task_runner=task_runner(),
    persist_result=False,
    validate_parameters=True,
)
PARAMETERS = ApproveParameters
