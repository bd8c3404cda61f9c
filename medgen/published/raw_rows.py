"""Rows of a file that describes a published set, one after the other, whatever columns they have.

Files are untrusted: a row that can't be read is a failure of its own, and no row, header or member takes more memory
than its limit.
"""

import csv
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from medgen.errors import ItemFailed, SourceUnreadable
from medgen.listings.sources import VIDEO_SUFFIXES
from medgen.listings.text_blocks import MAX_LINE_BYTES
from medgen.published.layout import PublishedFile

MAX_ROW_BYTES = MAX_LINE_BYTES  # of a row of text
MAX_COLUMNS = 1_000
MAX_TEXT_MEMBER = 1 << 20  # bytes of a .json or .txt in a shard
MAX_HEADER = 1 << 20  # bytes of the headers of one member of a tar
MAX_MEMBERS = 1_000_000  # of a tar
ROWS_AT_ONCE = 256  # of Parquet
CHUNK = 1 << 20
TEXTS = ("txt", "caption", "cap")
csv.field_size_limit(MAX_ROW_BYTES)


@dataclass(frozen=True)
class RawRow:
    """A row as its file has it.

    Args:
        number: from 1.
        values: column → value.
        failure: why it can't be read; `values` then means nothing.
        place: where in its file the video lies, if it does: `row_group` and `index` in it, and the `column`; or of a
            tar `member`, `offset` and `size` in bytes.
    """

    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    failure: ItemFailed | None = None
    place: Mapping[str, Any] | None = None


def raw_rows(file: PublishedFile) -> Iterator[RawRow]:
    """The rows of a file, in order.

    Raises:
        SourceUnreadable: the file as a whole, or from here on, can't be read. Rows given so far should not count.
    """
    read = {"csv": _csv, "json": _json, "jsonl": _jsonl, "parquet": _parquet, "webdataset": _webdataset}[file.kind]
    try:
        yield from read(file)
    except (pa.ArrowException, OSError, ValueError, csv.Error, tarfile.TarError, EOFError) as error:
        raise SourceUnreadable("source_unreadable", f"{file.name} is not sound {file.kind}: {error}") from error


def _text(file: PublishedFile) -> IO[str]:
    # Of files with .gz and .zst what they unpack to.
    stream = pa.input_stream(str(file.path), compression="detect", buffer_size=CHUNK)
    return io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8-sig", errors="replace", newline="")


def _lines(text: IO[str], file: PublishedFile) -> Iterator[str]:
    """Lines; a file with one that is too long is given up, for what follows it can't be told apart."""
    while line := text.readline(MAX_ROW_BYTES):
        if len(line) == MAX_ROW_BYTES and not line.endswith("\n"):
            raise SourceUnreadable("row_too_long", f"{file.name} has a line of more than {MAX_ROW_BYTES} characters")
        yield line


def _csv(file: PublishedFile) -> Iterator[RawRow]:
    with _text(file) as text:
        rows = csv.reader(_lines(text, file))
        header = [name.strip() for name in next(rows, [])]
        if not any(header) or len(header) > MAX_COLUMNS:
            raise SourceUnreadable("source_unreadable", f"the first line of {file.name} must name its columns")
        number = 0
        for row in rows:
            if not row:
                continue
            number += 1
            if len(row) > len(header) and any(row[len(header) :]):
                message = f"the row has {len(row)} fields, the first line {len(header)}"
                yield RawRow(number, failure=ItemFailed("bad_row", message))
            else:
                yield RawRow(number, dict(zip(header, row, strict=False)))


def _jsonl(file: PublishedFile) -> Iterator[RawRow]:
    number = 0
    with _text(file) as text:
        for line in _lines(text, file):
            if line.strip():
                number += 1
                yield _object(number, line)


def _object(number: int, text: str | bytes) -> RawRow:
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        return RawRow(number, failure=ItemFailed("bad_row", f"not JSON: {error}"))
    return _row_of(number, value)


def _row_of(number: int, value: Any) -> RawRow:
    if not isinstance(value, dict) or len(value) > MAX_COLUMNS:
        return RawRow(number, failure=ItemFailed("bad_row", "not a JSON object, or one of too many fields"))
    return RawRow(number, value)


def _json(file: PublishedFile) -> Iterator[RawRow]:
    """Objects of one list; or an object a line, which some call .json too."""
    with _text(file) as text:
        buffer = text.read(CHUNK).lstrip()
        if not buffer.startswith("["):
            if buffer.startswith("{") and "\n" in buffer and _object(1, buffer[: buffer.index("\n")]).failure is None:
                yield from _jsonl(file)
                return
            raise SourceUnreadable("source_unreadable", f"{file.name} is no list of objects, and no object a line")
        decoder = json.JSONDecoder(parse_constant=lambda _: None)
        at, number, ended = 1, 0, False
        while True:
            while at < len(buffer) and buffer[at] in (" \t\r\n," if number else " \t\r\n"):
                at += 1
            if buffer.startswith("]", at):
                return
            try:
                value, at = decoder.raw_decode(buffer, at)
            except RecursionError as error:
                raise SourceUnreadable(
                    "source_unreadable", f"{file.name}: row {number + 1} is nested too deep"
                ) from error
            except ValueError as error:
                if ended or len(buffer) - at > MAX_ROW_BYTES:
                    raise ValueError(f"after row {number}: {error}") from error
                more = text.read(CHUNK)
                buffer, at, ended = buffer[at:] + more, 0, not more
                continue
            number += 1
            yield _row_of(number, value)


def _parquet(file: PublishedFile) -> Iterator[RawRow]:
    with pq.ParquetFile(file.path, memory_map=False, buffer_size=CHUNK, pre_buffer=False) as parquet:
        names = parquet.schema_arrow.names
        if len(names) > MAX_COLUMNS:
            raise SourceUnreadable("source_unreadable", f"{file.name} has {len(names)} columns, at most {MAX_COLUMNS}")
        inside = video_column(parquet.schema_arrow)
        # Of a column with the videos inside only their paths are read here.
        columns = [name for name in names if name != inside]
        number = 0
        for group in range(parquet.num_row_groups):
            in_group = 0
            paths = _paths(parquet, group, inside) if inside else None
            left = parquet.metadata.row_group(group).num_rows
            batches = parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False)
            for batch in batches if columns else [pa.RecordBatch.from_pylist([{}] * left)]:
                for values in batch.to_pylist() if columns else [{}] * left:
                    number += 1
                    place = None
                    if inside:
                        place = {"column": inside, "row_group": group, "index": in_group}
                        values = {"file_name": next(paths) if paths else None} | values
                    in_group += 1
                    yield RawRow(number, values, place=place)


def video_column(schema: pa.Schema) -> str | None:
    """The column that holds videos as bytes: binary, or a struct of bytes and path as Hugging Face's features are."""
    for column in schema:
        kind = column.type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return str(column.name)
        if pa.types.is_struct(kind) and any(
            kind.field(n).name == "bytes" and not pa.types.is_null(kind.field(n).type) for n in range(kind.num_fields)
        ):
            return str(column.name)
    return None


def _paths(parquet: pq.ParquetFile, group: int, column: str) -> Iterator[str | None] | None:
    kind = parquet.schema_arrow.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    batches = parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[f"{column}.path"], use_threads=False)
    return (row[column] and row[column]["path"] for batch in batches for row in batch.to_pylist())


class _Bounded(io.RawIOBase):
    """A tar file of which nobody reads more than MAX_HEADER bytes at once: `tarfile` takes headers whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _webdataset(file: PublishedFile) -> Iterator[RawRow]:
    """A row for each sample: consecutive members whose names are the same up to the first dot of their last part."""
    with file.path.open("rb") as opened:
        size = opened.seek(0, io.SEEK_END)
        opened.seek(0)
        number, key, sample = 0, "", dict[str, tarfile.TarInfo]()
        with tarfile.open(fileobj=_Bounded(opened), mode="r:") as tar:
            for count, member in enumerate(_members(tar), start=1):
                if count > MAX_MEMBERS:
                    raise SourceUnreadable("too_many_members", f"{file.name} has more than {MAX_MEMBERS} members")
                if member.isdir():
                    continue
                folder, _, last = member.name.rpartition("/")
                stem, _, extension = last.partition(".")
                own = f"{folder}/{stem}" if folder else stem
                if own != key and sample:
                    number += 1
                    yield _sample(number, key, sample, opened, size)
                    sample = {}
                key = own
                sample[extension.lower()] = member
        if sample:
            yield _sample(number + 1, key, sample, opened, size)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        yield member
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all


def _sample(number: int, key: str, sample: Mapping[str, tarfile.TarInfo], file: IO[bytes], size: int) -> RawRow:
    for member in sample.values():
        if fault := _fault(member, size):
            return RawRow(number, failure=ItemFailed("bad_member", f"{member.name[:200]!r} {fault}"))
    videos = [extension for extension in sample if f".{extension.rpartition('.')[2]}" in VIDEO_SUFFIXES]
    if len(videos) != 1:
        held = ", ".join(sorted(sample))[:200]
        return RawRow(number, failure=ItemFailed("bad_sample", f"{key[:200]!r} has no video, or several: {held}"))
    values: dict[str, Any] = {}
    for extension, member in sample.items():
        if extension not in ("json", *TEXTS):
            continue
        if member.size > MAX_TEXT_MEMBER:
            return RawRow(number, failure=ItemFailed("bad_member", f"{member.name[:200]!r} has {member.size} bytes"))
        file.seek(member.offset_data)
        data = file.read(member.size)
        if extension == "json":
            row = _object(number, data)
            if row.failure:
                return row
            values |= row.values
        else:
            values["txt"] = data.decode("utf-8", "replace")
    video = sample[videos[0]]
    values["file_name"] = video.name
    place = {"member": video.name, "offset": video.offset_data, "size": video.size}
    return RawRow(number, values, place=place)


def _fault(member: tarfile.TarInfo, size: int) -> str:
    """What is wrong with a member of a tar; nothing is ever unpacked to the place that it names."""
    if not member.isreg() or member.issparse():
        return "is a link, a device or sparse, and no ordinary file"
    if member.offset_data + member.size > size:
        return "ends after the end of the tar"
    return ""
