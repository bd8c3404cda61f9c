"""Miniatures of published video sets, in each layout that is read, and their import without a Prefect server."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.made_release import clip_bytes

Rows = Sequence[Mapping[str, Any]]


def made_clips(folder: Path, count: int) -> list[bytes]:
    """MP4s of three seconds, 96x64."""
    folder.mkdir(parents=True, exist_ok=True)
    return [clip_bytes(folder, number) for number in range(count)]


def medvideocap_row(number: int) -> dict[str, Any]:
    """A row as MedVideoCap-55K's paper lists its fields."""
    return {
        "name": f"ab{number // 2}_{number}", "resolution": "720x480", "bit_rate": 900_000, "aesthetic_score": 4.5,
        "dover_score": 0.7, "duration": 3.0, "fps": 8.0, "camera_motion": "static",
        "category": "medical imaging" if number % 2 else "clinical practice",
        "brief_caption": f"A scan, number {number}.",
        "detailed_caption": f"A bright block moves over a plain ground, number {number}.",
    }  # fmt: skip


def put_videos(folder: Path, clips: Sequence[bytes], names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, clip in zip(names, clips, strict=True):
        (folder / name).write_bytes(clip)


def medvideocap(folder: Path, clips: Sequence[bytes]) -> Path:
    """One JSON beside a folder of videos, whose names miss their suffix."""
    rows = [medvideocap_row(number) for number in range(len(clips))]
    put_videos(folder / "videos", clips, [f"{row['name']}.mp4" for row in rows])
    (folder / "MedVideoCap_55K.json").write_text(json.dumps(rows, indent=1))
    return folder


def videofolder(folder: Path, clips: Sequence[bytes]) -> Path:
    """Hugging Face's: folders of splits, each with metadata, here in each of its forms."""
    splits = (("train", "csv", clips[:-2]), ("validation", "jsonl", clips[-2:-1]), ("test", "parquet", clips[-1:]))
    for split, form, own in splits:
        rows = [
            {"file_name": f"{n}.mp4", "caption": f"A scan, number {clips.index(clip)}.", "license": "cc-by-4.0"}
            | {"quality_score": n / 10}
            for n, clip in enumerate(own)
        ]
        put_videos(folder / split, own, [str(row["file_name"]) for row in rows])
        write_table(folder / split / f"metadata.{form}", rows)
    return folder


def write_table(path: Path, rows: Rows) -> None:
    """A table in the form that its suffix says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def videos_inside(folder: Path, clips: Sequence[bytes]) -> Path:
    """Hugging Face's Parquet, with the videos as bytes: two rows a group."""
    rows = [
        {
            "video": {"bytes": clip, "path": f"/home/someone/{n}.mp4"},
            "text": f"A scan, number {n}.",
            "video_id": f"s{n // 2}",
        }
        for n, clip in enumerate(clips)
    ]
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet", row_group_size=2)
    return folder


def webdataset(folder: Path, clips: Sequence[bytes]) -> Path:
    """Two tar shards; of each sample .mp4, .txt and .json."""
    folder.mkdir(parents=True, exist_ok=True)
    half = len(clips) // 2
    for shard, numbers in enumerate((range(half), range(half, len(clips)))):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as tar:
            for number in numbers:
                row = {"url": f"https://example.org/watch?v={number // 2}", "start": 10.0 * number, "license": "CC0"}
                add(tar, f"sample{number}.mp4", clips[number])
                add(tar, f"sample{number}.json", json.dumps(row).encode())
                add(tar, f"sample{number}.txt", f"A scan, number {number}.".encode())
    return folder


def add(tar: tarfile.TarFile, name: str, data: bytes, **facts: Any) -> None:
    """A member of a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for fact, value in facts.items():
        setattr(member, fact, value)
    tar.addfile(member, io.BytesIO(data))


@dataclass
class _Done:
    """A task's run that has ended, as flows look at it."""

    outcome: Any
    error: Exception | None = None

    def wait(self) -> None:
        pass

    def result(self, raise_on_failure: bool = True) -> Any:
        if self.error and raise_on_failure:
            raise self.error
        return self.error or self.outcome

    state = SimpleNamespace(name="Done")


@contextmanager
def imports_here() -> Iterator[Callable[..., dict[str, Any]]]:
    """Gives (source, parameters) → summary of an import in this process, without Prefect."""
    from flows import import_release as flow

    def here(task: Any) -> SimpleNamespace:
        def submit(*arguments: Any) -> _Done:
            try:
                return _Done(task.fn(*arguments))
            except Exception as error:  # noqa: BLE001  (a task's run that failed)
                return _Done(None, error)

        return SimpleNamespace(submit=submit)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("list_files", "import_rows", "release_imported"):
            patch.setattr(flow, name, here(getattr(flow, name)))
        patch.setattr(flow, "get_run_logger", lambda: SimpleNamespace(info=lambda *_: None))
        patch.setattr(flow, "create_table_artifact", lambda *_, **__: None)
        yield lambda source, **parameters: flow._import_release(flow.ImportParameters(source=str(source), **parameters))
