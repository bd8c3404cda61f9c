"""How many rows there are, by the planner's statistics: nothing is counted."""

import json
from typing import Any

from sqlalchemy import Connection, Select, text


def rows_of(connection: Connection, table: str) -> int:
    """About how many rows a table has, from the planner's statistics."""
    rows = connection.scalar(text("SELECT reltuples FROM pg_class WHERE oid = to_regclass(:table)"), {"table": table})
    if rows is None or rows < 0:  # never analysed: it is new, thus small
        rows = connection.scalar(text(f"SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT 100000) AS newest"))
    return int(rows or 0)


def estimated_rows(connection: Connection, query: Select[Any]) -> int:
    """About how many rows a query gives, by the planner."""
    compiled = query.compile(connection, compile_kwargs={"render_postcompile": True})
    plan = connection.exec_driver_sql(
        f"EXPLAIN (FORMAT JSON) {compiled}", compiled.construct_params() or None
    ).scalar_one()
    plan = json.loads(plan) if isinstance(plan, str) else plan
    return int(plan[0]["Plan"]["Plan Rows"])
