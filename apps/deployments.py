"""Registers with Prefect what runs and what happens by itself: work pool, limits, deployments, automations."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import yaml

from flows.release_choices import offer_releases
from medgen.errors import RunStopped
from medgen.parameters import Parameters
from medgen.settings import current

if TYPE_CHECKING:  # Prefect reads its settings once, when it is imported
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

ROOT = Path(__file__).resolve().parent.parent
POOL = "medgen"  # as in prefect.yaml
HEARTBEAT_S = 30  # between the signs of life of a run; the least that Prefect takes
TAG = "medgen"
AUTOMATIONS = ROOT / "infra" / "automations.yaml"
NO_NUMBER_BUT_NAN = {"minimum": 1, "maximum": 0}  # JSON schema; see `strict_schema`
# A run is asked for with parameters and nothing else: neither its command nor its environment is for a caller to
# choose. Prefect fills in the command that runs the flow.
JOB_TEMPLATE = {
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
    "job_configuration": {"stream_output": True},
}
NOTIFIER = "medgen"  # name of the notification block that automations write to, where there is one


class DeploymentRefused(RunStopped):
    """Prefect's server refuses a deployment or automation, or does not answer."""


def register(limits: Mapping[str, int]) -> None:
    """Registers everything; safe to repeat.

    Args:
        limits: tag → task runs at once.

    Raises:
        DeploymentRefused: with Prefect's words.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    with get_client(sync_client=True) as client:
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", base_job_template=JOB_TEMPLATE), overwrite=True
        )
        for tag, limit in limits.items():
            client.create_concurrency_limit(tag, limit)
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise DeploymentRefused(f"prefect deploy failed:\n{done.stdout}{done.stderr}")
        names = {}
        for deployment in our_deployments(client):
            flow = client.read_flow(deployment.flow_id).name
            names[f"{flow}/{deployment.name}"] = deployment.id
            client.request(
                "PATCH",
                "/deployments/{id}",
                path_params={"id": deployment.id},
                json={
                    "parameter_openapi_schema": strict_schema(
                        deployment.parameter_openapi_schema or {}, parameters_of(flow).conflict_schemas()
                    ),
                    "parameters": with_current_names(flow, deployment.parameters),
                },
            )
        _register_automations(client, names)
    offer_releases()


def strict_schema(schema: Mapping[str, Any], conflicts: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """A deployment's schema that refuses, when a run is asked for, what Prefect's server would let pass.

    Unknown parameters, which would crash the run; and NaN, which is no JSON, but the server reads it, and it lies
    within any minimum and maximum, because it compares with nothing. Infinity the parameters' own limits refuse.

    Args:
        conflicts: schemas that the parameters as a whole must hold to; see `Parameters.conflict_schemas`.
    """
    properties = {name: _without_nan(known) for name, known in schema.get("properties", {}).items()}
    strict = {**schema, "properties": properties, "additionalProperties": False}
    return strict | ({"allOf": list(conflicts)} if conflicts else {})


def _without_nan(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's schema, of a number or of several, that refuses NaN."""
    if schema.get("type") == "array" and "items" in schema:
        return {**schema, "items": _without_nan(schema["items"])}
    return {**schema, "not": NO_NUMBER_BUT_NAN} if schema.get("type") == "number" else dict(schema)


def with_current_names(flow: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What prefect.yaml sets for a deployment of the flow, by the names that its parameters have now."""
    return parameters_of(flow).with_current_names(parameters)


def parameters_of(flow: str) -> type[Parameters]:
    """What a flow can be told."""
    known: type[Parameters] = import_module(f"flows.{flow}").PARAMETERS
    return known


def our_deployments(client: "SyncPrefectClient") -> Sequence["DeploymentResponse"]:
    """The deployments of prefect.yaml that Prefect's server knows."""
    from prefect.client.schemas.filters import DeploymentFilter

    return client.read_deployments(deployment_filter=DeploymentFilter.model_validate({"tags": {"all_": [TAG]}}))


def _register_automations(client: "SyncPrefectClient", deployments: Mapping[str, UUID]) -> None:
    from prefect.events.schemas.automations import AutomationCore

    notifiers = [
        block.id
        for block in client.read_block_documents(limit=200)
        if block.name == NOTIFIER and "notify" in (block.block_schema.capabilities if block.block_schema else [])
    ]
    for entry in yaml.safe_load(AUTOMATIONS.read_text()):
        message = entry.pop("message", "")
        if heartbeats := entry["trigger"].pop("within_heartbeats", None):
            entry["trigger"]["within"] = heartbeats * HEARTBEAT_S
        for action in entry["actions"]:
            if name := action.pop("deployment", None):
                action |= {"source": "selected", "deployment_id": str(deployments[name])}
        if message and notifiers:
            notice = {"type": "send-notification", "subject": entry["name"], "body": message}
            entry["actions"] += [notice | {"block_document_id": str(block)} for block in notifiers]
        wanted = AutomationCore.model_validate(entry)
        known = client.read_automations_by_name(wanted.name)
        if known:
            client.update_automation(known[0].id, wanted)
        else:
            client.create_automation(wanted)


def tag_limits() -> dict[str, int]:
    """Task runs at once of each tag, on one machine."""
    return {"network": current().download_workers, "cpu": 2 * current().workers, "gpu": 1}
