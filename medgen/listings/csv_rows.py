"""Rows of CSV; see `medgen.listings.text_blocks`."""

import csv
import io
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from medgen.errors import ItemFailed, SourceUnreadable
from medgen.listings.conform import conform
from medgen.listings.rows import Batch, resolve
from medgen.listings.text_blocks import (
    COMMA,
    MAX_LINE_BYTES,
    NEWLINE,
    QUOTE,
    RETURN,
    TOO_LONG,
    LineBlocks,
    conform_rows,
    is_utf8,
    without_mark,
)

HALF_LINE = MAX_LINE_BYTES // 2  # a line that is too long fills a whole stretch of this size, counted from anywhere
MAX_REREADS = 1_000  # records of CSV that are given up and their later lines read again; bounds the work on bad files
csv.field_size_limit(MAX_LINE_BYTES)


def csv_batches(stream: pa.NativeFile, mapping: Mapping[str, str], where: str) -> Iterator[Batch]:
    """Rows of CSV, whose first line names the columns; blank lines are no rows. Short rows are filled up.

    Raises:
        SourceUnreadable: there is no first line, or see `medgen.listings.rows.resolve`.
    """
    blocks = LineBlocks(stream)
    header: list[str] = []
    places: dict[str, int] = {}
    first, rereads = 1, MAX_REREADS
    for block in without_mark(blocks):
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
            batch = conform_rows(objects, {column: (place,) for column, place in places.items()}, first, where)
        if batch.rows.num_rows:
            yield batch
        first += batch.rows.num_rows
    if not header:
        raise SourceUnreadable("source_unreadable", f"{where} is empty: its first line must name the columns")


def _sound_text(block: bytes) -> bytes:
    """Valid UTF-8 without NUL; what is not becomes U+FFFD."""
    if 0 in block:
        block = block.replace(b"\0", "\ufffd".encode())
    return block if is_utf8(block) else block.decode("utf-8", "replace").encode()


def _csv_header(block: bytes, where: str) -> tuple[list[str], int]:
    """Names of the columns, and the number of bytes before the first row."""
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
    """Column of LISTING → texts; None when readers of CSV differ on how they understand its quotes or lines."""
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
    """Reads CSV text row by row.

    A record that can't be read costs its first line; the lines after it are read again. So does a record that the
    end of the text leaves open, when it is longer than `room` bytes.

    Returns:
        (rows as lists, or ItemFailed; the open record at the end, to be read with the next text; rereads left).
    """
    end = "\0"  # no text holds it: the row that it comes back in shows whether a quote was left open
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
