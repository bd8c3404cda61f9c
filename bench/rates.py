"""What an item of each step costs, measured on real videos: the rates that come along with `medgen plan`.

    python -m bench.rates FOLDER... [--titles FOLDER] [--rehearsal HOME] [--write tasks/operations/rates.json]

Refreshes the folders' videos in an installation of its own and takes the processor time of each work in its worker;
the first of each step in a process, which loads the models, is left out. Discover is measured on listings made of real
titles, the comparison of clips on made-up fingerprints, the records on works that do nothing. Shares, bytes and lengths
are those on record.
"""

import atexit
import json
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import create_engine

from bench import near_duplicates
from bench.listings import make_listings, read_words
from bench.smallest import medical_folder, titles_folder
from medgen.ledger import Outcome, Work
from medgen.postgres import embedded_url
from medgen.shard import Step
from medgen.store import Store, open_store
from tasks.operations.rates import UNITS, General, Rates, StepRate, measured_rates

MEDICAL_SHARE = 0.01  # of the listings made of titles
SHARDS = 3
CLIPS = 20_000  # whose fingerprints are compared
LOG = "MEDGEN_BENCH_RATES"  # folder of the measurements, for worker processes


def main(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders of videos.")] = None,
    titles: Annotated[Path | None, typer.Option(help="Folder of CSV files with real titles.")] = None,
    rows: Annotated[int, typer.Option(min=1000, help="Listings to make of them.")] = 1_000_000,
    videos: Annotated[str, typer.Option(help="What the videos are, for people.")] = "",
    min_height: Annotated[int, typer.Option(help="As the refresh's parameter.")] = 240,
    write: Annotated[Path | None, typer.Option(help="File for the rates.")] = None,
    rehearsal: Annotated[
        Path | None, typer.Option(help="Home of `bench.rehearsal`, for the catalog's size and a release's cost.")
    ] = None,
    smoke: Annotated[bool, typer.Option(help="Only see whether it runs, on the smallest input.")] = False,
) -> None:
    """Measures, prints and writes."""
    scratch = Path(tempfile.mkdtemp(prefix="mr-"))  # short: a socket's address has room for 107 bytes
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)  # after the catalog's server, which leaves first
    os.environ["MEDGEN_HOME"] = str(scratch / "home")
    os.environ["MEDGEN_WORKERS"] = "1"
    log = scratch / "log"
    log.mkdir()
    os.environ[LOG] = str(log)
    if smoke:
        folders, titles, rows, videos = (
            [medical_folder(scratch / "videos")],
            titles_folder(scratch / "titles"),
            1000,
            "-",
        )
    if not folders or titles is None or not videos:
        raise typer.BadParameter("name folders of videos, --titles and --videos, or --smoke")
    refresh(folders, min_height)
    from bench.curate import ledger_cost
    from medgen.catalog import open_catalog

    recorded = measured_rates(open_catalog(), 1)
    facts = _facts(log)
    steps = {
        name: _measured(name, recorded.steps[name], recorded.general, facts) for name in UNITS if name in recorded.steps
    }
    steps["discover"] = discovered(titles, rows, scratch)
    steps["deduplicate"] = with_comparison(
        steps["deduplicate"], near_duplicates.BLOCK if smoke else CLIPS, scratch / "compared"
    )
    peaks = [fact["peak"] for own in facts.values() for fact in own if fact["in_worker"]]
    general = recorded.general.model_copy(
        update={
            "record_seconds": ledger_cost(20 if smoke else 2000)["executed_ms"] / 1000,
            "worker_bytes": max(peaks),
            "tokens_in": None,
            "tokens_out": None,
            "catalog_bytes": None,
        }
    )
    made_of = f"listings made of real titles, {CLIPS:,} made-up fingerprints"
    origin = f"{videos}, {os.cpu_count()} cores of {_processor()}, {made_of}"
    if rehearsal:
        rehearsed = measured_rates(create_engine(embedded_url(rehearsal / "postgres")), 1)
        steps["release"] = rehearsed.steps["release"]
        general = general.model_copy(update={"catalog_bytes": rehearsed.general.catalog_bytes})
        made_up = f"{rehearsed.steps['download'].items:,} made-up videos"
        origin += f"; size of the catalog and cost of a release by a rehearsal with {made_up}"
    document = json.dumps(_rounded(Rates(origin=origin, steps=steps, general=general)), indent=1) + "\n"
    sys.stdout.write(document)
    if write:
        write.write_text(document)


def refresh(folders: list[Path], min_height: int) -> None:
    """Refreshes the folders, every work measured."""
    from apps.prefect_server import prefect_server
    from apps.run_flow import run_flow

    with prefect_server(Path(os.environ["MEDGEN_HOME"])):
        from tasks.curation.curation_step import steps  # they import Prefect, which must find the server

        plain = [(step, step.step) for step in steps()]
        for step, make in plain:
            object.__setattr__(step, "step", partial(_with_clock, make=make))
        try:
            run_flow("refresh", {"sources": [*map(str, folders)], "min_height": min_height}, quiet=True)
        finally:
            for step, make in plain:
                object.__setattr__(step, "step", make)


def _with_clock(params: Any, make: Callable[[Any], Step]) -> Step:
    step = make(params)
    function = partial(_clocked, function=step.function, name=step.identity.name, in_worker=step.runs_in == "processes")
    return replace(step, function=function)


def _clocked(
    work: Work, store: Store, function: Callable[[Work, Store], Outcome], name: str, in_worker: bool
) -> Outcome:
    clock = time.process_time if in_worker else time.thread_time
    started = clock()
    try:
        return function(work, store)
    finally:
        _note(name, clock() - started, 1, in_worker)


def _note(name: str, seconds: float, items: int, in_worker: bool) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = json.dumps({"step": name, "seconds": seconds, "items": items, "peak": peak, "in_worker": in_worker})
    with (Path(os.environ[LOG]) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(line + "\n")


def _facts(log: Path) -> dict[str, list[dict[str, Any]]]:
    """Step → what was measured, without the first of each process: it loads the models."""
    facts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(log.glob("*.jsonl")):
        mine: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in path.read_text().splitlines():
            fact = json.loads(line)
            mine[fact["step"]].append(fact)
        for step, own in mine.items():
            facts[step] += own[1:] or own
    return facts


def _measured(
    name: str, rate: StepRate, general: General, facts: Mapping[str, Sequence[Mapping[str, Any]]]
) -> StepRate:
    """The rate with the processor time of its works in place of the time between start and record."""
    if name not in facts:  # release
        return rate
    seconds = statistics.fmean(fact["seconds"] for fact in facts[name])
    units = general.video_seconds if UNITS[name] == "video seconds" else 1.0
    return rate.model_copy(update={"seconds": seconds / (units or 1.0)})


def discovered(titles: Path, rows: int, scratch: Path) -> StepRate:
    """Discover's rate on listings made of real titles; the first shard loads the models and does not count."""
    from tasks.curation.discover import DiscoverParams, discover, works_of
    from tasks.curation.list_feed import ListParams
    from tasks.curation.list_sources import list_source

    make_listings(read_words(titles), scratch / "listings", rows, max(1, rows // SHARDS), MEDICAL_SHARE, 0)
    params = DiscoverParams()
    listing = list_source.fn("titles", str(scratch / "listings"), ListParams())
    store = open_store()
    counts: Counter[str] = Counter()
    seconds = size = 0.0
    for number, work in enumerate(works_of(listing, (), ())):
        started = time.process_time()
        outcome = discover(work, store, params)
        if number:
            seconds += time.process_time() - started
            size += sum(artifact.bytes for artifact in outcome.outputs.values())
            counts.update(outcome.detail["counts"])
    judged = counts.total()
    return StepRate(items=judged, seconds=seconds / judged, kept=counts["kept"] / judged, store_bytes=size / judged)


def with_comparison(rate: StepRate, clips: int, folder: Path) -> StepRate:
    """Deduplicate's rate with the time that comparing so many made-up fingerprints takes."""
    folder.mkdir()
    figures = near_duplicates.measure(clips, folder)
    seconds = (figures["fill_s"] + figures["first_s"]) / clips
    return rate.model_copy(update={"seconds": rate.seconds + seconds})


def _rounded(rates: Rates) -> dict[str, Any]:
    """As JSON, numbers to four significant digits."""

    def shorter(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shorter(item) for name, item in value.items()}
        return float(f"{value:.4g}") if isinstance(value, float) else value

    document: dict[str, Any] = shorter(rates.model_dump(exclude_none=True))
    return document


def _processor() -> str:
    """Its name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    typer.run(main)
