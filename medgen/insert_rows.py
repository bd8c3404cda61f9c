"""Many rows into a table by one statement with one parameter, however many rows there are."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, cast

from sqlalchemy import Table, Text, bindparam, column, func, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSON, Insert, insert
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
        rows: column → value: what JSON can hold, or a time.
        unless_there: leave out rows that break a unique constraint; otherwise that is an error.
        returning: two columns; the first of every row that was inserted → the second.
    """
    if not rows:
        return {}
    statement = _insertion(cast(Table, into.__table__), tuple(sorted(rows[0])), unless_there, returning)
    # json.dumps is much quicker than a driver's arrays of values.
    done = session.execute(statement, {"given": json.dumps(rows, ensure_ascii=False, default=_time)})
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
    columns = (column(name, table.c[name].type) for name in names)
    given = sql_cast(bindparam("given", type_=Text), JSON)
    rows = func.json_to_recordset(given).table_valued(*columns).render_derived("given", with_types=True)
    statement: Any = insert(table).from_select(list(names), select(*(rows.c[name] for name in names)))
    if unless_there:
        statement = statement.on_conflict_do_nothing()
    return cast(Insert, statement.returning(*(table.c[name] for name in returning)) if returning else statement)


def _time(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON: {type(value).__name__}")
