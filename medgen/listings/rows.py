"""A row of a listing: its columns, what they are called elsewhere, and what makes a row unusable."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from medgen.errors import ItemFailed, SourceUnreadable

MAX_TEXT = 100_000  # characters of a text that are kept
MAX_URL = 8_000  # characters; RFC 9110 section 4.1 asks servers for 8,000 octets, and few take more
LISTING = pa.schema(
    [
        ("url", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("channel", pa.string()),
        ("channel_url", pa.string()),
        ("licence", pa.string()),
        ("published", pa.string()),
        ("duration_s", pa.float64()),
        ("external_id", pa.string()),
        ("subtitles_url", pa.string()),
        ("tags", pa.list_(pa.string())),
    ]
)
# Column of LISTING → what a source may call it, in order of preference.
ALIASES: dict[str, tuple[str, ...]] = {
    "url": ("url", "webpage_url", "video_url", "link"),
    "title": ("title", "name"),
    "description": ("description", "summary"),
    "channel": ("channel", "channel_name", "uploader", "author"),
    "channel_url": ("channel_url", "uploader_url"),
    "licence": ("licence", "license"),
    "published": ("published", "published_at", "publish_date", "upload_date", "timestamp"),
    "duration_s": ("duration", "duration_s", "duration_seconds", "length", "length_s"),
    "external_id": ("id", "external_id", "video_id"),
    "subtitles_url": ("subtitles_url", "subtitle_url", "captions_url"),
    "tags": ("tags", "keywords"),
}
OURS = {"duration": "duration_s", "id": "external_id"} | {name: name for name in LISTING.names}
CREDENTIALS = re.compile(r"[^/?#]*//[^/?#]*@")


@dataclass(frozen=True)
class Listed:
    """One row of a listing. `url` is http(s), or ``folder:NAME/RELATIVE-PATH`` (percent-encoded)."""

    url: str
    title: str
    description: str
    tags: tuple[str, ...]
    channel: str | None
    channel_url: str | None
    licence: str | None
    published: str | None
    duration_s: float | None
    external_id: str | None
    subtitles_url: str | None


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a listing.

    Args:
        first: number of the first row, counted from 1 within its file.
        rows: schema LISTING. Texts are valid UTF-8 without NUL, at most MAX_TEXT characters; `title` and
            `description` are never null, the others never empty; `tags` are never null and hold no empty text.
        failures: row number → why the row is unusable. What `rows` holds of such a row means nothing.
    """

    first: int
    rows: pa.RecordBatch
    failures: Mapping[int, ItemFailed]

    @cached_property
    def usable(self) -> np.ndarray:
        """Which rows can be used, bool (rows,)."""
        mask = np.ones(self.rows.num_rows, bool)
        mask[[number - self.first for number in self.failures]] = False
        return mask


def column_mapping(columns: Sequence[str]) -> dict[str, str]:
    """Reads ``OURS=THEIRS`` texts: column of LISTING → the source's name for it.

    OURS is a column of LISTING, or `id` or `duration`. Columns that are not named go by ALIASES.

    Raises:
        ValueError: a text is no such pair, or names an unknown column, or a column is named twice.
    """
    mapping: dict[str, str] = {}
    for text in columns:
        ours, equals, theirs = (part.strip() for part in text.partition("="))
        if not (equals and theirs):
            raise ValueError(f"{text[:100]!r} is not OURS=THEIRS, for example title=name")
        if ours not in OURS:
            raise ValueError(f"{ours[:100]!r} is no column of a listing; there are {', '.join(sorted(OURS))}")
        if OURS[ours] in mapping:
            raise ValueError(f"column {ours!r} is named twice")
        mapping[OURS[ours]] = theirs
    return mapping


def names_of(column: str, mapping: Mapping[str, str]) -> tuple[str, ...]:
    """What a source may call a column of LISTING."""
    return (mapping[column],) if column in mapping else ALIASES[column]


def resolve(present: Sequence[str], mapping: Mapping[str, str], where: str) -> dict[str, str]:
    """Column of LISTING → name among those `present` in a table. `where` names the table in errors.

    Raises:
        SourceUnreadable: no column for url, or one of `mapping` is not there; lists those that are.
    """
    names: dict[str, str] = {}
    for column in LISTING.names:
        name = next((name for name in names_of(column, mapping) if name in present), None)
        if name is not None:
            names[column] = name
        elif column in mapping or column == "url":
            raise SourceUnreadable("source_unreadable", missing_column(column, present, mapping, where))
    return names


def missing_column(column: str, present: Iterable[str], mapping: Mapping[str, str], where: str) -> str:
    """The message that a source lacks a column, with the columns that it has."""
    listed = ", ".join(storable_text(name)[:100] for name in list(present)[:100]) or "none"
    named = f"column {mapping[column]!r}, named for {column}" if column in mapping else f"{column} column"
    advice = "" if column in mapping else f"; name yours, for example columns={column}=NAME"
    return f"{where} has no {named}; its columns: {listed}{advice}"


def storable_text(value: Any) -> str:
    """Text that Postgres and Parquet can hold: no NUL, no lone surrogates, bounded."""
    text = "" if value is None else str(value)[:MAX_TEXT]
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def parse_row(row: Mapping[str, Any]) -> Listed:
    """Validates one row, given by LISTING's names, as `Batch.rows.to_pylist()` has it. Missing columns are null.

    Raises:
        ItemFailed: missing_url, credentials_in_url, unsupported_url or bad_row.
    """
    channel, subtitles = (_without_credentials(row.get(name)) for name in ("channel_url", "subtitles_url"))
    return Listed(
        url=check_url(row.get("url")),
        title=storable_text(row.get("title")),
        description=storable_text(row.get("description")),
        tags=parse_tags(row.get("tags")),
        channel=storable_text(row.get("channel")) or None,
        channel_url=channel,
        licence=storable_text(row.get("licence")) or None,
        published=storable_text(row.get("published")) or None,
        duration_s=parse_duration(row.get("duration_s")),
        external_id=storable_text(row.get("external_id")) or None,
        subtitles_url=subtitles,
    )


def _without_credentials(value: Any) -> str | None:
    """A URL that may stand on record; one with a user name or password is left out."""
    url = storable_text(value)
    return None if CREDENTIALS.match(url) else url or None


def check_url(value: Any) -> str:
    """An http(s) URL with a host, white space around it removed.

    Raises:
        ItemFailed: missing_url, credentials_in_url or unsupported_url.
    """
    url = storable_text(value).strip()
    if not url:
        raise ItemFailed("missing_url", "the row has no url")
    if CREDENTIALS.match(url):
        raise ItemFailed("credentials_in_url", "the URL holds a user name or password, which no record may")
    if not url.lower().startswith(("http://", "https://")):
        raise ItemFailed("unsupported_url", f"only http and https are read, not {url[:200]!r}")
    if len(url) > MAX_URL:
        raise ItemFailed("unsupported_url", f"longer than {MAX_URL} characters: {url[:200]!r}")
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0 and min(url) >= " "
    except ValueError:
        usable = False
    if not usable:
        raise ItemFailed("unsupported_url", f"not a URL: {url[:200]!r}")
    return url


def parse_tags(value: Any) -> tuple[str, ...]:
    """Tags of a list, or of text delimited by ``|`` or else by commas. Raises ItemFailed (bad_row)."""
    tags = value or ()
    if isinstance(tags, str):
        tags = [part.strip() for part in tags.split("|" if "|" in tags else ",")]
    if not isinstance(tags, list | tuple):
        raise ItemFailed("bad_row", f"tags are neither a list nor text: {str(tags)[:50]!r}")
    return tuple(storable_text(tag) for tag in tags if tag)


def parse_duration(value: Any) -> float | None:
    """Seconds; None for null and empty text. Raises ItemFailed (bad_row) for what is no finite number."""
    try:
        seconds = float(value) if value not in (None, "") else None
        if seconds is not None and not math.isfinite(seconds):
            raise ValueError("not finite")
    except (TypeError, ValueError, OverflowError) as error:
        raise ItemFailed("bad_row", f"duration is not a number: {repr(value)[:50]}") from error
    return seconds
