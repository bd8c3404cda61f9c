"""`medgen doctor`."""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console()
COLOURS = {"ok": "green", "weak": "yellow", "broken": "red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON for machines.")] = False) -> None:
    """Check database, store, disk, Prefect, models, codecs: green, or what to do. Exit 1 when one is broken."""
    from apps.cli import plain_errors
    from tasks.operations.health import findings

    with plain_errors():
        found = list(findings())
    if as_json:
        sys.stdout.write(json.dumps([vars(finding) for finding in found], indent=1) + "\n")
    else:
        table = Table("", "what", "found", "what to do", box=None)
        for finding in found:
            colour = COLOURS[finding.verdict]
            row = (f"[{colour}]{finding.verdict}[/]", finding.name, escape(finding.found), escape(finding.advice))
            table.add_row(*row)
        out.print(table)
    if any(finding.verdict == "broken" for finding in found):
        raise typer.Exit(1)
