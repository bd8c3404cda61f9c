"""What ends a training run that people can mend; checkpoints stay in every case."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medgen.errors import RunStopped
from models.training.config import TrainConfig
from models.training.job import memory_advice

MEMORY_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


class TrainingStopped(RunStopped):
    """The run can't go on; checkpoints stay."""


class OutOfMemory(TrainingStopped):
    """A step did not fit into memory; says which arguments to lower."""


@contextmanager
def explain_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Turns a device's or the system's lack of memory into advice.

    Raises:
        OutOfMemory: memory ran out inside the block; other errors pass.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RunStopped) or not _lacks_memory(error):
            raise
        raise OutOfMemory(f"a step ran out of memory ({_first_line(error)}): {memory_advice(config)}") from error


def _lacks_memory(error: BaseException) -> bool:
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in message for sign in MEMORY_SIGNS)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
