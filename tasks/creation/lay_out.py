"""Lay out: a creation as ordinary files: the video, its subtitles, its prompts, all facts as JSON, and a page.

What nobody approved lies in a folder `review` and is called so in the picture, on the page and in its credentials.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from medgen.errors import ItemFailed, RunStopped
from medgen.ledger import Ledger, Record
from medgen.settings import current
from medgen.store import Store
from tasks.creation.compose import COMPOSE
from tasks.creation.creation_page import page
from tasks.creation.credentials import CREDENTIALS
from tasks.creation.on_record import Creation

REVIEW = "review"


@dataclass(frozen=True)
class Finished:
    """A creation's files on record.

    Args:
        approval: the record of it; None for a draft.
        executed, reused: steps that ran, and that stood already.
    """

    composed: Record
    signed: Record
    approval: Record | None
    executed: int
    reused: int


def creations_folder() -> Path:
    """Where creations are laid out."""
    return current().home / "creations"


def lay_out(ledger: Ledger, creation: Creation, finished: Finished) -> Path:
    """Writes a creation's files into its folder of the installation. Returns that folder.

    Raises:
        RunStopped: a file can't be written.
    """
    whole = creations_folder() / creation.name
    folder = whole if finished.approval else whole / REVIEW
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(whole / ".lock"):
            write_files(ledger, creation, finished, folder)
            if finished.approval:
                shutil.rmtree(whole / REVIEW, ignore_errors=True)  # a draft beside it would be taken for another video
    except OSError as error:
        raise RunStopped(f"the video can't be written to {folder}: {error}. It stays on record") from error
    return folder


def write_files(ledger: Ledger, creation: Creation, finished: Finished, folder: Path) -> None:
    """Writes video, subtitles, facts, prompts and page of a creation. Raises OSError."""
    store, name = ledger.store, file_name(creation, approved=finished.approval is not None)
    outputs = COMPOSE.outputs(finished.composed)
    _copied(store, CREDENTIALS.outputs(finished.signed)["video"], folder / f"{name}.mp4")
    _copied(store, outputs["subtitles"], folder / f"{name}.vtt")
    facts = {"name": creation.name, "approval": finished.approval.detail if finished.approval else None}
    _written(folder / "creation.json", json.dumps(facts | dict(creation.content), indent=1, ensure_ascii=False) + "\n")
    _written(
        folder / "prompts.jsonl", "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in prompt_rows(creation))
    )
    subtitles = store.read(outputs["subtitles"]).decode()
    _written(
        folder / "index.html",
        page(store, creation, finished.composed, finished.signed, finished.approval, name, subtitles),
    )


def file_name(creation: Creation, *, approved: bool) -> str:
    """Of a creation's video, without its ending."""
    return creation.name if approved else f"{creation.name}-draft"


def prompt_rows(creation: Creation) -> list[dict[str, Any]]:
    """The prompts as `medgen generate --prompts` reads them, with the persona of each, where there is one."""
    return [
        {"id": f"{creation.name}-{row['place']:03}", "text": row["prompt"], "category": creation.storyboard.use}
        | (row["persona"] or {})
        for row in creation.content["shots"]
    ]


def hand_out(
    ledger: Ledger, creation: Creation, finished: Finished, folder: Path, *, draft: bool, to_patients: bool
) -> Path:
    """Writes a creation's files into any folder.

    Args:
        draft: hand out what nobody approved, as a draft.
        to_patients: also where patients may see it.

    Raises:
        ItemFailed: creation_not_approved: nobody approved it, and a draft was not asked for or is for patients.
        RunStopped: a file can't be written.
    """
    if finished.approval is None:
        how = f"`medgen creation approve {creation.name} --by NAME --tick all` once every statement was checked"
        if not draft:
            raise ItemFailed("creation_not_approved", f"{creation.name} was approved by nobody: {how}")
        if creation.storyboard.patient_facing and not to_patients:
            raise ItemFailed(
                "creation_not_approved",
                f"{creation.name} is for patients: not even its draft is handed out before it is approved: {how}. "
                "Reviewers find it in the folder of the installation; --even-for-patients hands it out",
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_files(ledger, creation, finished, folder)
    except OSError as error:
        raise RunStopped(f"the video can't be written to {folder}: {error}. It stays on record") from error
    return folder


def _copied(store: Store, sha256: str, target: Path) -> None:
    making = target.with_name(f".{target.name}.making")
    shutil.copyfile(store.path(sha256), making)
    making.replace(target)


def _written(target: Path, text: str) -> None:
    making = target.with_name(f".{target.name}.making")
    making.write_text(text, "utf-8")
    making.replace(target)
