"""What all commands share: where they print, common options, how settings are read and how errors end a command."""

import errno
import json
import math
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from medgen.parameters import complaints

_ROOM = "Free some space (`medgen gc` helps), or point MEDGEN_HOME at a larger disk; then run the same command again."
_RIGHT = "Make it writable for the user who runs medgen, or name another folder in MEDGEN_HOME."
PLACE_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _RIGHT,
    errno.EACCES: _RIGHT,
    errno.EPERM: _RIGHT,
}

_WIDE = 100_000  # columns of a table that goes to a file or another program


class _WholeTables(Console):
    """A console whose tables cut nothing short: what does not fit goes on in the next line; where no terminal limits
    the width, each row is one line, so that ids and digests can be searched for and copied."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's."""
        for column in (column for thing in objects if isinstance(thing, Table) for column in thing.columns):
            if column.overflow == "ellipsis" and not column.no_wrap:  # rich's choice, nobody's here
                column.overflow = "fold"
        if self.is_terminal or not any(isinstance(thing, Table | Panel) for thing in objects):
            super().print(*objects, **options)
            return
        width = self.width
        self.width = _WIDE
        try:
            super().print(*objects, **options)
        finally:
            self.width = width


out = _WholeTables()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON for machines.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set any parameter of the refresh; see `medgen parameters`."),
]


def finite(value: float | None) -> float | None:
    """For options: refuses NaN and infinity, which click takes for numbers."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


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

    Always expected are a full disk, a place that can't be written to and a database that has gone. The code is 2 for
    bad parameters or settings, 130 for Ctrl-C, 1 otherwise. Other errors keep their traceback.
    """
    from sqlalchemy.exc import OperationalError

    from medgen.catalog import CatalogUnreachable
    from medgen.errors import ItemFailed, RunStopped
    from models import ModelUnavailable

    known: tuple[type[Exception], ...] = (CatalogUnreachable, ItemFailed, ModelUnavailable, RunStopped, *expected)
    try:
        yield
    except ValidationError as error:
        stop("bad parameters or settings:\n  " + "\n  ".join(complaints(error)), code=2)
    except OSError as error:
        if not (fault := fault_of_the_place(error)) and not isinstance(error, known):
            raise
        stop(fault or str(error))
    except OperationalError as error:
        stop(
            f"the catalog failed: {str(error.orig).strip().partition(chr(10))[0]}\n"
            "See that Postgres runs and has room (`medgen doctor`), then run the same command again."
        )
    except known as error:
        stop(str(error))
    except KeyboardInterrupt:
        stop("stopped; run the same command again to go on", code=130)


def fault_of_the_place(error: OSError) -> str | None:
    """What to tell of a full disk, or of a place that can't be written to; None of other errors."""
    advice = PLACE_ADVICE.get(error.errno or 0)
    denied = isinstance(error, PermissionError) and error.filename is None  # by a server, perhaps
    if advice is None or denied:
        return None
    return f"{error.filename or 'a write failed'}: {error.strerror}\n{advice}"


def stop(message: str, code: int = 1) -> NoReturn:
    """Ends the command with an error message and an exit code."""
    err.print(f"[red]error:[/] {escape(message)}")
    raise typer.Exit(code)


def print_json(value: Any) -> None:
    """Prints JSON on standard output; values that JSON does not know are printed as text."""
    sys.stdout.write(_json(value) + "\n")


def print_json_with(facts: Mapping[str, Any], name: str, rows: Iterable[Any]) -> None:
    """As `print_json` of `facts` and, as `name`, the list of `rows`, which may be too many to be held in memory."""
    sys.stdout.write(f"{_json(facts)[:-1].rstrip()},\n {_json(name)}: [")
    comma = ""
    for row in rows:
        sys.stdout.write(f"{comma}\n{textwrap.indent(_json(row), '  ')}")
        comma = ","
    sys.stdout.write("\n ]\n}\n")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)
