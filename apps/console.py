"""What all commands share: where they print, common options, how settings are read and how errors end a command."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON for machines.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set any parameter of the refresh; see `medgen parameters`."),
]


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` pairs; values are JSON where they parse as JSON, text otherwise."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            stop(f"--set takes NAME=VALUE, not {pair!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


@contextmanager
def report_expected_errors(*expected: type[Exception]) -> Iterator[None]:
    """Expected errors, and those of the types given, end the command in one plain line and an exit code.

    The code is 2 for bad parameters or settings, 130 for Ctrl-C, 1 otherwise. Other errors keep their traceback.
    """
    from medgen.catalog import CatalogUnreachable
    from medgen.errors import ItemFailed, RunStopped
    from models import ModelUnavailable

    known: tuple[type[Exception], ...] = (CatalogUnreachable, ItemFailed, ModelUnavailable, RunStopped, *expected)
    try:
        yield
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        stop("bad parameters or settings:\n  " + "\n  ".join(lines), code=2)
    except known as error:
        stop(str(error))
    except KeyboardInterrupt:
        stop("stopped; run the same command again to go on", code=130)


def stop(message: str, code: int = 1) -> NoReturn:
    """Ends the command with an error message and an exit code."""
    err.print(f"[red]error:[/] {escape(message)}")
    raise typer.Exit(code)


def print_json(value: Any) -> None:
    """Prints JSON on standard output; values that JSON does not know are printed as text."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")
