"""Registers with Prefect what runs and what happens by itself: work pool, limits, deployments, automations."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import yaml

from medgen.errors import RunStopped
from medgen.parameters import Parameters
from medgen.settings import current

if TYPE_CHECKING:  # Prefect reads its settings once, when it is imported
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

ROOT = Path(__file__).resolve().parent.parent
POOL = "medgen"  # as in prefect.yaml
TAG = "medgen"
AUTOMATIONS = ROOT / "infra" / "automations.yaml"
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
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template), overwrite=True)
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
            # Prefect lets unknown parameters pass and then crashes the run: have them refused when a run is asked for.
            schema = {**(deployment.parameter_openapi_schema or {}), "additionalProperties": False}
            client.request(
                "PATCH",
                "/deployments/{id}",
                path_params={"id": deployment.id},
                json={
                    "parameter_openapi_schema": schema,
                    "parameters": with_current_names(flow, deployment.parameters),
                },
            )
        _register_automations(client, names)


def with_current_names(flow: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What prefect.yaml sets for a deployment of the flow, by the names that its parameters have now."""
    known: type[Parameters] = import_module(f"flows.{flow}").PARAMETERS
    return known.with_current_names(parameters)


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
