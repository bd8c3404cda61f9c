"""Checkpoints of a training run: tensors and JSON, written whole or not at all.

A checkpoint is a folder `checkpoint-00000123` of safetensors files (`weights`, `ema`, `optimizer`) and `state.json`,
which names the step, the run and the sha256 of every file. It is made under another name, flushed to disk and then
renamed; so what bears the name is whole, unless the disk itself spoils it, which the digests show.

Random state needs no saving: everything random is a function of the seed and the step
(`models.training.flow_matching`), and so is the position of the loader (`models.training.samples.batch_order`).
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from medgen.errors import RunStopped
from medgen.store import file_digest
from models.training.job import CHECKPOINT, STATE
from models.training.safetensors_file import SafetensorsWriter, StoredTensor, stored_tensors
from models.training.sharding import gathered_in_turn

log = logging.getLogger(__name__)

FORMAT = 1


class CheckpointNotWritten(RunStopped):
    """A checkpoint could not be written. The ones before it are untouched."""


class WrongCheckpoint(RunStopped):
    """A checkpoint belongs to another run: another base, other samples or another configuration."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, StoredTensor]:
        """The tensors of one of its files, to be read one by one; none where there is no such file."""
        path = self.folder / f"{name}.safetensors"
        return stored_tensors(path) if path.exists() else {}


def take_part(tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """What other processes do while the main one writes a checkpoint of these tensors."""
    for group in tensors.values():
        for _ in gathered_in_turn(_in_order(group), keep=False):
            pass


def write_checkpoint(
    parent: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], run: Mapping[str, Any], limit: int
) -> Path:
    """Writes a checkpoint and removes all but the newest `limit`. Tensors are gathered one at a time.

    Args:
        tensors: file name without ending → name → tensor, possibly sharded. Empty groups are left out.
        run: JSON facts that identify the run: a later run with other facts refuses the checkpoint.

    Raises:
        CheckpointNotWritten: the disk is full or refuses.
    """
    target = parent / f"{CHECKPOINT}{step:08d}"
    making = parent / f".making-{target.name}"
    waiting = dict(tensors)  # groups that other processes still have to take part in
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        files: dict[str, dict[str, Any]] = {}
        for name, group in tensors.items():
            if not group:
                continue
            path = making / f"{name}.safetensors"
            write_group(path, waiting.pop(name))
            digest, size = file_digest(path)
            files[path.name] = {"sha256": digest, "bytes": size}
        state = {"format": FORMAT, "step": step, "files": files, "run": dict(run)}
        (making / STATE).write_text(json.dumps(state, indent=1, sort_keys=True) + "\n")
        for path in [*making.iterdir(), making]:
            _flush(path)
        if target.exists():
            shutil.rmtree(target)
        making.rename(target)
        _flush(parent)
    except OSError as error:
        take_part(waiting)
        shutil.rmtree(making, ignore_errors=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        advice = (
            f"free some space on the disk of {parent}, or lower checkpoints_total_limit ({limit})"
            if full
            else f"see whether {parent} can be written to"
        )
        kept = [path.name for path in _folders(parent)]
        raise CheckpointNotWritten(
            f"the checkpoint of step {step} could not be written ({'disk full' if full else error}): {advice}, and run "
            f"again to go on from {kept[0] if kept else 'the start'}"
        ) from error
    for old in _folders(parent)[limit:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def write_weights(path: Path, group: Mapping[str, Tensor]) -> None:
    """Writes possibly sharded tensors into one file, whole or not at all. Raises CheckpointNotWritten."""
    making = path.with_name(f".making-{path.name}")
    try:
        write_group(making, group)
        making.replace(path)
    except OSError as error:
        making.unlink(missing_ok=True)
        raise CheckpointNotWritten(
            f"{path} could not be written ({error}): make room and run again to go on from the last checkpoint"
        ) from error


def write_group(path: Path, group: Mapping[str, Tensor]) -> None:
    """Writes possibly sharded tensors into one file. Where that fails, they are gathered to the end all the same:
    the other processes wait for that.
    """
    ordered = _in_order(group)
    tensors = gathered_in_turn(ordered, keep=True)
    try:
        with SafetensorsWriter(path, ordered) as file:
            for name, tensor in tensors:
                assert tensor is not None
                file.write(name, tensor)
    except OSError:
        for _ in tensors:
            pass
        raise


def _in_order(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the order in which a file takes them."""
    return {name: group[name] for name in sorted(group, key=lambda name: (-group[name].element_size(), name))}


def newest_checkpoint(parent: Path, run: Mapping[str, Any], most: int | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole; those that are not are named in the log and left alone.

    Args:
        run: as in `write_checkpoint`.
        most: pass over those of later steps.

    Raises:
        WrongCheckpoint: the newest whole one is of another run; names the facts that differ.
    """
    for folder in _folders(parent):
        if most is not None and int(folder.name.removeprefix(CHECKPOINT)) > most:
            continue
        try:
            state = _checked_state(folder)
        except ValueError as error:
            log.warning("checkpoint %s is corrupt and is skipped: %s", folder, error)
            continue
        differing = sorted(key for key in run if state["run"].get(key) != run[key])
        if differing:
            differences = "; ".join(
                f"{key} was {_short(state['run'].get(key))}, now {_short(run[key])}" for key in differing
            )
            raise WrongCheckpoint(
                f"{folder} belongs to another run ({differences}): train in another folder, or remove "
                "this one to start anew"
            )
        return Checkpoint(folder, state["step"], state)
    return None


def _checked_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files are as they were written. Raises ValueError."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        if state["format"] != FORMAT:
            raise ValueError(f"its format is {state['format']!r}; this program reads {FORMAT}")
        if f"{CHECKPOINT}{int(state['step']):08d}" != folder.name or not isinstance(state["run"], dict):
            raise ValueError("its state names another step")
        for name, facts in state["files"].items():
            if "/" in name or "\\" in name or not name.endswith(".safetensors"):
                raise ValueError(f"it names the file {name!r}")
            digest, size = file_digest(folder / name)
            if (digest, size) != (facts["sha256"], facts["bytes"]):
                raise ValueError(f"{name} is not as it was written")
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return state


def _folders(parent: Path) -> list[Path]:
    """Checkpoints by name, newest first."""

    def numbered() -> Iterator[tuple[int, Path]]:
        for path in parent.glob(f"{CHECKPOINT}*"):
            number = path.name.removeprefix(CHECKPOINT)
            if path.is_dir() and number.isdecimal():
                yield int(number), path

    return [path for _, path in sorted(numbered(), reverse=True)]


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
