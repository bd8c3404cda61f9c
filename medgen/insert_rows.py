"""Many rows into a table by few statements with one parameter each."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, cast

from sqlalchemy import Table, TextClause, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from medgen.catalog import Base

# Rows of a statement: Postgres keeps what it takes apart of a text until all of it is done, 1.5 kB a row and more.
MOST_ROWS = 1000


def insert_rows(
    session: Session,
    into: type[Base],
    rows: Sequence[dict[str, Any]],
    *,
    unless_there: bool = False,
    returning: tuple[str, str] | None = None,
    shared: Collection[str] = (),
) -> dict[Any, Any]:
    """Inserts rows that all have the same columns; of other columns the table's defaults apply.

    Args:
        rows: column → value: what JSON can hold, or a time.
        unless_there: leave out rows that break a unique constraint; otherwise that is an error.
        returning: two columns; the first of every row that was inserted → the second.
        shared: columns of which all rows have the same value: it is written, sent and read once.
    """
    if not rows:
        return {}
    table = cast(Table, into.__table__)
    # json.dumps is much quicker than a driver's arrays of values.
    defaults = _defaults(table, rows[0])
    once = {name: rows[0][name] for name in shared} | defaults
    own = [name for name in rows[0] if name not in once]
    statement = _insertion(table, tuple(sorted(own)), tuple(sorted(once)), unless_there, returning)
    connection = session.connection()  # by way of the session each of the many statements would take longer
    inserted: dict[Any, Any] = {}
    for start in range(0, len(rows), MOST_ROWS):
        part: Sequence[dict[str, Any]] = rows[start : start + MOST_ROWS]
        if once:
            part = [{name: row[name] for name in own} for row in part]
        done = connection.execute(statement, {"given": _json(part)} | ({"once": _json(once)} if once else {}))
        if returning:
            inserted |= {first: second for first, second in done}
    return inserted


def column_values(row: Base, step_run_id: int) -> dict[str, Any]:
    """Column → value of a row that a step run implies, its defaults too. Numbers of the database's own are left out."""
    table = cast(Table, row.__table__)
    own_key = table.autoincrement_column
    values = {c.name: getattr(row, c.name) for c in table.columns if c is not own_key}
    values |= _defaults(table, {name: value for name, value in values.items() if value is not None})
    if "step_run_id" in values and values["step_run_id"] is None:
        values["step_run_id"] = step_run_id
    return values


def _defaults(table: Table, given: Mapping[str, Any]) -> dict[str, Any]:
    """Column → default of the columns that are not given."""
    missing = {c.name: cast(Any, c.default) for c in table.columns if c.default is not None and c.name not in given}
    return {name: default.arg(None) if default.is_callable else default.arg for name, default in missing.items()}


@cache
def _insertion(
    table: Table, own: tuple[str, ...], once: tuple[str, ...], unless_there: bool, returning: tuple[str, str] | None
) -> TextClause:
    """The statement as text: SQLAlchemy compiles an INSERT from a SELECT anew each time.

    Args:
        own: columns that each row has a value of its own for.
        once: columns of which all rows have the same value.
    """
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's own
    quote = dialect.identifier_preparer.quote

    def types(names: tuple[str, ...]) -> str:
        return ", ".join(f"{quote(name)} {table.c[name].type.compile(dialect)}" for name in names)

    columns = ", ".join(map(quote, (*own, *once)))
    return text(
        f"INSERT INTO {quote(table.name)} ({columns}) SELECT {columns} "
        f"FROM json_to_recordset(CAST(:given AS json)) AS given ({types(own)})"
        + (f" CROSS JOIN json_to_record(CAST(:once AS json)) AS once ({types(once)})" if once else "")
        + (" ON CONFLICT DO NOTHING" if unless_there else "")
        + (f" RETURNING {', '.join(map(quote, returning))}" if returning else "")
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=_time)


def _time(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON: {type(value).__name__}")
