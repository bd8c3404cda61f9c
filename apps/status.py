"""`medgen status`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, err, out, print_json, print_json_with, report_expected_errors
from apps.funnel import print_funnel
from medgen.counted import counted

ROWS = 5_000  # of one table


def status(
    every: Annotated[bool, typer.Option("--all", help="List the verdict on every item.")] = False, as_json: Json = False
) -> None:
    """Show the funnel of all that is on record, and failures by reason."""
    with report_expected_errors():
        with err.status("counting"):
            from apps.verdicts import imports, missing, totals, verdicts
            from medgen.among import pages
            from medgen.ledger import open_ledger
            from tasks.operations.failures import failures

            ledger = open_ledger()
            funnel, gone, failed = totals(ledger), missing(ledger), failures(ledger)
        if as_json:
            facts = {"funnel": funnel, "failures": failed, "imported": imports(ledger)} | gone
            if every:
                print_json_with(facts, "items", verdicts(ledger))
            else:
                print_json(facts)
            return
        print_funnel(funnel)
        for row in imports(ledger):
            out.print(
                f"imported of {escape(row['source'])}: {counted(row['kept'], 'clip')}, "
                f"{row['rejected'] + row['failed']} left out",
                highlight=False,
            )
        if failed:
            _print_failures(failed)
        if gone["taken_down"]:
            out.print(f"taken down: {counted(gone['taken_down'], 'video')} (`medgen forget --list`)", highlight=False)
        if gone["vanished"]:
            names = ", ".join([*gone["vanished"]][:10]) + (", …" if len(gone["vanished"]) > 10 else "")
            out.print(
                f"vanished from their source: {counted(len(gone['vanished']), 'video')}: {names}", highlight=False
            )
        if every:
            for items in pages(verdicts(ledger), ROWS):
                _print_verdicts(items)


def _print_failures(report: Sequence[dict[str, Any]]) -> None:
    from tasks.operations.failures import table_rows

    table = Table(title="Failures", title_justify="left")
    for column in ("step", "reason", "count", "tried again", "example"):
        table.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
    for row in table_rows(report):
        table.add_row(*(escape(str(value)) for value in row.values()))
    out.print(table)


def _print_verdicts(items: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="Verdicts", title_justify="left")
    for column in ("item", "verdict", "step", "reason", "explanation"):
        table.add_column(column, overflow="fold")
    for item in items:
        name = item["title"] or item["url"] or f"{item['source']} row {item['row']}"
        kept = f"kept ({counted(item['clips'], 'clip')})" if item["clips"] else item["status"]
        table.add_row(*(escape(str(v or "")) for v in (name, kept, item["step"], item["reason"], item["message"])))
    out.print(table)
