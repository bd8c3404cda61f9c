"""Claims: who is at work on which item, so that what another living worker does is waited for and not done twice.

A claim is a row of `Claim`, and counts while its claimant lives: an advisory lock says so, which the claimant's session
holds, one session a process. The lock falls when the process ends, in whatever way. (A lock for each item would not do:
Postgres has room for some 6,400 of them, and a step over the whole dataset has more items.)

Claims save work and decide nothing. Where they are lost, with a connection or with the server, two workers may do the
same work; the ledger then keeps one of the two records.
"""

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

from sqlalchemy import Connection, Engine, TextClause, event, text
from sqlalchemy.exc import DBAPIError

from medgen.among import pages

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between looks whether what others had claimed is free
LOOKED_AT = 10_000  # keys: for each so many the pause is as long again
DEAD_MACHINE_S = (30, 10, 3)  # seconds until Postgres asks a silent client, between questions; questions

_LIVING = """SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
# Each of these is a transaction. Those that insert wait for one another in the order of the keys, and those that delete
# wait for nobody: there is no circle.
_TAKE = text(
    """INSERT INTO claim (key, claimant) SELECT key, :claimant FROM unnest(CAST(:keys AS text[])) AS key ORDER BY key
    ON CONFLICT (key) DO NOTHING RETURNING key"""
)
_CLEAR = text(
    f"""DELETE FROM claim WHERE key = any(ARRAY(SELECT key FROM claim
    WHERE key = any(CAST(:keys AS text[])) AND claimant NOT IN ({_LIVING}) FOR UPDATE SKIP LOCKED)) RETURNING key"""
)
_CLEAR_ALL = text(
    f"""DELETE FROM claim WHERE key = any(ARRAY(SELECT key FROM claim
    WHERE claimant NOT IN ({_LIVING}) FOR UPDATE SKIP LOCKED))"""
)
_RELEASE = text("DELETE FROM claim WHERE key = any(CAST(:keys AS text[])) AND claimant = :claimant RETURNING key")
_LIVE = text("SELECT pg_advisory_lock(:claimant)")
_SESSION = (
    *(
        f"SET tcp_keepalives_{name} = {value}"
        for name, value in zip(("idle", "interval", "count"), DEAD_MACHINE_S, strict=True)
    ),
    "SET idle_session_timeout = 0",
    "SET synchronous_commit = off",
)


class Claims:
    """What one shard has claimed."""

    def __init__(self, claimant: "_Claimant") -> None:
        self._claimant = claimant
        self._held: dict[str, int] = {}  # key → the claimant's number when it was taken

    def take(self, keys: Iterable[str]) -> tuple[list[str], list[str]]:
        """(keys that are claimed for this shard now, those that another living worker or shard has), in their order.

        Look the first up in the ledger once more: who had them before may have just done them.
        """
        wanted = list(dict.fromkeys(keys))
        for page in pages(sorted(wanted)):
            self._held |= self._claimant.take(page)
        return [key for key in wanted if key in self._held], [key for key in wanted if key not in self._held]

    def release(self) -> None:
        """Gives up all claims of this shard."""
        for page in pages(sorted(self._held)):
            self._claimant.release({key: self._held.pop(key) for key in page})

    def in_turn(self, keys: Iterable[str]) -> Iterator[list[str]]:
        """All of `keys` in groups, each claimed until the next is asked for: first those that nobody works on.

        Those of others follow as they become free, be they done or not. Nothing is claimed while others are waited for,
        so that two never wait for each other.
        """
        left, told = list(keys), False
        while left:
            mine, left = self.take(left)
            if mine:
                yield mine
                self.release()
                continue
            if not told:
                log.info("waiting for %d items that other workers are at work on", len(left))
                told = True
            time.sleep(LOOK_S * (1 + len(left) / LOOKED_AT))


@contextmanager
def claims(engine: Engine) -> Iterator[Claims]:
    """Claims of one shard in the catalog of `engine`, given up at the end. Takes no connection of the engine's pool."""
    made = Claims(_claimant(engine))
    try:
        yield made
    finally:
        made.release()


class _Claimant:
    """This process as others see it: a number, and a session that holds the lock of that number."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._guard = threading.Lock()
        self._connection: Connection | None = None
        self._number = 0

    def take(self, keys: list[str]) -> dict[str, int]:
        """Those of `keys` (sorted) that no living claimant has → the number under which they are claimed."""
        with self._guard:
            taken = self._run(_TAKE, keys)
            others = sorted(set(keys) - set(taken))
            if others and self._run(_CLEAR, others):
                taken += self._run(_TAKE, others)
            return dict.fromkeys(taken, self._number)

    def release(self, held: dict[str, int]) -> None:
        """Gives up claims. Those of a connection that was lost are void already; so are all where this one is lost."""
        with self._guard:
            keys = sorted(key for key, number in held.items() if number == self._number)
            if keys and self._connection is not None:
                try:
                    self._connection.execute(_RELEASE, {"keys": keys, "claimant": self._number})
                except DBAPIError:
                    self._drop()

    def close(self) -> None:
        """Ends the session, and with it all claims of this process."""
        with self._guard:
            self._drop()

    def _run(self, statement: TextClause, keys: list[str]) -> list[str]:
        """The keys that a statement gives. A lost connection is made anew, once."""
        for attempt in (1, 2):
            connection = self._connected()
            try:
                return list(connection.execute(statement, {"keys": keys, "claimant": self._number}).scalars())
            except DBAPIError as error:
                self._drop()
                if attempt == 2 or not error.connection_invalidated:
                    raise
        raise AssertionError("unreachable")

    def _connected(self) -> Connection:
        if self._connection is None:
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            connection.detach()  # from the pool, which has its own to lend
            self._connection, self._number = connection, secrets.randbits(62)
            try:
                for setting in _SESSION:
                    connection.execute(text(setting))
                connection.execute(_LIVE, {"claimant": self._number})
                connection.execute(_CLEAR_ALL)
            except BaseException:
                self._drop()
                raise
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(DBAPIError):
                connection.close()


_making = threading.Lock()  # `cache` calls a function twice when two threads come first


def _claimant(engine: Engine) -> _Claimant:
    with _making:
        return _made_claimant(engine)


@cache
def _made_claimant(engine: Engine) -> _Claimant:
    made = _Claimant(engine)
    event.listen(engine, "engine_disposed", lambda _: made.close())
    return made
