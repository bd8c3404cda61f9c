"""A stream of bytes that may hold anything, in blocks of whole lines; and batches of rows that Python parsed.

Blocks of JSONL and CSV go through Arrow's parsers as long as they are sound beyond doubt. A block with anything odd in
it is read row by row with the parsers of Python, so that a bad row costs only itself. What a row means does not depend
on which way it went. Memory is bounded by the size of a block, whatever the length of a line.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from medgen.errors import ItemFailed
from medgen.listings.conform import conform
from medgen.listings.rows import LISTING, Batch, parse_duration, parse_tags, storable_text

MAX_LINE_BYTES = 1 << 20  # of a line of JSONL or a record of CSV
BLOCK_BYTES = 4 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NEWLINE, QUOTE, COMMA, RETURN, OPEN, CLOSE = b'\n",\r{}'
TOO_LONG = ItemFailed("bad_row", f"the line is longer than {MAX_LINE_BYTES} bytes")


class LineBlocks:
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


def without_mark(blocks: LineBlocks) -> Iterator[bytes | None]:
    start = True
    for block in blocks:
        yield block.removeprefix(BYTE_ORDER_MARK) if start and block else block
        start = False


def is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def conform_rows(rows: Sequence[Any], names: Mapping[str, Sequence[Any]], first: int, where: str) -> Batch:
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
