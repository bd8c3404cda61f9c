"""Geometry of the pictures. Templates draw them as SVG, by attributes only: the pages allow no inline style."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Bar:
    """A score beside its threshold, on a width of 100.

    Args:
        score, threshold: places from 0 to 100.
        good: [from, to] of the side that passes.
    """

    score: float
    threshold: float
    good: tuple[float, float]
    passed: bool
    words: str


def bar(metric: str, score: float, threshold: float, passes_when: str, passed: bool) -> Bar:
    """Lays out a comparison so that score and threshold both fit."""
    score, threshold = float(score), float(threshold)
    low = min(0.0, score, threshold)
    high = max(score, threshold, low + 1e-9)
    high = 1.0 if low >= 0 and high <= 1.0 and max(score, threshold) > 0.25 else low + (high - low) * 1.15

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    at = place(threshold)
    good = (0.0, at) if passes_when == "at most" else (at, 100.0)
    verdict = "passed" if passed else "failed"
    return Bar(place(score), at, good, passed, f"{metric} {score:g}, wanted {passes_when} {threshold:g}: {verdict}")


def comparisons(step: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every score of a step run that was held against a threshold, with its bar."""
    checks = []
    for check in step["detail"].get("checks") or []:
        if all(isinstance(check.get(k), int | float) for k in ("score", "threshold")) and check.get("passes_when"):
            checks.append(dict(check))
    detail = step["detail"]
    if not checks and all(isinstance(detail.get(k), int | float) for k in ("score", "threshold")):
        lower = detail["score"] > detail["threshold"]
        passed = step["status"] == "kept"
        checks.append(
            {
                "reason": step["reason"],
                "metric": detail.get("metric") or (step["reason"] or "score"),
                "score": detail["score"],
                "threshold": detail["threshold"],
                "passes_when": "at most" if lower != passed else "at least",
                "passed": passed,
            }
        )
    for check in checks:
        names = ("metric", "score", "threshold", "passes_when", "passed")
        check["bar"] = bar(*(check[name] for name in names))
    return checks


@dataclass(frozen=True)
class Strip:
    """A video over time, on a width of 1000: shots, medical probability, stretches and clips.

    Args:
        shots: (x, width, number).
        line: points of the probability, "x,y x,y", y from 0 (sure) to 60 (not at all).
        clips: dicts with x, width, id, status, current.
    """

    seconds: float
    shots: list[tuple[float, float, int]]
    line: str
    area: str
    threshold: float
    clips: list[dict[str, Any]]
    ticks: list[tuple[float, str]]
    dots: list[tuple[float, float, str]]


def strip(
    samples: Sequence[Mapping[str, Any]],
    clips: Sequence[Mapping[str, Any]],
    current: str | None,
    threshold: float,
    seconds: float,
) -> Strip | None:
    """Lays out a video over time. None when nothing is known of its length.

    Args:
        samples: of classify's report: time_s, shot, medical.
        clips: start_s, end_s, id, status.
    """
    end = max([seconds, *(s["time_s"] for s in samples), *(c["end_s"] for c in clips)], default=0.0)
    if end <= 0:
        return None

    def x(time_s: float) -> float:
        return round(1000 * time_s / end, 2)

    shots: list[tuple[float, float, int]] = []
    edges = [0.0]
    for before, after in itertools.pairwise(samples):
        if before["shot"] != after["shot"]:
            edges.append((before["time_s"] + after["time_s"]) / 2)
    edges.append(end)
    if samples:
        shots = [(x(a), round(x(b) - x(a), 2), k) for k, (a, b) in enumerate(itertools.pairwise(edges))]
    thinned = samples[:: max(1, math.ceil(len(samples) / 1500))]
    points = [(x(s["time_s"]), round(60 - 60 * float(s["medical"]), 2)) for s in thinned]
    line = " ".join(f"{a},{b}" for a, b in points)
    area = f"{points[0][0]},60 {line} {points[-1][0]},60" if points else ""
    each = next(s for s in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 1e9) if end / s <= 9)
    ticks = [(x(k * each), _clock(k * each)) for k in range(int(end / each) + 1)]
    dots = [
        (a, b, f"{s['time_s']:g} s: {s['medical']:.2f}")
        for (a, b), s in zip(points, thinned, strict=True)
        if len(thinned) <= 120
    ]
    drawn = [
        {
            "x": x(c["start_s"]),
            "width": max(3.0, round(x(c["end_s"]) - x(c["start_s"]), 2)),
            "id": c["id"],
            "status": c["status"],
            "reason": c.get("reason"),
            "current": c["id"] == current,
            "words": f"{_clock(c['start_s'])} to {_clock(c['end_s'])}",
        }
        for c in clips
    ]
    return Strip(end, shots, line, area, round(60 - 60 * threshold, 2), drawn, ticks, dots)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def funnel_bars(funnel: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The funnel as stacked bars on a width of 100 per unit of what is counted (rows, videos, clips)."""
    most: dict[str, int] = {}
    for entry in funnel:
        most[entry["unit"]] = max(most.get(entry["unit"], 1), entry["in"])
    drawn = []
    for entry in funnel:
        scale = 100 / most[entry["unit"]]
        rejected, failed = sum(entry["rejected"].values()), sum(entry["failed"].values())
        reasons = [(reason, n, "rejected") for reason, n in entry["rejected"].items()]
        reasons += [(reason, n, "failed") for reason, n in entry["failed"].items()]
        drawn.append(
            {
                **{name: entry[name] for name in ("step", "unit", "in", "kept")},
                "rejected": rejected,
                "failed": failed,
                "widths": tuple(round(scale * n, 2) for n in (entry["kept"], rejected, failed)),
                "share": entry["kept"] / entry["in"] if entry["in"] else None,
                "reasons": sorted(reasons, key=lambda r: (-r[1], r[0])),
            }
        )
    return drawn


def histogram(values: Any, bins: int = 24) -> dict[str, Any] | None:
    """Bars of a distribution on a width of 100 and a height of 40, with its quartiles. None without values.

    Args:
        values: float array; what is not finite is left out.
    """
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    if high <= low:
        high = low + 1.0
    count, edges = np.histogram(finite, bins=bins, range=(low, high))
    top = max(1, int(count.max()))
    width = 100 / bins
    bars = [
        {
            "x": round(k * width, 3),
            "y": round(40 - 40 * n / top, 3),
            "height": round(40 * n / top, 3),
            "width": round(width * 0.86, 3),
            "words": f"{edges[k]:.4g} to {edges[k + 1]:.4g}: {n:,}",
        }
        for k, n in enumerate(count.tolist())
    ]
    quartiles = np.percentile(finite, [25, 50, 75])
    return {
        "bars": bars,
        "low": low,
        "high": float(finite.max()),
        "median": float(quartiles[1]),
        "quartiles": (float(quartiles[0]), float(quartiles[2])),
        "count": len(finite),
    }


def shares(counts: Mapping[str, int], most: int = 12) -> list[dict[str, Any]]:
    """Values with their numbers and the width of their bar (100 for the most frequent), the rare ones together."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    if len(ordered) > most:
        rest = sum(n for _, n in ordered[most - 1 :])
        ordered = [*ordered[: most - 1], (f"{len(ordered) - most + 1} others", rest)]
    top, total = max((n for _, n in ordered), default=1), sum(n for _, n in ordered) or 1
    return [{"value": v, "rows": n, "width": round(100 * n / top, 2), "share": n / total} for v, n in ordered]
