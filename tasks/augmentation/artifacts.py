"""What Prefect's UI shows of an augmentation experiment: its table and its report."""

import base64
from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from models.classifiers.augmentation_report import markdown, table_rows


def show_experiment(result: Mapping[str, Any], plot: bytes) -> None:
    """Makes the artifacts of a flow run.

    Args:
        result: as the output `result` of the experiment's record.
        plot: PNG.
    """
    create_table_artifact(table_rows(result), key="augmentation", description=result["headline"])
    create_markdown_artifact(
        markdown(result, f"data:image/png;base64,{base64.b64encode(plot).decode()}"),
        key="augmentation-report",
        description="Does synthetic data help?",
    )
