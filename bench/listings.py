"""Makes tens of millions of realistic listings from real titles and descriptions, as Parquet shards.

Real titles keep their words and get what uploaders add (part numbers, years, tags in capitals); descriptions are real
ones cut at random lengths, a quarter of them empty, as listings have them. Rows are written without dictionary
encoding, which real texts would not profit from. The same arguments give the same shards.
"""

import csv
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROW_GROUP = 50_000
DESCRIPTIONS = 20_000  # variants drawn from per shard
CHANNELS = 200_000
ENDINGS = ("", "", "", "", " | Part {}", " - Episode {}", " (20{:02d})", " #{}", " HD", " [OFFICIAL]", " ep. {}")
ALPHABET = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_", np.uint8)
COLUMNS = ("title", "description", "tags")


@dataclass(frozen=True)
class Words:
    """What listings are drawn from: titles by kind, and (description, tags) pairs of other videos."""

    medical: tuple[str, ...]
    other: tuple[str, ...]
    about: tuple[tuple[str, str], ...]


def read_words(folder: Path) -> Words:
    """Titles, descriptions and tags of the CSV files in a folder (title, is_medical; description, tags)."""
    medical: list[str] = []
    other: list[str] = []
    about: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("title"):
                    (medical if row.get("is_medical") == "1" else other).append(row["title"])
                if row.get("description") is not None:
                    about.append((row["description"], row.get("tags") or ""))
    if not (medical and other and about):
        raise SystemExit(f"{folder} needs CSV files with title, is_medical, description and tags")
    return Words(tuple(medical), tuple(other), tuple(about))


def make_listings(words: Words, folder: Path, rows: int, shard_rows: int, medical_share: float, workers: int) -> None:
    """Writes shards that are not there yet, in so many processes, or in this one for 0."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [min(shard_rows, rows - start) for start in range(0, rows, shard_rows)]
    with ProcessPoolExecutor(workers, get_context("spawn")) if workers else ThreadPoolExecutor(1) as pool:
        made = [
            pool.submit(_shard, words, folder / f"part-{number:05d}.parquet", number, size, medical_share)
            for number, size in enumerate(sizes)
        ]
        for future in made:
            future.result()


def _shard(words: Words, path: Path, number: int, rows: int, medical_share: float) -> None:
    if path.exists():
        return
    draw = np.random.default_rng(number)
    descriptions = pa.array([_cut(words.about[draw.integers(len(words.about))][0], draw) for _ in range(DESCRIPTIONS)])
    tags = pa.array([words.about[draw.integers(len(words.about))][1] for _ in range(2_000)])
    titles = pa.array([*words.medical, *words.other])
    endings = pa.array([ending.format(n) for ending in ENDINGS for n in range(1, 41)])
    schema = pa.schema([(name, pa.string()) for name in ("id", "url", *COLUMNS, "channel", "channel_url")])
    part = path.with_suffix(".part")
    with pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=False) as writer:
        for start in range(0, rows, ROW_GROUP):
            count = min(ROW_GROUP, rows - start)
            medical = draw.random(count) < medical_share
            chosen = np.where(
                medical,
                draw.integers(len(words.medical), size=count),
                len(words.medical) + draw.integers(len(words.other), size=count),
            )
            empty = draw.random(count) < 0.5
            ids = _ids(draw, count)
            channels = pc.cast(pa.array(draw.integers(CHANNELS, size=count)), pa.string())
            columns = [
                ids,
                pc.binary_join_element_wise("https://videos.example/watch?v=", ids, ""),
                pc.binary_join_element_wise(
                    titles.take(pa.array(chosen)), endings.take(pa.array(draw.integers(len(endings), size=count))), ""
                ),
                descriptions.take(pa.array(draw.integers(len(descriptions), size=count))),
                pc.if_else(pa.array(empty), "", tags.take(pa.array(draw.integers(len(tags), size=count)))),
                pc.binary_join_element_wise("Channel ", channels, ""),
                pc.binary_join_element_wise("https://videos.example/channel/", channels, ""),
            ]
            writer.write_batch(pa.record_batch(columns, schema), row_group_size=ROW_GROUP)
    part.replace(path)


def _cut(text: str, draw: np.random.Generator) -> str:
    """Empty, whole or the beginning of it."""
    kind = draw.random()
    if kind < 0.25:
        return ""
    return text if kind < 0.5 else text[: int(np.exp(draw.uniform(np.log(20), np.log(1500))))]


def _ids(draw: np.random.Generator, count: int) -> pa.Array:
    """Random ids of 11 characters."""
    characters = ALPHABET[draw.integers(64, size=(count, 11))]
    offsets = np.arange(0, 11 * (count + 1), 11, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(characters.tobytes()))
