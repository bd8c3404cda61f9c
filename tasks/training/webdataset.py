"""A release as WebDataset shards: tar files that trainers read in a stream, without a database or a folder of files.

Each clip is three consecutive members of one key, its id: `.json` (its row of metadata.parquet), `.mp4`, `.txt` (a
caption). The same release gives the same bytes. Which shard a clip is in depends on the release and the size of shards
alone; clips that were taken down since are left out of theirs.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow.parquet as pq

from medgen.among import PAGE
from medgen.canonical import canonical_json, digest_of
from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from medgen.store import Store
from tasks.curation.manifest_files import ManifestFile, manifest_files
from tasks.training.released import usable_release

FORMAT = 1  # of a shard; another number writes finished shards anew
CLIPS = "clips/"
BESIDE = 4096  # bytes of a clip's other members and heads, about
CONTENT = "medgen.content"  # of a shard's first header: the digest of all that it holds
INDEX = "shards.json"

CaptionKind = Literal["brief", "detailed"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Args:
        shards, clips, bytes: that lie in the folder.
        written: shards that were written now; the others stood already.
        left_out: clips that were taken down.
    """

    folder: Path
    shards: int
    clips: int
    bytes: int
    written: int
    left_out: int


def export_webdataset(
    ledger: Ledger,
    name: str,
    folder: Path,
    *,
    shard_bytes: int,
    caption: CaptionKind = "detailed",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Writes the shards of a release, NAME-000000.tar and so on, and `shards.json`, which lists them.

    A shard that stands with the same content is not written again; one that a killed process left half-written is.
    Shards of an earlier export with other sizes go.

    Args:
        shard_bytes: about how many a shard has at most; a clip that has more has one to itself.
        progress: called with (clips done, clips of the release).

    Raises:
        ItemFailed: unknown_release, release_not_approved.
        ArtifactLost, StoreUnavailable: as `Store.path`.
    """
    release = usable_release(ledger, name)
    outputs = ledger.load([release.step_run_id])[release.step_run_id].outputs
    rows = _rows(ledger.store.path(outputs["metadata"]))
    folder.mkdir(parents=True, exist_ok=True)
    index: list[dict[str, Any]] = []
    written = left_out = done = 0
    files = manifest_files(ledger.store.path(outputs["manifest"]))
    for number, (wanted, found) in enumerate(_joined(_shards(files, shard_bytes), rows)):
        gone = ledger.forgotten(row["clip_id"] for row in found)
        clips = [row for row in found if row["clip_id"] not in gone]
        content = digest_of({"format": FORMAT, "caption": caption, "clips": clips})
        path = folder / f"{name}-{number:06d}.tar"
        if _content(path) != content:
            _write(ledger.store, path, content, clips, f"{caption}_caption")
            written += 1
        index.append({"file": path.name, "clips": len(clips), "bytes": path.stat().st_size, "content": content})
        left_out += len(wanted) - len(clips)
        done += len(wanted)
        progress(done, release.clips)
    _tidy(folder, name, {entry["file"] for entry in index})
    facts = {"format": FORMAT, "release": name, "digest": release.digest, "caption": caption, "shards": index}
    _replace(folder / INDEX, (json.dumps(facts, indent=1) + "\n").encode())
    clip_count, size = (sum(entry[key] for entry in index) for key in ("clips", "bytes"))
    return Exported(folder, len(index), clip_count, size, written, left_out)


def _rows(metadata: Path) -> Iterator[Row]:
    """Rows of metadata.parquet, which are in the order of their files."""
    with pq.ParquetFile(metadata) as file:
        for batch in file.iter_batches(batch_size=PAGE):
            yield from batch.to_pylist()


def _shards(files: Iterable[ManifestFile], shard_bytes: int) -> Iterator[list[ManifestFile]]:
    """The clips of each shard, also those that were taken down: they keep their places."""
    shard: list[ManifestFile] = []
    size = 0
    for file in files:
        if not file["path"].startswith(CLIPS):
            continue
        more = file["bytes"] + BESIDE
        if shard and size + more > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(file)
        size += more
    if shard:
        yield shard


def _joined(
    shards: Iterable[list[ManifestFile]], rows: Iterator[Row]
) -> Iterator[tuple[list[ManifestFile], list[Row]]]:
    """Shards with the rows of their clips; both come in the order of paths. A clip that was taken down has none."""
    row = next(rows, None)
    for shard in shards:
        found: list[Row] = []
        for file in shard:
            if row is not None and _place(row) == file["path"]:
                found.append(row)
                row = next(rows, None)
        yield shard, found
    if row is not None:
        raise ItemFailed("release_inconsistent", f"the manifest lacks {_place(row)}, or lists it in another order")


def _place(row: Row) -> str:
    """A clip's place in the folder of its release, whose column was called `file` in releases made before."""
    return str(row["file_name"] if "file_name" in row else row["file"])


def _content(path: Path) -> str | None:
    """What a finished shard says that it holds; None of what is none."""
    try:
        with tarfile.open(path, "r:") as tar:
            tar.next()
            return tar.pax_headers.get(CONTENT)
    except (OSError, tarfile.TarError):
        return None


def _write(store: Store, path: Path, content: str, clips: Sequence[Row], caption: str) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as out:
        # Nothing of user, time or machine goes in.
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={CONTENT: content}) as tar:
            for row in clips:
                key = row["clip_id"]
                _add(tar, f"{key}.json", canonical_json(row))
                clip = store.path(row["clip_sha256"])
                with clip.open("rb") as video:
                    _add(tar, f"{key}.mp4", video, clip.stat().st_size)
                _add(tar, f"{key}.txt", (row[caption] or "").encode())
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def _add(tar: tarfile.TarFile, name: str, data: bytes | IO[bytes], size: int = 0) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data) if isinstance(data, bytes) else size
    member.mode = 0o444
    tar.addfile(member, io.BytesIO(data) if isinstance(data, bytes) else data)


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def _tidy(folder: Path, name: str, files: set[str]) -> None:
    """Removes what an earlier export of the release left that is none of its shards now."""
    for path in (*folder.glob(f"{name}-??????.tar"), *folder.glob(f".{name}-??????.tar.part")):
        if path.name not in files:
            path.unlink()
