"""Which installation a process works for. The machines of a cluster share its catalog and its store, and no folder."""

import platform
import threading
from dataclasses import dataclass
from functools import cache

from sqlalchemy import text

from medgen.catalog import open_catalog
from medgen.errors import RunStopped
from medgen.settings import Settings, current
from medgen.store import open_store

_CATALOG = text(
    """SELECT system_identifier || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
    FROM pg_control_system()"""
)


class NotOfTheInstallation(RunStopped):
    """The settings of this machine lead to no catalog or store that other machines share, or to another one."""


@dataclass(frozen=True)
class Installation:
    """What the machines of a cluster find at the same place, by whatever address each of them reaches it.

    Args:
        catalog: number of the Postgres server and of the database in it.
        mark: sha256 of an object in the store, which tells it from others.
        machine: where it was looked at.
    """

    catalog: str
    mark: str
    machine: str


def this_installation() -> Installation:
    """The installation of this process.

    Raises:
        NotOfTheInstallation: its catalog or its store lies in a folder of this machine. Names the settings that miss.
    """
    require_shared(current())
    catalog = _catalog()
    mark = open_store().put_bytes(f"catalog {catalog}\n".encode(), "text/plain")
    return Installation(catalog, mark.sha256, platform.node())


def require_shared(settings: Settings) -> None:
    """Raises NotOfTheInstallation where other machines can't reach the catalog or the store. Names what misses."""
    wanted = {"MEDGEN_DATABASE_URL": settings.database_url, "MEDGEN_S3_ENDPOINT": settings.s3_endpoint}
    if missing := [name for name, value in wanted.items() if value is None]:
        raise NotOfTheInstallation(
            f"{platform.node()} is a machine of a cluster (Dask or Ray), whose machines share one Postgres and one S3 "
            f"server, but there {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set"
        )


_checking = threading.Lock()  # `cache` calls a function twice when two threads come first


def require_same(wanted: Installation) -> None:
    """Raises NotOfTheInstallation where this process works for another installation than `wanted`."""
    with _checking:
        _require_same(wanted)


@cache
def _require_same(wanted: Installation) -> None:
    require_shared(current())
    if _catalog() != wanted.catalog:
        raise NotOfTheInstallation(
            f"MEDGEN_DATABASE_URL of {platform.node()} leads to another catalog than that of {wanted.machine}, "
            "where the run was started"
        )
    store = open_store()
    if store.missing([wanted.mark]):
        raise NotOfTheInstallation(
            f"MEDGEN_S3_ENDPOINT and MEDGEN_S3_BUCKET of {platform.node()} (bucket {current().s3_bucket}) lead to "
            f"another store than those of {wanted.machine}, where the run was started"
        )


def _catalog() -> str:
    with open_catalog().connect() as connection:
        return str(connection.scalar(_CATALOG))
