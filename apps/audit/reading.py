"""Read-only connections to the catalog: the site can't change a record even if it wanted to."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from medgen.catalog import open_catalog

STATEMENT_S = 5.0  # a page that takes longer than this gives up: others want the database too


class TooSlow(RuntimeError):
    """A question to the catalog took longer than it may."""


def read_only_engine() -> Engine:
    """Engine whose every transaction is READ ONLY, with a limit on how long a statement may take."""
    writing = open_catalog()  # brings the schema up to date, which a reader can't
    options = f"-c default_transaction_read_only=on -c statement_timeout={int(STATEMENT_S * 1000)} -c jit=off"
    # Never a prepared plan: one that fits all values of a filter fits none, and can't use an index on an expression.
    asked = {"options": options, "prepare_threshold": None}
    return create_engine(writing.url, pool_size=8, max_overflow=8, pool_pre_ping=True, connect_args=asked)


@contextmanager
def limited(connection: Connection, seconds: float) -> Iterator[None]:
    """Lets the statements within take no longer than this.

    Raises:
        TooSlow: one did. The connection can be used further.
    """
    try:
        with connection.begin_nested():
            connection.execute(text(f"SET LOCAL statement_timeout = {int(seconds * 1000)}"))
            yield
            connection.execute(text(f"SET LOCAL statement_timeout = {int(STATEMENT_S * 1000)}"))
    except OperationalError as error:
        if "statement timeout" in str(error.orig):
            raise TooSlow from error
        raise
