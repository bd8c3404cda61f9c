"""The worker of an installation: registers the deployments and runs them in processes of its own."""

import fcntl
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from apps.deployments import POOL, ROOT, our_deployments, register
from apps.prefect_server import Server, ServerDidNotStart

STOP_LIMIT_S = 5.0
FAMILY = "MEDGEN_WORKER_FAMILY"  # variable that a worker and all that it starts have in common


@contextmanager
def worker(home: Path, server: Server, limit: int, tag_limits: Mapping[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    """Registers the deployments and runs them in processes; they end with it, and what they have done stays done.

    Args:
        home: the installation's data folder. Flow runs must find it, wherever they start.
        server: to register with.
        limit: flow runs at once.
        tag_limits: tag → task runs at once.

    Raises:
        ServerDidNotStart: another worker of this installation is at work.
        DeploymentRefused: the server refuses a deployment.
    """
    folder = home / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "worker.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerDidNotStart(f"`medgen up` runs already, at {server.url}") from None
        register(tag_limits)
        if server.folder is not None:
            _end_orphans()
        with _worker_process(home, limit) as process:
            yield process


def _end_orphans() -> None:
    """Ends, on record, the runs whose worker was killed: as long as they seem to run, no other run may start."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        orphans = {
            "deployment_id": {"any_": [deployment.id for deployment in our_deployments(client)]},
            "state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}},
        }
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(orphans)):
            message = "its worker was stopped; what was done stays done, the next run goes on"
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)


@contextmanager
def _worker_process(home: Path, limit: int) -> Iterator[subprocess.Popen[bytes]]:
    family = uuid.uuid4().hex
    environment = {
        "MEDGEN_HOME": str(home),
        FAMILY: family,
        # What the flow and the steps say belongs into the log of the run.
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "medgen",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "apps.worker_process", str(os.getpid()), POOL, str(limit)],
        cwd=ROOT,
        env=os.environ | environment,
        start_new_session=True,  # Ctrl-C is for us; we end it
    )
    try:
        yield process
    finally:
        # A worker that is told to stop waits for its runs, which may last for hours; they die with it.
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
        end_family(family)
        process.wait()


def end_family(family: str) -> None:
    """kill -9 for a worker and all that it started, until none is left who could use the database.

    Runs are in sessions of their own, and have no parent any more once their worker was killed; what they inherited
    tells them. The embedded Postgres, which may be among them, others share.
    """
    while members := [process for process in psutil.process_iter() if _belongs(process, family)]:
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(members, STOP_LIMIT_S)


def _belongs(process: psutil.Process, family: str) -> bool:
    try:
        return (
            process.environ().get(FAMILY) == family
            and process.pid != os.getpid()
            and process.status() != psutil.STATUS_ZOMBIE
            and "postgres" not in process.name()
        )
    except psutil.Error:
        return False
