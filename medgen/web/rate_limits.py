"""Rate limits: how many requests a host gets at once, and how often, from all workers of an installation together.

Both limits live in Postgres, which every worker can reach. A request holds one of a host's slots, which are advisory
locks of the session of its process: when a process is killed, Postgres frees them at once. The interval between
requests is kept in one row of `HostPace` per host, which says when the host may be asked again. No row is believed that
forbids more than a pause that may be asked for: it was written by a clock that has been set back since.
"""

import hashlib
import random
import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, TextClause, create_engine, text
from sqlalchemy.exc import DBAPIError

from medgen.catalog import open_catalog
from medgen.web.egress import unconfined

LOOK_AGAIN_S = (0.05, 0.15)  # between looks for a slot that another process may have freed
LONGEST_PAUSE_S = 3600.0  # that a host or a run may ask for
BELIEVED_S = LONGEST_PAUSE_S + 60.0  # of a pause on record; clocks are set right by some seconds now and then

_TRY_SLOT = text("SELECT pg_try_advisory_lock(:key)")
_FREE_SLOT = text("SELECT pg_advisory_unlock(:key)")
# The database's clock decides, so that machines need not agree on the time.
_CLAIM = text(
    """INSERT INTO host_pace (host, next_at) VALUES (:host, clock_timestamp() + make_interval(secs => :interval))
    ON CONFLICT (host) DO UPDATE SET next_at = excluded.next_at WHERE host_pace.next_at <= clock_timestamp()
        OR host_pace.next_at > clock_timestamp() + make_interval(secs => :believed)
    RETURNING host"""
)
_WAIT = text("SELECT extract(epoch FROM next_at - clock_timestamp())::float FROM host_pace WHERE host = :host")
_BACK_OFF = text(
    """INSERT INTO host_pace (host, next_at) VALUES (:host, clock_timestamp() + make_interval(secs => :seconds))
    ON CONFLICT (host) DO UPDATE SET next_at = CASE
        WHEN host_pace.next_at > clock_timestamp() + make_interval(secs => :believed) THEN excluded.next_at
        ELSE greatest(host_pace.next_at, excluded.next_at) END
    RETURNING host"""
)


class HostBusy(Exception):
    """A host may not be asked for longer than the caller would wait."""


class Slot:
    """The right to one request. Releasing it twice is harmless."""

    def __init__(self, limiter: "HostRateLimiter", key: int, session: int) -> None:
        self._limiter, self._key, self._session = limiter, key, session
        self._lock = threading.Lock()
        self._released = False

    def release(self) -> None:
        """Lets the next request of this host go."""
        with self._lock:
            released, self._released = self._released, True
        if not released:
            self._limiter._release(self._key, self._session)


class HostRateLimiter:
    """Grants requests, one slot each. Safe for any number of threads and processes; needs one connection a process.

    Advisory locks belong to a session: a connection pooler between workers and Postgres must not share sessions.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._changed = threading.Condition()  # guards all below; notified when this process frees a slot
        self._connection: Connection | None = None
        self._session = 0  # counts connections: slots of a lost one are gone
        self._held: set[int] = set()

    def enter(
        self, host: str, *, simultaneous: int, interval_s: float, slot_wait_s: float, interval_wait_s: float
    ) -> Slot:
        """Waits until `host` may be asked, and takes one of its slots.

        Args:
            simultaneous: requests under way at once, over all workers.
            interval_s: seconds from the start of a request to the start of the next, at most LONGEST_PAUSE_S.
            slot_wait_s, interval_wait_s: longest waits for a slot, and for the host's next instant.

        Raises:
            HostBusy: the wait would be longer. Names host and seconds.
        """
        slot = self._take_slot(host, simultaneous, slot_wait_s)
        try:
            self._wait_for_interval(host, interval_s, interval_wait_s)
        except BaseException:
            slot.release()
            raise
        return slot

    def back_off(self, host: str, seconds: float) -> None:
        """Nobody asks `host` for the next `seconds`, at most LONGEST_PAUSE_S; requests under way go on."""
        with self._changed:
            self._run(_BACK_OFF, host=host, seconds=min(seconds, LONGEST_PAUSE_S), believed=BELIEVED_S)

    def close(self) -> None:
        """Frees all slots of this process."""
        with self._changed:
            self._drop_session()
            self._changed.notify_all()

    def _take_slot(self, host: str, simultaneous: int, longest_s: float) -> Slot:
        keys = [_key(host, number) for number in range(simultaneous)]
        deadline = time.monotonic() + longest_s
        with self._changed:
            while True:
                for key in keys:
                    # A session gets its own locks again and again, so those held here are left out.
                    if key not in self._held and self._run(_TRY_SLOT, key=key):
                        self._held.add(key)
                        return Slot(self, key, self._session)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise HostBusy(f"all {simultaneous} requests at once of host {host} were taken for {longest_s:g} s")
                self._changed.wait(min(left, random.uniform(*LOOK_AGAIN_S)))

    def _wait_for_interval(self, host: str, interval_s: float, longest_s: float) -> None:
        deadline = time.monotonic() + longest_s
        while True:
            with self._changed:
                if self._run(_CLAIM, host=host, interval=min(interval_s, LONGEST_PAUSE_S), believed=BELIEVED_S):
                    return
                wait: float = self._run(_WAIT, host=host) or 0.0
            if time.monotonic() + wait > deadline:
                raise HostBusy(f"host {host} is not to be asked for another {wait:.0f} s")
            time.sleep(max(wait, 0.0) + random.uniform(0.0, 0.005))

    def _release(self, key: int, session: int) -> None:
        with self._changed:
            if session == self._session and key in self._held:
                self._held.discard(key)
                self._run(_FREE_SLOT, key=key)
                self._changed.notify_all()

    def _run(self, statement: TextClause, **values: object) -> Any:
        """First column of the first row. A lost connection is made anew, once; its slots are lost with it."""
        try:
            return self._connected().execute(statement, values).scalar()
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            self._drop_session()
        return self._connected().execute(statement, values).scalar()

    def _connected(self) -> Connection:
        if self._connection is None:
            with unconfined():
                self._connection = self._engine.connect()
            # An interval that a crash of the server forgets does no harm; waiting for its disk at each request would.
            self._connection.execute(text("SET synchronous_commit = off"))
            self._session += 1
        return self._connection

    def _drop_session(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._held.clear()


@dataclass
class RateLimits:
    """How a download asks hosts: see `HostRateLimiter.enter`."""

    limiter: HostRateLimiter
    simultaneous: int
    interval_s: float
    interval_wait_s: float


def _key(host: str, number: int) -> int:
    """Key of an advisory lock, a signed 64-bit integer."""
    digest = hashlib.sha256(f"medgen host slot\0{host}\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


@cache
def open_rate_limiter() -> HostRateLimiter:
    """The rate limiter of this installation, one per process."""
    return HostRateLimiter(open_catalog())
