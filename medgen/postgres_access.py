"""Who runs the embedded Postgres, and who may connect: the owner of the installation and root, and nobody else.

Its socket lies in the data folder, which is closed to others (0700), and the kernel tells the server who connects
(`peer`): no password that could be read. Postgres refuses to run as root. There it runs as the owner of the home; where
that is root too, as an OS user of its own, who is put into the data folder as working directory and so needs no way
through the folders above: their permissions stay as they are.
"""

import os
import pwd
import signal
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from medgen.home import user_name
from medgen.postgres_programs import DatabaseUnusable, DataFolder

OS_USER = "embedded_postgres"  # runs the server of root's installations
WHO_CONNECTS = """\
# Written by medgen at each start. The kernel tells who connects; pg_ident.conf says who may.
local all all peer map=medgen
"""


def data_folder(path: Path) -> DataFolder:
    """A data folder and who runs its server: we, or for root the owner of the home or a user of its own.

    Raises:
        DatabaseUnusable: that user can't be made, or the folder belongs to another one.
    """
    if os.geteuid() != 0:
        data = DataFolder(path, None)
        if path.exists() and path.stat().st_uid != data.owner:
            raise _of_another(data)
        return data
    with suppress(KeyError):  # an owner who came from another machine
        if owner := path.parent.stat().st_uid:
            return DataFolder(path, pwd.getpwuid(owner))
    with suppress(KeyError):
        return DataFolder(path, pwd.getpwnam(OS_USER))
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", OS_USER]
    with suppress(OSError):
        subprocess.run(command, capture_output=True, check=False)  # another process may be quicker
    try:
        return DataFolder(path, pwd.getpwnam(OS_USER))
    except KeyError:
        raise DatabaseUnusable(
            f"Postgres refuses to run as root, and the OS user {OS_USER} for it can't be made here\n"
            "Run medgen as another user than root, or give MEDGEN_DATABASE_URL."
        ) from None


def close_to_others(data: DataFolder) -> None:
    """Sees to it that a data folder belongs to who runs its server, and that nobody else may look into it.

    Raises:
        DatabaseUnusable: it belongs to another user.
    """
    folder, owner = data.path, data.owner
    if not {folder.stat().st_uid, (folder / "PG_VERSION").stat().st_uid} <= {owner}:
        if data.user is None:
            raise _of_another(data)
        for parent, folders, files in os.walk(folder):  # a copy that was made without its owner
            for name in (".", *folders, *files):
                os.chown(Path(parent, name), data.user.pw_uid, data.user.pw_gid, follow_symlinks=False)
    if stat.S_IMODE(folder.stat().st_mode) != stat.S_IRWXU:
        folder.chmod(stat.S_IRWXU)


def _of_another(data: DataFolder) -> DatabaseUnusable:
    me, them = user_name(data.owner), user_name(data.path.stat().st_uid)
    return DatabaseUnusable(
        f"the embedded database in {data.path} belongs to another user than {me}, who runs medgen: to {them}\n"
        f"Run medgen as its owner, or let root run `chown -R {me} {data.path.parent}`."
    )


def admit_owner_only(data: DataFolder, server: int | None) -> None:
    """Writes who may connect, over whatever an earlier version or a person wrote.

    Args:
        server: process id of the running server, which reads new rules at once.
    """
    names = sorted({user_name(0), user_name(data.owner)})
    rules = {
        "pg_hba.conf": WHO_CONNECTS,
        "pg_ident.conf": "".join(f'medgen "{name}" postgres\n' for name in names),
    }
    changed = [name for name, text in rules.items() if _text(data.path / name) != text]
    for name in changed:
        handle, making = tempfile.mkstemp(dir=data.path, prefix=f".{name}.")
        with os.fdopen(handle, "w") as file:
            file.write(rules[name])
            if data.user:
                os.fchown(handle, data.user.pw_uid, data.user.pw_gid)
        Path(making).replace(data.path / name)
    if changed and server is not None:
        os.kill(server, signal.SIGHUP)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None
