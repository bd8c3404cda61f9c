"""Looks whether everything that the installation needs works. Runs by itself after a run that failed."""

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import ConfigDict

from flows.make_flow import Summary, make_flow
from medgen.errors import RunStopped
from medgen.parameters import Parameters
from tasks.operations.health import findings


class DoctorParameters(Parameters):
    """Nothing to tell."""

    model_config = ConfigDict(extra="forbid")


class Unwell(RunStopped):
    """Something that the installation needs is broken."""


def _doctor(parameters: DoctorParameters) -> Summary:
    """Checks database, store, disk, Prefect, models and codecs."""
    found = [vars(finding) for finding in findings()]
    create_table_artifact(found, key="health", description="What works, and what to do about the rest.")
    broken = [one for one in found if one["verdict"] == "broken"]
    for one in found:
        get_run_logger().info("%s: %s, %s %s", one["name"], one["verdict"], one["found"], one["advice"])
    if broken:
        raise Unwell("; ".join(f"{one['name']}: {one['found']}: {one['advice']}" for one in broken))
    return {"findings": found}


doctor = make_flow(_doctor, DoctorParameters, "doctor", "doctor")
PARAMETERS = DoctorParameters
