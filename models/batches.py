"""Questions of several threads, gathered while a model is busy and answered together."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Batches(Generic[Q, A]):
    """Lets one thread at a time ask the model, for itself and for those that wait.

    Args:
        answer: answers to a batch of questions, in order; called by one thread at a time.
        most: questions in a batch.
        alone: whether a question must not share a batch.
    """

    def __init__(
        self, answer: Callable[[list[Q]], Sequence[A]], most: int, alone: Callable[[Q], bool] = lambda _: False
    ) -> None:
        if most < 1:
            raise ValueError(f"a batch has at least one question: {most}")
        self.turn = threading.Lock()
        self._answer = answer
        self._most = most
        self._alone = alone
        self._waiting: deque[tuple[Q, Future[A]]] = deque()

    def ask(self, question: Q) -> A:
        """The answer to one question. Raises what `answer` raised for its batch."""
        mine: Future[A] = Future()
        self._waiting.append((question, mine))
        while not mine.done():
            with self.turn:
                if mine.done():
                    break
                self._answer_some()
        return mine.result()

    def _answer_some(self) -> None:
        """Takes the next questions, as many as may go together, and answers them. Only with the turn."""
        taken: list[tuple[Q, Future[A]]] = []
        while self._waiting and len(taken) < self._most:
            if taken and (self._alone(self._waiting[0][0]) or self._alone(taken[0][0])):
                break
            taken.append(self._waiting.popleft())
        if not taken:
            return
        try:
            answers = self._answer([question for question, _ in taken])
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, whatever it is
            for _, future in taken:
                future.set_exception(error)
            return
        for (_, future), answer in zip(taken, answers, strict=True):
            future.set_result(answer)
