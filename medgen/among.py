"""Sets of values in SQL: one array parameter, however many they are.

`column.in_(values)` binds a parameter a value, of which Postgres takes 65,535 in a statement.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ARRAY, ColumnElement, any_, bindparam, cast
from sqlalchemy.orm import InstrumentedAttribute

T = TypeVar("T")

PAGE = 5_000  # ids of one statement: what a statement gives back must fit in memory too


def among(column: ColumnElement[T] | InstrumentedAttribute[T], values: Iterable[Any]) -> ColumnElement[bool]:
    """Whether a column has one of `values`; none of them is NULL."""
    return column == any_(cast(sorted(set(values)), ARRAY(column.type)))


def among_given(column: ColumnElement[Any]) -> ColumnElement[bool]:
    """The same for a query that is made once: it gets the values, each time, as its parameter `given`."""
    return column == any_(bindparam("given", type_=ARRAY(column.type)))


def pages(values: Iterable[T], size: int = PAGE) -> Iterator[list[T]]:
    """`values` in pieces, in their order; the source is read no further than the piece that is asked for."""
    iterator = iter(values)
    while page := list(islice(iterator, size)):
        yield page
