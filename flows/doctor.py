"""Looks whether everything that the installation needs works. Runs by itself after a run that failed."""

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import BaseModel, ConfigDict

from flows.parameters import takes
from flows.runner import task_runner
from medgen.errors import RunStopped
from tasks.operations.health import findings


class DoctorParameters(BaseModel):
    """Nothing to tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Unwell(RunStopped):
    """Something that the installation needs is broken."""


def _doctor(**arguments: Any) -> dict[str, Any]:
    """Checks database, store, disk, Prefect, models and codecs."""
    DoctorParameters(**arguments)
    found = [vars(finding) for finding in findings()]
    create_table_artifact(found, key="health", description="What works, and what to do about the rest.")
    broken = [one for one in found if one["verdict"] == "broken"]
    for one in found:
        get_run_logger().info("%s: %s, %s %s", one["name"], one["verdict"], one["found"], one["advice"])
    if broken:
        raise Unwell("; ".join(f"{one['name']}: {one['found']}: {one['advice']}" for one in broken))
    return {"findings": found}


doctor = flow(
    takes(_doctor, "doctor", DoctorParameters, first=()),
    name="doctor",
    flow_run_name="doctor",
    task_runner=task_runner(),
    persist_result=False,
)
PARAMETERS = DoctorParameters
