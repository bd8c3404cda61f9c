"""`medgen train-text`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, out, print_json, report_expected_errors
from apps.progress import stage_bars


def train_text(
    labels: Annotated[
        list[Path],
        typer.Argument(
            help="CSV, JSONL or Parquet files with title and label or is_medical (1/0, yes/no); "
            "description, tags, group (or channel), language."
        ),
    ],
    encoder: Annotated[
        str, typer.Option(help="minilm_int8, minilm, wordllama, or a transformers model by hub name or folder.")
    ] = "minilm_int8",
    background: Annotated[
        str, typer.Option(help="Name of the label file, without suffix, whose false alarms are bounded.")
    ] = "",
    max_background_rate: Annotated[
        float, typer.Option(min=0, max=1, help="At most this share of its non-medical rows may be called medical.")
    ] = 0.01,
    titles: Annotated[str, typer.Option(help="Columns that hold titles, by commas.")] = "title",
    target: Annotated[Path, typer.Option("--out", help="Folder for the head, its scores and its model card.")] = Path(
        "text_head"
    ),
    as_json: Json = False,
) -> None:
    """Train a head that tells medical listings from others by their text; cross-validate it by groups."""
    from medgen.ledger import open_ledger
    from tasks.training import train_text as step

    with report_expected_errors(OSError):
        ledger = open_ledger()
        columns = [name.strip() for name in titles.split(",") if name.strip()]
        with stage_bars(quiet=as_json) as show:
            record, reused = step.train_text(ledger, labels, encoder, background, max_background_rate, columns, show)
        files = step.export(ledger.store, record.outputs, target)
        if as_json:
            facts = {
                **record.detail,
                "reused": reused,
                "artifacts": record.outputs,
                "files": {role: str(path) for role, path in files.items()},
                "data_list": json.loads(ledger.store.read(record.outputs["data_list"])),
            }
            print_json(facts)
            return
        table = Table("cross-validated", "rows", "F1", "recall", "false alarms")
        for name, own in record.detail["cross_validation"]["by_file"].items():
            for label, figures in ((name, own), (f"{name}, titles alone", own.get("by_title_alone"))):
                if figures:
                    values = (figures[key] for key in ("rows", "f1", "recall", "false_alarm_rate"))
                    table.add_row(escape(label), *("" if value is None else str(value) for value in values))
        out.print(table)
        out.print(
            f"{'known already' if reused else 'trained'}: [bold]{escape(str(files['head']))}[/], "
            f"threshold {record.detail['threshold']}",
            soft_wrap=True,
            highlight=False,
        )
