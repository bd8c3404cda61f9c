"""Time left: what waits for each step by what is on record, and how long it takes by the rates.

Items that a run does again, because parameters changed, wait only once an earlier step has done them again; listings
that are not read yet are nobody's items.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Engine, text

from tasks.curation.steps import STEP_NAMES, UNITS
from tasks.operations.plan import Scope, step_cost
from tasks.operations.rates import Sourced, installation_rates

RATES_FOR_S = 600.0  # rates are measured anew after so long
LIMIT_MS = 20_000  # of a query: nobody waits long for a forecast
STEPS = STEP_NAMES[1:]  # those after discover, whose items are rows of listings


@dataclass(frozen=True)
class StepLeft:
    """What is left for a step.

    Args:
        waiting: items that the step before passed and that this one has not decided on.
        expected: those, and what the steps before it will pass on, by the shares that they keep.
        seconds: of the clock, for the expected ones, with this machine's workers; None: downloads, of which too few are
            on record here to tell.
        here: whether that is by rates of this installation.
    """

    step: str
    waiting: int
    expected: float
    seconds: float | None
    here: bool


def time_left(engine: Engine, rates: Sourced, workers: int, download_workers: int) -> list[StepLeft]:
    """What is left for the steps after discover, in order."""
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL statement_timeout = {LIMIT_MS}"))
        passed = {step: int(count) for step, count in connection.execute(text(_PASSED))}
        stretches = int(connection.execute(text(_STRETCHES)).scalar_one())
    scope = Scope(videos=0, workers=workers, download_workers=download_workers, mbit=1e6)
    seconds = rates.general.video_seconds or 0.0
    left: list[StepLeft] = []
    coming = 0.0
    for step, before in zip(STEPS, STEP_NAMES, strict=False):
        if step == "cut":
            coming *= seconds * (rates.general.clips_per_video_second or 0.0)
        waiting = stretches if step == "cut" else passed.get(before, 0)
        cost = step_cost(step, waiting + coming, seconds, scope, rates)
        here = step in rates.here
        known = here or step != "download"
        left.append(StepLeft(step, waiting, cost.items, cost.elapsed_hours * 3600 if known else None, here))
        coming = cost.kept
    return left


def told(left: Sequence[StepLeft]) -> str:
    """One sentence for a log: what waits, how long it takes, and what nobody knows yet."""
    waiting = ", ".join(f"{one.step} {one.waiting:,} {UNITS[one.step]}" for one in left if one.waiting)
    if not waiting:
        return "left on record: nothing waits for a step"
    known = sum(one.seconds for one in left if one.seconds is not None)
    said = f"left on record: {waiting}; about {duration(known)} of work"
    if left[0].expected and left[0].seconds is None:
        said += ", and downloads, whose time is not known yet"
    shipped = [one.step for one in left if one.expected and not one.here and one.seconds is not None]
    return said + (f" (by shipped rates: {', '.join(shipped)})" if shipped else "")


def duration(seconds: float) -> str:
    """Rounded, for people: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@dataclass
class Forecast:
    """Time left of an installation, asked again and again: the rates are kept for a while."""

    engine: Engine
    workers: int
    download_workers: int
    _rates: Sourced | None = None
    _measured: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def left(self) -> list[StepLeft]:
        """As `time_left`."""
        with self._lock:
            if self._rates is None or time.monotonic() - self._measured > RATES_FOR_S:
                self._rates, self._measured = installation_rates(self.engine), time.monotonic()
            rates = self._rates
        return time_left(self.engine, rates, self.workers, self.download_workers)


# A clip that privacy made anew stands for itself; the one that it replaces waits for nothing.
_PASSED = """
SELECT item.step, count(*) FROM item_status item
WHERE item.status = 'kept' AND item.step NOT IN ('classify', 'caption', 'forget')
  AND NOT (item.step = 'privacy'
           AND EXISTS (SELECT FROM clip WHERE clip.step_run_id = item.run_id AND clip.id <> item.id))
GROUP BY item.step
"""
# Of videos that classify kept and nothing was cut of yet.
_STRETCHES = """
SELECT coalesce(sum(jsonb_array_length(run.detail -> 'clips')), 0)
FROM item_status item JOIN step_run run ON run.id = item.run_id
WHERE item.step = 'classify' AND item.status = 'kept' AND item.kind = 'video'
  AND NOT EXISTS (SELECT FROM item_status part WHERE part.video_id = item.id AND part.kind <> 'video')
"""
