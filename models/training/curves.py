"""The curves of a training run: JSON lines in its folder, and TensorBoard."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.training.job import read_rows

LOSSES = "losses.jsonl"
VALIDATION = "validation.jsonl"
FLUSH_EVERY = 50  # steps between flushes to disk


class Curves:
    """Writes the curves; those of an earlier run are kept up to the step that this one goes on from.

    Args:
        folder: working folder of the run.
        step: optimiser steps that were done before; with 0 the first validation is made anew.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        for name, keep in ((LOSSES, step), (VALIDATION, step if step else -1)):
            rows = [row for row in read_rows(folder / name) if row["step"] <= keep]
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.folder = folder
        self.board: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add_step(self, row: Mapping[str, Any]) -> None:
        """Adds a step: step, loss, lr, grad_norm."""
        _append(self.folder / LOSSES, row)
        for name, key in (("loss/train", "loss"), ("lr", "lr"), ("grad_norm", "grad_norm")):
            self.board.add_scalar(name, row[key], row["step"])

    def add_validation(self, row: Mapping[str, Any]) -> None:
        """Adds a validation: step, loss, train_loss, by_sigma; a loss is None where there were no clips."""
        _append(self.folder / VALIDATION, row)
        for name, key in (("loss/held_out", "loss"), ("loss/train_fixed", "train_loss")):
            if row[key] is not None:
                self.board.add_scalar(name, row[key], row["step"])

    def close(self) -> None:
        """Ends TensorBoard's file."""
        self.board.close()


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        if row["step"] % FLUSH_EVERY == 0:
            os.fsync(file.fileno())
