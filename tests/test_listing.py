"""Listings: the same rows from every format, bad rows that cost only themselves, and nothing read twice."""

import csv
import datetime
import decimal
import gzip
import io
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medgen.catalog import open_catalog
from medgen.errors import ItemFailed, SourceUnreadable
from medgen.listings import csv_rows, jsonl_rows, sources, text_blocks
from medgen.listings import shards as listing_shards
from medgen.listings.read import batches
from medgen.listings.rows import ALIASES, LISTING, Listed, column_mapping, parse_row
from medgen.listings.shard_file import Shard
from medgen.listings.shards import KnownFiles, shards
from medgen.listings.sources import open_feed
from medgen.settings import current
from medgen.store import s3_client
from tests.conftest import ROOT, S3Server

FORMATS = ("jsonl", "csv", "parquet")
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :]),
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows in the format of the file's name. Columns are those of any row."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["url"]
    kind = path.name.split(".")[1]
    if kind == "jsonl":
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif kind == "csv":
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(names)
        for row in rows:
            writer.writerow("|".join(v) if isinstance(v := row.get(name), list) else v for name in names)
        data = text.getvalue().encode()
    else:
        sink = io.BytesIO()
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), sink, row_group_size=3)
        data = sink.getvalue()
    path.write_bytes(COMPRESSIONS["".join(path.suffixes[1:])](data))
    return path


def read(shard: Shard, **columns: str) -> list[Listed | tuple[str, str]]:
    """Every row of a shard: what it lists, or (reason, message)."""
    found: list[Listed | tuple[str, str]] = []
    for batch in batches(shard, columns):
        assert batch.first == len(found) + 1 and batch.rows.schema == LISTING
        batch.rows.validate(full=True)
        assert batch.usable.tolist() == [
            n not in batch.failures for n in range(batch.first, batch.first + len(batch.rows))
        ]
        for number, row in enumerate(batch.rows.to_pylist(), start=batch.first):
            if number in batch.failures:
                found.append((batch.failures[number].reason, batch.failures[number].message))
            else:
                found.append(parsed := parse_row(row))
                assert row == {**vars(parsed), "tags": list(parsed.tags)}
    return found


def read_file(path: Path, **columns: str) -> list[Listed | tuple[str, str]]:
    """Every row of a file that is one shard."""
    (shard,) = shards(open_feed(str(path)))
    return read(shard, **columns)


def reasons(found: Sequence[Listed | tuple[str, str]]) -> list[str | None]:
    """Why each row can't be used, None for those that can."""
    return [row[0] if isinstance(row, tuple) else None for row in found]


texts = (
    st.none()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(['a "b", c', "two\nlines", "\r\n", '"', '""', "caf\xe9 腹腔鏡", "\x00", ",", "|", " "])
)
tags = st.lists(st.sampled_from(["gallbladder", "caf\xe9 x", "1"]), max_size=3)
urls = st.sampled_from(
    ["http://a.example/1", "HTTPS://b.example?q=[1]", " http://c.example/ \n", "http://d.example/caf\xe9", "http://[::1]/x",
     "http://e.example:99999/", "ftp://f.example/", "", None, "http://", "http://g.example/a b", "javascript:alert(1)"]
)  # fmt: skip
listing_rows = st.fixed_dictionaries(
    {"url": urls, "title": texts, "description": texts, "uploader": texts, "channel_url": texts, "license": texts,
     "published": texts, "duration": st.none() | st.floats(0, 1e6), "id": texts, "subtitles_url": texts, "tags": tags}
)  # fmt: skip


def expected(row: Mapping[str, Any]) -> Listed | tuple[str, str]:
    """What a row says, by the one that validates a row alone."""
    ours = {c: next((row[n] for n in names if row.get(n) is not None), None) for c, names in ALIASES.items()}
    try:
        return parse_row(ours)
    except ItemFailed as failure:
        return failure.reason, failure.message


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(listing_rows, max_size=9), block=st.sampled_from([40, 300, 4 << 20]))
def test_the_same_rows_from_every_format(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], block: int
) -> None:
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", block)
    wanted = [expected(row) for row in rows]
    for kind in FORMATS:
        for suffix in COMPRESSIONS:
            assert read_file(write(tmp_path / f"listing.{kind}{suffix}", rows)) == wanted, f"{kind}{suffix}"


odd = [
    b"\xff", b"\x00", b'"', b'""', b"\n", b"\r", b"\r\n", b",", b"{", b"}", b"[", b"]", b":", b"\\", b" ", b"http://a.example/",
    b'{"url": "http://a.example/"}', b'\n{"url": "http://b.example/", "id": 1}\n', b'"url"', b'"tags": ["a"]',
    b'http://c.example/,"x"\n', b'http://d.example/,"x\n y"\r\n', b"NaN", b"1e999", "\u2028".encode(), b"\\ud800",
    b'\n{"l\\u0069nk": "http://e.example/", "url": null}\n', b'{"link": "http://f.example/"}\n',
]  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.sampled_from(odd), max_size=12),
    kind=st.sampled_from(["jsonl", "csv"]),
    block=st.sampled_from([7, 60, 4 << 20]),
)
def test_rows_do_not_depend_on_the_parser_or_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], kind: str, block: int
) -> None:
    path = tmp_path / f"listing.{kind}"
    path.write_bytes((b"url,title\n" if kind == "csv" else b"") + b"".join(pieces))
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", block)
    fast = read_file(path)
    with monkeypatch.context() as slow:
        slow.setattr(jsonl_rows, "_arrow_json", lambda *_: None)
        slow.setattr(csv_rows, "_arrow_csv", lambda *_: None)
        slow.setattr(text_blocks, "BLOCK_BYTES", 4 << 20)
        assert reasons(fast) == reasons(wanted := read_file(path))
    assert [row for row in fast if isinstance(row, Listed)] == [row for row in wanted if isinstance(row, Listed)]


GOOD = b"http://a.example/1,Laparoscopy"
BAD_LINES: dict[str, list[tuple[bytes, str | None]]] = {
    "jsonl": [
        (b'{"url": "http://a.example/1", "title"', "bad_row"),
        (b'{"url": "http://a.example/1", "title": "\xff"}', "bad_row"),
        (b'{"url": "http://a.example/1", "title": "' + b"x" * (1 << 20) + b'"}', "bad_row"),
        (b'{"url": "http://a.example/1"} {"url": "http://a.example/2"}', "bad_row"),
        (b"[" * 100_000, "bad_row"),
        (b"\x00", "bad_row"),
        (b"null", "bad_row"),
        (b'{"url": "http://a.example/\\ud800"}', None),
        (b'{"url": "http://a.example/1", "id": 123456789012345678901234567890}', None),
        (b'{"url": "http://a.example/1", "tags": "a, b"}', None),
        (b'{"url": "http://a.example/1", "tags": 7}', "bad_row"),
        (b'{"url": "http://a.example/1", "duration": "12"}', None),
        (b'{"url": "http://a.example/1", "duration": "long"}', "bad_row"),
        (b'{"webpage_url": "http://a.example/1", "url": null}', None),
        (b'{"title": "Laparoscopy"}', "missing_url"),
    ],
    "csv": [
        (b"http://a.example/1,\xff\x00", None),
        (b"http://a.example/1", None),
        (b"http://a.example/1,a,b", "bad_row"),
        (b"http://a.example/1,a,,", None),
        (b'http://a.example/1,"not closed', "bad_row"),
        (b"http://a.example/1," + b"x" * (1 << 20), "bad_row"),
        (b'http://a.example/1,5" tube', None),
        (b',"title"', "missing_url"),
    ],
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_row_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 100_000)
    good = GOOD if kind == "csv" else b'{"url": "http://a.example/1", "title": "Laparoscopy"}'
    lines, wanted = [], []
    for line, reason in BAD_LINES[kind]:
        lines += [line, b"", good]
        wanted += [reason, None]
    for ends in (b"\n", b"\r\n"):
        path = tmp_path / f"listing.{kind}"
        start = b"\xef\xbb\xbf" + (b"url,title" + ends if kind == "csv" else b"")
        # The lines after an open quote come in other blocks too.
        path.write_bytes(start + ends.join(lines + [good] * 30_000))
        found = read_file(path)
        assert reasons(found[: len(wanted)]) == wanted
        assert len(found) == len(wanted) + 30_000 and set(found[len(wanted) :]) == {found[1]}


def test_csv_quotes_can_not_take_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_REREADS", 5)
    path = tmp_path / "listing.csv"
    path.write_bytes(b"url,title\n" + b'a",",b\n' * 600_000 + b'"\n' + GOOD)
    found = read_file(path)
    assert len(found) < 600_000 and isinstance(found[-1], Listed)


def test_columns_of_other_types(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 5, 1, 12, 30, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "link": pa.array(["http://a.example/1", "http://a.example/2"]).dictionary_encode(),
            "name": pa.array(["One", None], pa.large_string()),
            "summary": pa.array([b"caf\xc3\xa9", b"\xff"]),
            "uploader": pa.array([1.0, None]),
            "uploader_url": pa.array([True, False]),
            "license": pa.array(["CC", "CC"], pa.string_view()),
            "timestamp": pa.array([moment, None], pa.timestamp("us", "Europe/Berlin")),
            "length": pa.array([1500, None], pa.duration("ms")),
            "video_id": pa.array([7, None], pa.int64()),
            "keywords": pa.array([["a", None, ""], None], pa.large_list(pa.string())),
            "subtitles_url": pa.nulls(2),
        }
    )
    path = tmp_path / "listing.parquet"
    pq.write_table(table, path)
    first, second = read_file(path)
    assert first == Listed(
        "http://a.example/1", "One", "caf\xe9", ("a",), "1", "true", "CC", "2024-05-01T12:30:00Z", 1.5, "7", None
    )
    assert second == Listed("http://a.example/2", "", "\ufffd", (), None, "false", "CC", None, None, None, None)

    def one(name: str, values: pa.Array, **columns: str) -> Any:
        pq.write_table(pa.table({"url": ["http://a.example/1"] * len(values), name: values}), path)
        return read_file(path, **columns)

    assert one("published", pa.array([datetime.date(2024, 5, 1)]))[0].published == "2024-05-01"
    assert one("duration", pa.array([decimal.Decimal("1.5")]))[0].duration_s == 1.5
    assert [row.duration_s for row in one("duration", pa.array(["2", "", None]))] == [2.0, None, None]
    assert reasons(one("duration", pa.array(["2", "long"]))) == [None, "bad_row"]
    assert reasons(one("duration", pa.array([2.0, float("nan"), float("inf")]))) == [None, "bad_row", "bad_row"]
    assert [row.tags for row in one("tags", pa.array(["a, b|c|", "a, b", "", None]))] == [
        ("a, b", "c"), ("a", "b"), (), (),
    ]  # fmt: skip
    assert one("tags", pa.array([[1, 2]]))[0].tags == ("1", "2")
    assert one("x", pa.array(["Title"]), title="x")[0].title == "Title"
    for name, values in {
        "title": pa.array([["a"]]), "description": pa.array([{"a": 1}]), "duration": pa.array([True]),
        "published": pa.array([[1]]), "tags": pa.array([7]), "keywords": pa.array([{"a": 1}]),
    }.items():  # fmt: skip
        with pytest.raises(
            SourceUnreadable, match=r"holds (list|struct|bool|int64).*, which can't be (text|seconds|tags)"
        ):
            one(name, values)


def test_missing_and_unknown_columns(tmp_path: Path) -> None:
    rows = [{"address": "http://a.example/1", "title": "One"}]
    for kind in ("csv", "parquet"):
        path = write(tmp_path / f"listing.{kind}", rows)
        with pytest.raises(SourceUnreadable, match=r"listing.* has no url column; its columns: address, title"):
            read_file(path)
        assert read_file(path, url="address")[0].url == "http://a.example/1"
    path = write(tmp_path / "listing.jsonl", rows)
    assert reasons(read_file(path)) == ["missing_url"]
    for kind in FORMATS:
        path = write(tmp_path / f"listing.{kind}", rows)
        with pytest.raises(SourceUnreadable, match=r"no column 'names', named for title.*: address, title"):
            read_file(path, url="address", title="names")
    assert column_mapping(("url = link", "duration=seconds", "id=key")) == {
        "url": "link", "duration_s": "seconds", "external_id": "key",
    }  # fmt: skip
    for wrong in (("link",), ("url=",), ("uri=link",), ("id=a", "external_id=b")):
        with pytest.raises(ValueError, match=r"OURS=THEIRS|no column of a listing|named twice"):
            column_mapping(wrong)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_damaged_files_say_so(home: Path, tmp_path: Path, kind: str, suffix: str) -> None:
    rows = [{"url": f"http://a.example/{i}", "title": str(uuid.uuid4())} for i in range(2_000)]
    path = write(tmp_path / f"listing.{kind}{suffix}", rows)
    data = path.read_bytes()
    damaged = {
        "half": data[: len(data) // 2],
        "changed": data[:300] + b"\xff\x00" * 200 + data[700:],
        "noise": b"\xff\x00" * 500,
    }
    for name, content in damaged.items():
        path.write_bytes(content)
        if suffix == "" and kind == "jsonl":
            assert "bad_row" in reasons(read_file(path))
        elif suffix == "" and kind == "csv" and name != "noise":
            assert read_file(path)
        elif (suffix, name) != (".zst", "changed"):  # zstd need not carry a checksum
            with pytest.raises(SourceUnreadable, match=f"listing.{kind}{suffix}"):
                read_file(path)
    assert not list((home / "tmp").glob("*"))


def test_kinds_of_folders(home: Path, tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> str:
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(b"")
        return str(tmp_path / name)

    assert open_feed(folder("a", "x.mp4", "notes.txt", "MANIFEST.csv", "sub/metadata.parquet")).kind == "folder"
    assert open_feed(folder("b", "x.txt")).kind == "folder"
    assert (
        open_feed(folder("c", "2.parquet", "1.jsonl.gz", "README.md", ".hidden.csv", "sub/metadata.csv.zst")).kind
        == "listings"
    )
    with pytest.raises(SourceUnreadable, match=r"ambiguous_folder.*x.mp4.*part.parquet"):
        open_feed(folder("d", "x.mp4", "part.parquet"))
    assert open_feed("name=https://tube.example/@channel?a=b").name == "name"
    assert open_feed("https://tube.example/@channel?a=b").kind == "web"
    assert open_feed("ytsearch50:a=b").url == open_feed("me=ytsearch50:a=b").url == "ytsearch50:a=b"
    assert open_feed("me=s3://bucket/a=b").url == "s3://bucket/a=b"
    for wrong in (
        "https://user:word@tube.example/",
        "http://",
        "s3://",
        "ftp://a.example/x",
        "https://a.example/l.csv.gz",
    ):
        with pytest.raises(SourceUnreadable):
            open_feed(wrong)

    listings = tmp_path / "c"
    for name in ("2.parquet", "1.jsonl.gz", "sub/metadata.csv.zst"):
        write(listings / name, [{"url": f"http://a.example/{name}"}]) if "/" not in name else None
    (listings / "sub/metadata.csv.zst").write_bytes(COMPRESSIONS[".zst"](b"url\nhttp://a.example/3"))
    (tmp_path / "outside.csv").write_text("url\nhttp://secret.example/")
    (listings / "out.csv").symlink_to(tmp_path / "outside.csv")
    (listings / "sub/in.csv.zst").symlink_to("metadata.csv.zst")
    (listings / "gone.csv").symlink_to("nowhere.csv")
    os.mkfifo(listings / "pipe.csv")
    (listings / os.fsdecode(b"caf\xe9.csv")).write_text("url\n")
    found = shards(open_feed(f"name={listings}"))
    assert [(s.source, s.name, s.fault and s.fault.split(":")[0]) for s in found] == [
        ("name", "1.jsonl.gz", None), ("name", "2.parquet", None), ("name", "caf?.csv", "source_unreadable"),
        ("name", "gone.csv", "source_unreadable"), ("name", "out.csv", "outside_folder"),
        ("name", "pipe.csv", "source_unreadable"), ("name", "sub/in.csv.zst", None),
        ("name", "sub/metadata.csv.zst", None),
    ]  # fmt: skip
    assert [row.url for s in found if not s.fault for row in read(s)][-1] == "http://a.example/3"
    with pytest.raises(SourceUnreadable, match=r"out.csv is a link"):
        read(found[4])
    with pytest.raises(SourceUnreadable, match="source_not_found"):
        (tmp_path / "e").mkdir()
        shards(sources.Feed("e", "listings", tmp_path / "e"))


def test_known_files_are_not_read_again(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_shards, "SHARD_ROWS", 5)
    folder = tmp_path / "listings"
    folder.mkdir()
    for name in ("a.parquet", "b.parquet.zst", "c.csv"):
        write(folder / name, [{"url": f"http://a.example/{i}"} for i in range(14)])
    known = KnownFiles(open_catalog())
    first = shards(open_feed(str(folder)), known)
    assert [(s.name, s.row_groups, s.first_row) for s in first] == [
        ("a.parquet#0-1", (0, 2), 1), ("a.parquet#2-3", (2, 4), 7), ("a.parquet#4-4", (4, 5), 13),
        ("b.parquet.zst", None, 1), ("c.csv", None, 1),
    ]  # fmt: skip
    numbers = [int(row["url"][-2:].strip("/")) for s in first[:3] for b in batches(s) for row in b.rows.to_pylist()]
    assert numbers == list(range(14)) and [b.first for s in first[:3] for b in batches(s)] == [1, 7, 13]
    read_now: list[str] = []
    digest = listing_shards.file_digest
    monkeypatch.setattr(listing_shards, "file_digest", lambda path: read_now.append(path.name) or digest(path))
    assert shards(open_feed(str(folder)), known) == first and read_now == []
    stale = first[-1]
    write(folder / "c.csv", [{"url": "http://a.example/new"}])
    later = shards(open_feed(str(folder)), known)
    assert later[:-1] == first[:-1] and later[-1].digest != stale.digest and read_now == ["c.csv"]
    with pytest.raises(SourceUnreadable, match="source_changed"):
        read(stale)
    os.utime(folder / "c.csv", (1, 1))
    assert shards(open_feed(str(folder)), known)[-1].digest == later[-1].digest and read_now == ["c.csv"] * 2


def test_listings_in_s3(home: Path, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceUnreadable, match="MEDGEN_S3_ENDPOINT"):
        shards(open_feed("s3://listings/a.csv"))
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(listing_shards, "SHARD_ROWS", 1_000)
    current.cache_clear()
    client = s3_client(current())
    client.make_bucket("listings")
    rows = [{"url": f"http://a.example/{i}", "title": str(i)} for i in range(2_500)]
    keys = [f"now/part {kind}.{kind}{suffix}" for kind in FORMATS for suffix in COMPRESSIONS]
    for key in [*keys, "now/.hidden.csv", "now/README.md", "nowhere/x.csv"]:
        path = tmp_path / key.rpartition("/")[2]
        write(path, rows) if key in keys else path.write_bytes(b"url\n")
        client.fput_object("listings", key, str(path))
    known = KnownFiles(open_catalog())
    found = shards(open_feed("s3://listings/now"), known)
    whole = [s for s in found if not s.row_groups]
    assert sorted(f"now/{s.name}" for s in whole) == sorted(set(keys) - {"now/part parquet.parquet"})
    assert len(found) == len(whole) + 3
    wanted = [expected(row) for row in rows]
    assert all(read(shard) == wanted for shard in whole)
    pieces = [b.rows["url"] for s in found if s.row_groups for b in batches(s)]
    assert pa.chunked_array(pieces).to_pylist() == [row["url"] for row in rows]
    assert {s.digest for s in found} == {listing_shards.file_digest(tmp_path / key[4:])[0] for key in keys}
    monkeypatch.setattr(listing_shards, "_digest", lambda shard: pytest.fail(f"{shard.name} was read again"))
    assert shards(open_feed("s3://listings/now/"), known) == found
    (one,) = shards(open_feed("me=s3://listings/now/part csv.csv"), known)
    assert (one.source, one.name, one.location) == ("me", "part csv.csv", "s3://listings/now/part csv.csv")
    client.put_object("listings", "now/part csv.csv", io.BytesIO(b"url\n"), 4)
    with pytest.raises(SourceUnreadable, match="source_changed"):
        read(one)
    for nothing in ("s3://listings/no", "s3://nowhere/x", "s3://listings/now/gone.csv"):
        with pytest.raises(SourceUnreadable, match="source_not_found"):
            shards(open_feed(nothing))
    assert not list((home / "tmp").glob("*"))


MEASURE = """
import resource, sys
from medgen.listings.read import batches
from medgen.listings.shards import shards
from medgen.listings.sources import open_feed
import pyarrow.dataset, pyarrow.compute
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = failures = 0
for shard in shards(open_feed(sys.argv[1])):
    for batch in batches(shard):
        rows += batch.rows.num_rows
        failures += len(batch.failures)
print(rows, failures, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    good = b'{"url": "http://a.example/1"}\n'
    for name, start, piece in (
        ("long.jsonl.zst", b"", b"x" * (1 << 20)),
        ("long.csv.zst", b"url,title\n", b'",x' * 350_000),
    ):
        with pa.CompressedOutputStream(str(tmp_path / name), "zstd") as out:
            out.write(start + (good if "json" in name else b"http://a.example/1,\n"))
            for _ in range(200):
                out.write(piece)
            out.write(b"\n" + (good if "json" in name else b"http://a.example/1,\n"))
    rng = np.random.default_rng(0)
    text = pa.array([rng.bytes(400).hex() for _ in range(1_000)])
    column = pa.chunked_array([text] * 500)
    table = pa.table({"url": pa.chunked_array([pa.array(["http://a.example/1"] * 1_000)] * 500), "description": column})
    pq.write_table(table, tmp_path / "group.parquet", row_group_size=len(table), use_dictionary=False)
    found = {}
    for name in ("long.jsonl.zst", "long.csv.zst", "group.parquet"):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found[name] = [int(number) for number in done.stdout.split()]
    assert [counts[:2] for counts in found.values()] == [[3, 1], [3, 1], [500_000, 0]]
    assert max(mebibytes for _, _, mebibytes in found.values()) < 300, found
