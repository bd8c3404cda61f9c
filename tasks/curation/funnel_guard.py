"""Funnel guard: a step that drops everything, or far more than it used to, stops the release.

The share that each step keeps is held against the releases of the same name and sources before. A step departs from
its history when it keeps less than a set part of its usual share and when so few would hardly be left by chance
(binomial tail). A step that rejects all that it is given needs no history: nobody wants the empty release. What was
taken down counts as neither.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.catalog import Release
from medgen.errors import RunStopped
from medgen.ledger import Ledger, open_ledger
from medgen.parameters import Parameters
from medgen.shard_results import ShardReference, runs_of
from medgen.takedown import BLOCKED, TAKEN_DOWN
from tasks.curation.funnel import funnel

HISTORY = 10  # releases
FEWEST = 5  # subjects of a step from which its share means something
CHANCE = 1e-3


class FunnelDeparted(RunStopped):
    """A step keeps nothing, or far less than it used to. No release was made; what was done stays done."""


class FunnelGuardParams(Parameters):
    """Parameters of the funnel guard. They choose no clip, so they are no part of a release's policy."""

    funnel_guard: Literal["stop", "warn", "off"] = Field(
        "stop", exclude=True, description="What to do when a step keeps nothing, or far less than in releases before."
    )
    funnel_guard_part: float = Field(
        0.5, gt=0, le=1, exclude=True, description="Part of its usual share that a step must keep."
    )


@dataclass(frozen=True)
class Departure:
    """A step that keeps too little.

    Args:
        usual: median share that it kept before, 0 to 1; None without a history.
        chance: probability of keeping so few or fewer at that share, 0 to 1.
        reason: what it gives as its most frequent reason now.
    """

    step: str
    kept: int
    total: int
    usual: float | None
    chance: float
    reason: str

    def __str__(self) -> str:
        usual = "" if self.usual is None else f", where {self.usual:.0%} was usual"
        return (
            f"{self.step} kept {self.kept} of {self.total} ({self.kept / self.total:.0%}){usual}; "
            f"most were dropped for {self.reason}"
        )


def departures(
    table: Sequence[Mapping[str, Any]], history: Sequence[Sequence[Mapping[str, Any]]], part: float
) -> list[Departure]:
    """The steps of a funnel that depart from funnels before it. Without a history: those that rejected everything."""
    from scipy.special import bdtr  # a sixth of a second, which no command should wait for

    departed = []
    for entry in table:
        total, kept = entry["in"], entry["kept"]
        shares = [
            past["kept"] / past["in"]
            for earlier in history
            for past in earlier
            if past["step"] == entry["step"] and past["in"] >= FEWEST
        ]
        usual = median(shares) if shares and total >= FEWEST else None
        chance = 0.0 if usual is None else float(bdtr(kept, total, usual))
        fell = usual is not None and kept < part * usual * total and chance < CHANCE
        if fell or (usual != 0 and not kept and _rejected(entry)):
            ends = {**entry["rejected"], **entry["failed"]}
            departed.append(Departure(entry["step"], kept, total, usual, chance, max(ends, key=lambda r: ends[r])))
    return departed


def _rejected(entry: Mapping[str, Any]) -> int:
    """Subjects that the step itself rejected."""
    return sum(count for reason, count in entry["rejected"].items() if reason not in (TAKEN_DOWN, BLOCKED))


def past_funnels(ledger: Ledger, prefix: str, sources: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Funnels of the newest releases of those sources whose names begin with `prefix`, newest first."""
    with Session(ledger.engine) as session:
        rows = session.execute(
            select(Release.name, Release.step_run_id)
            .where(Release.name.like(f"{prefix}-____________"), Release.policy["sources"] == list(sources))
            .order_by(Release.created_at.desc())
            .limit(HISTORY)
        ).all()
    records = ledger.load([run_id for _, run_id in rows])
    return [json.loads(ledger.store.read(records[run_id].outputs["funnel"])) for _, run_id in rows]


def funnel_departures(
    prefix: str, results: Sequence[ShardReference], sources: Sequence[str], params: FunnelGuardParams
) -> list[Departure]:
    """What departs from the history of releases of that name and those sources, or rejects everything; nothing when
    the guard is off.

    Args:
        results: of all steps on all shards of the refresh.
    """
    if params.funnel_guard == "off":
        return []
    ledger = open_ledger()
    history = past_funnels(ledger, prefix, sources)
    return departures(funnel(ledger, runs_of(results)), history, params.funnel_guard_part)


def stopped(prefix: str, found: Sequence[Departure]) -> FunnelDeparted:
    """The error that tells people what departed and what to do."""
    cause = (
        "a step rejects all that it is given"
        if not any(departure.usual for departure in found)
        else f"the funnel departs from that of earlier releases {prefix}-…"
    )
    return FunnelDeparted(
        f"no release was made, because {cause}: {'; '.join(map(str, found))}. What was done stays done. If this is "
        "meant, run again with funnel_guard=warn; if not, mend the parameter or the source and run again"
    )
