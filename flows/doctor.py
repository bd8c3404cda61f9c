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
    rows = [vars(finding) for finding in findings()]
    create_table_artifact(rows, key="health", description="What works, and what to do about the rest.")
    broken = [row for row in rows if row["verdict"] == "broken"]
    for row in rows:
        get_run_logger().info("%s: %s, %s %s", row["name"], row["verdict"], row["found"], row["advice"])
    if broken:
        raise Unwell("; ".join(f"{row['name']}: {row['found']}: {row['advice']}" for row in broken))
    return {"findings": rows}


doctor = make_flow(_doctor, DoctorParameters, "doctor", "doctor")
PARAMETERS = DoctorParameters
