"""The result of an augmentation experiment for people: table, plot and a page in Markdown."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

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
        | {cell(label): interval(recall) if recall else "not tested" for label, recall in row["recall"].items()}
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
    settings, videos = result["settings"], result["videos"]
    counts = [
        {"class": cell(label), "real videos": str(row["real"]), "sources": str(row["sources"]),
         "synthetic videos": str(row["synthetic"])}
        for label, row in videos.items()
    ]  # fmt: skip
    notes = "".join(f"- {cell(note)}\n" for note in result["notes"]) or "None.\n"
    left_out = [
        {"video": cell(row["name"]), "reason": row["reason"], "what": cell(row["message"])}
        for row in result["left_out"]
    ]
    return f"""# Does synthetic data help?

**{cell(result["headline"])}**

![accuracy by arm]({picture})

{table(table_rows(result))}

Intervals are 95 % bootstrap intervals over {result["seeds"]} seeds and {result["sources"]} test sources
({settings["bootstrap_draws"]} draws, percentiles); differences are paired. {result["comparisons_made"]} differences
stand in these tables: with so many, about one in twenty leaves out 0 by chance alone.

## Against adding as much in other ways

{table(comparison_rows(result))}

## Recall by class

{table(recall_rows(result))}

## What to keep in mind

{notes}
## How it was done

Each of {result["seeds"]} seeds splits the real videos by source into {result["folds"]} folds and tests each once with
a classifier that was trained on the others; synthetic videos are only trained on. All arms of one ratio add the same
number of videos to each class, and all arms are trained for the same number of steps.

- classifier: {cell(settings["classifier"])}, training: {settings["classifier_training"]}, digest
  `{result["classifier_digest"]}`
- data: sha256 `{result["data_digest"]}`

{table(counts)}

### Videos left out

{table(left_out)}
"""


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of one shape as a Markdown table."""
    if not rows:
        return "None."
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([row[name] for name in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(text: str) -> str:
    """Text of others, made harmless for Markdown."""
    return "".join(c if c.isalnum() or c in " .,:;-+_/%×()[]'?!" else " " for c in text).strip()


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
