"""`medgen note`."""

from typing import Annotated

import typer
from rich.markup import escape

from apps.console import Json, out, print_json, report_expected_errors
from medgen.notes import Flag


def note(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Clip or video: id, its beginning, digest or URL.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What you saw.")] = "",
    by: Annotated[str, typer.Option(help="Who writes it.")] = "",
    flag: Annotated[
        Flag,
        typer.Option(help="check: somebody should look; wrong, privacy, licence: why; cleared: no more."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Write a note on a clip or video, with a flag to find it by. It is on record and changes no verdict."""
    from apps.history import Unknown, find
    from medgen.ledger import open_ledger
    from medgen.notes import add_note

    with report_expected_errors(Unknown):
        ledger = open_ledger()
        kind, identity = find(ledger, name)
        record = add_note(ledger, identity, by, text, flag)
        if as_json:
            print_json({"kind": kind, "id": identity, "step_run": record.id, **record.detail})
            return
        out.print(f"noted on {kind} {escape(identity)}, step run {record.id}", highlight=False)
