"""Many rows into a table by one statement: an array a column, however many rows there are."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from sqlalchemy import ARRAY, Float, Table, bindparam, column, func, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.orm import Session

from medgen.catalog import Base


def insert_rows(
    session: Session,
    into: type[Base],
    rows: Sequence[Mapping[str, Any]],
    *,
    unless_there: bool = False,
    returning: tuple[str, str] | None = None,
) -> dict[Any, Any]:
    """Inserts rows that all have the same columns; of other columns the table's defaults apply.

    Args:
        rows: column → value.
        unless_there: leave out rows that break a unique constraint; otherwise that is an error.
        returning: two columns; the first of every row that was inserted → the second.
    """
    if not rows:
        return {}
    table = cast(Table, into.__table__)
    names = tuple(sorted(rows[0]))
    if any(isinstance(table.c[name].type, ARRAY) for name in names):  # unnest takes arrays of arrays apart
        statement = insert(table)
        session.execute(statement.on_conflict_do_nothing() if unless_there else statement, [dict(row) for row in rows])
        return {}
    values: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in names}
    for name in names:
        if isinstance(table.c[name].type, Float):  # an array has one type
            values[name] = [None if value is None else float(value) for value in values[name]]
    done = session.execute(_insertion(table, names, unless_there, returning), values)
    return {first: second for first, second in done} if returning else {}


def column_values(row: Base, step_run_id: int) -> dict[str, Any]:
    """Column → value of a row that a step run implies. Defaults and numbers of the database's own are left out."""
    table = cast(Table, row.__table__)
    own_key = table.autoincrement_column
    values = {c.name: getattr(row, c.name) for c in table.columns if c.default is None and c is not own_key}
    if "step_run_id" in values and values["step_run_id"] is None:
        values["step_run_id"] = step_run_id
    return values


@cache
def _insertion(table: Table, names: tuple[str, ...], unless_there: bool, returning: tuple[str, str] | None) -> Insert:
    arrays = [sql_cast(bindparam(name, type_=ARRAY(table.c[name].type)), ARRAY(table.c[name].type)) for name in names]
    columns = (column(name, table.c[name].type) for name in names)
    rows = func.unnest(*arrays).table_valued(*columns).render_derived("given")
    statement: Any = insert(table).from_select(list(names), select(*(rows.c[name] for name in names)))
    if unless_there:
        statement = statement.on_conflict_do_nothing()
    return cast(Insert, statement.returning(*(table.c[name] for name in returning)) if returning else statement)
