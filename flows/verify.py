"""Verifies everything on record: hash chain, digests, releases. Fails when anything is wrong."""

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import ConfigDict, Field

from flows.make_flow import Summary, make_flow
from medgen.errors import RunStopped
from medgen.ledger import open_ledger
from medgen.parameters import Parameters
from medgen.settings import current
from medgen.verify import taken_down
from medgen.verify import verify as verify_all

SHOWN = 200  # faults in the artifact


class VerifyParameters(Parameters):
    """What a verification can be told."""

    model_config = ConfigDict(extra="forbid")

    read_artifacts: bool = Field(True, description="Read every artifact and recompute its digest.")


class RecordsDamaged(RunStopped):
    """Something on record is not as it was written."""


def _verify(parameters: VerifyParameters) -> Summary:
    """Recomputes the hash chain and all digests and names what is wrong."""
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


verify = make_flow(_verify, VerifyParameters, "verify", "verify-all")
PARAMETERS = VerifyParameters
