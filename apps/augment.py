"""`medgen augment`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, out, parse_settings, print_json, report_expected_errors


def augment(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Real videos: a folder whose sub-folders are labels (below them, folders are sources), a CSV with "
            "path, label, source, MedVidCL, HyperKvasir or SurgVisDom as they come, or the name of a release.",
        ),
    ],
    synthetic: Annotated[
        str, typer.Option(metavar="FOLDER_OR_CSV", help="Synthetic videos: sub-folders or a column are labels.")
    ] = "",
    model: Annotated[
        str, typer.Option(help="Make the synthetic videos with this model: medgen:NAME, a folder or a hub name.")
    ] = "",
    prompts: Annotated[
        str, typer.Option(help="File of prompts (.txt, .csv, .jsonl) or `medical`; their categories are labels.")
    ] = "",
    videos_per_prompt: Annotated[int, typer.Option(min=1, help="Videos that the model makes of each prompt.")] = 1,
    layout: Annotated[
        str, typer.Option(help="How DATA lies: labels, medvidcl, hyperkvasir, surgvisdom, or auto: by what is there.")
    ] = "auto",
    ratio: Annotated[
        list[float] | None, typer.Option(help="Synthetic videos per real one; may be repeated. [0.5, 1, 2]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 5,
    folds: Annotated[int, typer.Option(min=2, help="Parts of the sources; each is tested once for each seed.")] = 3,
    classifier: Annotated[
        str, typer.Option(help="mobilenet_v2, a CLIP-class model or, with --whole, a video classifier.")
    ] = "mobilenet_v2",
    whole: Annotated[bool, typer.Option(help="Train the whole network, not just a head.")] = False,
    leakage: Annotated[
        str, typer.Option(help="Tested sources that the generator was trained on: warn, drop or refuse.")
    ] = "warn",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set any other parameter of the flow."),
    ] = None,
    retry_quarantined: Annotated[bool, typer.Option(help="Try videos again that failed for good.")] = False,
    target: Annotated[Path | None, typer.Option("--out", help="Folder for result, report, plot and data list.")] = None,
    as_json: Json = False,
) -> None:
    """Does synthetic data help a classifier? Real only against real + synthetic, oversampling and augmentation."""
    with report_expected_errors(OSError):
        arguments: dict[str, Any] = {
            "labelled": _absolute(data),
            "synthetic": _absolute(synthetic),
            "model": _absolute(model),
            "prompts": _absolute(prompts),
            "videos_per_prompt": videos_per_prompt,
            "layout": layout,
            "seeds": seeds,
            "folds": folds,
            "classifier": _absolute(classifier),
            "classifier_training": "whole" if whole else "frozen",
            "leakage": leakage,
            "retry_quarantined": retry_quarantined,
        }
        if ratio:
            arguments["ratios"] = ratio
        arguments |= parse_settings(settings or [])
        arguments["video_folder"] = _absolute(str(arguments.get("video_folder", "")))
        _augment(arguments, target, as_json)


def _augment(arguments: dict[str, Any], target: Path | None, as_json: bool) -> None:
    from apps.run_flow import run_flow

    summary = run_flow("augment", arguments, quiet=as_json)
    files = _handed_out(summary, target) if target else {}
    if as_json:
        print_json(summary | {"files": files})
        return
    print_augmentation(summary, files)


def print_augmentation(summary: dict[str, Any], files: dict[str, str]) -> None:
    """Prints the tables, what to keep in mind, and the sentence."""
    from models.classifiers.augmentation_report import comparison_rows, table_rows

    result = summary["result"]
    for title, rows in (("By arm", table_rows(result)), ("Against adding as much otherwise", comparison_rows(result))):
        table = Table(title=title, title_justify="left")
        for column in rows[0] if rows else ():
            table.add_column(column)
        for row in rows:
            table.add_row(*(escape(value) for value in row.values()))
        out.print(table)
    for note in result["notes"]:
        out.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True, highlight=False)
    for video in result["left_out"]:
        line = f"{video['name']} ({video['reason']}: {video['message']})"
        out.print(f"[yellow]left out:[/] {escape(line)}", soft_wrap=True, highlight=False)
    out.print(f"[bold]{escape(result['headline'])}[/]", soft_wrap=True, highlight=False)
    out.print(f"executed {summary['executed']}, reused {summary['reused']}", highlight=False)
    if files:
        out.print(f"written: {escape(', '.join(files.values()))}", soft_wrap=True, highlight=False)


def _handed_out(summary: dict[str, Any], target: Path) -> dict[str, str]:
    from medgen.ledger import open_ledger
    from tasks.augmentation.augment import export

    written = export(open_ledger().store, summary["artifacts"], target)
    return {role: str(path) for role, path in written.items()}


def _absolute(name: str) -> str:
    """A path that exists, as the flow finds it from any folder; other names as they are."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name
