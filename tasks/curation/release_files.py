"""The files of a release: laid out in a folder of its own, unless a person must approve it first."""

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy.orm import Session

from medgen.catalog import Release, open_catalog
from medgen.errors import ItemFailed
from medgen.home import private_home
from medgen.releases import awaits_approval
from medgen.settings import current
from medgen.store import READ_ONLY, Store
from medgen.takedown import release_takedown

FETCHED_AT_ONCE = 16  # clips that only the S3 server has


def materialize(store: Store, name: str, manifest_sha256: str) -> Path:
    """The release as ordinary files in its folder; made when it isn't there.

    Clips are hard links into the store where the file system allows, copies elsewhere. All files are read-only. What
    was taken down since the release was made is left out, and `TAKEDOWN.json` says so.

    Raises:
        ItemFailed: release_not_approved when its policy asks for an approval that it has not got.
    """
    target = current().releases_folder / name
    if target.exists():
        return target
    with Session(open_catalog()) as session:
        release = session.get(Release, name)
        if release is not None and awaits_approval(session, release):
            raise ItemFailed(
                "release_not_approved",
                f"the release {name} awaits approval: `medgen release approve {name} --by NAME`, or run the "
                "deployment `approve`",
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    making = target.parent / f".making-{name}"
    locks = private_home(current().home) / "locks"
    locks.mkdir(exist_ok=True)
    with FileLock(locks / f"release-{name}.lock"):
        if target.exists():  # another process was quicker
            return target
        _lay_out(store, name, store.read(manifest_sha256), making)
        making.rename(target)
    return target


def _lay_out(store: Store, name: str, manifest: bytes, folder: Path) -> None:
    """Fills the folder; goes on where a killed process stopped."""
    files = json.loads(manifest)["files"]
    with Session(open_catalog()) as session:
        taken = release_takedown(session, name, files)
    changed = taken.changes if taken else {}
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for left in (*(folder / path for path in changed), *folder.rglob(".*.part")):
        left.unlink(missing_ok=True)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    missing = [file for file in files if file["path"] not in there and file["path"] not in changed]

    def put(file: Mapping[str, Any]) -> None:
        _put(store.path(file["sha256"]), folder / file["path"])

    with ThreadPoolExecutor(FETCHED_AT_ONCE if store.remote else 1) as pool:
        for _ in pool.map(put, missing):
            pass
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "manifest.json").write_bytes(manifest)
    if taken:
        taken.apply(store, folder)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(READ_ONLY)


def _put(source: Path, to: Path) -> None:
    try:
        os.link(source, to)
    except OSError:
        part = to.with_name(f".{to.name}.part")  # a kill must not leave half a file under its name
        shutil.copyfile(source, part)
        part.replace(to)
