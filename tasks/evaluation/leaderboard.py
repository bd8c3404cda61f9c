"""The leaderboard: systems compared metric by metric, with intervals and paired tests against a baseline.

Values are means over videos, as in VBench. The mean over measured terms is ours: the paper's Total recomputes as
(imaging quality + subject consistency + background consistency + motion smoothness + (100 - error share)) / 6, five
terms over six (arXiv 2507.05675), so that it is shown beside, and each term by itself.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from medgen.canonical import rounded
from models.metrics.statistics import Estimate, grouped_interval, holm, paired
from models.metrics.terms import TERM_MEAN, TERMS
from tasks.evaluation.measured import Measured, System

PLACES = 6


class Interval(TypedDict):
    """A mean over `n` prompts with its 95 % bootstrap interval; None for a single prompt."""

    mean: float
    low: float | None
    high: float | None
    n: int


class LeaderboardRow(TypedDict):
    """One system: `values` by metric, `terms` the measured ones of TERMS, `model` the digest of a model."""

    system: str
    model: str | None
    videos: int
    failed: int
    values: dict[str, Interval]
    terms: list[str]
    paper_total: float | None
    near_copies: int


class PairedTest(TypedDict):
    """One metric of one system against the baseline, over the prompts that both have."""

    system: str
    baseline: str
    metric: str
    difference: Interval
    p: float | None
    adjusted_p: float | None


def metric_family(metric: str) -> str:
    """A metric's name without its backbone."""
    return metric.split("[")[0]


def with_terms(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores and, if any of TERMS is among them, their mean."""
    terms = [value for metric, value in scores.items() if metric_family(metric) in TERMS]
    return dict(scores) | ({TERM_MEAN: sum(terms) / len(terms)} if terms else {})


def compare(
    systems: Sequence[System], measured: Sequence[Measured], baseline: str, seed: int
) -> tuple[list[LeaderboardRow], list[PairedTest]]:
    """Leaderboard rows, best first by mean over measured terms, and paired tests against the baseline."""
    by_system = {system.name: [video for video in measured if video.video.system == system.name] for system in systems}
    board = [_row(system, by_system[system.name], seed) for system in systems]
    board.sort(
        key=lambda row: (-row["values"][TERM_MEAN]["mean"] if TERM_MEAN in row["values"] else 1.0, row["system"])
    )
    tests = [
        test
        for system in systems
        if baseline and system.name != baseline
        for test in _tests(system.name, by_system[system.name], by_system.get(baseline, []), baseline, seed)
    ]
    return board, tests


def _row(system: System, videos: Sequence[Measured], seed: int) -> LeaderboardRow:
    usable = [video for video in videos if video.scores]
    values = {m: _interval(grouped_interval(list(g.values()), seed)) for m, g in sorted(_by_prompt(usable).items())}
    terms = sorted(metric for metric in values if metric_family(metric) in TERMS)
    complete = {metric_family(metric) for metric in terms} == set(TERMS)
    return {
        "system": system.name,
        "model": system.digest,
        "videos": len(usable),
        "failed": len(videos) - len(usable),
        "values": values,
        "terms": terms,
        "paper_total": rounded(100 * sum(values[m]["mean"] for m in terms) / 6, 2) if complete else None,
        "near_copies": sum(bool(video.nearest and video.nearest.near_copy) for video in usable),
    }


def _tests(
    system: str, mine: Sequence[Measured], theirs: Sequence[Measured], baseline: str, seed: int
) -> list[PairedTest]:
    """One test for each metric that both have, over the prompts that both have; a prompt's videos are averaged."""
    ours, reference = _prompt_means(mine), _prompt_means(theirs)
    results = {}
    for metric in sorted(ours.keys() & reference.keys()):
        prompts = sorted(ours[metric].keys() & reference[metric].keys())
        if prompts:
            pairs = [[side[metric][prompt] for prompt in prompts] for side in (ours, reference)]
            results[metric] = paired(pairs[0], pairs[1], seed)
    adjusted = holm({metric: result.p for metric, result in results.items() if result.p is not None})
    return [
        {
            "system": system,
            "baseline": baseline,
            "metric": metric,
            "difference": _interval(result.difference),
            "p": None if result.p is None else rounded(result.p, PLACES),
            "adjusted_p": rounded(adjusted[metric], PLACES) if metric in adjusted else None,
        }
        for metric, result in results.items()
    ]


def _by_prompt(videos: Sequence[Measured]) -> dict[str, dict[str, list[float]]]:
    """metric → prompt → values of the prompt's videos."""
    values: dict[str, dict[str, list[float]]] = {}
    for video in videos:
        for metric, value in with_terms(video.scores).items():
            values.setdefault(metric, {}).setdefault(video.video.prompt_id, []).append(value)
    return values


def _prompt_means(videos: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """metric → prompt → mean over the prompt's videos."""
    return {
        metric: {prompt: sum(values) / len(values) for prompt, values in prompts.items()}
        for metric, prompts in _by_prompt(videos).items()
    }


def _interval(estimate: Estimate) -> Interval:
    low, high = (None if bound is None else rounded(bound, PLACES) for bound in (estimate.low, estimate.high))
    return {"mean": rounded(estimate.mean, PLACES), "low": low, "high": high, "n": estimate.n}
