"""The embedded Postgres server, for installations without one of their own. Who may connect: `postgres_access`."""

import atexit
import fcntl
import os
import shutil
import signal
import stat
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock

from medgen.postgres_access import admit_owner_only, close_to_others, data_folder
from medgen.postgres_programs import DatabaseUnusable, DataFolder, unusable

PORT = 5432  # of the name of the socket; nothing listens on it
SOCKET = f".s.PGSQL.{PORT}"
LONGEST_PATH = 107  # bytes in the path of a Unix socket, on Linux
OPTIONS = f"-c listen_addresses= -c unix_socket_permissions=0700 -k . -p {PORT}"
START_S = 300  # recovery from a long write-ahead log takes minutes
STOP_S = 60.0
REMAINS_S = 5.0
ATTEMPTS = 3


def embedded_url(folder: Path) -> str:
    """URL of a Postgres server whose data lie in `folder`, started when it doesn't run.

    All processes of an installation share the server; the last one to leave stops it. It listens on a Unix socket only,
    and lets in the owner of the folder's parent and root. After a crash it recovers from its write-ahead log on the
    next start.

    The URL of a folder whose path is too long for a socket, or has a comma, holds in this process and its forks alone.

    Raises:
        DatabaseUnusable: says what is wrong, and what to do.
    """
    folder = folder.resolve()
    try:
        folder.parent.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
        data = data_folder(folder)
        with FileLock(folder.with_suffix(".lock")):
            _count_in(folder, os.getpid())
            if not (folder / "PG_VERSION").exists():
                _make(data)
            close_to_others(data)
            admit_owner_only(data, _postmaster(folder))
            _start(data)
            return f"postgresql+psycopg://postgres@/postgres?host={quote(_address(folder))}&port={PORT}"
    except OSError as error:
        raise unusable(folder, f"{error.strerror or error}: {error.filename or folder}") from error


def _address(folder: Path) -> str:
    """What clients give as the server's host: the folder of its socket."""
    socket_folder = _pid_file(folder)[4]
    if socket_folder != ".":  # a server that an earlier version started
        return socket_folder
    if len(os.fsencode(folder / SOCKET)) <= LONGEST_PATH and "," not in str(folder):
        return str(folder)
    return f"/proc/self/fd/{_opened(folder, folder.stat().st_ino)}"


@cache
def _opened(folder: Path, inode: int) -> int:
    """A handle of the folder, which stays open. The inode tells it from one that was there before."""
    return os.open(folder, os.O_PATH | os.O_DIRECTORY)


def _make(data: DataFolder) -> None:
    """Makes an empty database elsewhere and moves it to its folder: a process killed midway leaves no half database."""
    folder = data.path
    if folder.exists() and any(folder.iterdir()):
        raise DatabaseUnusable(
            f"no embedded Postgres could be made in {folder}: it holds other things\n"
            "Move them away, or name another folder in MEDGEN_HOME."
        )
    for remains in folder.parent.glob(f"{folder.name}.making-*"):
        _end_remains(remains)
        shutil.rmtree(remains, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f"{folder.name}.making-", dir=folder.parent))
    try:
        if data.user:
            os.chown(making, data.user.pw_uid, data.user.pw_gid)
        options = ("--auth=reject", "--auth-local=peer", "--encoding=utf8", "--username=postgres")
        failure = DataFolder(making, data.user).run("initdb", *options)
        if failure is not None:
            raise unusable(folder, failure)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _start(data: DataFolder) -> None:
    """Starts the server unless it runs, and waits until it takes connections."""
    folder = data.path
    for attempt in range(1, ATTEMPTS + 1):
        failure, logged = None, _log(folder)[1]
        if _postmaster(folder) is None:
            _end_remains(folder)
            _strike_dead(folder)
            failure = data.run("pg_ctl", "-w", "-t", str(START_S), "-l", "log", "-o", OPTIONS, "start")
        if failure is None and _ready(folder):
            return
        if attempt == ATTEMPTS:
            raise unusable(folder, _log(folder, logged)[0] + (failure or f"it is not ready after {START_S} s"))
        time.sleep(attempt)  # what a killed server left may take a moment to end


def _ready(folder: Path) -> bool:
    deadline = time.monotonic() + START_S
    while _postmaster(folder) is not None and time.monotonic() < deadline:
        if _pid_file(folder)[7:8] == ["ready"]:
            return True
        time.sleep(0.05)
    return False


def _stop(folder: Path) -> None:
    """Stops the server in good order. One that takes too long goes on, and ends after its checkpoint."""
    deadline = time.monotonic() + STOP_S
    with suppress(ProcessLookupError):
        if (pid := _postmaster(folder)) is not None:
            os.kill(pid, signal.SIGINT)
    while _postmaster(folder) is not None and time.monotonic() < deadline:
        time.sleep(0.02)


@cache
def _count_in(folder: Path, pid: int) -> None:
    """Counts this process among the server's users until it ends, in whatever way: the kernel takes the lock back."""
    handle = os.open(folder.with_suffix(".users"), os.O_RDWR | os.O_CREAT, stat.S_IRUSR | stat.S_IWUSR)
    fcntl.flock(handle, fcntl.LOCK_SH)
    atexit.register(_leave, folder, handle, pid)


def _leave(folder: Path, handle: int, pid: int) -> None:
    """Stops the server if nobody else uses it."""
    if os.getpid() != pid or not folder.exists():  # a fork is no user by itself
        return
    with suppress(OSError), FileLock(folder.with_suffix(".lock")):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError when others use it
        _stop(folder)
        os.close(handle)


def _postmaster(folder: Path) -> int | None:
    """Process id of the living server of this very folder. A pid that another process has since is none."""
    try:
        pid = int(_pid_file(folder)[0])
    except (IndexError, ValueError):
        return None
    return pid if _works_in(folder, pid) else None


def _pid_file(folder: Path) -> list[str]:
    try:
        return [line.strip() for line in (folder / "postmaster.pid").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _works_in(folder: Path, pid: int) -> bool:
    """Whether a process is one of Postgres's, at work in this folder. One that has ended works nowhere."""
    try:
        program = Path(f"/proc/{pid}/comm").read_text().strip()
        return program in ("postgres", "initdb") and Path(f"/proc/{pid}/cwd").samefile(folder)
    except OSError:
        return False


def _end_remains(folder: Path) -> None:
    """Ends what is left at work in the folder of a killed server, or of a killed `initdb`."""
    for number in (signal.SIGQUIT, signal.SIGKILL):
        deadline = time.monotonic() + REMAINS_S
        while remains := [int(p.name) for p in Path("/proc").glob("[0-9]*") if _works_in(folder, int(p.name))]:
            if time.monotonic() > deadline:
                break
            for pid in remains:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(0.02)


def _strike_dead(folder: Path) -> None:
    """Removes the marks of a server that is none: they came with a copy of the folder, or the pid is another's now.

    Postgres would take it for a running one.
    """
    for mark in ("postmaster.pid", f"{SOCKET}.lock"):
        with suppress(OSError, ValueError):  # no mark, no such process
            os.kill(int((folder / mark).read_text().split("\n", 1)[0]), 0)
            (folder / mark).unlink()


def _log(folder: Path, start: int = 0) -> tuple[str, int]:
    """The server's log from a place on, at most 20 kB of it, and its whole length in bytes."""
    try:
        with (folder / "log").open("rb") as log:
            log.seek(start)
            return log.read(20_000).decode(errors="replace"), log.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return "", 0
