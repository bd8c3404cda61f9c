"""What Prefect's UI shows of a creation: its shots, what is to be checked, and where it lies."""

from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from medgen.markdown import SENTENCE, cell

WRITTEN = SENTENCE + "“”„«»「」。、：；？！¿¡"


def show_creation(summary: Mapping[str, Any]) -> None:
    """Makes the artifacts of a flow run.

    Args:
        summary: as the flow returns it.
    """
    rows = [
        {
            "shot": row["place"],
            "title": cell(row["title"], WRITTEN),
            "videos": row["videos"],
            "score": "–" if row["score"] is None else f"{row['score']:.3f}",
            "faults": ", ".join(row["faults"]).replace("_", " ") or "none",
        }
        for row in summary["shots"]
    ]
    create_table_artifact(rows, key="shots", description="Shots, and the videos that they got.")
    lines = [f"# {cell(summary['topic'], WRITTEN)}", f"`{summary['creation']}` lies in `{summary['folder']}`."]
    if summary["awaits_approval"]:
        lines.append(
            "**Awaits approval**: check each statement, then run the deployment `creation` with this name and the "
            "numbers of the statements."
        )
    lines += [f"{number}. {cell(text, WRITTEN)}" for number, text in enumerate(summary["statements"], 1)]
    create_markdown_artifact("\n\n".join(lines) + "\n", key="creation", description="What was made, and what to check.")
