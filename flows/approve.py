"""A person approves a release that waits for it."""

from prefect import get_run_logger
from pydantic import ConfigDict, Field

from flows.make_flow import Summary, make_flow
from flows.release_choices import offer_releases
from medgen.ledger import open_ledger
from medgen.parameters import Parameters
from tasks.curation import approve as step


class ApproveParameters(Parameters):
    """What an approval needs."""

    model_config = ConfigDict(extra="forbid")

    release: str = Field(description="Name of the release, as the refresh that made it tells.")
    approved_by: str = Field(min_length=1, max_length=200, description="Who approves.")
    note: str = Field("", max_length=2000, description="What was looked at, and why it is fit for use.")


def _approve(parameters: ApproveParameters) -> Summary:
    """Puts the approval on record and lays the release out for use."""
    record, folder = step.approve(open_ledger(), parameters.release, parameters.approved_by, parameters.note)
    offer_releases()
    get_run_logger().info("%s approved by %s; it lies in %s", parameters.release, record.detail["by"], folder)
    return {"release": parameters.release, "by": record.detail["by"], "folder": str(folder), "step_run": record.id}


approve = make_flow(_approve, ApproveParameters, "approve", "approve-{release}", first=("release", "approved_by"))
PARAMETERS = ApproveParameters
