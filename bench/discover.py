"""Discovery over tens of millions of listings: speed, memory, recovery, beside simpler ways.

    python -m bench.discover FOLDER [--rows 25000000] [--write docs/discovery.md]

FOLDER holds CSV files of real titles (see `bench/listings.py`), from which the listings are made. In one run: the time
merely to read the columns (the floor), stage 1 alone, a regex alternation and flashtext over the same dictionary, then
`medgen discover` as a whole, again with nothing new, and once killed in the middle and started again.
"""

import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.markdown import Markdown

from bench.kill import ROOT, belonging, environment, kill_all
from bench.listings import COLUMNS, make_listings, read_words
from bench.smallest import titles_folder
from models.relevance.dictionary import TERMS_PATH, load_medical_dictionary

WORKERS = 2
SAMPLE_ROWS = 20_000  # for the ways that would take hours over everything
KILL_ROWS = 5_000_000
STEP_S = 1.0

out = Console()


@dataclass(frozen=True)
class Run:
    """One run of `medgen discover`."""

    summary: dict[str, Any]
    seconds: float
    peak_bytes: int


def main(
    folder: Annotated[Path | None, typer.Argument(help="Folder of CSV files with real titles.")] = None,
    rows: Annotated[int, typer.Option(min=SAMPLE_ROWS, help="Listings to make.")] = 25_000_000,
    shard_rows: Annotated[int, typer.Option(min=1000, help="Rows a file.")] = 500_000,
    medical_share: Annotated[float, typer.Option(help="Share of listings with a medical title.")] = 0.01,
    scratch: Annotated[Path | None, typer.Option(help="Where to work; listings that are there are used.")] = None,
    write: Annotated[Path | None, typer.Option(help="Markdown file for the figures.")] = None,
    smoke: Annotated[bool, typer.Option(help="Only see whether it runs, on the smallest input.")] = False,
) -> None:
    """Exit code 1 when a killed run does not end with the same rows."""
    place = scratch or Path(tempfile.mkdtemp(prefix="medgen-discover-"))
    if smoke:
        folder, rows, shard_rows = titles_folder(place / "titles"), 2000, 2000
    workers = 1 if smoke else WORKERS
    if folder is None:
        raise typer.BadParameter("name a folder of CSV files, or --smoke")
    listings = place / "listings"
    started = time.monotonic()
    make_listings(read_words(folder), listings, rows, shard_rows, medical_share, 0 if smoke else workers)
    out.print(f"listings: {rows:,} rows in {time.monotonic() - started:.0f} s")
    files = sorted(listings.glob("*.parquet"))
    table = pq.read_table(files[0], columns=list(COLUMNS))
    row_bytes = sum(pc.sum(pc.binary_length(column)).as_py() for column in table.columns) / len(table)
    del table
    floor, stage_1 = timed((_read, _judge), files, 0 if smoke else workers)
    out.print(f"read in {floor:.0f} s, stage 1 in {stage_1:.0f} s")
    facts = {
        "rows": rows,
        "mean bytes of title, description and tags": round(row_bytes),
        "bytes of the shards": sum(file.stat().st_size for file in files),
    }
    speeds = {
        f"reading title, description and tags, {workers} processes (the floor)": rows / floor,
        f"stage 1, reading included, {workers} processes": rows / stage_1,
        **{f"{name}, 1 process": speed for name, speed in _on_a_sample(files[0]).items()},
    }
    whole = discovered(listings, place / "whole", workers, any_server=smoke)
    out.print(f"discovered in {whole.seconds:.0f} s, {whole.peak_bytes / 2**20:.0f} MiB")
    again = discovered(listings, place / "whole", workers, any_server=smoke)
    # What a kill leaves is also shown by tests/test_discover.py, in less time.
    faults = [] if smoke else faults_after_a_kill(listings, place, max(1, KILL_ROWS // shard_rows))
    page = report(facts, speeds, whole, again, faults)
    out.print(Markdown(page))
    if write:
        write.write_text(page)
    if scratch is None:
        shutil.rmtree(place)
    if faults:
        raise typer.Exit(1)


def timed(functions: Iterable[Callable[[Path], int]], files: list[Path], workers: int) -> list[float]:
    """Seconds that so many processes, or this one for 0, take to apply each function to all files. Models are loaded
    before."""
    seconds = []
    with (
        ProcessPoolExecutor(workers, get_context("spawn"), _ready)
        if workers
        else ThreadPoolExecutor(1, initializer=_ready) as pool
    ):
        list(pool.map(_warm, range(4 * workers)))
        for function in functions:
            started = time.monotonic()
            list(pool.map(function, files))
            seconds.append(time.monotonic() - started)
    return seconds


def _ready() -> None:
    import pyarrow as pa

    pa.set_cpu_count(1)
    load_medical_dictionary()


def _warm(_: int) -> None:
    time.sleep(0.2)


def _read(path: Path) -> int:
    with pq.ParquetFile(path) as file:
        return sum(batch.num_rows for batch in file.iter_batches(columns=list(COLUMNS), use_threads=False))


def _judge(path: Path) -> int:
    hits = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=list(COLUMNS), use_threads=False):
            hits += int((load_medical_dictionary().judge(*batch.columns).score > 0).sum())
    return hits


def _on_a_sample(path: Path) -> dict[str, float]:
    """Rows per second of ways to find the terms of the dictionary in the same rows."""
    from flashtext import KeywordProcessor

    with pq.ParquetFile(path) as file:
        batch = next(file.iter_batches(SAMPLE_ROWS, columns=list(COLUMNS)))
    texts = [" ".join(row[name] or "" for name in COLUMNS) for row in batch.to_pylist()]
    terms = _terms()
    speeds = {}

    def measure(name: str, find: Callable[[str], object], share: float) -> None:
        some = texts[: int(len(texts) * share)]
        started = time.perf_counter()
        for text in some:
            find(text)
        speeds[name] = len(some) / (time.perf_counter() - started)

    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, sorted(terms, key=len, reverse=True))) + r")\b", re.I)
    measure(f"regex alternation of the {len(terms):,} terms", pattern.findall, 0.005)
    processor = KeywordProcessor()
    processor.add_keywords_from_list(terms)
    measure("flashtext, the same terms", processor.extract_keywords, 0.2)
    dictionary = load_medical_dictionary()
    started = time.perf_counter()
    dictionary.judge(*batch.columns)
    speeds["stage 1 on the same rows, in memory"] = batch.num_rows / (time.perf_counter() - started)
    return speeds


def _terms() -> list[str]:
    """The spellings of the dictionary, without negative contexts and plurals."""
    table = pq.read_table(TERMS_PATH, columns=["spelling", "role"])
    return sorted(set(table.filter(pc.equal(table["role"], "term"))["spelling"].to_pylist()))


def discovered(listings: Path, home: Path, workers: int = WORKERS, *, any_server: bool = False) -> Run:
    """`medgen discover` to its end, with the peak of its processes' memory (proportional set size).

    Args:
        any_server: as for `bench.kill.environment`.
    """
    process = start(listings, home, workers, any_server=any_server)
    peak = 0
    started = time.monotonic()

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, sum(_memory(process) for process in belonging(home)))
            time.sleep(STEP_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.monotonic() - started
    watcher.join()
    if code:
        raise SystemExit((home / "stderr").read_text()[-5000:])
    return Run(json.loads((home / "stdout").read_text()), seconds, peak)


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def start(listings: Path, home: Path, workers: int = WORKERS, *, any_server: bool = False) -> subprocess.Popen[str]:
    """Starts a discovery in a session of its own."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "apps.cli", "discover", "--source", str(listings.resolve()), "--json"]
    with (home / "stdout").open("w") as stdout, (home / "stderr").open("a") as stderr:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(home, any_server=any_server) | {"MEDGEN_WORKERS": str(workers)},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )


def faults_after_a_kill(listings: Path, place: Path, shards: int) -> list[str]:
    """Whether a run over some shards that is killed and started again differs from an undisturbed one, and how."""
    some = place / "some"
    some.mkdir(exist_ok=True)
    files = sorted(listings.glob("*.parquet"))
    for file in files[:shards]:
        if not (some / file.name).exists():
            (some / file.name).hardlink_to(file)  # a link out of the folder is refused
    plain = discovered(some, place / "plain")  # not the whole run: the name of a source is part of its rows
    home = place / "killed"
    process = start(some, home)
    time.sleep(random.Random(1).uniform(0.5, 0.9) * plain.seconds)
    kill_all(home, process)
    resumed = discovered(some, home)
    faults = []
    if resumed.summary["digest"] != plain.summary["digest"]:
        faults.append("the rows differ after a kill")
    if min(shards, len(files)) > 1 and not 0 < resumed.summary["executed"] < plain.summary["executed"]:
        faults.append(f"{resumed.summary['executed']} shards done after the kill, {plain.summary['executed']} in all")
    return faults


def report(facts: dict[str, int], speeds: dict[str, float], whole: Run, again: Run, faults: list[str]) -> str:
    """The figures as Markdown."""
    floor = next(iter(speeds.values()))
    lines = [
        "# Discovery at scale",
        "Written by `python -m bench.discover`; nothing here is typed. One machine, two cores.",
        "; ".join(f"{name}: {value:,}" for name, value in facts.items()) + ".",
        "| way | rows/s | of the floor |\n|---|---:|---:|\n"
        + "\n".join(f"| {name} | {speed:,.0f} | {speed / floor:.4f} |" for name, speed in speeds.items()),
        "| `medgen discover` | seconds | rows/s | peak memory, MiB | shards done | shards known | kept |\n"
        "|---|---:|---:|---:|---:|---:|---:|\n"
        + "\n".join(
            f"| {name} | {run.seconds:.1f} | {facts['rows'] / run.seconds:,.0f} | {run.peak_bytes / 2**20:.0f} | "
            f"{run.summary['executed']} | {run.summary['reused']} | {run.summary['kept']:,} |"
            for name, run in (("first", whole), ("again, nothing new", again))
        ),
        "Rows by verdict: " + ", ".join(f"{k} {v:,}" for k, v in whole.summary["counts"].items()) + ".",
        "Killed in the middle and started again: "
        + (
            "; ".join(faults)
            or "every row has the verdict of an undisturbed run, and only unfinished shards were redone"
        )
        + ".",
    ]
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
