"""Whoever started a run in this process hears how far it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

StepListener = Callable[[str, int, int], None]
"""Called with (step, items done since the last call, items newly known)."""
TrainingListener = Callable[[dict[str, Any]], None]
"""Called with each event of a training process."""

# Context variables, because Prefect stands between who starts a run and its tasks: it hands the context on to threads.
_on_step: ContextVar[StepListener | None] = ContextVar("on_step", default=None)
_on_training: ContextVar[TrainingListener | None] = ContextVar("on_training", default=None)


@contextmanager
def progress_to(on_step: StepListener | None = None, on_training: TrainingListener | None = None) -> Iterator[None]:
    """While it lasts, `on_step` and `on_training` are called as the runs of this process proceed."""
    tokens = (_on_step.set(on_step), _on_training.set(on_training))
    try:
        yield
    finally:
        _on_step.reset(tokens[0])
        _on_training.reset(tokens[1])


def step_listener() -> StepListener | None:
    """Who hears of this run's steps, if anyone does."""
    return _on_step.get()


def training_listener() -> TrainingListener | None:
    """Who hears of this run's training, if anyone does."""
    return _on_training.get()
