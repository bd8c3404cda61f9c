"""`medgen source`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, out, print_json, report_expected_errors

if TYPE_CHECKING:
    from sqlalchemy import Engine


def source(
    name: Annotated[str | None, typer.Argument(help="Of a source; without one all are listed.")] = None,
    legal_basis: Annotated[
        str | None,
        typer.Option(help="On what ground its videos are kept: a licence, a consent, an exception in a law."),
    ] = None,
    retain_days: Annotated[
        int | None, typer.Option(help="Days after its listing at which a video must go; 0: no end.", show_default=False)
    ] = None,
    contact: Annotated[str | None, typer.Option(help="Whom to ask.")] = None,
    by: Annotated[str, typer.Option(help="Who states it.")] = "",
    as_json: Json = False,
) -> None:
    """List sources, or state on what terms the videos of one are kept. What was stated before stays on record.

    `medgen forget --retention-ended` takes down what must go; `medgen doctor` tells when there is some.
    """
    from medgen.catalog import open_catalog
    from medgen.source_terms import TermsUnusable

    with report_expected_errors():
        engine = open_catalog()
        if (legal_basis, retain_days, contact) != (None, None, None):
            if name is None:
                raise TermsUnusable("name the source that this is stated of")
            _state(engine, name, by, legal_basis, retain_days, contact)
        rows = _rows(engine, name)
        if name is not None and not rows:
            raise TermsUnusable(f"there is no source {name[:80]!r}: `medgen source` lists them")
        if as_json:
            print_json(rows)
        else:
            out.print(_table(rows) if rows else "No source was listed yet.")


def _state(
    engine: "Engine", name: str, by: str, legal_basis: str | None, retain_days: int | None, contact: str | None
) -> None:
    """States what is given, and beside it again what was stated before."""
    from sqlalchemy.orm import Session

    from medgen.source_terms import state_terms, terms_of

    with Session(engine) as session:
        before = next(iter(terms_of(session, name)), None)
    if before:
        legal_basis = before.legal_basis if legal_basis is None else legal_basis
        retain_days = before.retain_days if retain_days is None else retain_days
        contact = before.contact if contact is None else contact
    state_terms(
        engine, name, by=by, legal_basis=legal_basis or "", retain_days=retain_days or None, contact=contact or ""
    )


def _rows(engine: "Engine", name: str | None) -> list[dict[str, Any]]:
    """Sources with the terms that count and how many of their videos are past them."""
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    from medgen.catalog import Source
    from medgen.source_terms import current_terms, retention_ended

    over = Counter(place for _, _, place in retention_ended(engine))
    stated = ("legal_basis", "retain_days", "contact", "stated_by", "stated_at")
    with Session(engine) as session:
        terms = {found.source_name: found for found in session.scalars(current_terms())}
        query = select(Source).order_by(Source.name)
        return [
            {"name": found.name, "kind": found.kind, "retention_ended": over[found.name]}
            | {column: getattr(terms.get(found.name), column, None) for column in stated}
            for found in session.scalars(query if name is None else query.where(Source.name == name))
        ]


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table()
    for column in ("source", "legal basis", "kept for", "contact", "stated", "videos past it"):
        table.add_column(column, overflow="fold")
    for row in rows:
        kept, stated = "not stated", ""
        if row["stated_by"]:
            kept = f"{row['retain_days']} days" if row["retain_days"] else "no end"
            stated = f"{row['stated_at']:%Y-%m-%d} by {row['stated_by']}"
        cells = (row["name"], row["legal_basis"] or "not stated", kept, row["contact"] or "", stated)
        table.add_row(*(escape(cell) for cell in cells), str(row["retention_ended"]))
    return table
