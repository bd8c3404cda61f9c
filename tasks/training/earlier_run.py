"""A new training run goes on from what an earlier one left, where both learn the same.

More steps, another number of processes at the same global batch, or another cadence of validation make another run
with a working folder of its own; what was computed already is taken over: the newest checkpoint, curves and videos.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from models.training.curves import LOSSES, VALIDATION
from models.training.job import BEST, CHECKPOINT, CHECKPOINTS, STATE, TrainJob
from tasks.training.job_folder import working_folder
from tasks.training.model_files import ON_RECORD, model_on_record

log = logging.getLogger(__name__)


def go_on_from_earlier(ledger: Ledger, job: TrainJob) -> Path | None:
    """Takes over the newest checkpoint that the job can go on from, unless it has begun already.

    Returns:
        The working folder that it came from.

    Raises:
        ItemFailed: nothing_to_extend when the job names a model to extend whose run left no checkpoint, or which
            learnt something else.
    """
    own = job.folder / CHECKPOINTS
    if any(own.glob(f"{CHECKPOINT}*")):
        return None
    facts, steps = job.facts(), job.config.max_train_steps
    wanted = dict(facts)
    folders: Iterator[Path] | list[Path]
    if job.config.extends:
        folders = [_folder_of(ledger, job.config.extends)]
        wanted.pop("schedule")  # the one thing that may differ
    else:
        folders = (path for path in job.folder.parent.iterdir() if path != job.folder)
    found = [
        (state["step"], path)
        for folder in folders
        for path in (folder / CHECKPOINTS).glob(f"{CHECKPOINT}*")
        if (state := _state(path)) and state["step"] <= steps and wanted.items() <= state["run"].items()
    ]
    if not found:
        if job.config.extends:
            raise ItemFailed("nothing_to_extend", f"{job.config.extends}: {_why_not(ledger, job, wanted)}")
        return None
    for step, newest in sorted(found, reverse=True):
        try:
            _take_over(newest, own, facts)
        except FileNotFoundError:  # a run that is under way makes room for newer ones
            continue
        log.info("going on from step %d of the run in %s", step, newest.parent.parent)
        return newest.parent.parent
    return None


def _take_over(checkpoint: Path, own: Path, facts: Mapping[str, Any]) -> None:
    """Links a checkpoint's files, which nobody changes, and copies the curves; the checkpoint comes last."""
    source, target = checkpoint.parent.parent, own.parent
    for name in (LOSSES, VALIDATION, f"{BEST}.safetensors", f"{BEST}.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    for name in ("tensorboard", "videos"):
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
    making = own / f".making-{checkpoint.name}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for path in checkpoint.glob("*.safetensors"):
        try:
            os.link(path, making / path.name)
        except OSError:  # a file system without links
            shutil.copyfile(path, making / path.name)
    state = _state(checkpoint) | {"run": dict(facts)}
    (making / STATE).write_text(json.dumps(state, indent=1, sort_keys=True) + "\n")
    making.rename(own / checkpoint.name)


def _folder_of(ledger: Ledger, name: str) -> Path:
    """Where the model on record was trained. Raises ItemFailed: unknown_model, nothing_to_extend."""
    version = model_on_record(ledger, name.removeprefix(ON_RECORD))
    key = ledger.load([version.step_run_id])[version.step_run_id].key if version.step_run_id else ""
    return working_folder(key)


def _why_not(ledger: Ledger, job: TrainJob, wanted: Mapping[str, Any]) -> str:
    folder = _folder_of(ledger, job.config.extends)
    states = [state for path in (folder / CHECKPOINTS).glob(f"{CHECKPOINT}*") if (state := _state(path))]
    if not states:
        return f"its run left no checkpoint in {folder} (keep_checkpoint)"
    differing = [key for key in wanted if states[-1]["run"].get(key) != wanted[key]]
    if differing:
        return f"it was trained with other {', '.join(differing)}; only the schedule may differ"
    return f"it has {states[-1]['step']} steps already: set max_train_steps to more"


def _state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; nothing where it can't be read."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
        return state if isinstance(state["run"], dict) and isinstance(state["step"], int) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
