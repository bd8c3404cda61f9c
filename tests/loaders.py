"""A release in the libraries that others load data with; each check is what a user's script does.

    python -m tests.loaders RELEASE_FOLDER SHARDS_FOLDER CACHE

A process of its own, because torchcodec, by which `datasets` decodes too, looks for FFmpeg's shared libraries where the
system has them. PyAV brings the same ones under names of its own: `ffmpeg_by_its_names` lends them.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from tests.conftest import ROOT, clean_environment

Rows = Mapping[str, Mapping[str, Any]]
"""Clip → its row of the metadata."""
Pictures = Mapping[str, np.ndarray]
"""Clip → its first picture, uint8 (height, width, 3) RGB, as medgen reads it."""


def check_all(folder: Path, shards: Path, scratch: Path) -> None:
    """All checks of a release and of its shards, in a process that finds FFmpeg's libraries."""
    libraries = ffmpeg_by_its_names(scratch / "ffmpeg")
    done = subprocess.run(
        [sys.executable, "-m", "tests.loaders", str(folder), str(shards), str(scratch / "cache")],
        cwd=ROOT,
        env=clean_environment() | {"LD_LIBRARY_PATH": str(libraries), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[-4:] == ["croissant", "webdataset", "readers", "datasets"]


def ffmpeg_by_its_names(folder: Path) -> Path:
    """A folder with links to the shared libraries that PyAV brings, by the names that FFmpeg gives them."""
    folder.mkdir(parents=True)
    for path in (Path(av.__file__).parent.parent / "av.libs").glob("lib*.so.*"):
        if name := re.fullmatch(r"(lib(?:av|sw)\w+)-\w+(\.so\.\d+)[\d.]*", path.name):
            (folder / f"{name[1]}{name[2]}").symlink_to(path)
    return folder


def check_datasets(folder: Path, rows: Rows, first: Pictures, cache: Path) -> None:
    """`load_dataset` takes the folder by its card, and as a videofolder; a video decodes to its pictures."""
    from datasets import load_dataset

    by_card = load_dataset(str(folder), cache_dir=str(cache / "card"))
    by_kind = load_dataset("videofolder", data_dir=str(folder), cache_dir=str(cache / "kind"))
    assert list(by_card) == list(by_kind) == ["train"]
    for loaded in (by_card["train"], by_kind["train"]):
        assert {row["clip_id"] for row in loaded} == rows.keys()
        for row in loaded:
            assert row["detailed_caption"] == rows[row["clip_id"]]["detailed_caption"]
            picture = row["video"].get_frame_at(0).data.permute(1, 2, 0).numpy()
            assert _alike(picture, first[row["clip_id"]])


def check_croissant(folder: Path, rows: Rows) -> None:
    """`mlcroissant` finds no error in the document, checks the digests of the files and gives a record per clip."""
    import mlcroissant

    described = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not described.metadata.ctx.issues.errors
    records = {
        record["clips/clip_id"].decode(): {name.partition("/")[2]: value for name, value in record.items()}
        for record in described.records("clips")
    }
    assert records.keys() == rows.keys()
    for clip, record in records.items():
        assert (folder / record["file_name"].decode()).exists() and record["fps"] == rows[clip]["fps"]


def check_webdataset(shards: Path, rows: Rows, folder: Path) -> None:
    """`webdataset` reads exported shards: the row as JSON, the caption as text, the bytes of the clip."""
    import webdataset

    paths = [str(path) for path in sorted(shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode().to_tuple("__key__", "json", "txt", "mp4"))
    assert {key for key, *_ in samples} == rows.keys()
    for key, row, caption, data in samples:
        assert row["clip_id"] == key and caption == rows[key]["detailed_caption"]
        assert data == (folder / rows[key]["file_name"]).read_bytes()


def check_video_readers(folder: Path, rows: Rows, first: Pictures) -> None:
    """`torchcodec` and `decord` see as many frames as are on record, at the recorded rate, in the same colours."""
    import decord
    from torchcodec.decoders import VideoDecoder

    for clip, row in rows.items():
        frames = row["end_frame"] - row["start_frame"]
        by_decord = decord.VideoReader(str(folder / row["file_name"]), num_threads=1)
        by_torchcodec = VideoDecoder(str(folder / row["file_name"]))
        assert len(by_decord) == len(by_torchcodec) == frames
        assert by_decord.get_avg_fps() == pytest.approx(row["fps"], rel=1e-3)
        assert by_torchcodec.metadata.average_fps == pytest.approx(row["fps"], rel=1e-3)
        assert _alike(by_torchcodec[0].permute(1, 2, 0).numpy(), first[clip])
        assert by_decord[0].shape == first[clip].shape


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures differ by no more than two decoders do, of 255."""
    return one.shape == other.shape and float(np.abs(one.astype(int) - other.astype(int)).mean()) < 3


def _main(folder: Path, shards: Path, cache: Path) -> None:
    rows = {row["clip_id"]: row for row in pq.read_table(folder / "metadata.parquet").to_pylist()}
    assert rows
    first = {clip: next(iter(pictures(folder / row["file_name"], Limits()))).rgb() for clip, row in rows.items()}
    for name, check in (
        ("croissant", lambda: check_croissant(folder, rows)),
        ("webdataset", lambda: check_webdataset(shards, rows, folder)),
        ("readers", lambda: check_video_readers(folder, rows, first)),
        ("datasets", lambda: check_datasets(folder, rows, first, cache)),
    ):
        check()
        print(name)


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:4]))
