"""The result of an augmentation experiment for people: table, plot and a page in Markdown."""

import io
from collections.abc import Mapping
from typing import Any

from medgen.markdown import SENTENCE, cell, render
from models.classifiers.augmentation import ADDING, NAMES

COLOURS = {"synthetic": "#2a7f62", "oversampled": "#c9a227", "standard": "#3b6ea5"}


def table_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """One flat row per arm."""
    return [
        {
            "arm": row["arm"],
            "trained on": f"{row['videos']:g}",
            "accuracy": interval(row["accuracy"]),
            "macro-F1": interval(row["macro_f1"]),
            "difference to real only": interval(row["difference"]["accuracy"], signed=True) if "difference" in row
            else "",
            "verdict": row.get("verdict", "").partition(":")[0],
        }
        for row in result["arms"]
    ]  # fmt: skip


def comparison_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """One flat row per comparison of synthetic videos with another way of adding as many."""
    return [
        {
            "arm": row["arm"],
            "against": row["against"],
            "accuracy": interval(row["difference"]["accuracy"], signed=True),
            "macro-F1": interval(row["difference"]["macro_f1"], signed=True),
            "verdict": row["verdict"].partition(":")[0],
        }
        for row in result["comparisons"]
    ]


def recall_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """One flat row per arm: the recall of each class."""
    return [
        {"arm": row["arm"]}
        | {
            cell(label, SENTENCE): interval(recall) if recall else "not tested"
            for label, recall in row["recall"].items()
        }
        for row in result["arms"]
    ]


def interval(figure: Mapping[str, float], *, signed: bool = False) -> str:
    """``0.75 [0.60, 0.88]``."""
    sign = "+" if signed else ""
    return "{0:{3}.2f} [{1:{3}.2f}, {2:{3}.2f}]".format(figure["value"], figure["low"], figure["high"], sign)


def markdown(result: Mapping[str, Any], picture: str) -> str:
    """The whole report.

    Args:
        picture: address of the plot: a file's name, or a data URL.
    """
    counts = [
        {
            "class": cell(label, SENTENCE),
            "real videos": row["real"],
            "sources": row["sources"],
            "synthetic videos": row["synthetic"],
        }
        for label, row in result["videos"].items()
    ]
    left_out = [
        {"video": cell(row["name"], SENTENCE), "reason": row["reason"], "what": cell(row["message"], SENTENCE)}
        for row in result["left_out"]
    ]
    return render(
        "models.classifiers",
        "augmentation_report.md.jinja",
        result=result,
        picture=picture,
        sentence=SENTENCE,
        arms=table_rows(result),
        comparisons=comparison_rows(result),
        recalls=recall_rows(result),
        counts=counts,
        left_out=left_out,
    )


def plot(result: Mapping[str, Any]) -> bytes:
    """Accuracy over the ratio of added videos as a PNG; the same result gives the same bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    real = next(row for row in result["arms"] if row["kind"] == "real")["accuracy"]
    axes.axhspan(real["low"], real["high"], color="#8884", linewidth=0)
    axes.axhline(real["value"], color="#555", label=NAMES["real"])
    ratios = sorted({row["ratio"] for row in result["arms"] if row["ratio"]})
    for place, kind in enumerate(ADDING):
        rows = [row for row in result["arms"] if row["kind"] == kind]
        x = [ratios.index(row["ratio"]) + 0.12 * (place - 1) for row in rows]
        y = [row["accuracy"]["value"] for row in rows]
        # A percentile interval need not hold the value.
        below = [max(0.0, row["accuracy"]["value"] - row["accuracy"]["low"]) for row in rows]
        above = [max(0.0, row["accuracy"]["high"] - row["accuracy"]["value"]) for row in rows]
        axes.errorbar(x, y, yerr=(below, above), fmt="o-", capsize=3, color=COLOURS[kind], label=NAMES[kind])
    axes.set_xticks(range(len(ratios)), [f"×{ratio:g}" for ratio in ratios])
    axes.set_xlabel("videos added, of the real training videos")
    axes.set_ylabel("accuracy, 95 % interval")
    axes.set_title("Tested on real videos of sources that were not trained on")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": ""})
    return buffer.getvalue()
