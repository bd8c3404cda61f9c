"""`medgen evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, err, out, parse_settings, print_json, report_expected_errors


def evaluate(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="medgen:NAME, a diffusers folder or a hub name; may be repeated."),
    ] = None,
    videos: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Videos of any other system, commercial ones too; may be repeated."),
    ] = None,
    baseline: Annotated[str, typer.Option(help="What to test against: a model, or NAME of a folder.")] = "",
    prompts: Annotated[
        str, typer.Option(help="medical (packaged), paper (you bring it), or a .txt, .csv, .jsonl.")
    ] = "medical",
    sampling: Annotated[
        str, typer.Option(help="same: one set of settings for all models; own: each its own.")
    ] = "same",
    limit: Annotated[int, typer.Option(help="Only so many prompts, spread over categories; 0: all.")] = 0,
    against: Annotated[str, typer.Option(metavar="RELEASE", help="Look for near copies of its clips.")] = "",
    report: Annotated[Path | None, typer.Option(help="Where the page goes: NAME.html or a folder.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set any parameter, such as metric_subject; see --fields."),
    ] = None,
    retry_quarantined: Annotated[bool, typer.Option(help="Try videos again that failed for good.")] = False,
    fields: Annotated[bool, typer.Option("--fields", help="List every parameter with its default, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Measure generated videos and compare systems: leaderboard, tests against a baseline, near copies, report.

    Models make the videos of the prompts first; folders are measured as they are. A folder's prompts.csv (columns
    file, prompt) says what each video should show; without it a file is matched by the prompt's id in its name.
    """
    from apps.run_flow import run_flow

    with report_expected_errors():
        if fields:
            _show_fields(as_json)
            return
        arguments: dict[str, Any] = parse_settings(settings or []) | {
            "models": model or [],
            "videos": videos or [],
            "baseline": baseline,
            "prompts": prompts,
            "sampling": sampling,
            "limit": limit,
            "against": against,
            "report": str(report.expanduser().resolve()) if report else "",
            "retry_quarantined": retry_quarantined,
        }
        summary = run_flow("evaluate", arguments, quiet=as_json)
        if as_json:
            print_json(summary)
            return
        print_evaluation(summary)


def print_evaluation(summary: dict[str, Any]) -> None:
    """Prints leaderboard, tests, near copies and where the report lies."""
    from tasks.evaluation.tables import leaderboard_rows, paired_rows

    rows = leaderboard_rows(summary["leaderboard"])
    table = Table("", *(escape(row["system"]) for row in rows), title="Leaderboard", title_justify="left")
    for name in [key for key in rows[0] if key != "system"]:
        table.add_row(escape(name), *(escape(row[name]) for row in rows))
    out.print(table)
    _print_sampling(summary["sampling"])
    tests = paired_rows(summary["paired"])
    if tests:
        table = Table(title=f"Against {escape(summary['baseline'])}", title_justify="left")
        tests = [{name: value for name, value in row.items() if name != "baseline"} for row in tests]
        for name in tests[0]:
            table.add_column(name, overflow="fold", min_width=24 if name == "metric" else None)
        for row in tests:
            table.add_row(*(escape(value) for value in row.values()))
        out.print(table)
    _print_frechet(summary["frechet"])
    for name, retrieval in summary["retrieval"].items():
        out.print(
            f"{escape(name)}: {retrieval['right']} of {retrieval['videos']} videos look most like a training clip of "
            f"their own category: {retrieval['accuracy']:.2f} ({retrieval['low']:.2f} to {retrieval['high']:.2f}), "
            f"chance {retrieval['chance']:.2f}",
            highlight=False,
            soft_wrap=True,
        )
    if summary["near_copies"]:
        for row in summary["leaderboard"]:
            colour = "red" if row["near_copies"] else "green"
            sentence = f"{row['near_copies']} of {row['videos']} videos are near copies of training clips"
            out.print(f"{escape(row['system'])}: [{colour}]{sentence}[/]", highlight=False, soft_wrap=True)
    for failure in [*summary["failures"], *summary["not_generated"]]:
        named = failure.get("file") or failure.get("subject")
        line = f"not measured: {failure['system']}, {named}: {failure['why']}"
        err.print(escape(line), highlight=False, soft_wrap=True)
    out.print(f"executed {summary['executed']}, reused {summary['reused']}", highlight=False)
    out.print(f"report: [bold]{escape(summary['report']['html'])}[/]", soft_wrap=True, highlight=False)


def _print_sampling(sampling: Any) -> None:
    """How each system's videos were made, and whether alike."""
    from tasks.evaluation.sampling import sampling_rows, sampling_sentences

    rows = sampling_rows(sampling)
    table = Table(title="How the videos were made", title_justify="left")
    for name in rows[0]:
        long = name == "negative prompt"  # Wan's has 110 signs; the report shows it whole
        table.add_column(name, overflow="ellipsis" if long else "fold", no_wrap=long, max_width=20 if long else None)
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    out.print(table)
    for sentence in sampling_sentences(sampling):
        out.print(escape(sentence), highlight=False, soft_wrap=True)


def _print_frechet(distances: Any) -> None:
    """FID and FVD, if any were measured."""
    from tasks.evaluation.frechet import frechet_table, frechet_warning

    rows = frechet_table(distances)
    if not rows:
        return
    table = Table(*rows[0], title="Fréchet distances to the training clips", title_justify="left")
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    out.print(table)
    out.print(escape(frechet_warning(distances)), highlight=False, soft_wrap=True)


def _show_fields(as_json: bool) -> None:
    from flows.evaluate import EvaluateParameters

    if as_json:
        properties = EvaluateParameters.model_json_schema()["properties"]
        print_json(properties)
        return
    table = Table("name", "default", "meaning")
    for name, field in EvaluateParameters.model_fields.items():
        table.add_row(name, escape(str(field.get_default(call_default_factory=True))), escape(field.description or ""))
    out.print(table)
