"""What Prefect's UI shows of a training: clips left out, pre-flight's checks, losses and the model."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from medgen.counted import counted
from medgen.ledger import Ledger
from tasks.operations.failures import failures
from tasks.operations.failures import table_rows as failure_rows
from tasks.training.training_report import loss_rows


def show_not_encoded(ledger: Ledger, records: Sequence[int]) -> None:
    """A table of the clips that could not be encoded, by the ids of their records."""
    create_table_artifact(failure_rows(failures(ledger, records)), key="not-encoded", description="Clips left out.")


def show_checks(checks: Sequence[Mapping[str, str]]) -> None:
    """A table of pre-flight's checks, if there were any."""
    if checks:
        create_table_artifact(list(map(dict, checks)), key="preflight", description="What was checked beforehand.")


def show_model(summary: Mapping[str, Any], plot: bytes) -> None:
    """Losses, a page on the model and a link to its folder.

    Args:
        summary: as the flow returns it.
        plot: PNG of the losses.
    """
    rows = loss_rows(summary["validations"])
    create_table_artifact(rows, key="losses", description="Losses at fixed noise, by step.")
    encoded = base64.b64encode(plot).decode()
    create_markdown_artifact(
        f"# Model {summary['name']}\n\ndigest `{summary['model']}`\n\ntrained on the release {summary['release']}: "
        f"{counted(summary['train_clips'], 'clip')}, {summary['held_out_clips']} held out, {summary['steps']} steps\n\n"
        f"![losses](data:image/png;base64,{encoded})\n\n`medgen show {summary['name']}` lists what trained it.\n",
        key="model",
        description="The model that this run trained.",
    )
    if summary["folder"]:
        create_link_artifact(Path(summary["folder"]).as_uri(), key="model-folder", link_text=summary["name"])
