"""`medgen discover`."""

from rich.table import Table

from apps.console import Json, Settings, out, parse_settings, print_json, report_expected_errors
from apps.refresh import Sources
from apps.run_flow import run_flow


def discover(source: Sources, settings: Settings = None, as_json: Json = False) -> None:
    """Judge listings without downloading anything: which videos would a refresh take, and why not the others?"""
    with report_expected_errors():
        arguments = parse_settings(settings or []) | {"sources": source}
        summary = run_flow("discover", arguments, quiet=as_json)
        if as_json:
            print_json(summary)
            return
        table = Table("verdict", "rows")
        for verdict, count in sorted(summary["counts"].items(), key=lambda pair: -pair[1]):
            table.add_row(verdict, f"{count:,}")
        out.print(table)
        out.print(
            f"{summary['rows']:,} rows in {summary['shards']} shards: executed {summary['executed']}, "
            f"reused {summary['reused']}"
        )
