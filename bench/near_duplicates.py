"""How long near-duplicates take among made-up clips, of which one in twenty is a copy, and how many copies are found.

    python -m bench.near_duplicates --home /tmp/duplicates           # 100,000 and 1,000,000 clips, 8 GB of disk
    python -m bench.near_duplicates --clips 20000

A clip is noise: 16 hashed frames and a course of 64 steps. Copies have noise on the course and flipped bits in the
hashes; half of them begin later, half are sampled at half the rate. Each number of clips is a process of its own:
filling the index, a first search, one with nothing new, one after a night that adds a hundredth. The search as it was
before there was an index runs on 5,000 clips in the same run. Seconds are the processor's, of one core, but for the
last column, so that they say the same on a busy machine. Markdown goes to standard output.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from bench.search_in_memory import Candidate
from bench.search_in_memory import duplicates as duplicates_in_memory
from models.duplicates.fingerprint import PARTS, Fingerprint
from models.duplicates.index import Entry, FingerprintIndex, open_index
from models.duplicates.search import duplicates

STEP_S = 0.125
FRAMES, STEPS = 16, 64
PER_FRAME = 4  # steps of the course a hashed frame
BLOCK = 1000  # clips made at once; of its clips the last are copies of its first
COPIES = 50  # of a block
FLIPPED = 0.04  # of the bits of a copy's hashes
NOISE = 8  # grey levels, on a copy's course


def made(block: int) -> Iterator[Entry]:
    """The clips of a block: `COPIES` of them copies, which rank after all others, of its first ones."""
    random = np.random.default_rng(block)
    originals = [_noise(random) for _ in range(BLOCK - COPIES)]
    copies = [_copied(originals[n], random, later=n % 2 == 0, slower=n % 4 < 2) for n in range(COPIES)]
    for n, fingerprint in enumerate(originals + copies):
        facts = (0.0, float(random.random()) if n < len(originals) else -1.0, 1e6)
        yield Entry(BLOCK * block + n, f"c{block}-{n}", facts, fingerprint)


def _noise(random: np.random.Generator) -> Fingerprint:
    sizes = (FRAMES, 32), (FRAMES // 2, len(PARTS), 16), (STEPS, 64)
    hashes, parts, course = (random.integers(0, 256, size, np.uint8) for size in sizes)
    return Fingerprint(STEP_S, hashes, parts, np.zeros(FRAMES, bool), course)


def _copied(of: Fingerprint, random: np.random.Generator, *, later: bool, slower: bool) -> Fingerprint:
    first, every = (2 if later else 0), (2 if slower else 1)

    def flipped(hashes: np.ndarray) -> np.ndarray:
        return hashes ^ np.packbits(random.random((*hashes.shape, 8)) < FLIPPED, axis=-1)[..., 0]

    course = of.course[first * PER_FRAME :: every].astype(int)
    noisy = np.clip(course + random.integers(-NOISE, NOISE + 1, course.shape), 0, 255).astype(np.uint8)
    return Fingerprint(
        STEP_S * every, flipped(of.hashes[first:]), flipped(of.parts[first // 2 :]), of.flat[first:], noisy
    )


def measure(clips: int, folder: Path) -> dict[str, float]:
    """Seconds, MiB and shares of one number of clips. Fills the folder."""
    begin = time.perf_counter()
    with open_index(folder) as index:
        figures = {"clips": clips, "fill_s": _filled(index, range(clips // BLOCK))}
        for name in ("first_s", "again_s"):
            started = time.process_time()
            found = duplicates(index, _order(index))
            figures[name] = time.process_time() - started
        figures["recall"], figures["wrong"] = _right(index, found)
        figures["add_s"] = _filled(index, range(clips // BLOCK, clips // BLOCK + max(1, clips // BLOCK // 100)))
        started = time.process_time()
        duplicates(index, _order(index))
        figures["night_s"] = time.process_time() - started
    figures["wall_s"] = time.perf_counter() - begin
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures["disk_gb"] = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    return figures


def _filled(index: FingerprintIndex, blocks: Iterable[int]) -> float:
    """Adds blocks; gives the seconds that adding took, without those of making."""
    spent = 0.0
    for block in blocks:
        entries = list(made(block))
        started = time.process_time()
        index.add(entries)
        spent += time.process_time() - started
    return spent


def _order(index: FingerprintIndex) -> np.ndarray:
    order: np.ndarray = np.lexsort((index.column("clip"), -index.column("facts")[:, 1]))
    return order


def _right(index: FingerprintIndex, found: Mapping[int, tuple[int, object]]) -> tuple[float, float]:
    """(share of the copies that are found, number of finds that are none)."""
    right = 0
    for place, (kept, _) in found.items():
        block, n = divmod(int(index.ids[place]), BLOCK)
        right += int(index.ids[kept]) == BLOCK * block + n - (BLOCK - COPIES)
    return right / (len(index) // BLOCK * COPIES), len(found) - right


def _against_memory(clips: int, folder: Path) -> dict[str, float]:
    """Seconds of the search in memory and of the index, filled from nothing, on the same clips."""
    entries = [entry for block in range(clips // BLOCK) for entry in made(block)]
    started = time.process_time()
    before = duplicates_in_memory(Candidate(e.clip, e.fingerprint, (-e.facts[1], e.clip)) for e in entries)
    memory_s = time.process_time() - started
    started = time.process_time()
    with open_index(folder) as index:
        index.add(entries)
        found = duplicates(index, _order(index))
        after = {index.clip(place): index.clip(kept) for place, (kept, _) in found.items()}
    index_s = time.process_time() - started
    return {"clips": clips, "memory_s": memory_s, "index_s": index_s, "same": float(before == after)}


def main() -> None:
    """Prints the figures."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--clips", type=int, nargs="+", default=[100_000, 1_000_000], help=f"multiples of {BLOCK}")
    arguments.add_argument("--against", type=int, default=5_000, help="clips for the search in memory")
    arguments.add_argument("--home", type=Path, help="folder for the indexes, which are removed again")
    arguments.add_argument("--smoke", action="store_true")
    arguments.add_argument("--one", choices=("measure", "against"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.smoke:
        given.clips, given.against = [BLOCK, 2 * BLOCK], BLOCK
    if given.one:
        run = measure if given.one == "measure" else _against_memory
        print(json.dumps(run(given.clips[0], given.home)))
        return
    peer = _apart("against", given.against, given.home)
    print(
        f"{peer['clips']:,} clips from nothing: in memory {peer['memory_s']:.1f} s, with the index"
        f" {peer['index_s']:.1f} s ({peer['memory_s'] / peer['index_s']:.1f} times as fast),"
        f" {'same' if peer['same'] else 'OTHER'} verdicts\n"
    )
    columns = (
        "clips",
        "filling",
        "first search",
        "nothing new",
        "1 % new",
        "peak memory",
        "disk",
        "copies found",
        "wrong",
    )
    print(f"| {' | '.join(columns)} | wall clock |")
    print("|---" * 10 + "|")
    rows = []
    for clips in given.clips:
        rows.append(row := _apart("measure", clips, given.home))
        print(
            f"| {clips:,} | {row['fill_s']:.1f} s | {row['first_s']:.1f} s | {row['again_s']:.1f} s |"
            f" {row['add_s'] + row['night_s']:.1f} s | {row['peak_mib']:.0f} MiB | {row['disk_gb']:.2f} GB |"
            f" {100 * row['recall']:.2f} % | {row['wrong']:.0f} | {row['wall_s']:.0f} s |",
            flush=True,
        )
    least, most = rows[0], rows[-1]
    growth = (most["fill_s"] + most["first_s"]) / (least["fill_s"] + least["first_s"])
    print(f"\nFrom {least['clips']:,} to {most['clips']:,} clips, filling and first search: {growth:.1f}-fold")


def _apart(one: str, clips: int, home: Path | None) -> dict[str, float]:
    """The figures of a process of its own, whose folder is removed."""
    if home:
        home.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="near-duplicates-", dir=home))
    try:
        command = [sys.executable, "-m", "bench.near_duplicates", "--one", one, "--clips", str(clips)]
        done = subprocess.run([*command, "--home", str(folder)], check=True, capture_output=True, text=True)
        figures: dict[str, float] = json.loads(done.stdout)
        return figures
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
