"""`medgen refresh` and `medgen parameters`."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, Settings, out, parse_settings, print_json, report_expected_errors
from apps.funnel import print_funnel
from apps.run_flow import run_flow

Sources = Annotated[
    list[str],
    typer.Option("--source", "-s", metavar="[NAME=]SOURCE", help="Listings, folders, feeds; may be repeated."),
]


def refresh(
    source: Sources,
    profile: Annotated[
        str, typer.Option(help="Models, rules and thresholds: offline, paper, or a TOML file of your own.")
    ] = "offline",
    name: Annotated[str, typer.Option(help="First part of the release's name.")] = "medgen",
    settings: Settings = None,
    retry_quarantined: Annotated[bool, typer.Option(help="Try items again that failed for good.")] = False,
    as_json: Json = False,
) -> None:
    """Take sources through all steps to a release. Kill it whenever you like; run it again to go on."""
    with report_expected_errors():
        arguments = parse_settings(settings or [])
        arguments = {"profile": profile} | arguments
        arguments |= {"sources": source, "release_prefix": name, "retry_quarantined": retry_quarantined}
        summary = run_flow("refresh", arguments, quiet=as_json)
        if as_json:
            print_json(summary)
        else:
            print_summary(summary)


def parameters(
    profile: Annotated[str, typer.Option(help="Show what is set by a profile: paper, or a TOML file.")] = "offline",
    as_json: Json = False,
) -> None:
    """List every parameter of a refresh with its default, or the value that a profile sets."""
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    from flows.refresh import RefreshParameters

    with report_expected_errors():
        values = RefreshParameters(profile=profile)
    if as_json:
        shown = RefreshParameters.model_json_schema()["properties"]
        for name, known in shown.items():
            known["default"] = getattr(values, name)
        print_json(shown)
        return
    table = Table("name", "default" if profile == "offline" else "value", "meaning")
    for name, field in RefreshParameters.model_fields.items():
        value = getattr(values, name)
        text = escape(str(value))
        table.add_row(name, text if value == field.default else f"[bold]{text}[/]", escape(field.description or ""))
    out.print(table)


def print_summary(summary: Mapping[str, Any]) -> None:
    """Prints the summary of a refresh: its funnel, its release, and whether the release awaits approval."""
    print_funnel(summary["funnel"])
    table = Table("stage of the paper", "unit", "left")
    for row in summary["stages"]:
        table.add_row(row["stage"], row["unit"], str(row["left"]))
    out.print(table)
    out.print(f"videos decoded {summary['decodes']}")
    out.print(f"executed {summary['executed']}, reused {summary['reused']}", highlight=False)
    out.print(f"release {summary['release']} {summary['digest']}", highlight=False, soft_wrap=True)
    for departure in summary["departures"]:
        out.print(f"[yellow]departs from its history:[/] {escape(departure)}", soft_wrap=True)
    if summary["awaits_approval"]:
        out.print(f"awaits approval: medgen release approve {summary['release']} --by NAME", soft_wrap=True)
