"""Listings read as rows: JSONL, CSV and Parquet, plain or compressed, and folders of videos.

Rows come in Arrow batches of one schema, whatever the source calls or types its columns. Memory is bounded: by
a block and a line for text, and for Parquet by a batch and by one page of each column, whatever the size of a row
group.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from medgen.errors import ItemFailed, SourceUnreadable
from medgen.listings.conform import conform
from medgen.listings.csv_rows import csv_batches
from medgen.listings.jsonl_rows import jsonl_batches
from medgen.listings.rows import LISTING, Batch, resolve, storable_text
from medgen.listings.shard_file import Shard, open_bytes
from medgen.listings.sources import DICOM_SUFFIXES, FOLDER_SCHEME, VIDEO_SUFFIXES, files_of, is_inside
from medgen.store import open_store

BATCH_ROWS = 32_768
BATCH_BYTES = 32 << 20  # of a Parquet batch, as the file says how long its rows are on average
DICOM_TITLE = "DICOM cine"
PAGE_BUFFER = 1 << 20  # of each column, for reading Parquet piece by piece


def batches(shard: Shard, columns: Mapping[str, str] | None = None) -> Iterator[Batch]:
    """The rows of a shard, in order, streaming.

    Args:
        columns: column of LISTING → the source's name, see `medgen.listings.rows.column_mapping`; others go by its
            ALIASES. Folders of videos have no columns.

    Raises:
        SourceUnreadable: the shard as a whole, or from here on, can't be read: its `fault`, or damage, or the
            file has no url column or none of a name in `columns`. Batches given so far should then not count.
        StoreUnavailable, ArtifactLost: see `medgen.store`.
    """
    if shard.fault:
        raise SourceUnreadable(*shard.fault.split(": ", 1))
    if shard.kind == "folder":
        yield from _folder(shard)
        return
    try:
        if shard.kind == "parquet":
            with _seekable(shard) as file:
                yield from _parquet(file, shard, columns or {})
        else:
            read = {"jsonl": jsonl_batches, "csv": csv_batches}[shard.kind]
            with _unpacked(shard) as stream:
                yield from read(stream, columns or {}, shard.name)
    except (pa.ArrowException, OSError, ValueError) as error:
        kind = f"{shard.compression or ''} {shard.kind}".strip()
        raise SourceUnreadable("source_unreadable", f"{shard.name} is not sound {kind}: {error}") from error


@contextmanager
def _unpacked(shard: Shard) -> Iterator[pa.NativeFile]:
    with open_bytes(shard) as file:
        yield pa.CompressedInputStream(file, shard.compression) if shard.compression else file


@contextmanager
def _seekable(shard: Shard) -> Iterator[pa.NativeFile]:
    """The bytes of a Parquet file. A compressed file is unpacked to disk first: Parquet is read from its end."""
    if not shard.compression:
        with open_bytes(shard) as file:
            yield file
        return
    path = open_store().scratch(".parquet")
    try:
        room = shutil.disk_usage(path.parent).free // 2
        with _unpacked(shard) as stream, path.open("wb") as out:
            while piece := stream.read(PAGE_BUFFER):
                room -= len(piece)
                if room < 0:
                    raise SourceUnreadable(
                        "file_too_large", f"{shard.name} would take more than half of the free disk", transient=True
                    )
                out.write(piece)
        with pa.OSFile(str(path)) as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


def _parquet(file: pa.NativeFile, shard: Shard, mapping: Mapping[str, str]) -> Iterator[Batch]:
    # Buffered and not read ahead: else a row group would be held as a whole.
    remote = shard.location.startswith("s3://")
    with pq.ParquetFile(file, buffer_size=4 * PAGE_BUFFER if remote else PAGE_BUFFER, pre_buffer=False) as parquet:
        names = resolve(parquet.schema_arrow.names, mapping, shard.name)
        groups = range(*(shard.row_groups or (0, parquet.num_row_groups)))
        number = shard.first_row
        for batch in parquet.iter_batches(
            batch_size=_batch_rows(parquet.metadata, groups, set(names.values())),
            row_groups=list(groups),
            columns=list(dict.fromkeys(names.values())),
            use_threads=False,
        ):
            order = batch.schema.names
            columns = {column: batch.column(order.index(name)) for column, name in names.items()}
            yield conform(columns, batch.num_rows, number, shard.name, {})
            number += batch.num_rows


def _batch_rows(metadata: pq.FileMetaData, groups: range, names: set[str]) -> int:
    """Rows of a batch, so that its values take about BATCH_BYTES."""
    longest = 1.0
    for index in groups:
        group = metadata.row_group(index)
        chunks = (group.column(place) for place in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in names)
        longest = max(longest, size / max(1, group.num_rows))
    return max(64, min(BATCH_ROWS, int(BATCH_BYTES / longest)))


def _folder(shard: Shard) -> Iterator[Batch]:
    folder = Path(shard.location)
    relatives = files_of(folder)
    for start in range(0, len(relatives), BATCH_ROWS):
        rows: list[dict[str, Any]] = []
        failures: dict[int, ItemFailed] = {}
        for number, relative in enumerate(relatives[start : start + BATCH_ROWS], start=start + 1):
            try:
                rows.append(_video_file(shard.source, folder, relative))
            except ItemFailed as failure:
                failures[number] = failure
                rows.append({})
        rows = [{"title": "", "description": "", "tags": [], **row} for row in rows]
        yield Batch(start + 1, pa.RecordBatch.from_pylist(rows, LISTING), failures)


def _video_file(source: str, folder: Path, relative: bytes) -> dict[str, str]:
    """A row of LISTING. Raises ItemFailed: outside_folder, not_a_video_name or not_a_file."""
    name = os.fsdecode(relative)
    path = folder / name
    if not is_inside(folder, path):
        raise ItemFailed("outside_folder", f"{storable_text(name)} is a link that leads out of the folder")
    dicom = path.suffix.lower() in DICOM_SUFFIXES
    if not dicom and path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ItemFailed("not_a_video_name", f"{storable_text(name)} is no video by its name")
    if path.exists() and not path.is_file():
        raise ItemFailed("not_a_file", f"{storable_text(name)} is a pipe, a socket or a device")
    url = f"{FOLDER_SCHEME}{quote(source)}/{quote(relative)}"
    if dicom:  # its name may be a patient's: it stays in the URL, by which the file is found, and nowhere else
        return {"url": url, "title": DICOM_TITLE}
    return {"url": url, "title": storable_text(path.stem), "external_id": storable_text(name)}
