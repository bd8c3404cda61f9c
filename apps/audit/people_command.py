"""`medgen auditors`: who may look at the audit site by name."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from apps.console import Json, out, print_json, report_expected_errors
from medgen.settings import current

auditors_app = typer.Typer(
    help="Who may look at the audit site: with a token of their own, and on record by name.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="How the access log names them.")]


def folder() -> Path:
    """Where the audit site keeps who may look, and who looked at what."""
    from medgen.home import private_home

    return private_home(current().home) / "audit"


@auditors_app.command("add")
def add(name: Name) -> None:
    """Give a person a token, shown once; one that they had is void. From the first one on, nobody looks without."""
    from apps.audit.people import People

    with report_expected_errors():
        out.print(People(folder() / "people.json").add(name), highlight=False, soft_wrap=True)


@auditors_app.command("remove")
def remove(name: Name) -> None:
    """Take a person's token back. It counts at once, also for a site that runs."""
    from apps.audit.people import People

    with report_expected_errors():
        People(folder() / "people.json").remove(name)
        out.print(f"{escape(name)} may not look any more", soft_wrap=True)


@auditors_app.command("list")
def list_(as_json: Json = False) -> None:
    """List who has a token."""
    from apps.audit.people import People

    with report_expected_errors():
        names = People(folder() / "people.json").names()
        if as_json:
            print_json(names)
        else:
            out.print("\n".join(map(escape, names)) or "nobody has a token of their own", soft_wrap=True)
