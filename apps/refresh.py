"""`medgen refresh` and `medgen parameters`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, Settings, err, out, parse_settings, print_json, report_expected_errors, stop
from apps.funnel import print_funnel
from apps.run_flow import run_flow
from medgen.counted import counted

Sources = Annotated[
    list[str],
    typer.Option("--source", "-s", metavar="[NAME=]SOURCE", help="Listings, folders, feeds; may be repeated."),
]


def refresh(
    source: Sources,
    profile: Annotated[
        str, typer.Option(help="Models, rules and thresholds: offline, paper, or a TOML file of your own.")
    ] = "offline",
    name: Annotated[
        str | None, typer.Option(help="First part of the release's name (`release_prefix`); medgen by itself.")
    ] = None,
    settings: Settings = None,
    retry_quarantined: Annotated[bool, typer.Option(help="Try items again that failed for good.")] = False,
    as_json: Json = False,
) -> None:
    """Take sources through all steps to a release. Kill it whenever you like; run it again to go on."""
    with report_expected_errors():
        arguments = parse_settings(settings or [])
        if name is not None and arguments.setdefault("release_prefix", name) != name:
            stop(
                f"--name {name} and --set release_prefix={arguments['release_prefix']} differ: give one of them", code=2
            )
        arguments = {"profile": profile} | arguments
        arguments |= {"sources": source, "retry_quarantined": retry_quarantined}
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
    from apps.parameter_table import parameter_table

    with report_expected_errors(), err.status("asking all steps for their parameters"):
        known = parameter_table(profile)
    if as_json:
        print_json(
            {
                name: {key: fact for key, fact in facts.items() if key not in ("value", "shown")}
                | {"default": facts["value"]}
                for name, facts in known.items()
            }
        )
        return
    table = Table("name", "default" if profile == "offline" else "value", "meaning")
    for name, facts in known.items():
        text = escape(facts["shown"])
        changed = facts["value"] != facts["default"]
        table.add_row(name, f"[bold]{text}[/]" if changed else text, escape(facts.get("description") or ""))
    out.print(table)


def _print_next(release: str, folder: str) -> None:
    """Where a release lies, and what can be done with it."""
    out.print(f"the release lies in [bold]{escape(folder)}[/]: clips/, metadata.parquet, README.md", soft_wrap=True)
    out.print("next: look at it     medgen audit", highlight=False)
    out.print(f"      what is in it  medgen release show {release}", highlight=False, soft_wrap=True)
    out.print(f"      train on it    medgen train {release} --preset nano", highlight=False, soft_wrap=True)


def print_summary(summary: Mapping[str, Any]) -> None:
    """Prints the summary of a refresh: its funnel, its release, and whether the release awaits approval."""
    print_funnel(summary["funnel"])
    table = Table("stage of the paper", "unit", "left")
    for row in summary["stages"]:
        table.add_row(row["stage"], row["unit"], str(row["left"]))
    out.print(table)
    if not summary["release"]:
        out.print("nothing to do: no sources are set")
        return
    out.print(f"videos decoded {summary['decodes']}")
    if summary["folder"]:
        _print_next(summary["release"], summary["folder"])
    if since := summary.get("since"):
        told = f"since {since['before']}: {counted(since['came'], 'clip')} came, {since['went']} went"
        out.print(told, highlight=False, soft_wrap=True)
    out.print(f"executed {summary['executed']}, reused {summary['reused']}", highlight=False)
    out.print(f"release {summary['release']} {summary['digest']}", highlight=False, soft_wrap=True)
    for departure in summary["departures"]:
        out.print(f"[yellow]departs from its history:[/] {escape(departure)}", soft_wrap=True)
    if summary["awaits_approval"]:
        out.print(f"awaits approval: medgen release approve {summary['release']} --by NAME", soft_wrap=True)
