"""Verifies everything on record: hash chain, digests, releases. Fails when anything is wrong."""

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import BaseModel, ConfigDict, Field

from flows.parameters import takes
from flows.runner import task_runner
from medgen.errors import RunStopped
from medgen.ledger import open_ledger
from medgen.settings import current
from medgen.verify import taken_down
from medgen.verify import verify as verify_all

SHOWN = 200  # faults in the artifact


class VerifyParameters(BaseModel):
    """What a verification can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    read_artifacts: bool = Field(True, description="Read every artifact and recompute its digest.")


class RecordsDamaged(RunStopped):
    """Something on record is not as it was written."""


def _verify(**arguments: Any) -> dict[str, Any]:
    """Recomputes the hash chain and all digests and names what is wrong."""
    parameters = VerifyParameters(**arguments)
    ledger = open_ledger()
    faults = verify_all(ledger, current().releases_folder, artifacts=parameters.read_artifacts)
    known = taken_down(ledger)
    for sentence in known:
        get_run_logger().info("%s", sentence)
    create_table_artifact(
        [{"fault": fault} for fault in faults[:SHOWN]] or [{"fault": "none"}],
        key="faults",
        description=f"{len(faults)} faults found by verification.",
    )
    if faults:
        raise RecordsDamaged(f"{len(faults)} faults, the first: {faults[0]}. See the artifact `faults`")
    get_run_logger().info("every record, artifact and release is as it was written")
    return {"faults": faults, "taken_down": known}


verify = flow(
    takes(_verify, "verify", VerifyParameters, first=()),
    name="verify",
    flow_run_name="verify-all",
    task_runner=task_runner(),
    persist_result=False,
    validate_parameters=True,
)
PARAMETERS = VerifyParameters
