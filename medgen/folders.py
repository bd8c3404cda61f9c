"""Folders in the store: each file is an artifact of its own, and a manifest lists them.

A folder is known by the sha256 of its manifest, which names every file with its own sha256. Folders that share
files, such as a model and its fine-tunes, share their bytes.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medgen.canonical import canonical_json
from medgen.errors import ItemFailed
from medgen.store import READ_ONLY, Artifact, Store

MEDIA_TYPES = {
    ".json": "application/json",
    ".md": "text/markdown",
    ".safetensors": "application/vnd.safetensors",
    ".txt": "text/plain",
}
MANIFEST = "manifest"  # role of the manifest among the outputs of a step


@dataclass(frozen=True)
class StoredFolder:
    """A folder in the store.

    Args:
        manifest: JSON that lists path, sha256 and bytes of every file; its sha256 is the folder's digest.
        files: path within the folder, with slashes, → artifact.
    """

    manifest: Artifact
    files: dict[str, Artifact]

    def outputs(self) -> dict[str, Artifact]:
        """Roles of a step's outcome: `manifest`, and the path of each file. What is no output would be swept."""
        return {MANIFEST: self.manifest, **self.files}


def put_folder(store: Store, folder: Path, wanted: Callable[[str], bool] = lambda path: True) -> StoredFolder:
    """Puts copies of the folder's files into the store; the folder stays as it is.

    Args:
        wanted: which paths (relative, with slashes) to take. Links are never taken.
    """
    files: dict[str, Artifact] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file() or not wanted(name):
            continue
        copy = store.scratch(path.suffix)
        shutil.copyfile(path, copy)
        files[name] = store.put_file(copy, MEDIA_TYPES.get(path.suffix, "application/octet-stream"))
    rows = [{"path": name, "sha256": a.sha256, "bytes": a.bytes} for name, a in sorted(files.items())]
    manifest = store.put_bytes(canonical_json({"format": 1, "files": rows}), "application/json")
    return StoredFolder(manifest, files)


def materialize(store: Store, manifest_sha256: str, target: Path) -> Path:
    """The folder as ordinary files at `target`; made when it isn't there. Returns `target`.

    Files are hard links into the store where the file system allows, copies elsewhere: they are read-only.

    Raises:
        ArtifactLost, StoreUnavailable: as `Store.path`.
        ItemFailed: bad_manifest when the manifest names a path that leads out of the folder, or is none.
    """
    if target.exists():
        return target
    files = _listed(store.read(manifest_sha256), manifest_sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-", ignore_cleanup_errors=True) as making:
        folder = Path(making) / "folder"
        folder.mkdir()
        for name, sha256 in files.items():
            to = folder / name
            to.parent.mkdir(parents=True, exist_ok=True)
            source = store.path(sha256)
            try:
                os.link(source, to)
            except OSError:
                shutil.copyfile(source, to)
                to.chmod(READ_ONLY)
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():  # else another process was quicker
                raise
    return target


def _listed(manifest: bytes, sha256: str) -> dict[str, str]:
    """path → sha256 of the files of a manifest."""
    try:
        files = {str(row["path"]): str(row["sha256"]) for row in json.loads(manifest)["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ItemFailed("bad_manifest", f"artifact {sha256} is no manifest of a folder") from error
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
            raise ItemFailed("bad_manifest", f"manifest {sha256} names the path {name!r}, which leads out of a folder")
    return files
