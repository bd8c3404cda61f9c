"""`medgen verify`."""

from typing import Annotated

import typer
from rich.markup import escape

from apps.console import Json, err, out, print_json, report_expected_errors
from medgen.settings import current


def verify(
    artifacts: Annotated[bool, typer.Option(help="Read every artifact and recompute its digest.")] = True,
    as_json: Json = False,
) -> None:
    """Recompute the hash chain and all digests; name what is wrong. Exit 1 when anything is."""
    from medgen.ledger import open_ledger
    from medgen.verify import taken_down
    from medgen.verify import verify as verify_all

    with report_expected_errors():
        ledger = open_ledger()
        with err.status("verifying") as state:
            faults = verify_all(
                ledger,
                current().releases_folder,
                artifacts=artifacts,
                progress=lambda what, done, total: state.update(f"verifying {what}: {done} of {total}"),
            )
        known = taken_down(ledger)
        if as_json:
            print_json({"clean": not faults, "faults": faults} | ({"taken_down": known} if known else {}))
        else:
            for sentence in known:
                out.print(f"[dim]{escape(sentence)}[/]", soft_wrap=True)
            for fault in faults:
                out.print(f"[red]✗[/] {escape(fault)}")
            if not faults:
                but = ", but for what was taken down" if known else ""
                out.print(
                    f"[green]clean[/]: every record, artifact and release is as it was written{but}", soft_wrap=True
                )
        if faults:
            raise typer.Exit(1)
