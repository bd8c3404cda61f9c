"""Models for tests of inference processes: they count their loads in a file, and end as they are asked to."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from medgen.errors import ItemFailed
from medgen.inference_process import Loaded
from medgen.ledger import Outcome, Work
from medgen.store import Store


def load_counting(device: str, log: str, refuse: str = "") -> Loaded:
    """A model that sums arrays; each load and batch is a line of the file `log`."""
    put_down(log, f"load {device} {os.getpid()}")
    if refuse:
        raise ValueError(refuse)

    def answer(questions: list[Any]) -> list[tuple[int, int, int]]:
        put_down(log, f"batch {len(questions)}")
        if any(q == "die" for q in questions if isinstance(q, str)):
            os._exit(7)
        if any(q == "hang" for q in questions if isinstance(q, str)):
            time.sleep(600)
        return [(0, 0, 0) if isinstance(q, str) else (int(q.sum()), q.shape[0], os.getpid()) for q in questions]

    return Loaded(answer, prepared)


def prepared(question: Any) -> Any:
    """The question; refuses empty arrays."""
    if isinstance(question, np.ndarray) and not question.size:
        raise ItemFailed("empty", "an array without a value")
    return question


def load_short_of_memory(_device: str, most: int) -> Loaded:
    """A model that can't take more than `most` questions at once."""

    class OutOfMemoryError(RuntimeError):
        pass

    def answer(questions: list[int]) -> list[int]:
        if len(questions) > most:
            raise OutOfMemoryError("too many")
        return [question * 2 for question in questions]

    return Loaded(answer)


def load_strict(_device: str, log: str) -> Loaded:
    """A model that refuses odd numbers, and whose device is lost the first time that it is asked for 100."""

    class AcceleratorError(RuntimeError):
        pass

    def answer(questions: list[int]) -> list[int]:
        if 100 in questions and not Path(log).exists():
            put_down(log, "lost")
            raise AcceleratorError("an illegal memory access was encountered")
        if odd := [question for question in questions if question % 2]:
            raise ValueError(f"{odd} are odd")
        return [question // 2 for question in questions]

    return Loaded(answer)


def dies_once(work: Work, store: Store) -> Outcome:
    """A step's function that ends its process the first time."""
    mark = Path(work.context["mark"])
    if not mark.exists():
        mark.touch()
        os._exit(9)
    return Outcome("kept", detail={"process": os.getpid()})


def takes_too_long(work: Work, store: Store) -> Outcome:
    """A step's function that does not end."""
    time.sleep(600)
    raise AssertionError


def put_down(log: str, line: str) -> None:
    """Adds a line."""
    with Path(log).open("a") as stream:
        stream.write(line + "\n")
