"""A release as WebDataset shards: what they hold, and what a second, a killed and a later export make of them."""

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from apps.cli import app
from medgen.canonical import canonical_json
from medgen.catalog import Tombstone
from medgen.errors import ItemFailed
from medgen.ledger import Ledger, open_ledger
from tasks.curation import manifest_files as reading
from tasks.curation.manifest_files import manifest_files
from tasks.training import webdataset
from tasks.training.webdataset import export_webdataset
from tests.made_release import made_release

CLIPS = {f"c{number:02d}": f"video-{number % 4}" for number in range(10)}
SHARD = 20_000  # bytes: a few of the small clips


def members(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Shard → (name, bytes) of its members, as any reader of tar files sees them."""
    return {path.name: list(_members(path)) for path in sorted(folder.glob("*.tar"))}


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r|") as tar:  # in a stream, as trainers read
        for member in tar:
            file = tar.extractfile(member)
            assert file
            yield member.name, file.read()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_hold_the_release_and_the_same_one_gives_the_same_bytes(home: Path, tmp_path: Path) -> None:
    ledger = open_ledger()
    made_release(ledger, tmp_path / "made", CLIPS)
    asked = ["release", "export", "made-1", str(tmp_path / "a"), "--format", "webdataset", "--json"]
    told = json.loads(CliRunner().invoke(app, asked).stdout)
    assert (told["shards"], told["clips"], told["written"], told["left_out"]) == (1, 10, 1, 0)

    made = export_webdataset(ledger, "made-1", tmp_path / "b", shard_bytes=SHARD)
    assert made.clips == 10 and 1 < made.shards < 10
    shards = members(tmp_path / "b")
    assert list(shards) == [f"made-1-{number:06d}.tar" for number in range(made.shards)]
    found = {}
    for shard in shards.values():
        # The convention: members of one key follow one another; the key is the name up to its first dot.
        for key, files in groupby(shard, key=lambda member: member[0].split(".", 1)[0]):
            assert key not in found
            found[key] = {name.split(".", 1)[1]: data for name, data in files}
    assert list(found) == list(CLIPS)
    for key, sample in found.items():
        row = json.loads(sample["json"])
        assert row["clip_id"] == key and row["video_id"] == CLIPS[key]
        assert sample["mp4"] == ledger.store.read(row["clip_sha256"])
        assert sample["txt"].decode() == row["detailed_caption"]
    export_webdataset(ledger, "made-1", tmp_path / "c", shard_bytes=SHARD)
    assert bytes_of(tmp_path / "b") == bytes_of(tmp_path / "c")


def test_an_export_goes_on_and_follows_takedowns(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = open_ledger()
    made_release(ledger, tmp_path / "made", CLIPS)
    whole = export_webdataset(ledger, "made-1", tmp_path / "whole", shard_bytes=SHARD)
    folder = tmp_path / "shards"
    read, opened = ledger.store.path, []

    def killed(digest: str) -> Path:
        opened.append(digest)
        if len(opened) > 8:  # manifest, metadata and some clips
            raise KeyboardInterrupt
        return read(digest)

    with monkeypatch.context() as patch:
        patch.setattr(ledger.store, "path", killed)
        with pytest.raises(KeyboardInterrupt):
            export_webdataset(ledger, "made-1", folder, shard_bytes=SHARD)
    there = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert 0 < len(there) < whole.shards and list(folder.glob(".*.part"))
    on = export_webdataset(ledger, "made-1", folder, shard_bytes=SHARD)
    assert on.written == whole.shards - len(there)
    assert there.items() <= {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}.items()
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")
    assert export_webdataset(ledger, "made-1", folder, shard_bytes=SHARD).written == 0

    take_down(ledger, "video-1")
    after = export_webdataset(ledger, "made-1", folder, shard_bytes=SHARD)
    assert (after.left_out, after.clips, after.shards) == (3, 7, whole.shards)
    keys = {name.partition(".")[0] for shard in members(folder).values() for name, _ in shard}
    assert keys == {clip for clip, video in CLIPS.items() if video != "video-1"}
    assert not [data for data in bytes_of(folder).values() if b"video-1" in data]

    larger = export_webdataset(ledger, "made-1", folder, shard_bytes=10**9)
    assert larger.shards == 1 and len(members(folder)) == 1
    with pytest.raises(ItemFailed, match="no release"):
        export_webdataset(ledger, "nowhere", folder, shard_bytes=SHARD)


def take_down(ledger: Ledger, video: str) -> None:
    with Session(ledger.engine) as session, session.begin():
        session.add(Tombstone(video_id=video, url=f"https://example.org/{video}", reason="asked", detail={}))


PATHS = 'a/."\\}],{é\n'  # what could be taken for the end of something
FILES = st.lists(
    st.fixed_dictionaries(
        {
            "path": st.text(PATHS, min_size=1),
            "sha256": st.text("0123456789abcdef", max_size=8),
            "bytes": st.integers(0, 2**40),
        }
    )
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FILES, st.integers(1, 50))
def test_a_manifest_is_read_piece_by_piece(tmp_path_factory: pytest.TempPathFactory, files: list, chunk: int) -> None:
    path = tmp_path_factory.getbasetemp() / "manifest.json"
    whole = canonical_json({"files": files, "format": 1, "policy": {"files": []}})
    path.write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK", chunk)
        assert list(manifest_files(path)) == files
        if files:
            path.write_bytes(whole[: len(canonical_json({"files": files})) - 2])
            with pytest.raises(ValueError, match="midst"):
                list(manifest_files(path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 10**6), max_size=50), st.integers(1, 10**6))
def test_every_clip_has_one_shard_and_a_shard_its_size(sizes: list[int], most: int) -> None:
    files = [{"path": f"clips/{n:03d}.mp4", "sha256": "", "bytes": size} for n, size in enumerate(sizes)]
    shards = list(webdataset._shards([*files, {"path": "metadata.parquet", "sha256": "", "bytes": 9}], most))  # type: ignore[arg-type]
    assert [file for shard in shards for file in shard] == files
    assert all(len(shard) == 1 or sum(f["bytes"] + webdataset.BESIDE for f in shard) <= most for shard in shards)


def test_a_half_written_shard_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(io.BytesIO(b"\0" * 700).read())
    assert webdataset._content(tmp_path / "a.tar") is None
    assert webdataset._content(tmp_path / "none.tar") is None
