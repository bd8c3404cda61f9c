"""The installation's folder, in which nobody but its owner may look: mode 0700.

One wall around everything: the store, releases, Prefect's database, logs. What lies above the folder is left as it is.
"""

import logging
import os
import pwd
import stat
from functools import cache
from pathlib import Path

from medgen.errors import RunStopped

log = logging.getLogger(__name__)

OTHERS = stat.S_IRWXG | stat.S_IRWXO
EVERY = frozenset({"store", "tmp"})  # in every installation, since its first command
OURS = EVERY | {
    "audit", "creations", "credentials", "demo", "demo-train", "embeddings", "evaluations", "evidence", "fingerprints",
    "locks", "models", "postgres", "postgres.lock", "postgres.users", "prefect", "releases", "training",
}  # fmt: skip


class HomeUnusable(RunStopped):
    """The installation's folder can't be made, or is open to strangers and can't be closed to them."""


def private_home(home: Path) -> Path:
    """The folder of the installation, made when it isn't there and closed to other users. Returns `home`.

    A folder of another user who shares it with us is left as it is, with a warning when strangers may read it.

    Raises:
        HomeUnusable: it is a file, a part of a file system that can't be written to, or a folder that everybody may
            write to and that is not ours to close.
    """
    try:
        home.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
        status = home.stat()
    except (FileExistsError, NotADirectoryError) as error:
        raise HomeUnusable(
            f"{home} can't be the folder of the installation: there is a file in its place\n"
            "Name a folder in MEDGEN_HOME."
        ) from error
    except OSError as error:
        raise HomeUnusable(
            f"the folder of the installation, {home}, can't be used: {error.strerror}\n"
            "Make it writable, or name another folder in MEDGEN_HOME."
        ) from error
    if status.st_mode & OTHERS:
        _close(home, status)
    return home


def _close(home: Path, status: os.stat_result) -> None:
    """Takes away what a folder grants to others, if it is plainly an installation's and nobody else's."""
    held = {path.name for path in home.iterdir()}
    ours = held <= OURS or held >= EVERY
    if not ours or status.st_mode & stat.S_ISVTX or home == home.parent:  # /tmp and its like; the root
        raise HomeUnusable(
            f"{home} holds other things and is open to other users; the installation needs a folder of its own\n"
            f"Name one in MEDGEN_HOME, such as {home / 'medgen'}, or run `chmod 700 {home}` if nobody else needs it."
        )
    try:
        home.chmod(stat.S_IMODE(status.st_mode) & ~OTHERS)
    except OSError:  # not ours, or on a read-only file system
        if status.st_mode & stat.S_IWOTH:
            raise HomeUnusable(
                f"everybody may write to {home}, which belongs to {user_name(status.st_uid)}: we can't close it\n"
                f"Let its owner run `chmod 700 {home}`, or name another folder in MEDGEN_HOME."
            ) from None
        if status.st_mode & stat.S_IROTH:
            _warn(home)


@cache
def _warn(home: Path) -> None:
    log.warning("all users of this machine may read %s, and it can't be closed to them: run `chmod o-rwx` on it", home)


def user_name(uid: int) -> str:
    """Name of a user of this machine; the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
