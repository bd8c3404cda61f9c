"""Labelled listings, read from CSV, JSONL or Parquet.

Each row has a title and a label or is_medical (1/0, yes/no, true/false), and if it likes description, tags, group (or
channel or repository), language (or lang) and kind. Rows of one title belong to one group.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medgen.errors import SourceUnreadable
from medgen.listings.rows import storable_text
from medgen.listings.sources import SUFFIXES
from models.hub_files import file_digest
from models.relevance.classifier import MAX_TITLE, context_of

FOLDS = 5  # of cross-validation; so many groups of each class are the least
MAX_ROWS = 1_000_000

_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")


@dataclass(frozen=True)
class LabelledText:
    """A row of a label file. Rows of the same group are never on both sides of a fold.

    `kind` is what sort of text it is, `bundle` where it came from: a file, or its group in it. Rows that share both
    share their weight in training.
    """

    source: str
    title: str
    context: str
    medical: bool
    group: str
    language: str
    kind: str = ""
    bundle: str = ""


@dataclass(frozen=True)
class LabelFile:
    """What a label file holds, as it stands in a data list."""

    name: str
    sha256: str
    rows: int
    medical: int
    left_out: dict[str, int]

    def row(self) -> dict[str, Any]:
        """JSON."""
        return dict(vars(self))


def read_labels(
    paths: Sequence[Path], background: str = "", titles: Sequence[str] = ("title",)
) -> tuple[list[LabelledText], list[LabelFile]]:
    """The labelled texts of all files, in order, and what the files are.

    Args:
        background: name of the background file, without suffix; none by default.
        titles: columns that hold a title; a row gives a text for each that is filled.

    Raises:
        SourceUnreadable: file_unreadable, unknown_source_type, column_missing, file_twice, no_background,
            too_many_rows, too_few_rows.
    """
    texts: list[LabelledText] = []
    files: list[LabelFile] = []
    for path in paths:
        if path.stem in {file.name for file in files}:
            raise SourceUnreadable("file_twice", f"two label files are named {path.stem}: names tell files apart")
        own, left_out = _read_file(path, titles, MAX_ROWS - len(texts))
        texts += own
        medical = sum(text.medical for text in own)
        files.append(LabelFile(path.stem, file_digest(path), len(own), medical, dict(sorted(left_out.items()))))
    if background and background not in {file.name for file in files}:
        raise SourceUnreadable(
            "no_background",
            f"no label file is named {background!r}; there are {', '.join(file.name for file in files)}",
        )
    for medical in (True, False):
        groups = len({t.group for t in texts if t.medical is medical})
        if groups < FOLDS:
            raise SourceUnreadable(
                "too_few_rows",
                f"{groups} groups of {'medical' if medical else 'non-medical'} rows: at least {FOLDS} of each are "
                "needed, and thousands to be good",
            )
    return texts, files


def _read_file(path: Path, titles: Sequence[str], most: int) -> tuple[list[LabelledText], Counter[str]]:
    """The labelled texts of a file, at most so many, and why how many rows are left out."""
    left_out: Counter[str] = Counter()
    texts: list[LabelledText] = []
    for row in _rows(path, titles):
        answer = _text(row.get("is_medical", row.get("label"))).lower()
        filled = [title for title in (_text(row.get(column)) for column in titles) if title]
        if answer not in _YES + _NO:
            left_out["no label"] += 1
        elif not filled:
            left_out["no title"] += 1
        else:
            group = _text(row.get("group") or row.get("channel") or row.get("repository"))
            context = context_of(_text(row.get("description")), _tags(row.get("tags"))).strip()
            texts += [
                LabelledText(
                    source=path.stem,
                    title=title[:MAX_TITLE],
                    context=context,
                    medical=answer in _YES,
                    group=f"{path.stem}\n{group}" if group else title.casefold(),
                    language=_text(row.get("language") or row.get("lang")),
                    kind=_text(row.get("kind")),
                    bundle=f"{path.stem}\n{group}",
                )
                for title in filled
            ]
        if len(texts) > most:
            raise SourceUnreadable("too_many_rows", f"{path} and the files before it hold more than {MAX_ROWS}")
    return texts, left_out


def _rows(path: Path, titles: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows as they stand in a file."""
    kind = SUFFIXES.get(path.suffix.lower())
    try:
        if kind == "csv":
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                reader = csv.DictReader(line.replace("\x00", "\ufffd") for line in file)
                _check_columns(path, reader.fieldnames or (), titles)
                yield from reader
        elif kind == "parquet":
            with pq.ParquetFile(path) as table:
                _check_columns(path, table.schema_arrow.names, titles)
                for batch in table.iter_batches(batch_size=10_000):
                    yield from batch.to_pylist()
        elif kind == "jsonl":
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                rows = (json.loads(line) for line in file if line.strip())
                for number, row in enumerate(rows):
                    if not isinstance(row, dict):
                        raise ValueError(f"row {number + 1} is not an object")
                    if number == 0:
                        _check_columns(path, list(row), titles)
                    yield row
        else:
            raise SourceUnreadable("unknown_source_type", f"{path} is none of {', '.join(SUFFIXES)}")
    except (OSError, csv.Error, pa.ArrowException, ValueError, RecursionError) as error:
        raise SourceUnreadable("file_unreadable", f"{path} cannot be read: {error}") from error


def _check_columns(path: Path, columns: Sequence[str], titles: Sequence[str]) -> None:
    if not {"label", "is_medical"} & set(columns) or not set(titles) & set(columns):
        raise SourceUnreadable(
            "column_missing",
            f"{path} needs a column {' or '.join(titles)} and a column label or is_medical; "
            f"it has {', '.join(columns)}",
        )


def _text(value: Any) -> str:
    # Parquet and JSON may hold labels as booleans or numbers.
    return storable_text(int(value) if isinstance(value, bool | float) and value in (0, 1) else value).strip()


def _tags(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "\n".join(_text(tag) for tag in value)
    text = _text(value)
    return "\n".join(part.strip() for part in text.split("|" if "|" in text else ","))
