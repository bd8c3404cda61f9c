"""The Prefect server of this installation, for when `PREFECT_API_URL` names none; its deployment and its worker.

One server per installation, shared by all its processes; the last one to leave stops it.
"""

import fcntl
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from apps.deployments import POOL, ROOT, our_deployments, register
from medgen.errors import RunStopped

START_LIMIT_S = 120.0
STOP_LIMIT_S = 5.0
# Offline and quiet: no analytics, and no V2 UI, which loads from outside.
ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    # The recorder's defaults lag behind by many seconds (34 task runs a second).
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # A run that was asked for should not wait 10 s for the worker to look.
    "PREFECT_WORKER_QUERY_SECONDS": "2",
}


class ServerDidNotStart(RunStopped):
    """The Prefect server died or did not answer in time, or it refused the deployment."""


@contextmanager
def prefect_server(home: Path, port: int | None = None) -> Iterator[str]:
    """Yields the API URL of a running server and points this process's Prefect at it.

    Must be entered before `prefect` is imported, which reads its settings once.

    Args:
        home: the installation's data folder; the server keeps its database below it.
        port: on loopback; any free one by default. Ignored when the server runs already.

    Raises:
        ServerDidNotStart: names the log file.
    """
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    if url := os.environ.get("PREFECT_API_URL"):
        yield url
        return
    folder = home / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str(folder))
    with (folder / "start.lock").open("w") as starting, (folder / "use.lock").open("w") as using:
        fcntl.flock(starting, fcntl.LOCK_EX)
        fcntl.flock(using, fcntl.LOCK_SH)
        url, pid = _running(folder) or _started(folder, port)
        fcntl.flock(starting, fcntl.LOCK_UN)
        os.environ["PREFECT_API_URL"] = url
        try:
            yield url
        finally:
            fcntl.flock(starting, fcntl.LOCK_EX)
            try:
                fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # others still use it
            else:
                _stop(folder, pid)


@contextmanager
def worker(home: Path, limit: int, tag_limits: Mapping[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    """Registers the deployments and runs them in processes; they end with it, and what they have done stays done.

    Args:
        home: the installation's data folder. Flow runs must find it, wherever they start.
        limit: flow runs at once.
        tag_limits: tag → task runs at once.

    Raises:
        ServerDidNotStart: another worker of this installation is at work.
        DeploymentRefused: the server refuses a deployment.
    """
    with (home / "prefect" / "worker.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerDidNotStart(f"`medgen up` runs already, at {os.environ['PREFECT_API_URL']}") from None
        register(tag_limits)
        if (known := _running(home / "prefect")) and known[0] == os.environ["PREFECT_API_URL"]:
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
    # What the flow and the steps say belongs into the log of the run.
    environment = {"MEDGEN_HOME": str(home), "PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_LOGGING_EXTRA_LOGGERS": "medgen"}
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", POOL, "--limit", str(limit)],
        cwd=ROOT,
        env=os.environ | environment,
        start_new_session=True,  # Ctrl-C is for us; we end it
    )
    try:
        yield process
    finally:
        # A worker that is told to stop waits for its runs, which may last for hours; they die with it.
        # Each is in a session of its own, so that a signal to the worker's group would not reach it.
        with suppress(psutil.NoSuchProcess):
            family = [psutil.Process(process.pid)]
            family += family[0].children(recursive=True)
            family[0].terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT_S)
            with suppress(psutil.NoSuchProcess):
                family += family[0].children(recursive=True)  # a run that it was just starting
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family[1:], STOP_LIMIT_S)  # nobody is left who could use the database
        process.wait()


def _running(folder: Path) -> tuple[str, int] | None:
    try:
        pid, url = (folder / "server").read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return (url, int(pid)) if _healthy(url) else None


def _started(folder: Path, port: int | None) -> tuple[str, int]:
    if port and _taken(port):
        raise ServerDidNotStart(f"port {port} is taken; choose another")
    port = port or _free_port()
    url = f"http://127.0.0.1:{port}/api"
    log_path = folder / "server.log"
    environment = os.environ | {"PREFECT_SERVER_UI_API_URL": url}
    environment.pop("PREFECT_API_URL", None)
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us, not for the server that others may share
        )
    deadline = time.monotonic() + START_LIMIT_S
    while not _healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise ServerDidNotStart(f"the Prefect server on port {port} did not start; see {log_path}")
        time.sleep(0.1)
    (folder / "server").write_text(f"{process.pid} {url}")
    return url, process.pid


def _stop(folder: Path, pid: int) -> None:
    (folder / "server").unlink(missing_ok=True)
    try:
        os.kill(pid, 15)
        for _ in range(100):
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            time.sleep(0.1)
        os.kill(pid, 9)
    except (ProcessLookupError, ChildProcessError):
        return  # another process started it, or it is gone


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            status: int = answer.status
            return status == 200
    except (urllib.error.URLError, OSError):
        return False


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
