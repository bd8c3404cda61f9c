"""Sends damaged media files through probe, segment and cut, and looks at what becomes of the product.

    python -m bench.fuzz_media FOLDER... [--files 1000] [--seed 1]

Each file is a copy of one of the folders' videos with bits flipped, its end missing, stretches lost, doubled or
zeroed, and boxes, elements, chunks and numbers of headers changed. Batches of them go through the real steps in a
process of its own (`bench.through_cut`), so that its crash is seen here.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from medgen.listings.sources import VIDEO_SUFFIXES

ROOT = Path(__file__).resolve().parent.parent
MOST_FILES = 50  # of a batch
HEADER_BYTES = 4096
LOOK_S = 0.05  # between two looks at the processes' memory
# Reasons that are faults of the product, not of the file.
FAULTS = ("time_limit", "memory_limit", "unforeseen_error", "resources")
# Names of boxes (MP4), chunks (AVI) and identifiers of elements (Matroska); their sizes stand before or after them.
BOXES = re.compile(
    rb"ftyp|moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|hdlr|minf|stbl|stsd|stts|ctts|stsc|stsz|stco|co64|stss|avc1|avcC|"
    rb"hvc1|hvcC|av01|pasp|colr|mdat|moof|traf|trun|tfhd|udta|meta"
)
CHUNKS = re.compile(rb"RIFF|LIST|avih|strh|strf|movi|idx1|00dc|01wb")
ELEMENTS = re.compile(
    rb"\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x11\x4d\x9b\x74|\x15\x49\xa9\x66|\x16\x54\xae\x6b|\x1f\x43\xb6\x75|"
    rb"\x1c\x53\xbb\x6b|\x63\xa2|\x54\xb0|\x54\xba|\xe0|\xa3"
)
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

out = Console()


@dataclass
class Findings:
    """What was seen of the product.

    Args:
        verdicts: (step, status, reason) → number of items.
        slowest: step → (seconds, item).
        main_bytes, worker_bytes: most private memory of its main process, and of one of its workers.
        faults: what must not be.
    """

    verdicts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    slowest: dict[str, tuple[float, str]] = field(default_factory=dict)
    main_bytes: int = 0
    worker_bytes: int = 0
    faults: list[str] = field(default_factory=list)


def main(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders of videos.")] = None,
    files: Annotated[int, typer.Option(min=1, help="Damaged files to make.")] = 1000,
    first: Annotated[int, typer.Option(min=0, help="Number of the first, to go on with a run.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the damage.")] = 1,
    largest: Annotated[int, typer.Option(help="Larger videos are left out, bytes.")] = 3 << 20,
    memory: Annotated[int, typer.Option(min=256, help="Memory of a worker, MiB.")] = 1536,
    time_limit: Annotated[float, typer.Option(min=1.0, help="For an item of segment or cut, seconds.")] = 120.0,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    keep: Annotated[Path | None, typer.Option(help="Folder for files with a fault.")] = None,
    smoke: Annotated[bool, typer.Option(help="Only see whether it runs, on the smallest input.")] = False,
) -> None:
    """Exit code 1 on any fault."""
    scratch = Path(tempfile.mkdtemp(prefix="mf-"))
    try:
        if smoke:
            make_videos(scratch / "videos")
            folders, files, workers = [scratch / "videos"], 12, 1
        videos = videos_of(folders or [], largest)
        if not videos:
            raise typer.BadParameter("name folders of videos, or --smoke")
        found = Findings()
        environment = product_environment(scratch / "home", memory, workers)
        for start in range(first, first + files, MOST_FILES):
            batch, end = scratch / f"batch-{start}", min(first + files, start + MOST_FILES)
            make_batch(batch, videos, range(start, end), seed)
            faulty = run_batch(batch, environment, time_limit, found, dissolves=not smoke)
            if keep and faulty:
                keep.mkdir(parents=True, exist_ok=True)
                for name in faulty:
                    shutil.copy(batch / name, keep)
            shutil.rmtree(batch)
            out.print(f"{end - first} files, {len(found.faults)} faults", highlight=False)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if found.worker_bytes > 1.5 * (memory << 20) or found.main_bytes > memory << 20:
        found.faults.append("a process held more memory than it may")
    show(found, files, videos)
    if found.faults:
        raise typer.Exit(1)


def make_videos(folder: Path) -> None:
    """A second of a moving stripe in MP4, Matroska, AVI and MPEG-TS."""
    folder.mkdir()
    for suffix in ("mp4", "mkv", "avi", "ts"):
        with av.open(str(folder / f"stripe.{suffix}"), "w") as written:
            stream = written.add_stream("libx264", rate=6)
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            for index in range(6):
                picture = np.full((120, 160, 3), 60, np.uint8)
                picture[:, 20 * index : 20 * index + 30] = 200
                written.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            written.mux(stream.encode(None))


def videos_of(folders: Sequence[Path], largest: int) -> list[Path]:
    """Videos that are not empty, the smallest first."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES]
    return sorted((path for path in files if 0 < path.stat().st_size <= largest), key=lambda path: path.stat().st_size)


def product_environment(home: Path, memory: int, workers: int) -> dict[str, str]:
    """This process's environment, with an installation of its own."""
    others = ("PREFECT_", "MEDGEN_")
    return {k: v for k, v in os.environ.items() if not k.startswith(others)} | {
        "MEDGEN_HOME": str(home),
        "MEDGEN_WORKERS": str(workers),
        "MEDGEN_WORKER_MEMORY_BYTES": str(memory << 20),
    }


def make_batch(folder: Path, videos: Sequence[Path], numbers: Sequence[int], seed: int) -> None:
    """Damaged copies. The name tells the number, the damage and the video."""
    folder.mkdir()
    for number in numbers:
        chance = random.Random(f"{seed}/{number}")
        video = videos[number % len(videos)]
        data = bytearray(video.read_bytes())
        damages = chance.choices(DAMAGES, k=chance.choice((1, 1, 2, 3)))
        for damage in damages:
            if data:
                damage(data, chance)
        names = "-".join(damage.__name__ for damage in damages)
        (folder / f"{number:05d}-{names}-{video.name}").write_bytes(data)


def flipped(data: bytearray, chance: random.Random) -> None:
    """Bits anywhere."""
    for _ in range(2 ** chance.randint(0, 10)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def header_flipped(data: bytearray, chance: random.Random) -> None:
    """A few bits at the beginning."""
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(min(len(data), HEADER_BYTES))] ^= 1 << chance.randrange(8)


def truncated(data: bytearray, chance: random.Random) -> None:
    """The end is missing."""
    del data[chance.randrange(len(data)) :]


def lost(data: bytearray, chance: random.Random) -> None:
    """A stretch is missing."""
    start, length = _stretch(data, chance)
    del data[start : start + length]


def doubled(data: bytearray, chance: random.Random) -> None:
    """A stretch stands there twice, or a few hundred times if it is short."""
    start, length = _stretch(data, chance)
    piece = data[start : start + length]
    data[start:start] = piece * (chance.choice((1, 300)) if length < HEADER_BYTES else 1)


def zeroed(data: bytearray, chance: random.Random) -> None:
    """A stretch is zero."""
    start, length = _stretch(data, chance)
    data[start : start + length] = bytes(length)


def resized(data: bytearray, chance: random.Random) -> None:
    """The size of a box, element or chunk is another."""
    if data[:4] == b"\x1a\x45\xdf\xa3":
        places = [(match.end(), 1) for match in ELEMENTS.finditer(data)]
    elif data[:4] == b"RIFF":
        places = [(match.end(), 4) for match in CHUNKS.finditer(data)]
    else:
        places = [(match.start() - 4, 4) for match in BOXES.finditer(data) if match.start() >= 4]
    if not places:
        return numbered(data, chance)
    start, length = chance.choice(places)
    size = int.from_bytes(data[start : start + length])
    value = chance.choice((*EXTREMES, size + 1, size - 1, size * 2, size // 2, len(data)))
    data[start : start + length] = (value % (1 << 8 * length)).to_bytes(length)
    return None


def numbered(data: bytearray, chance: random.Random) -> None:
    """A number in a header, near the name of a box or chunk where there is one, is an extreme one."""
    names = [match.end() for pattern in (BOXES, CHUNKS) for match in pattern.finditer(data)]
    start = chance.choice(names) if names else 0
    start = min(start + chance.randrange(64), len(data) - 1)
    length = chance.choice((1, 2, 4, 8))
    value = chance.choice(EXTREMES) % (1 << 8 * length)
    data[start : start + length] = value.to_bytes(length, chance.choice(("big", "little")))


def _stretch(data: bytearray, chance: random.Random) -> tuple[int, int]:
    """(start, length) of short ones and long ones alike."""
    start = chance.randrange(len(data))
    return start, min(len(data) - start, 2 ** chance.randint(0, 16))


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flipped, header_flipped, truncated, lost, doubled, zeroed, resized, resized, numbered, numbered,
)  # fmt: skip


def run_batch(
    batch: Path, environment: dict[str, str], time_limit: float, found: Findings, *, dissolves: bool
) -> set[str]:
    """Runs the product on a batch; names of the files with a fault. Without verdicts, all may be to blame."""
    report = batch.with_suffix(".jsonl")
    # Not as a module: each of its workers would import that anew.
    call = "from bench.through_cut import main; main()"
    command = [sys.executable, "-c", call, str(batch), str(report), str(time_limit)]
    log = batch.with_suffix(".log")
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, *(["dissolves"] if dissolves else [])],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        )
        watch(process, found)
    names = {path.name for path in batch.iterdir()}
    faulty: set[str] = set()
    if process.returncode:
        found.faults.append(
            f"{batch.name}: the main process ended with {process.returncode}: {log.read_text()[-2000:]}"
        )
        faulty |= names
    without, to_segment = set(names), set[str]()
    for line in report.read_text().splitlines() if report.is_file() else []:
        verdict = json.loads(line)
        step, name, reason = verdict["step"], verdict["file"], verdict["reason"] or ""
        without -= {name}
        if (step, verdict["status"]) == ("download", "kept"):
            to_segment.add(name)
        to_segment -= {name} if step == "segment" else set()
        found.verdicts[step, verdict["status"], reason] += 1
        found.slowest[step] = max(found.slowest.get(step, (0.0, "")), (verdict["seconds"], name))
        if reason in FAULTS:
            found.faults.append(f"{step} {reason}: {name}: {verdict['message']}")
            faulty.add(name)
    without |= to_segment
    found.faults += [f"no verdict: {name}" for name in sorted(without)]
    return faulty | without


def watch(process: "subprocess.Popen[bytes]", found: Findings) -> None:
    """Waits for the product; keeps the most memory of its main process and of its workers."""
    product = psutil.Process(process.pid)
    while process.poll() is None:
        for member in _family(product):
            try:
                memory = member.memory_info()
                private = memory.rss - memory.shared
                if member.pid == process.pid:
                    found.main_bytes = max(found.main_bytes, private)
                elif "multiprocessing" in " ".join(member.cmdline()):
                    found.worker_bytes = max(found.worker_bytes, private)
            except psutil.Error:
                continue
        time.sleep(LOOK_S)


def _family(product: psutil.Process) -> list[psutil.Process]:
    try:
        return [product, *product.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def show(found: Findings, files: int, videos: Sequence[Path]) -> None:
    """Prints what was found."""
    table = Table("step", "verdict", "items", title=f"{files} files of {len(videos)} videos", title_justify="left")
    for (step, status, reason), count in sorted(found.verdicts.items()):
        table.add_row(step, f"{status} {reason}".strip(), str(count))
    out.print(table)
    for step, (seconds, name) in found.slowest.items():
        out.print(f"slowest of {step}: {seconds:.1f} s, {name}", highlight=False, soft_wrap=True)
    out.print(
        f"most memory: main process {found.main_bytes >> 20} MiB, a worker {found.worker_bytes >> 20} MiB",
        highlight=False,
    )
    for fault in found.faults:
        out.print(f"[red]✗[/] {fault}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
