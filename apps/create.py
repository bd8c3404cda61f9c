"""`medgen create`."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, err, out, parse_settings, print_json, report_expected_errors, stop


def create(
    use: Annotated[
        str,
        typer.Argument(help="surgical-training, patient-education, remote-consultation or popular-science."),
    ] = "",
    topic: Annotated[
        str,
        typer.Option(help="What it is about, in the video's language; complaints of a consultation: with ; between."),
    ] = "",
    language: Annotated[str, typer.Option(help="Of titles and subtitles: en, de, es, fr, hi, ja, pt or zh.")] = "en",
    model: Annotated[
        str, typer.Option(help="medgen:NAME, a diffusers folder or a hub name; empty: the newest on record.")
    ] = "",
    writer: Annotated[
        str, typer.Option(help="Who words the storyboard: template, openai:MODEL or transformers:NAME_OR_FOLDER.")
    ] = "template",
    personas: Annotated[int, typer.Option(help="remote-consultation: simulated patients.")] = 6,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set any other parameter, such as judge_model; see --fields."),
    ] = None,
    retry_quarantined: Annotated[bool, typer.Option(help="Try items again that failed for good.")] = False,
    fields: Annotated[bool, typer.Option("--fields", help="List every parameter with its default, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Make a video for a use: storyboard, shots, subtitles, content credentials. A draft, until a person approves it.

    Kill it whenever you like; run it again to go on. Nothing is made twice.
    """
    from apps.run_flow import run_flow

    with report_expected_errors():
        if fields:
            _show_fields(as_json)
            return
        _check(use, topic)
        arguments: dict[str, Any] = {
            "use": use, "topic": topic, "language": language, "model": model, "writer": writer, "personas": personas,
            "retry_quarantined": retry_quarantined,
        }  # fmt: skip
        summary = run_flow("create", arguments | parse_settings(settings or []), quiet=as_json)
        if as_json:
            print_json(summary)
            return
        print_creation(summary)


def _check(use: str, topic: str) -> None:
    """Says what is wrong with use and topic before a server is started for them."""
    from medgen.parameters import suggestion
    from models.storyboards.storyboard import USES

    if use not in USES:
        stop(f"a use is one of {', '.join(USES)}, not {use!r}{suggestion(use, USES)}", code=2)
    if not topic.strip():
        stop("say by --topic what the video is about", code=2)


def print_creation(summary: dict[str, Any]) -> None:
    """Prints the shots, where the video lies, and what has to be checked."""
    table = Table("shot", "title", "videos", "score", "faults", title=escape(summary["topic"]), title_justify="left")
    for row in summary["shots"]:
        score = "–" if row["score"] is None else f"{row['score']:.3f}"
        faults = ", ".join(row["faults"]).replace("_", " ") or "none"
        table.add_row(str(row["place"]), escape(row["title"]), str(row["videos"]), score, faults)
    out.print(table)
    out.print(f"executed {summary['executed']}, reused {summary['reused']}", highlight=False)
    out.print(f"video: [bold]{escape(summary['video'])}[/]", soft_wrap=True, highlight=False)
    out.print(f"page: {escape(summary['page'])}", soft_wrap=True, highlight=False)
    if not summary["awaits_approval"]:
        return
    print_statements(summary["statements"])
    how = f"medgen creation approve {summary['creation']} --by NAME --tick all"
    err.print(f"[yellow]a draft[/] until a person has checked these and approves: {escape(how)}", soft_wrap=True)


def print_statements(statements: list[str], ticked: bool = False) -> None:
    """Prints the statements to be confirmed, with their numbers."""
    for number, text in enumerate(statements, 1):
        out.print(f" {'☑' if ticked else '☐'} {number}. {escape(text)}", soft_wrap=True, highlight=False)


def _show_fields(as_json: bool) -> None:
    from flows.create import CreateParameters

    if as_json:
        print_json(CreateParameters.model_json_schema()["properties"])
        return
    table = Table("name", "default", "meaning")
    for name, field in CreateParameters.model_fields.items():
        default = "" if field.is_required() else str(field.get_default(call_default_factory=True))
        table.add_row(name, escape(default), escape(field.description or ""))
    out.print(table)
