"""The files of a release: laid out in a folder of its own, unless a person must approve it first."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.catalog import Release, StepRun, open_catalog
from medgen.errors import ItemFailed
from medgen.settings import current
from medgen.store import READ_ONLY, Store
from medgen.takedown import release_takedown

APPROVE = "approve"


def awaits_approval(session: Session, release: Release) -> bool:
    """Whether a release's policy asks for an approval that it has not got."""
    if release.policy.get("approval", "none") == "none":
        return False
    approved = select(StepRun.id).where(
        StepRun.step == APPROVE, StepRun.subject == release.name, StepRun.status == "kept"
    )
    return session.scalar(approved.limit(1)) is None


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
    manifest = store.read(manifest_sha256)
    files = json.loads(manifest)["files"]
    with Session(open_catalog()) as session:
        taken = release_takedown(session, name, files)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-", ignore_cleanup_errors=True) as making:
        folder = Path(making) / name
        (folder / "clips").mkdir(parents=True)
        (folder / "manifest.json").write_bytes(manifest)
        for file in files:
            if taken and file["path"] in taken.changes:
                continue
            source, to = store.path(file["sha256"]), folder / file["path"]
            try:
                os.link(source, to)
            except OSError:
                shutil.copyfile(source, to)
        if taken:
            taken.apply(store, folder)
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(READ_ONLY)
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():  # else another process was quicker
                raise
    return target
