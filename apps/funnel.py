"""Shows a funnel: how many items each step saw, kept, rejected and failed on."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from apps.console import out


def print_funnel(funnel: Sequence[Mapping[str, Any]]) -> None:
    """Prints a funnel, as `tasks.curation.funnel.funnel` gives it, as a table."""
    from tasks.curation.funnel import table_rows

    table = Table(title="Funnel", title_justify="left")
    for column in ("step", "unit", "in", "kept", "rejected", "failed", "reasons"):
        table.add_column(column, justify="right" if column in ("in", "kept", "rejected", "failed") else "left")
    for row in table_rows(funnel):
        table.add_row(*(escape(str(value)) for value in row.values()))
    out.print(table)
