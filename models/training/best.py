"""The best weights so far by the loss on held-out clips, and when to stop looking for better ones."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.training.job import BEST


@dataclass(frozen=True)
class Standing:
    """Where a run stands by its held-out loss.

    Args:
        loss: the lowest; None before the first validation. `step` is where it was.
        since: validations since then.
    """

    loss: float | None = None
    step: int = 0
    since: int = 0

    def after(self, step: int, loss: float | None) -> "Standing":
        """After one more validation. That of the start, and ones without held-out clips, don't count."""
        if loss is None or step == 0:
            return self
        if self.loss is None or loss < self.loss:
            return Standing(loss, step)
        return Standing(self.loss, self.step, self.since + 1)


def standing_of(validations: Iterable[Mapping[str, Any]]) -> Standing:
    """Where a run stands after these validations, in order."""
    standing = Standing()
    for row in validations:
        standing = standing.after(row["step"], row["loss"])
    return standing


def best_weights(folder: Path) -> Path:
    """The file of the best weights in a working folder."""
    return folder / f"{BEST}.safetensors"


def write_facts(folder: Path, standing: Standing) -> None:
    """Notes of which step the best weights are."""
    (folder / f"{BEST}.json").write_text(json.dumps({"step": standing.step, "loss": standing.loss}) + "\n")


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Step and held-out loss of the best weights; None where there are none."""
    path = folder / f"{BEST}.json"
    if not path.exists() or not best_weights(folder).exists():
        return None
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts
