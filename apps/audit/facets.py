"""The different values of a column, and how many items have each."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select, text

from apps.audit.estimates import estimated_rows, rows_of
from medgen.catalog import ItemStatus

FACETS = ("kind", "step", "status", "reason", "category", "licence", "channel", "source_name")


def facets(connection: Connection, column: str, most: int = 200, beginning: str = "") -> list[str]:
    """Different values of a column of `item_status`, in order, by jumping through its index."""
    assert column in FACETS
    query = text(
        f"""
        WITH RECURSIVE jump AS (
          (SELECT {column} AS value FROM item_status WHERE {column} >= :beginning ORDER BY {column} LIMIT 1)
          UNION ALL
          SELECT (SELECT {column} FROM item_status WHERE {column} > jump.value ORDER BY {column} LIMIT 1)
          FROM jump WHERE jump.value IS NOT NULL
        )
        SELECT value FROM jump WHERE value IS NOT NULL LIMIT :most
        """
    )
    return list(connection.scalars(query, {"beginning": beginning, "most": most}))


def metrics(connection: Connection) -> list[str]:
    """Names of all scores of clips, by jumping through the index."""
    query = text(
        """
        WITH RECURSIVE jump AS (
          (SELECT metric FROM score ORDER BY metric LIMIT 1)
          UNION ALL
          SELECT (SELECT metric FROM score WHERE metric > jump.metric ORDER BY metric LIMIT 1)
          FROM jump WHERE jump.metric IS NOT NULL
        )
        SELECT metric FROM jump WHERE metric IS NOT NULL LIMIT 300
        """
    )
    return list(connection.scalars(query))


@dataclass(frozen=True)
class Count:
    """How many rows there are with a value; `exact` is False for an estimate."""

    value: str
    rows: int
    exact: bool


def counts(connection: Connection, column: str, **equal: str) -> list[Count]:
    """Values of a column of `item_status` with their numbers, most frequent first.

    Exact for small catalogs; else the planner's estimate for each value, so that nothing is counted.
    """
    assert column in FACETS
    total = rows_of(connection, "item_status")
    same = [getattr(ItemStatus, name) == value for name, value in equal.items()]
    it = getattr(ItemStatus, column)
    if total < 60_000:
        query = select(it, func.count()).where(it.is_not(None), *same).group_by(it)
        values = [Count(value, rows, True) for value, rows in connection.execute(query)]
    else:
        values = [
            Count(value, estimated_rows(connection, select(ItemStatus.id).where(it == value, *same)), False)
            for value in facets(connection, column, 60)
        ]
    return sorted((c for c in values if c.rows), key=lambda c: (-c.rows, c.value))
