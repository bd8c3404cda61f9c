"""Schema migrations (Alembic), run at every opening of the catalog."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

# Any number; all medgen processes must use the same one.
MIGRATION_LOCK = 0x6D656467656E


class TooNew(Exception):
    """The tables are at a revision that this version does not have.

    Args:
        revision: its name.
    """

    def __init__(self, revision: str) -> None:
        super().__init__(revision)
        self.revision = revision


def config() -> Config:
    """Alembic configuration that points at this package."""
    alembic = Config()
    alembic.set_main_option("script_location", str(Path(__file__).parent))
    return alembic


def upgrade(engine: Engine) -> None:
    """Brings the schema to the newest revision. Processes that start together wait for one another.

    Raises:
        TooNew: a newer version has been here. Nothing is changed.
    """
    alembic = config()
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        try:
            known = {script.revision for script in ScriptDirectory.from_config(alembic).walk_revisions()}
            for revision in MigrationContext.configure(connection).get_current_heads():
                if revision not in known:
                    raise TooNew(revision)
            alembic.attributes["connection"] = connection
            command.upgrade(alembic, "head")
            connection.commit()
        except BaseException:
            connection.rollback()  # else nothing more is heard, and the lock stays with the pooled connection
            raise
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
