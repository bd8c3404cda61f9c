"""Conversion of tables with any column types to batches of one schema, column by column, in Arrow.

Of tens of millions of rows only the few that something is wrong with become Python objects here.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medgen.errors import ItemFailed, SourceUnreadable
from medgen.listings.rows import LISTING, MAX_TEXT, MAX_URL, Batch, check_url, parse_duration

# A URL of this form, in printable ASCII, passes `check_url` as it is.
PLAIN_URL = r"^(?i:https?)://[A-Za-z0-9][A-Za-z0-9.-]*(?:[/?#]|$)"


def conform(
    columns: Mapping[str, pa.Array], count: int, first: int, where: str, failures: Mapping[int, ItemFailed]
) -> Batch:
    """Makes a batch of columns of any type that can be understood.

    Args:
        columns: column of LISTING → `count` values; those missing are null.
        first: number of the first row.
        where: names the table in errors.
        failures: rows known to be unusable; their values are not looked at.

    Raises:
        SourceUnreadable: a column is of a type that can't hold what it should.
    """
    bad: dict[int, ItemFailed] = {}
    arrays = []
    for name, kind in zip(LISTING.names, LISTING.types, strict=True):
        values = columns.get(name)
        if values is None or pa.types.is_null(values.type):
            values = pa.nulls(count, kind)
        plain = _plain(values)
        try:
            if name == "duration_s":
                arrays.append(_seconds(plain, first, bad))
            elif name == "tags":
                arrays.append(_tags(plain))
            elif name == "url":
                arrays.append(_storable(_text(plain)))
            else:
                arrays.append(_filled(_storable(_text(plain)), "" if name in ("title", "description") else None))
        except _WrongType as error:
            wanted = {"duration_s": "seconds", "tags": "tags"}.get(name, "text")
            raise SourceUnreadable(
                "source_unreadable", f"{where}: the column for {name} holds {values.type}, which can't be {wanted}"
            ) from error
    arrays[0] = _checked_urls(arrays[0], first, bad, failures)
    return Batch(first, pa.RecordBatch.from_arrays(arrays, schema=LISTING), bad | dict(failures))


class _WrongType(Exception):
    """A column holds values that can't be what they should."""


def _plain(values: pa.Array) -> pa.Array:
    """The values without dictionary encoding and extension types, which say how they are stored or used."""
    while True:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        elif pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        else:
            return values


def _text(values: pa.Array) -> pa.Array:
    kind = values.type
    is_ = pa.types
    if is_.is_string(kind):
        return values
    if is_.is_timestamp(kind):
        if kind.tz:
            values = values.cast(pa.timestamp(kind.unit, "UTC"))
        text = values.cast(pa.timestamp("s", kind.tz and "UTC"), safe=False).cast(pa.string())
        return pc.replace_substring(text, " ", "T")  # ISO 8601
    if is_.is_floating(kind):  # whole numbers become floats beside a missing value
        wide = values.cast(pa.float64())
        if pc.all(pc.equal(wide, pc.round(wide)), min_count=0).as_py() and (pc.max(pc.abs(wide)).as_py() or 0) < 2**53:
            return wide.cast(pa.int64()).cast(pa.string())
        return wide.cast(pa.string())
    if is_.is_binary(kind) or is_.is_large_binary(kind) or is_.is_fixed_size_binary(kind) or is_.is_binary_view(kind):
        return _decoded(values)
    if (
        is_.is_large_string(kind) or is_.is_string_view(kind) or is_.is_integer(kind) or is_.is_boolean(kind)
        or is_.is_decimal(kind) or is_.is_date(kind)
    ):  # fmt: skip
        try:
            return values.cast(pa.string())
        except pa.ArrowInvalid:
            return _decoded(values)
    raise _WrongType


def _bytes(text: pa.Array) -> np.ndarray:
    """The UTF-8 bytes of all values of a string array, uint8, not copied."""
    offsets = np.frombuffer(text.buffers()[1], np.int32, len(text) + 1, text.offset * 4) if len(text) else [0, 0]
    data = text.buffers()[2]
    if data is None or offsets[0] == offsets[-1]:
        return np.empty(0, np.uint8)
    return np.frombuffer(data, np.uint8, int(offsets[-1] - offsets[0]), int(offsets[0]))


def _storable(text: pa.Array) -> pa.Array:
    """The same as `storable_text`, for a string array; nulls stay."""
    data = _bytes(text)
    if not len(data):
        return text
    if data.max() > 0x7F:
        try:
            text.validate(full=True)
        except pa.ArrowInvalid:
            text = _decoded(text)
    if data.min() == 0:
        text = pc.replace_substring(text, "\x00", "\ufffd")
    if len(data) > MAX_TEXT and pc.max(pc.binary_length(text)).as_py() > MAX_TEXT:
        text = pc.utf8_slice_codeunits(text, 0, MAX_TEXT)
    return text


def _decoded(values: pa.Array) -> pa.Array:
    """Bytes as text; what is not UTF-8 becomes U+FFFD."""
    pieces = [value.as_buffer().to_pybytes().decode("utf-8", "replace") if value.is_valid else None for value in values]
    return pa.array(pieces, pa.string())


def _filled(text: pa.Array, empty: str | None) -> pa.Array:
    """Null and empty texts both become `empty`."""
    if empty is not None:
        return text.fill_null(empty) if text.null_count else text
    lengths = pc.binary_length(text)
    if pc.min(lengths).as_py() == 0:
        text = pc.if_else(pc.equal(lengths, 0), pa.scalar(None, pa.string()), text)
    return text


def _seconds(values: pa.Array, first: int, failures: dict[int, ItemFailed]) -> pa.Array:
    kind = values.type
    is_ = pa.types
    if is_.is_duration(kind):
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        seconds = pc.divide(values.cast(pa.int64()).cast(pa.float64(), safe=False), float(per_second))
    elif is_.is_integer(kind) or is_.is_floating(kind) or is_.is_decimal(kind):
        seconds = values.cast(pa.float64(), safe=False)
    elif is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind):
        text = _filled(_storable(_text(values)), None)
        try:
            seconds = text.cast(pa.float64())
        except pa.ArrowInvalid:
            return _parsed_seconds(text, first, failures)
    else:
        raise _WrongType
    finite = pc.is_finite(seconds)
    if pc.all(finite).as_py() is False:
        for index in np.flatnonzero(~finite.fill_null(True).to_numpy(zero_copy_only=False)):
            value = seconds[int(index)].as_py()
            failures[first + int(index)] = ItemFailed("bad_row", f"duration is not a number: {value}")
        seconds = pc.if_else(finite, seconds, pa.scalar(None, pa.float64()))
    return seconds


def _parsed_seconds(text: pa.Array, first: int, failures: dict[int, ItemFailed]) -> pa.Array:
    parsed: list[float | None] = []
    for number, value in enumerate(text.to_pylist(), start=first):
        try:
            parsed.append(parse_duration(value))
        except ItemFailed as failure:
            failures[number] = failure
            parsed.append(None)
    return pa.array(parsed, pa.float64())


def _tags(values: pa.Array) -> pa.Array:
    kind = values.type
    is_ = pa.types
    if is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind):
        text = _storable(_text(values)).fill_null("")
        split = pc.split_pattern(
            pc.if_else(pc.match_substring(text, "|"), text, pc.replace_substring(text, ",", "|")), "|"
        )
        offsets, inner = split.offsets, pc.utf8_trim_whitespace(split.values)
    elif is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind) or is_.is_list_view(kind):
        # Casting leaves no null list: an empty one stands for it.
        lists = values.cast(pa.list_(kind.value_type)) if not is_.is_list(kind) else values
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
        inner = _plain(pc.list_flatten(lists))  # leaves out what lies behind null lists
        inner = _storable(pa.nulls(len(inner), pa.string()) if is_.is_null(inner.type) else _text(inner))
    else:
        raise _WrongType
    filled = pc.greater(pc.binary_length(inner), 0).fill_null(False).to_numpy(zero_copy_only=False)
    if not filled.all():
        before = np.concatenate(([0], np.cumsum(filled)))
        offsets = pa.array(before[offsets.to_numpy(zero_copy_only=False)], pa.int32())
        inner = inner.filter(pa.array(filled))
    return pa.ListArray.from_arrays(offsets, inner)


def _checked_urls(
    urls: pa.Array, first: int, failures: dict[int, ItemFailed], skipped: Mapping[int, ItemFailed]
) -> pa.Array:
    """URLs as `check_url` returns them. Only those that are not plain go through it, in Python."""
    plain = pc.match_substring_regex(urls, PLAIN_URL).fill_null(False)
    data = _bytes(urls)
    if len(data) and (data.min() <= 0x20 or data.max() >= 0x7F):
        plain = pc.and_(plain, pc.invert(pc.match_substring_regex(urls, r"[^\x21-\x7e]")).fill_null(False))
    if len(data) > MAX_URL:
        plain = pc.and_(plain, pc.less_equal(pc.binary_length(urls), MAX_URL).fill_null(False))
    changed: dict[int, str] = {}
    for index in np.flatnonzero(~plain.to_numpy(zero_copy_only=False)):
        number = first + int(index)
        if number in skipped:
            continue
        url = urls[int(index)].as_py()
        try:
            checked = check_url(url)
            if checked != url:
                changed[int(index)] = checked
        except ItemFailed as failure:
            failures[number] = failure
    if changed:
        mask = np.zeros(len(urls), bool)
        mask[list(changed)] = True
        urls = pc.replace_with_mask(urls, pa.array(mask), pa.array(list(changed.values()), pa.string()))
    return urls
