"""Plan: what a refresh of so many listings would cost, by measured rates. Arithmetic alone: nothing is run.

Steps that see videos cost by the second of video, the others by the clip (`tasks.operations.rates.UNITS`). Works run at
once in the workers of all machines; what runs in the main process, and its records, more machines don't speed up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

from medgen.errors import RunStopped
from tasks.curation.steps import STEP_NAMES
from tasks.curation.steps import UNITS as COUNTED
from tasks.operations.rates import UNITS, General, Sourced, StepRate

HOUR_S = 3600.0
RECORDS = "records"  # name of the row of what the records cost
STEPS = (*STEP_NAMES, "release")

Place = Literal["workers", "network", "main"]
PLACES: Mapping[str, Place] = {
    "discover": "workers",
    "download": "network",
    "segment": "workers",
    "classify": "workers",
    "cut": "workers",
    "quality": "workers",
    "decide": "main",
    "deduplicate": "main",
    "privacy": "workers",
    "caption": "main",  # as long as no model is asked
    "release": "main",
    RECORDS: "main",
}
"""Where a step's works run; see `medgen.shard.Step.runs_in`."""


class NoPlan(RunStopped):
    """What was asked makes no sense, or a rate is missing."""


@dataclass(frozen=True)
class Scope:
    """What is to be planned.

    Args:
        listings: rows of listings; or `videos`, that discover would keep. One of them.
        workers, download_workers: of each machine.
        mbit: of the line that all machines share, megabits per second.
        hosts, request_interval_s: that the videos come from, and between two requests to one.
        video_seconds: mean length of a video; None: as measured.
        clips_per_video: stretches of a video that classify keeps; None: by the second of video, as measured.
        keep: step → share of its items that pass, in place of the measured one.
        tokens_in, tokens_out: of a captioner by clip; None: as measured.
        price_in, price_out: of a million tokens.
        gpu_seconds: of a GPU, by caption; None: as measured.
    """

    listings: int | None = None
    videos: int | None = None
    workers: int = 1
    download_workers: int = 4
    machines: int = 1
    mbit: float = 100.0
    hosts: int = 1
    request_interval_s: float = 0.0
    video_seconds: float | None = None
    clips_per_video: float | None = None
    keep: Mapping[str, float] = field(default_factory=dict)
    tokens_in: float | None = None
    tokens_out: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    gpu_seconds: float | None = None

    def check(self) -> None:
        """Raises NoPlan for what makes no sense."""
        if (self.listings is None) == (self.videos is None):
            raise NoPlan("say how many listings or how many videos, one of them")
        for name in (
            "listings",
            "videos",
            "clips_per_video",
            "price_in",
            "price_out",
            "tokens_in",
            "tokens_out",
            "gpu_seconds",
        ):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value >= 0):
                raise NoPlan(f"{name} must be a finite number of at least 0, not {value}")
        if not (isfinite(self.request_interval_s) and self.request_interval_s >= 0):
            raise NoPlan(f"request_interval_s must be a finite number of at least 0, not {self.request_interval_s}")
        for name in ("workers", "download_workers", "machines", "mbit", "hosts", "video_seconds"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise NoPlan(f"{name} must be a finite number above 0, not {value}")
        for step, share in self.keep.items():
            if step not in STEP_NAMES:
                raise NoPlan(f"there is no step {step!r} to keep a share of; there are {', '.join(STEP_NAMES)}")
            if not 0 <= share <= 1:
                raise NoPlan(f"the share that {step} keeps is 0 to 1, not {share}")


@dataclass(frozen=True)
class StepCost:
    """What one step costs. Hours, bytes; `cost` in the currency of the prices.

    Args:
        unit: what `items` and `kept` count.
        worker_hours: of worker processes and of the main process; waiting for the network is none.
        elapsed_hours: of the clock, were the step alone.
        rates: where they come from.
    """

    step: str
    unit: str
    items: float
    kept: float
    place: Place
    worker_hours: float = 0.0
    elapsed_hours: float = 0.0
    gpu_hours: float = 0.0
    store_bytes: float = 0.0
    catalog_bytes: float = 0.0
    cost: float = 0.0
    rates: str = ""


SUMS = ("worker_hours", "elapsed_hours", "gpu_hours", "store_bytes", "catalog_bytes", "cost")


@dataclass(frozen=True)
class Plan:
    """What a refresh costs.

    Args:
        steps: in order; the last is that of the records.
        totals: name of `SUMS` → sum over the steps.
        least_hours: of the clock, were downloads, workers and the main process busy side by side from start to end.
        step_runs: that go on record.
        decodes: video files opened for decoding; None: not measured.
        worker_bytes: most memory of a worker process; None: not measured.
        assumed: sentences on what it all rests on.
    """

    steps: tuple[StepCost, ...]
    totals: Mapping[str, float]
    least_hours: float
    step_runs: float
    decodes: float | None
    worker_bytes: float | None
    assumed: tuple[str, ...]


def plan(scope: Scope, rates: Sourced) -> Plan:
    """The plan. Raises NoPlan."""
    scope.check()
    general = rates.general
    seconds = scope.video_seconds or general.video_seconds
    if seconds is None:
        raise NoPlan("no length of videos was measured: say one with --video-seconds")
    costs: list[StepCost] = []
    items = float(scope.listings if scope.listings is not None else scope.videos or 0)
    for step in STEPS if scope.videos is None else STEPS[1:]:
        if step == "cut":
            items *= _clips_per_video(scope, general, seconds)
        if step not in rates.steps:
            raise NoPlan(f"nothing was measured of {step}")
        costs.append(step_cost(step, items, seconds, scope, rates))
        items = costs[-1].kept
    runs = sum(cost.items for cost in costs if cost.step not in ("discover", "release"))
    hours = runs * (general.record_seconds or 0.0) / HOUR_S
    told = "measured here" if "record_seconds" in rates.here else "shipped"
    costs.append(StepCost(RECORDS, "step runs", runs, runs, "main", hours, hours, rates=told))
    downloads = next(cost.items for cost in costs if cost.step == "download")
    return Plan(
        steps=tuple(costs),
        totals={name: sum(getattr(cost, name) for cost in costs) for name in SUMS},
        least_hours=max(
            sum(cost.elapsed_hours for cost in costs if cost.place == place) for place in ("workers", "network", "main")
        ),
        step_runs=runs,
        decodes=None if general.decodes is None else general.decodes * downloads,
        worker_bytes=general.worker_bytes,
        assumed=_assumed(scope, rates, seconds),
    )


def _clips_per_video(scope: Scope, general: General, seconds: float) -> float:
    return seconds * (general.clips_per_video_second or 0.0) if scope.clips_per_video is None else scope.clips_per_video


def step_cost(step: str, items: float, video_seconds: float, scope: Scope, rates: Sourced) -> StepCost:
    """What a step costs for so many items. Raises NoPlan where there is a price and nobody knows the tokens."""
    rate, general = rates.steps[step], rates.general
    amount = items * (video_seconds if UNITS[step] == "video seconds" else 1.0)
    share = 1.0 if step == "release" else scope.keep.get(step, rate.kept)
    place, busy, gpu = PLACES[step], rate.seconds, rate.gpu_seconds
    cost = 0.0
    if step == "caption":
        if scope.gpu_seconds is not None:
            busy = gpu = scope.gpu_seconds
        tokens_in, tokens_out = _tokens(scope, general)
        cost = items * (tokens_in * scope.price_in + tokens_out * scope.price_out) / 1e6
        if gpu or tokens_in or tokens_out:
            place = "network"
    hours = amount * busy / HOUR_S
    return StepCost(
        step=step,
        unit=COUNTED.get(step, "clips"),
        items=items,
        kept=items * share,
        place=place,
        worker_hours=0.0 if place == "network" else hours,
        elapsed_hours=_elapsed(step, place, items, hours, amount, rate, scope, gpu > 0),
        gpu_hours=amount * gpu / HOUR_S,
        store_bytes=amount * rate.store_bytes,
        catalog_bytes=0.0 if step in ("discover", "release") else items * (general.catalog_bytes or 0.0),
        cost=cost,
        rates=f"measured here on {rate.items:,} {'rows' if step == 'discover' else 'items'}"
        if step in rates.here
        else f"shipped, on {rate.items:,}",
    )


def _tokens(scope: Scope, general: General) -> tuple[float, float]:
    """Tokens by clip (sent, answered). Raises NoPlan where there is a price and nobody knows them."""
    tokens_in = general.tokens_in if scope.tokens_in is None else scope.tokens_in
    tokens_out = general.tokens_out if scope.tokens_out is None else scope.tokens_out
    if (scope.price_in and tokens_in is None) or (scope.price_out and tokens_out is None):
        raise NoPlan(
            "no captioner's tokens are on record here, and none come along: say how many a clip takes with "
            "--caption-tokens-in and --caption-tokens-out"
        )
    return tokens_in or 0.0, tokens_out or 0.0


def _elapsed(
    step: str, place: Place, items: float, hours: float, amount: float, rate: StepRate, scope: Scope, on_gpu: bool
) -> float:
    """Hours of the clock."""
    if place == "main":
        return hours
    if place == "workers":
        return hours / (scope.workers * scope.machines)
    if on_gpu:
        return hours / scope.machines
    waiting = hours / (scope.download_workers * scope.machines)
    if step != "download":
        return waiting
    line = amount * rate.store_bytes * 8 / (scope.mbit * 1e6) / HOUR_S
    polite = items * scope.request_interval_s / scope.hosts / HOUR_S
    return max(waiting, line, polite)


def _assumed(scope: Scope, rates: Sourced, seconds: float) -> tuple[str, ...]:
    """What the figures rest on, in sentences."""
    general = rates.general
    length = "as asked" if scope.video_seconds else _told("video_seconds", rates)
    clips = "as asked" if scope.clips_per_video is not None else _told("clips_per_video_second", rates)
    said = [
        f"{scope.machines} machine(s) of {scope.workers} worker(s) and {scope.download_workers} download(s) at once; "
        f"one line of {scope.mbit:g} Mbit/s; videos from {scope.hosts} host(s), {scope.request_interval_s:g} s between "
        "two requests to one",
        f"videos of {seconds:.1f} s ({length}), {_clips_per_video(scope, general, seconds):.3g} clips of each that "
        f"classify keeps ({clips})",
    ]
    if shipped := [step for step in STEPS if step not in rates.here]:
        said.append(
            f"shipped rates ({', '.join(shipped)}) were measured on {rates.origin}; shares kept are those of that "
            "material: set them with --keep"
        )
    if scope.keep:
        said.append("shares as asked: " + ", ".join(f"{step} {share:g}" for step, share in sorted(scope.keep.items())))
    if general.catalog_bytes is None:
        said.append("size of the catalog: not measured")
    if not (scope.price_in or scope.price_out):
        said.append("captions cost nothing: no price was named")
    return tuple(said)


def _told(name: str, rates: Sourced) -> str:
    return "measured here" if name in rates.here else "shipped"


def as_json(made: Plan) -> dict[str, Any]:
    """The plan as JSON facts."""
    return {**vars(made), "steps": [vars(cost) for cost in made.steps], "assumed": list(made.assumed)}
