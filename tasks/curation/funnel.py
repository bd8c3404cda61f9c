"""The funnel: how many subjects each step kept, rejected and failed, and why. As a table and a picture."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sqlalchemy import CompoundSelect, Select, func, or_, select

from medgen.among import PAGE
from medgen.catalog import StepRun
from medgen.ledger import Ledger
from medgen.markdown import table as markdown_table
from tasks.curation.steps import UNITS


def funnel(ledger: Ledger, runs: Select[tuple[int]] | CompoundSelect[tuple[int]]) -> list[dict[str, Any]]:
    """One entry per step: step, unit, in, kept, and rejected and failed as reason → count.

    Args:
        runs: query for the ids of all step runs of a refresh, each once; one of discover tells of many rows.
    """
    of_refresh = runs.subquery()
    counted = (
        select(StepRun.step, StepRun.status, StepRun.reason, func.count())
        .join(of_refresh, of_refresh.c.id == StepRun.id)
        .where(or_(StepRun.step != "discover", StepRun.status == "failed"))
        .group_by(StepRun.step, StepRun.status, StepRun.reason)
    )
    listings = (
        select(StepRun.detail["counts"])
        .join(of_refresh, of_refresh.c.id == StepRun.id)
        .where(StepRun.step == "discover", StepRun.status != "failed")
    )
    ends: dict[tuple[str, str], Counter[str]] = {}
    with ledger.engine.connect() as connection:
        for step, status, reason, count in connection.execute(counted):
            ends.setdefault((step, status), Counter())[reason or ""] += count
        for counts in connection.execution_options(yield_per=PAGE).scalars(listings):
            for verdict, count in counts.items():
                status, _, reason = verdict.partition(" ")
                ends.setdefault(("discover", status), Counter())[reason] += count
    table = []
    for step, unit in UNITS.items():
        kept = ends.get((step, "kept"), Counter()).total()
        rejected = dict(sorted(ends.get((step, "rejected"), Counter()).items()))
        failed = dict(sorted(ends.get((step, "failed"), Counter()).items()))
        total = kept + sum(rejected.values()) + sum(failed.values())
        table.append(
            {
                "step": step,
                "unit": unit,
                "in": total,
                "kept": kept,
                "rejected": rejected,
                "failed": failed,
            }
        )
    return table


def reasons(entry: Mapping[str, Any]) -> str:
    """Why a step dropped what it dropped, most frequent first, as one line."""
    both = [*entry["rejected"].items(), *((f"{reason} (failed)", n) for reason, n in entry["failed"].items())]
    return ", ".join(f"{reason} {count}" for reason, count in sorted(both, key=lambda pair: (-pair[1], pair[0])))


# Stages of the paper's filtering → the reasons by which decide drops clips there, in the order of its checks.
STAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "at least 480p": ("resolution_too_low",),
        "black borders": ("border_not_croppable",),
        "overlay text": ("overlay_text",),
        "aesthetics": ("poor_aesthetic",),
        "technical quality": ("poor_technical_quality",),
        "stills and defects": (
            "still_picture", "panned_photograph", "blurred", "frozen", "black", "flicker", "interlaced", "blocky",
            "noisy",
        ),
        "mediocre in both": ("mediocre",),
    }
)  # fmt: skip


def stages(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is left after each stage, as the paper counts: stage, unit, left. A clip is dropped where it fails first."""
    steps = {entry["step"]: entry for entry in table}
    if not {"discover", "decide"} <= steps.keys():
        return []
    rows = [{"stage": "listed", "unit": "videos", "left": steps["discover"]["in"]}]
    rows.append({"stage": "medical by title and description", "unit": "videos", "left": steps["discover"]["kept"]})
    decided = steps["decide"]
    left = decided["in"] - sum(decided["failed"].values())
    rows.append({"stage": "segmented", "unit": "clips", "left": left})
    for stage, dropped_for in STAGES.items():
        left -= sum(decided["rejected"].get(reason, 0) for reason in dropped_for)
        rows.append({"stage": stage, "unit": "clips", "left": left})
    return rows


def table_rows(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The funnel with one flat row per step, for people."""
    return [
        {
            "step": entry["step"],
            "unit": entry["unit"],
            "in": entry["in"],
            "kept": entry["kept"],
            "rejected": sum(entry["rejected"].values()),
            "failed": sum(entry["failed"].values()),
            "reasons": reasons(entry),
        }
        for entry in table
    ]


def markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """The funnel as a Markdown table."""
    return markdown_table(table_rows(table), align="llrrrrl")


def picture(table: Sequence[Mapping[str, Any]]) -> bytes:
    """The funnel as a PNG; the same table gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [f"{entry['step']}\n({entry['unit']})" for entry in table]
    kept = [entry["kept"] for entry in table]
    rejected = [sum(entry["rejected"].values()) for entry in table]
    failed = [sum(entry["failed"].values()) for entry in table]
    axes.bar(names, kept, label="kept", color="#2a7f62")
    axes.bar(names, rejected, bottom=kept, label="rejected", color="#c9a227")
    axes.bar(
        names, failed, bottom=[a + b for a, b in zip(kept, rejected, strict=True)], label="failed", color="#b23a48"
    )
    for index, entry in enumerate(table):
        axes.annotate(f"{entry['kept']} of {entry['in']}", (index, entry["in"]), ha="center", va="bottom", fontsize=9)
    axes.set_ylim(0, 1.1 * max(1, *(entry["in"] for entry in table)))
    axes.set_ylabel("subjects")
    axes.set_title("What each step kept")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": ""})  # type: ignore[no-untyped-call]  # matplotlib has no types
    return buffer.getvalue()
