"""Funnel guard: a step that suddenly drops everything stops the release.

The share that each step keeps is held against the releases of the same name and sources before. A step departs from
its history when it keeps less than a set part of its usual share and when so few would hardly be left by chance
(binomial tail).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from pydantic import Field
from scipy.special import bdtr
from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.catalog import Release
from medgen.errors import RunStopped
from medgen.ledger import Ledger, open_ledger
from medgen.parameters import Parameters
from medgen.shard_results import ShardReference, runs_of
from tasks.curation.funnel import funnel

HISTORY = 10  # releases
FEWEST = 5  # subjects of a step from which its share means something
CHANCE = 1e-3


class FunnelDeparted(RunStopped):
    """A step keeps far less than it used to. No release was made; what was done stays done."""


class FunnelGuardParams(Parameters):
    """Parameters of the funnel guard. They choose no clip, so they are no part of a release's policy."""

    funnel_guard: Literal["stop", "warn", "off"] = Field(
        "stop", exclude=True, description="What to do when a step keeps far less than in releases before."
    )
    funnel_guard_part: float = Field(
        0.5, gt=0, le=1, exclude=True, description="Part of its usual share that a step must keep."
    )


@dataclass(frozen=True)
class Departure:
    """A step that departs from its history.

    Args:
        usual: median share that it kept before, 0 to 1.
        chance: probability of keeping so few or fewer at that share, 0 to 1.
        reason: what it gives as its most frequent reason now.
    """

    step: str
    kept: int
    total: int
    usual: float
    chance: float
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.step} kept {self.kept} of {self.total} ({self.kept / self.total:.0%}), where {self.usual:.0%} was "
            f"usual; most were dropped for {self.reason}"
        )


def departures(
    table: Sequence[Mapping[str, Any]], history: Sequence[Sequence[Mapping[str, Any]]], part: float
) -> list[Departure]:
    """The steps of a funnel that depart from funnels before it. Without a history none does."""
    departed = []
    for entry in table:
        shares = [
            past["kept"] / past["in"]
            for earlier in history
            for past in earlier
            if past["step"] == entry["step"] and past["in"] >= FEWEST
        ]
        if not shares or entry["in"] < FEWEST:
            continue
        usual, total, kept = median(shares), entry["in"], entry["kept"]
        chance = float(bdtr(kept, total, usual))
        if kept < part * usual * total and chance < CHANCE:
            ends = {**entry["rejected"], **entry["failed"]}
            departed.append(Departure(entry["step"], kept, total, usual, chance, max(ends, key=lambda r: ends[r])))
    return departed


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
    """What departs from the history of releases of that name and those sources; nothing when the guard is off.

    Args:
        results: of all steps on all shards of the refresh.
    """
    if params.funnel_guard == "off":
        return []
    ledger = open_ledger()
    history = past_funnels(ledger, prefix, sources)
    return departures(funnel(ledger, runs_of(results)), history, params.funnel_guard_part) if history else []


def stopped(prefix: str, found: Sequence[Departure]) -> FunnelDeparted:
    """The error that tells people what departed and what to do."""
    return FunnelDeparted(
        f"no release was made, because the funnel departs from that of earlier releases {prefix}-…: "
        f"{'; '.join(map(str, found))}. What was done stays done. If this is meant, run again with "
        "funnel_guard=warn; if not, mend the parameter or the source and run again"
    )
