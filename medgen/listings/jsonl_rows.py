"""Rows of JSONL; see `medgen.listings.text_blocks`."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from medgen.errors import ItemFailed, SourceUnreadable
from medgen.listings.conform import conform
from medgen.listings.rows import LISTING, Batch, missing_column, names_of
from medgen.listings.text_blocks import (
    CLOSE,
    MAX_LINE_BYTES,
    NEWLINE,
    OPEN,
    RETURN,
    TOO_LONG,
    LineBlocks,
    conform_rows,
    is_utf8,
    without_mark,
)

PLAIN_NAME = re.compile("[a-z_]+")


def jsonl_batches(stream: pa.NativeFile, mapping: Mapping[str, str], where: str) -> Iterator[Batch]:
    """Rows of JSONL: an object a line; blank lines are no rows. Of several names for a column the first that is not
    null counts, row by row.

    Raises:
        SourceUnreadable: the first rows have no column that `mapping` names.
    """
    names = {column: names_of(column, mapping) for column in LISTING.names}
    spellings = _Spellings(names)
    types: dict[str, pa.DataType] = {}
    first, unseen = 1, set(mapping)
    for block in without_mark(LineBlocks(stream)):
        if block is None:
            yield conform({}, 1, first, where, {first: TOO_LONG})
            first += 1
            continue
        lines = _json_line_count(block)
        batch = None
        if lines and (columns := _arrow_json(block, spellings.used(block), types)) and len(columns["url"]) == lines:
            unseen -= {column for column in unseen if columns[column].null_count < lines}
            if not unseen:
                batch = conform(columns, lines, first, where, {})
        if batch is None:
            rows = [row for row in map(_json_row, block.split(b"\n")) if row is not None]
            types = _types_of(rows, names)
            if unseen and (objects := [row for row in rows if isinstance(row, dict)]):
                _check_present(unseen, objects, mapping, where)
                unseen.clear()
            batch = conform_rows(rows, names, first, where)
        if batch.rows.num_rows:
            yield batch
        first += batch.rows.num_rows


def _check_present(
    columns: Iterable[str], objects: Sequence[dict[str, Any]], mapping: Mapping[str, str], where: str
) -> None:
    """Raises SourceUnreadable when no object has a column that `mapping` names."""
    present = list(dict.fromkeys(key for row in objects for key in row))
    for column in sorted(columns):
        if mapping[column] not in present:
            message = missing_column(column, present, mapping, f"{where} in its first rows")
            raise SourceUnreadable("source_unreadable", message)


class _Spellings:
    """Which of the names that columns may have occur in a block: Arrow's parser takes time for each it looks for."""

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self.names = names
        self.likely: Mapping[str, Sequence[str]] = {}
        self.others = ""  # a regular expression that matches where one of the other names may be

    def used(self, block: bytes) -> Mapping[str, Sequence[str]]:
        """Column of LISTING → names, without those that surely do not occur in the block."""
        if not self.likely:
            every = {name for some in self.names.values() for name in some if PLAIN_NAME.fullmatch(name)}
            absent = {name for name in every if f'"{name}"'.encode() not in block}
            self.likely = {column: [name for name in some if name not in absent] for column, some in self.names.items()}
            # Letters may be written as escapes.
            self.others = rf'"(?:(?:{"|".join(sorted(absent))})"|[a-z_]*\\u00)'
        others_occur = pc.match_substring_regex(pa.scalar(block), self.others).as_py()
        return self.names if others_occur else self.likely


def _json_line_count(block: bytes) -> int | None:
    """Number of lines when each starts and ends like an object, so that no object can span two; else None."""
    if 0 in block or not is_utf8(block):
        return None
    data = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", np.uint8)
    ends = np.flatnonzero(data == NEWLINE)
    starts = np.concatenate(([0], ends[:-1] + 1))
    if (ends - starts).max() > MAX_LINE_BYTES or (ends - starts).min() < 2:
        return None
    last = data[ends - 1]
    last = np.where(last == RETURN, data[ends - 2], last)
    return len(ends) if (data[starts] == OPEN).all() and (last == CLOSE).all() else None


def _arrow_json(
    block: bytes, names: Mapping[str, Sequence[str]], types: Mapping[str, pa.DataType]
) -> dict[str, pa.Array] | None:
    """Column of LISTING → values; None when a value is not of the type that is expected, or a line is not JSON."""
    wanted = {name: types.get(name, LISTING.field(column).type) for column, some in names.items() for name in some}
    try:
        table = pa.json.read_json(
            pa.BufferReader(block),
            pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pa.json.ParseOptions(explicit_schema=pa.schema(list(wanted.items())), unexpected_field_behavior="ignore"),
        )
        return {column: _coalesced(table, some) for column, some in names.items()}
    except (pa.ArrowException, UnicodeError, OSError):
        return None


def _coalesced(table: pa.Table, names: Sequence[str]) -> pa.Array:
    """The first value that is not null, row by row."""
    columns = [column for name in names if (column := table.column(name).combine_chunks()).null_count < len(column)]
    if len({column.type for column in columns}) > 1:
        columns = [column.cast(pa.string()) for column in columns]
    return pc.coalesce(*columns) if columns else pa.nulls(table.num_rows)


def _json_row(line: bytes) -> Any:
    """The object of a line; ItemFailed when it is none; None when the line is blank."""
    if len(line) > MAX_LINE_BYTES:
        return TOO_LONG
    if not line.strip():
        return None
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(line)  # takes more: lone surrogates, integers of any size
        except (ValueError, RecursionError) as error:
            return ItemFailed("bad_row", f"not JSON: {error}")
    return ItemFailed("bad_row", "the row is not an object") if not isinstance(value, dict) else value


def _types_of(rows: Sequence[Any], names: Mapping[str, Sequence[str]]) -> dict[str, pa.DataType]:
    """name → type, where all values in `rows` are of one type that differs from that in LISTING."""
    types: dict[str, pa.DataType] = {}
    for column, some in names.items():
        for name in some:
            kinds = {type(value) for row in rows if isinstance(row, dict) and (value := row.get(name)) is not None}
            if kinds == {int} and column != "duration_s":
                types[name] = pa.int64()
            elif kinds == {str}:
                types[name] = pa.string()
    return types
