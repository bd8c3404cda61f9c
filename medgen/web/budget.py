"""Budgets of bytes: what may still be fetched by a shard or in a night, and what the store may still hold.

Bytes are taken from a budget in small steps before they are read, and what was taken too much is given back. So a
budget is never exceeded, and a killed process leaves at most one step per download on a night's account, which ends
with the night. The account of the store, where a killed download leaves more, is measured anew for each shard.
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from typing import Protocol

from sqlalchemy import Engine, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medgen.catalog import ByteAccount
from medgen.errors import ItemFailed

STEP = 1 << 20  # bytes taken at once


class Budget(Protocol):
    """Bytes that may be used, up to a limit.

    Args:
        reason: of the failure of an item that does not fit.
        of_kept: it holds what is kept in the end, not all that was read.
    """

    reason: str
    limit: int
    of_kept: bool

    def take(self, wanted: int) -> int:
        """Takes up to `wanted` bytes, those that are left; 0 when there are none."""

    def give_back(self, size: int) -> None:
        """Returns bytes that were taken and not used."""

    def left(self) -> int:
        """Bytes that may still be taken; a moment later it may be fewer."""


class Purse:
    """A budget of one shard, shared by the threads of this process."""

    of_kept = False

    def __init__(self, reason: str, limit: int) -> None:
        self.reason, self.limit = reason, limit
        self._used = 0
        self._lock = threading.Lock()

    def take(self, wanted: int) -> int:
        """See `Budget`."""
        with self._lock:
            granted = max(0, min(wanted, self.limit - self._used))
            self._used += granted
            return granted

    def give_back(self, size: int) -> None:
        """See `Budget`."""
        with self._lock:
            self._used -= size

    def left(self) -> int:
        """See `Budget`."""
        return max(0, self.limit - self._used)


class Account:
    """A budget that all workers of an installation share: a row of `ByteAccount`."""

    def __init__(self, engine: Engine, name: str, reason: str, limit: int, *, of_kept: bool = False) -> None:
        self.reason, self.limit, self.of_kept = reason, limit, of_kept
        self._engine, self._name = engine, name

    def take(self, wanted: int) -> int:
        """See `Budget`."""
        return self._change(lambda used: max(0, min(wanted, self.limit - used)))

    def give_back(self, size: int) -> None:
        """See `Budget`."""
        if size > 0:
            self._change(lambda used: -min(size, used))

    def left(self) -> int:
        """See `Budget`."""
        with self._engine.connect() as connection:
            used = connection.scalar(select(ByteAccount.used).where(ByteAccount.name == self._name))
        return max(0, self.limit - (used or 0))

    def measure(self, used: Callable[[], int]) -> None:
        """Puts what `used` finds on the account; nobody takes from it meanwhile."""
        self._change(lambda old: used() - old)

    def _change(self, by: Callable[[int], int]) -> int:
        with self._engine.begin() as connection:
            # What a crash of the server forgets of the last moment does no harm; waiting for its disk would.
            connection.execute(text("SET LOCAL synchronous_commit = off"))
            connection.execute(upsert(ByteAccount).values(name=self._name, used=0).on_conflict_do_nothing())
            row = ByteAccount.name == self._name
            used = connection.scalar(select(ByteAccount.used).where(row).with_for_update()) or 0
            if added := by(used):
                connection.execute(update(ByteAccount).where(row).values(used=used + added))
            return added


def night_account(engine: Engine, limit: int) -> Account:
    """What may be fetched on the present day, UTC."""
    return Account(engine, f"night {datetime.now(UTC):%Y-%m-%d}", "byte_budget_night", limit)


def store_account(engine: Engine, folder: Path, limit: int) -> Account:
    """What the store's folder on this machine may hold."""
    return Account(engine, f"store {gethostname()}:{folder}", "disk_quota", limit, of_kept=True)


def bytes_below(folder: Path) -> int:
    """Bytes of all files below `folder`; those that vanish meanwhile are left out."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(root, name), follow_symlinks=False).st_size  # noqa: PTH116, PTH118
    return total


class Allowance:
    """What one download may read. It draws on all budgets alike and belongs to one thread."""

    def __init__(self, budgets: Sequence[Budget] = ()) -> None:
        self._budgets = budgets
        self._taken = self._spare = 0

    def check(self, promised: int = 1) -> None:
        """Raises ItemFailed when `promised` bytes, the size that a server tells, don't fit."""
        for budget in self._budgets:
            if (left := budget.left() + self._spare) < promised:
                raise _does_not_fit(budget, promised, left)

    def spend(self, wanted: int, coming: int | None = None) -> int:
        """Bytes that may be read now, at most `wanted`; 0 when a budget is spent.

        Args:
            coming: how many bytes there are still to read, if that is known: no more are taken from others.
        """
        if not self._budgets:
            return wanted
        if not self._spare:
            granted = STEP if coming is None else min(STEP, coming)
            for number, budget in enumerate(self._budgets):
                taken = budget.take(granted)
                for earlier in self._budgets[:number]:
                    earlier.give_back(granted - taken)
                granted = taken
            self._taken += granted
            self._spare = granted
        spent = min(wanted, self._spare)
        self._spare -= spent
        return spent

    def spend_all(self, size: int) -> None:
        """Spends `size` bytes. Raises ItemFailed when a budget is spent before."""
        while size:
            spent = self.spend(size, size)
            if not spent:
                raise self.spent()
            size -= spent

    def unspend(self, size: int) -> None:
        """Takes back what `spend` gave and was not read."""
        if self._budgets:
            self._spare += size

    def spent(self) -> ItemFailed:
        """Why `spend` gave nothing."""
        fullest = min(self._budgets, key=lambda budget: budget.left())
        return _does_not_fit(fullest, 1, fullest.left())

    def settle(self, kept: int) -> None:
        """Gives back what was not read and, where only what is kept counts, all but the `kept` bytes."""
        for budget in self._budgets:
            budget.give_back(max(0, self._taken - kept) if budget.of_kept else self._spare)
        self._taken = self._spare = 0


def _does_not_fit(budget: Budget, size: int, left: int) -> ItemFailed:
    never = ", and would not into an unused one" if size > budget.limit else ""
    message = f"{size} bytes do not fit into the {left} that are left of {budget.limit}{never}"
    return ItemFailed(budget.reason, message, transient=True, later=True)
