"""What Prefect's UI shows of an evaluation: leaderboard, paired tests, counts and where the report lies."""

from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.evaluation.frechet import frechet_table, frechet_warning
from tasks.evaluation.sampling import sampling_rows, sampling_sentences
from tasks.evaluation.tables import leaderboard_rows, paired_rows


def show_evaluation(summary: Mapping[str, Any]) -> None:
    """Makes the artifacts of a flow run.

    Args:
        summary: as the flow returns it.
    """
    create_table_artifact(leaderboard_rows(summary["leaderboard"]), key="leaderboard", description="Systems compared.")
    if summary["paired"]:
        create_table_artifact(paired_rows(summary["paired"]), key="paired", description="Against the baseline.")
    create_table_artifact(
        sampling_rows(summary["sampling"]),
        key="sampling",
        description=" ".join(["How videos were made.", *sampling_sentences(summary["sampling"])]),
    )
    if summary["frechet"]:
        create_table_artifact(
            frechet_table(summary["frechet"]), key="frechet", description=frechet_warning(summary["frechet"])
        )
    lines = [
        "# Evaluation",
        f"report: `{summary['report']['html']}`",
        f"executed {summary['executed']}, reused {summary['reused']}, videos decoded {summary['decodes']}; "
        f"{len(summary['failures'])} videos not measured, {len(summary['not_generated'])} not generated",
    ]
    for name, probe in summary["retrieval"].items():
        lines.append(
            f"retrieval of the own category, `{name}`: {probe['accuracy']:.3f} ({probe['low']:.3f} to "
            f"{probe['high']:.3f}), chance {probe['chance']:.3f}"
        )
    create_markdown_artifact("\n\n".join(lines) + "\n", key="evaluation", description="What this evaluation found.")
