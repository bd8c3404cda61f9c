"""The Prefect server of this installation, for when `PREFECT_API_URL` names none.

One server per installation, shared by all its processes; the last one to leave stops it, and it ends by itself when all
of them were killed. Only who knows the installation's secret may use it (see `apps.prefect_access`).
"""

import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from apps.deployments import HEARTBEAT_S, ROOT
from apps.prefect_access import auth_string, proves_itself
from medgen.errors import RunStopped
from medgen.home import private_home

log = logging.getLogger(__name__)

MODULE = "apps.prefect_app"  # what the server runs
START_LIMIT_S = 120.0
STOP_LIMIT_S = 10.0
LOOK_S = 1.0  # between looks whether it lives
MOST_REVIVALS = 5  # before it is given up
BACKOFF_S = 1.0  # before it is started again; doubled each time
STEADY_S = 600.0  # a server that lived so long is no hopeless case
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
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
}


class ServerDidNotStart(RunStopped):
    """The Prefect server died or did not answer in time, or it refused the deployment."""


@dataclass(frozen=True)
class RecordedProcess:
    """A server as it stands on record."""

    pid: int
    url: str

    def lives(self, folder: Path) -> bool:
        """Whether this process still runs.

        Its command line tells it from another process that got its number later. The time of its start would not: it
        moves when the clock is set.
        """
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            return {MODULE, str(folder)} <= set(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
        return False


class Server:
    """A Prefect server that this process uses.

    Args:
        url: of its API.
        folder: Prefect's files of the installation; None: somebody else's server.
    """

    def __init__(self, url: str, folder: Path | None = None, process: RecordedProcess | None = None) -> None:
        self.url = url
        self.folder = folder
        self.process = process
        self.revivals = 0
        self.since = time.monotonic()

    def revive(self) -> None:
        """Starts the installation's server again, at the same address, if it has died.

        Raises:
            ServerDidNotStart: it died again and again.
        """
        if self.folder is None or self.process is None or self.process.lives(self.folder):
            return
        if time.monotonic() - self.since > STEADY_S:
            self.revivals = 0
        if self.revivals >= MOST_REVIVALS:
            raise ServerDidNotStart(f"the Prefect server died {self.revivals + 1} times; see {_log(self.folder)}")
        log.warning("the Prefect server at %s died; it is started again", self.url)
        time.sleep(BACKOFF_S * 2**self.revivals)
        self.revivals += 1
        with (self.folder / "start.lock").open("w") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            self.process = _running(self.folder) or _started(self.folder, urlsplit(self.url).port)
        self.since = time.monotonic()

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Looks after it meanwhile, in a thread: Prefect's client asks again for half a minute."""
        ended = threading.Event()

        def look_after() -> None:
            with suppress(ServerDidNotStart):  # then the client's own error ends what needs it
                while not ended.wait(LOOK_S):
                    self.revive()

        thread = threading.Thread(target=look_after, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def stop(self) -> None:
        """Ends it. Its lock must be held."""
        assert self.folder and self.process
        _record(self.folder).unlink(missing_ok=True)
        if not self.process.lives(self.folder):
            return
        with suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except psutil.TimeoutExpired:
                process.kill()


@contextmanager
def prefect_server(home: Path, port: int | None = None) -> Iterator[Server]:
    """Yields a running server and points this process's Prefect at it.

    Must be entered before `prefect` is imported, which reads its settings once.

    Args:
        home: the installation's data folder; the server keeps its database below it.
        port: on loopback; any free one by default. Ignored when the server runs already.

    Raises:
        ServerDidNotStart: names the log file.
        HomeUnusable: as `private_home`.
    """
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    if url := os.environ.get("PREFECT_API_URL"):
        yield Server(url)
        return
    folder = private_home(home) / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str(folder))
    with (folder / "start.lock").open("w") as starting, (folder / "use.lock").open("w") as using:
        fcntl.flock(starting, fcntl.LOCK_EX)
        fcntl.flock(using, fcntl.LOCK_SH)
        process = _running(folder) or _started(folder, port)
        fcntl.flock(starting, fcntl.LOCK_UN)
        os.environ |= {"PREFECT_API_URL": process.url, "PREFECT_API_AUTH_STRING": auth_string(folder)}
        server = Server(process.url, folder, process)
        try:
            yield server
        finally:
            fcntl.flock(starting, fcntl.LOCK_EX)
            try:
                fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # others still use it
            else:
                server.stop()


def running_server(home: Path) -> str | None:
    """URL of the API of the installation's server, if one runs."""
    process = _running(home / "prefect")
    return process.url if process else None


def _record(folder: Path) -> Path:
    return folder / "server"


def _log(folder: Path) -> Path:
    return folder / "server.log"


def _running(folder: Path) -> RecordedProcess | None:
    """The server on record, if it is the same process still and knows our secret: anybody's may have its port now."""
    try:
        process = RecordedProcess(**json.loads(_record(folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return process if process.lives(folder) and proves_itself(process.url, auth_string(folder)) else None


def _started(folder: Path, port: int | None) -> RecordedProcess:
    if port and _taken(port):
        raise ServerDidNotStart(f"port {port} is taken; choose another")
    port = port or _free_port()
    origin = f"http://127.0.0.1:{port}"
    url, auth = f"{origin}/api", auth_string(folder)
    environment = os.environ | {
        "PREFECT_SERVER_UI_API_URL": url,
        "PREFECT_UI_URL": origin,  # of links in messages
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
    }
    environment.pop("PREFECT_API_URL", None)
    with _log(folder).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, "--port", str(port), "--installation", str(folder)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            umask=0o077,
            start_new_session=True,  # Ctrl-C is for us, not for the server that others may share
        )
    deadline = time.monotonic() + START_LIMIT_S
    while not proves_itself(url, auth):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise ServerDidNotStart(f"the Prefect server on port {port} did not start; see {_log(folder)}")
        time.sleep(0.1)
    known = RecordedProcess(process.pid, url)
    _record(folder).write_text(json.dumps(asdict(known)))
    return known


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
