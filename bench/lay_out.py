"""How long a large release takes to be laid out for training, and to be exported as WebDataset shards.

    python -m bench.lay_out [--clips 55803]

The clips are made up: hard links to a few files under names of their own, in an installation that is removed again.
Each is measured twice: from nothing, and again with everything there.
"""

import atexit
import hashlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from medgen.canonical import canonical_json
from medgen.catalog import Clip, Release, ReleaseClip, Source, Video, now
from medgen.ledger import Ledger, Outcome, StepIdentity, Work, open_ledger
from medgen.model_lineage import LATENTS
from medgen.store import Artifact
from models.training.config import configured
from tasks.curation.release_content import METADATA
from tasks.training.job_folder import materialize_job
from tasks.training.released import stream_clips
from tasks.training.webdataset import export_webdataset

FILES = 64  # that all clips are links to: a file system allows some ten thousand links to one
CLIP_BYTES = 20_000
SHARD_BYTES = 100_000_000
NAME = "made-1"


def main(
    clips: Annotated[int, typer.Option(min=1, help="Clips of the release; two of a video.")] = 55_803,
    smoke: Annotated[bool, typer.Option(help="Only see whether it runs, on the smallest input.")] = False,
) -> None:
    """Measures and prints JSON."""
    scratch = Path(tempfile.mkdtemp(prefix="ml-"))  # short: a socket's address has room for 107 bytes
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)  # after the catalog's server, which leaves first
    os.environ["MEDGEN_HOME"] = str(scratch / "home")
    clips = 20 if smoke else clips
    ledger = open_ledger()
    digests = fake_files(ledger, clips)
    put_release(ledger, digests)
    before = peak_bytes()
    empty = ledger.store.put_bytes(b"no words", "application/octet-stream").sha256  # it is read
    inputs = {LATENTS + clip_id(number): digest for number, digest in enumerate(digests)} | {"empty": empty}
    work = Work(NAME, inputs=inputs, access={"base": str(scratch)})

    def lay_out() -> Any:
        found, _ = stream_clips(ledger, NAME)
        return len(materialize_job(ledger.store, scratch / "job", work, found, configured("nano", {}), "").samples)

    def export() -> Any:
        made = export_webdataset(ledger, NAME, scratch / "shards", shard_bytes=SHARD_BYTES)
        return made.clips, made.written

    facts = {"clips": clips, "job": [timed(lay_out), timed(lay_out)], "export": [timed(export), timed(export)]}
    facts["peak_bytes_before"], facts["peak_bytes"] = before, peak_bytes()
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")


def timed(run: Callable[[], Any]) -> dict[str, Any]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    result = run()
    return {"seconds": round(time.perf_counter() - started, 2), "result": result}


def peak_bytes() -> int:
    """Most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def clip_id(number: int) -> str:
    """As the pipeline's look; in order."""
    return f"c{number:016x}"


def fake_files(ledger: Ledger, clips: int) -> list[str]:
    """A name in the store for each clip, all of them links to a few files; the bytes are not those of the names."""
    draw = np.random.default_rng(0)
    real = []
    for _ in range(min(FILES, clips)):
        real.append(ledger.store.path(ledger.store.put_bytes(draw.bytes(CLIP_BYTES), "video/mp4").sha256))
    digests = []
    for number in range(clips):
        digest = hashlib.sha256(f"clip {number}".encode()).hexdigest()
        target = ledger.store.folder / digest[:2] / digest
        target.parent.mkdir(exist_ok=True)
        os.link(real[number % len(real)], target)
        digests.append(digest)
    return digests


def put_release(ledger: Ledger, digests: list[str]) -> None:
    """Puts a release with these clips on record."""
    table, files = [], []
    rows: list[Any] = [Source(name="made", kind="folder", uri="made", added_at=now())]
    members: list[Any] = []
    for number, digest in enumerate(digests):
        clip, video = clip_id(number), f"v{number // 2:016x}"
        if number % 2 == 0:
            rows.append(
                Video(id=video, source_name="made", url=f"https://example.org/{video}", title=f"Case {number}",
                      description="", tags=[], discovered_at=now())
            )  # fmt: skip
        members.append(
            Clip(id=clip, video_id=video, start_frame=0, end_frame=200, start_s=0.0, end_s=8.0, width=854, height=480,
                 fps=25.0, digest=digest)
        )  # fmt: skip
        table.append(
            {
                "file_name": f"clips/{clip}.mp4", "clip_id": clip, "clip_sha256": digest, "video_id": video,
                "fps": 25.0, "resolution": "854x480", "duration": 8.0, "category": "imaging", "title": f"Case {number}",
                "brief_caption": "A heart beats in an ultrasound.", "detailed_caption": "A heart beats. " * 40,
            }
        )  # fmt: skip
        files.append({"path": f"clips/{clip}.mp4", "sha256": digest, "bytes": CLIP_BYTES})
    scratch = ledger.store.scratch(".parquet")
    pq.write_table(pa.Table.from_pylist(table, METADATA), scratch, compression="zstd", row_group_size=5000)
    metadata = ledger.store.put_file(scratch, "application/vnd.apache.parquet")
    listed = canonical_json({"files": files, "format": 1, "policy": {}})
    manifest = ledger.store.put_bytes(listed, "application/json")
    clips = {f"clip:{n}": Artifact(digest, "video/mp4", CLIP_BYTES) for n, digest in enumerate(digests)}
    made = StepIdentity("made", 1, {}, {})
    ledger.write(
        made, Work(NAME), Outcome("kept", outputs=clips, rows=[*rows, *members]), started_at=now(), flow_run_id=None
    )
    facts = {"digest": manifest.sha256, "policy": {}, "clips": len(digests), "record_root": manifest.sha256}
    links = [ReleaseClip(release_name=NAME, clip_id=clip_id(number)) for number in range(len(digests))]
    outcome = Outcome(
        "kept",
        outputs={"metadata": metadata, "manifest": manifest},
        rows=[Release(name=NAME, created_at=now(), **facts), *links],
    )
    ledger.write(StepIdentity("release", 1, {}, {}), Work(NAME), outcome, started_at=now(), flow_run_id=None)


if __name__ == "__main__":
    typer.run(main)
