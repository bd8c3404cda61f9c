"""Quotas of bytes: what a shard may still fetch, or all downloads of a night, and what the store may still hold.

Bytes are acquired in small grants before they are read, and what was not used is refunded. So a quota is never
exceeded, and a killed process leaves at most one grant per download on a night's quota, which ends with the night. The
quota of the store, where a killed download leaves more, is measured anew for each shard.
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from typing import Protocol

from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medgen.catalog import ByteAccount
from medgen.errors import ItemFailed
from medgen.web.egress import unconfined

GRANT_BYTES = 1 << 20  # acquired at once


class Quota(Protocol):
    """Bytes that may be used, up to a limit.

    Attributes:
        reason: of the failure of an item that does not fit.
        limit: bytes.
        kept_only: only what a download keeps in the end counts, not all that it read.
    """

    reason: str
    limit: int
    kept_only: bool

    def acquire(self, wanted: int) -> int:
        """Acquires up to `wanted` bytes, as many as are left. Returns how many; 0 when the quota is exhausted."""

    def refund(self, size: int) -> None:
        """Returns bytes that were acquired and not used."""

    def left(self) -> int:
        """Bytes that may still be acquired; a moment later it may be fewer."""


class ShardQuota:
    """A quota of one shard, shared by the threads of this process."""

    kept_only = False

    def __init__(self, reason: str, limit: int) -> None:
        self.reason, self.limit = reason, limit
        self._used = 0
        self._lock = threading.Lock()

    def acquire(self, wanted: int) -> int:
        """See `Quota`."""
        with self._lock:
            granted = max(0, min(wanted, self.limit - self._used))
            self._used += granted
            return granted

    def refund(self, size: int) -> None:
        """See `Quota`."""
        with self._lock:
            self._used -= size

    def left(self) -> int:
        """See `Quota`."""
        return max(0, self.limit - self._used)


class SharedQuota:
    """A quota that all workers of an installation share: a row of `ByteAccount`."""

    def __init__(self, engine: Engine, name: str, reason: str, limit: int, *, kept_only: bool = False) -> None:
        self.reason, self.limit, self.kept_only = reason, limit, kept_only
        self._engine, self._name = engine, name

    def acquire(self, wanted: int) -> int:
        """See `Quota`."""
        return self._change(lambda used: max(0, min(wanted, self.limit - used)))

    def refund(self, size: int) -> None:
        """See `Quota`."""
        if size > 0:
            self._change(lambda used: -min(size, used))

    def left(self) -> int:
        """See `Quota`."""
        with unconfined(), self._engine.connect() as connection:
            used = connection.scalar(select(ByteAccount.used).where(ByteAccount.name == self._name))
        return max(0, self.limit - (used or 0))

    def measure(self, used: Callable[[], int]) -> None:
        """Sets the bytes in use to what `used` returns; nobody acquires any meanwhile."""
        self._change(lambda old: used() - old)

    def _change(self, by: Callable[[int], int]) -> int:
        with unconfined(), self._engine.begin() as connection:  # a lost connection is made anew
            # What a crash of the server forgets of the last moment does no harm; waiting for its disk would.
            connection.execute(text("SET LOCAL synchronous_commit = off"))
            connection.execute(upsert(ByteAccount).values(name=self._name, used=0).on_conflict_do_nothing())
            row = ByteAccount.name == self._name
            used = connection.scalar(select(ByteAccount.used).where(row).with_for_update()) or 0
            if added := by(used):
                connection.execute(update(ByteAccount).where(row).values(used=used + added))
            return added


def night_quota(engine: Engine, limit: int) -> SharedQuota:
    """What may be fetched on the present day, UTC, by the clock of the database: all machines have the same night.

    Each day has an account of its own, so a clock that was wrong costs the budget of no more than the day it showed.
    """
    with engine.connect() as connection:
        today = connection.scalar(select(func.to_char(func.timezone("UTC", func.clock_timestamp()), "YYYY-MM-DD")))
    return SharedQuota(engine, f"night {today}", "byte_budget_night", limit)


def store_quota(engine: Engine, folder: Path, limit: int) -> SharedQuota:
    """What the store's folder on this machine may hold."""
    return SharedQuota(engine, f"store {gethostname()}:{folder}", "disk_quota", limit, kept_only=True)


def bytes_below(folder: Path) -> int:
    """Bytes of all files below `folder`; those that vanish meanwhile are left out."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(root, name), follow_symlinks=False).st_size  # noqa: PTH116, PTH118
    return total


class DownloadQuota:
    """What one download may read. It draws on all given quotas alike and belongs to one thread."""

    def __init__(self, quotas: Sequence[Quota] = ()) -> None:
        self._quotas = quotas
        self._granted = self._spare = 0  # bytes acquired in all, and those of them that were not read

    def check(self, promised: int = 1) -> None:
        """Raises ItemFailed when `promised` bytes, the size that a server declares, don't fit."""
        for quota in self._quotas:
            if (left := quota.left() + self._spare) < promised:
                raise _does_not_fit(quota, promised, left)

    def acquire(self, wanted: int, coming: int | None = None) -> int:
        """Bytes that may be read now, at most `wanted`; 0 when a quota is exhausted.

        Args:
            coming: how many bytes there are still to read, if that is known: no more are taken from others.
        """
        if not self._quotas:
            return wanted
        if not self._spare:
            self._spare = self._grant(GRANT_BYTES if coming is None else min(GRANT_BYTES, coming))
            self._granted += self._spare
        acquired = min(wanted, self._spare)
        self._spare -= acquired
        return acquired

    def _grant(self, size: int) -> int:
        """Acquires up to `size` bytes from every quota; what one of them lacks is refunded to those before it."""
        for number, quota in enumerate(self._quotas):
            granted = quota.acquire(size)
            for earlier in self._quotas[:number]:
                earlier.refund(size - granted)
            size = granted
        return size

    def acquire_all(self, size: int) -> None:
        """Acquires `size` bytes. Raises ItemFailed when a quota is exhausted before."""
        while size:
            acquired = self.acquire(size, size)
            if not acquired:
                raise self.exhausted()
            size -= acquired

    def refund(self, size: int) -> None:
        """Takes back what `acquire` gave and was not read."""
        if self._quotas:
            self._spare += size

    def exhausted(self) -> ItemFailed:
        """Why `acquire` gave nothing."""
        fullest = min(self._quotas, key=lambda quota: quota.left())
        return _does_not_fit(fullest, 1, fullest.left())

    def close(self, kept: int) -> None:
        """Refunds what was not read and, to quotas of what is kept, all but the `kept` bytes."""
        for quota in self._quotas:
            quota.refund(max(0, self._granted - kept) if quota.kept_only else self._spare)
        self._granted = self._spare = 0


def _does_not_fit(quota: Quota, size: int, left: int) -> ItemFailed:
    never = ", and would not into an unused one" if size > quota.limit else ""
    message = f"{size} bytes do not fit into the {left} that are left of {quota.limit}{never}"
    return ItemFailed(quota.reason, message, transient=True, later=True)
