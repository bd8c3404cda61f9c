"""Rows of JSONL and CSV, from a stream of bytes that may hold anything.

Whole blocks go through Arrow's parsers as long as they are sound beyond doubt. A block with anything odd in it is
read row by row with the parsers of Python, so that a bad row costs only itself. What a row means does not depend
on which way it went. Memory is bounded by the size of a block, whatever the length of a line.
"""

import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from medgen.errors import ItemFailed, SourceUnreadable
from medgen.listings.rows import (
    LISTING,
    Batch,
    conform,
    missing_column,
    names_of,
    parse_duration,
    parse_tags,
    resolve,
    storable_text,
)

MAX_LINE_BYTES = 1 << 20  # of a line of JSONL or a record of CSV
HALF_LINE = MAX_LINE_BYTES // 2  # a line that is too long fills a whole stretch of this size, counted from anywhere
BLOCK_BYTES = 4 << 20
MAX_REREADS = 1_000  # records of CSV that are given up and their later lines read again; bounds the work on bad files
NEWLINE, QUOTE, COMMA, RETURN, OPEN, CLOSE = b'\n",\r{}'
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
csv.field_size_limit(MAX_LINE_BYTES)
PLAIN_NAME = re.compile("[a-z_]+")
TOO_LONG = ItemFailed("bad_row", f"the line is longer than {MAX_LINE_BYTES} bytes")


class _Blocks:
    """A stream in blocks of whole lines. A line too long to be held comes as None."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream = stream
        self.rest = b""
        self.ended = False

    def __iter__(self) -> Iterator[bytes | None]:
        while True:
            piece = self.stream.read(BLOCK_BYTES)
            data = self.rest + piece
            self.ended = not piece
            cut = len(data) if self.ended else data.rfind(b"\n") + 1
            self.rest = data[cut:]
            if cut:
                yield data[:cut]
            elif len(data) > MAX_LINE_BYTES:
                self._skip_line()
                yield None
            if self.ended and not self.rest:
                return

    def put_back(self, data: bytes) -> None:
        """Has the end of the block that was given last come again, before what follows it."""
        self.rest = data + self.rest

    def _skip_line(self) -> None:
        self.rest = b""
        while piece := self.stream.read(BLOCK_BYTES):
            end = piece.find(b"\n") + 1
            if end:
                self.rest = piece[end:]
                return


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
    for block in _without_mark(_Blocks(stream)):
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
                present = list(dict.fromkeys(key for row in objects for key in row))
                for column in sorted(unseen):
                    if mapping[column] not in present:
                        raise SourceUnreadable(
                            "source_unreadable", missing_column(column, present, mapping, f"{where} in its first rows")
                        )
                unseen.clear()
            batch = _conform_rows(rows, names, first, where)
        if batch.rows.num_rows:
            yield batch
        first += batch.rows.num_rows


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
        found = pc.match_substring_regex(pa.scalar(block), self.others).as_py()
        return self.names if found else self.likely


def _without_mark(blocks: _Blocks) -> Iterator[bytes | None]:
    start = True
    for block in blocks:
        yield block.removeprefix(BYTE_ORDER_MARK) if start and block else block
        start = False


def _json_line_count(block: bytes) -> int | None:
    """Number of lines when each starts and ends like an object, so that no object can span two; else None."""
    if 0 in block or not _is_utf8(block):
        return None
    data = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", np.uint8)
    ends = np.flatnonzero(data == NEWLINE)
    starts = np.concatenate(([0], ends[:-1] + 1))
    if (ends - starts).max() > MAX_LINE_BYTES or (ends - starts).min() < 2:
        return None
    last = data[ends - 1]
    last = np.where(last == RETURN, data[ends - 2], last)
    return len(ends) if (data[starts] == OPEN).all() and (last == CLOSE).all() else None


def _is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


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
    """What a line says, ItemFailed when it is no JSON, None when it is blank."""
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
    """name → type, where all values in `rows` agree on one that differs from the usual."""
    found = {}
    for column, some in names.items():
        for name in some:
            kinds = {type(value) for row in rows if isinstance(row, dict) and (value := row.get(name)) is not None}
            if kinds == {int} and column != "duration_s":
                found[name] = pa.int64()
            elif kinds == {str}:
                found[name] = pa.string()
    return found


def _conform_rows(rows: Sequence[Any], names: Mapping[str, Sequence[Any]], first: int, where: str) -> Batch:
    """A batch of Python rows (objects, or ItemFailed)."""
    failures: dict[int, ItemFailed] = {}
    columns: dict[str, list[Any]] = {column: [] for column in names}
    for number, row in enumerate(rows, start=first):
        if isinstance(row, ItemFailed):
            failures[number] = row
            row = {}
        for column, some in names.items():
            value = next((row[name] for name in some if row.get(name) is not None), None)
            try:
                if column == "tags":
                    value = parse_tags(value)
                elif column == "duration_s":
                    value = parse_duration(value)
                elif value is not None:
                    value = storable_text(value)
            except ItemFailed as failure:
                failures.setdefault(number, failure)
                value = None
            columns[column].append(value)
    arrays = {name: pa.array(values, LISTING.field(name).type) for name, values in columns.items()}
    # A row that lacks its url lacks it first of all: it is looked at whatever else is wrong with it.
    unparsed = {number: failure for number, failure in failures.items() if isinstance(rows[number - first], ItemFailed)}
    batch = conform(arrays, len(rows), first, where, unparsed)
    return Batch(first, batch.rows, failures | dict(batch.failures))


def csv_batches(stream: pa.NativeFile, mapping: Mapping[str, str], where: str) -> Iterator[Batch]:
    """Rows of CSV, whose first line names the columns; blank lines are no rows. Short rows are filled up.

    Raises:
        SourceUnreadable: there is no first line, or see `medgen.listings.rows.resolve`.
    """
    blocks = _Blocks(stream)
    header: list[str] = []
    places: dict[str, int] = {}
    first, rereads = 1, MAX_REREADS
    for block in _without_mark(blocks):
        if block is None:
            if not header:
                raise SourceUnreadable("source_unreadable", f"the first line of {where} is too long to be read")
            yield conform({}, 1, first, where, {first: TOO_LONG})
            first += 1
            continue
        block = _sound_text(block)
        if not header:
            header, start = _csv_header(block, where)
            places = {column: header.index(name) for column, name in resolve(header, mapping, where).items()}
            block = block[start:]
        if blocks.ended and block and not block.endswith(b"\n"):
            block += b"\n"
        quotes = np.flatnonzero(np.frombuffer(block, np.uint8) == QUOTE)
        end = _end_of_records(block, quotes)
        waiting = len(block) - end
        columns = None
        if not waiting or (not blocks.ended and waiting + len(blocks.rest) <= MAX_LINE_BYTES):
            columns = _arrow_csv(block[:end], quotes[: np.searchsorted(quotes, end)], len(header), places)
        if columns is not None:
            blocks.put_back(block[end:])
            batch = conform(columns, len(columns["url"]), first, where, {})
        else:
            room = -1 if blocks.ended else MAX_LINE_BYTES - len(blocks.rest)
            rows, rest, rereads = _records(block.decode(), len(header), room, rereads)
            blocks.put_back(rest.encode())
            objects = [row if isinstance(row, ItemFailed) else dict(enumerate(row)) for row in rows]
            batch = _conform_rows(objects, {column: (place,) for column, place in places.items()}, first, where)
        if batch.rows.num_rows:
            yield batch
        first += batch.rows.num_rows
    if not header:
        raise SourceUnreadable("source_unreadable", f"{where} is empty: its first line must name the columns")


def _sound_text(block: bytes) -> bytes:
    """Valid UTF-8 without NUL; what is not becomes U+FFFD."""
    if 0 in block:
        block = block.replace(b"\0", "\ufffd".encode())
    return block if _is_utf8(block) else block.decode("utf-8", "replace").encode()


def _csv_header(block: bytes, where: str) -> tuple[list[str], int]:
    """Names of the columns, and where the rows start."""
    used = 0

    def lines() -> Iterator[str]:
        nonlocal used
        for line in io.StringIO(block.decode(), newline=""):
            used += len(line.encode())
            yield line

    try:
        header = next(csv.reader(lines()), [])
    except csv.Error as error:
        raise SourceUnreadable("source_unreadable", f"{where} is not CSV: {error}") from error
    return [name.strip() for name in header] or [""], used


def _end_of_records(block: bytes, quotes: np.ndarray) -> int:
    """The end of the last line that ends outside quotes, if all quotes are in their places.

    Args:
        quotes: where the quotes of the block are, int64.
    """
    end = block.rfind(b"\n") + 1
    while end and (before := int(np.searchsorted(quotes, end))) % 2:
        end = block.rfind(b"\n", 0, int(quotes[before - 1])) + 1
    return end


def _arrow_csv(block: bytes, quotes: np.ndarray, width: int, places: Mapping[str, int]) -> dict[str, pa.Array] | None:
    """Column of LISTING → texts; None when quotes or lines are not as every reader of CSV understands them alike."""
    if not block:
        return {column: pa.array([], pa.string()) for column in places}
    if any(block.rfind(b"\n", start, start + HALF_LINE) < 0 for start in range(0, len(block) - HALF_LINE, HALF_LINE)):
        return None  # perhaps a line is too long
    data = np.frombuffer(block, np.uint8)
    if b"\r" in block and (data[np.flatnonzero(data == RETURN) + 1] != NEWLINE).any():
        return None
    if len(quotes):
        before = data[quotes[0::2] - 1]
        if quotes[0] == 0:
            before[0] = NEWLINE
        after = data[quotes[1::2] + 1]  # a block ends with a newline
        if not np.isin(before, (NEWLINE, COMMA, QUOTE)).all():
            return None
        if not np.isin(after, (NEWLINE, COMMA, QUOTE, RETURN)).all():
            return None
    names = [str(place) for place in range(width)]
    wanted = {str(place): pa.string() for place in places.values()}
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(block),
            pa.csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
            pa.csv.ParseOptions(newlines_in_values=True),
            pa.csv.ConvertOptions(include_columns=list(wanted), column_types=wanted, strings_can_be_null=False),
        )
    except (pa.ArrowException, OSError):
        return None
    columns = {column: table.column(str(place)).combine_chunks() for column, place in places.items()}
    longest = max(pc.max(pc.binary_length(values)).as_py() or 0 for values in columns.values())
    return columns if longest < HALF_LINE else None


def _records(text: str, width: int, room: int, rereads: int) -> tuple[list[Any], str, int]:
    """Rows of CSV text (lists, or ItemFailed), what may go on after its end, and how many rereads are left.

    A record that can't be read costs its first line; the lines after it are read again. A record that the text's
    end leaves open is such a one when it is longer than `room`.
    """
    end = "\0"  # no text holds it: where it comes out tells whether a quote was left open
    lines = deque(io.StringIO(text, newline=""))
    taken: list[str] = []
    rows: list[Any] = []

    def feed() -> Iterator[str]:
        while lines:
            line = lines.popleft()
            taken.append(line)
            if len(line) > HALF_LINE // 2 and len(line.encode()) > MAX_LINE_BYTES:
                raise csv.Error(f"the line is longer than {MAX_LINE_BYTES} bytes")
            yield line
        yield end

    while True:
        try:
            for row in csv.reader(feed()):
                if row == [end]:
                    return rows, "", rereads
                if row and row[-1].endswith(end):
                    rest = "".join(taken)
                    if len(rest.encode()) <= room:
                        return rows, rest, rereads
                    raise csv.Error("a quote is not closed")
                if len(row) > width and any(row[width:]):
                    rows.append(ItemFailed("bad_row", f"the row has {len(row)} fields, the first line {width}"))
                elif row:
                    rows.append(row)
                taken.clear()
        except csv.Error as error:
            rows.append(ItemFailed("bad_row", f"not CSV: {error}"))
            if rereads:
                rereads -= 1
                lines.extendleft(reversed(taken[1:]))
            taken.clear()
