"""`medgen doctor`."""

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, err, out, print_json, report_expected_errors

COLOURS = {"ok": "green", "weak": "yellow", "broken": "red"}


def doctor(as_json: Json = False) -> None:
    """Check database, store, disk, Prefect, models, codecs: green, or what to do. Exit 1 when one is broken."""
    with report_expected_errors(), err.status("looking at everything"):
        from tasks.operations.health import findings

        checks = list(findings())
    if as_json:
        print_json([vars(finding) for finding in checks])
    else:
        table = Table("", "what", "found", "what to do", box=None)
        for finding in checks:
            colour = COLOURS[finding.verdict]
            row = (f"[{colour}]{finding.verdict}[/]", finding.name, escape(finding.found), escape(finding.advice))
            table.add_row(*row)
        out.print(table)
    if any(finding.verdict == "broken" for finding in checks):
        raise typer.Exit(1)
