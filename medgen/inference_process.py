"""An inference process: holds models on one device and answers the questions of other processes, many at a time.

One thread loads models and asks them, so that no model is ever shared between threads; others read questions and
prepare them meanwhile. What a batch that isn't full waits for more is bounded. A question that takes too long ends the
process, which is the only way to end what runs on a device; the next one who asks starts another.
"""

import logging
import os
import pickle
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from mmap import mmap
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from multiprocessing.reduction import recv_handle
from typing import Any, TypeVar

from tqdm import tqdm

from medgen.devices import stand_for
from medgen.errors import ItemFailed
from medgen.forks import parent_ended, take_over

T = TypeVar("T")

log = logging.getLogger(__name__)

GATHER_S = 0.005  # that a batch which isn't full waits for more questions, at most
WATCH_S = 0.1  # between looks at the parent and at what takes too long
TOLD_S = 2.0  # to tell those that wait why the process ends
TIME_LIMIT = "time_limit"  # reason of what took too long
ENDED_BY_TIME, DEVICE_LOST = 86, 88  # exit codes


@dataclass(frozen=True)
class Loaded:
    """A model in memory.

    Args:
        answer: questions → answers, in order; called by one thread at a time. What it says of a question must not
            depend on the others.
        prepare: question → what `answer` takes; called by many threads at once. Raises for a bad question.
        alone: whether a prepared question must not share a batch.
    """

    answer: Callable[[list[Any]], Sequence[Any]]
    prepare: Callable[[Any], Any] | None = None
    alone: Callable[[Any], bool] | None = None


@dataclass(frozen=True)
class Served:
    """How a model is had. Equal ones are one model.

    Args:
        load: (device, *arguments) → the model; at the level of a module. Raises ModelUnavailable.
        arguments: of `load`, hashable.
        most: questions in a batch.
        packaged: so light that where there is no GPU each process that asks may hold one of its own.
        onnx: runs in ONNX Runtime, which needs a build of its own for GPUs.
    """

    load: Callable[..., Loaded]
    arguments: tuple[Any, ...] = ()
    most: int = 1
    packaged: bool = False
    onnx: bool = False


@dataclass(frozen=True)
class Request:
    """What a process asks.

    Args:
        questions: as `pickle` has them, without the buffers, whose sizes are told; they lie one after the other, each
            at a multiple of `ALIGNED`, in the memory that is shared. Its first byte becomes 1 as soon as a batch with
            the questions is begun: who finds it so when the process dies knows that it may be to blame.
        shared: size of the shared memory, bytes, when its handle follows; 0: it is that of the request before.
        alone: no question of others may be in the batch.
        limit_s: for one batch; None: as long as it takes.
    """

    model: Served
    questions: bytes
    sizes: tuple[int, ...]
    shared: int
    alone: bool
    limit_s: float | None


ALIGNED = 64  # bytes


@dataclass
class _Asked:
    question: Any
    alone: bool
    limit_s: float | None
    shared: mmap
    answer: "Future[Any]" = field(default_factory=Future)


@dataclass
class _Held:
    """A model, and what waits for it."""

    served: Served
    loaded: "Future[Loaded] | None" = None
    wanted: bool = False
    waiting: deque[_Asked] = field(default_factory=deque)
    since: float = 0.0  # when the first of them came


class InferenceProcess:
    """Answers what comes over a listening socket, until its parent ends."""

    def __init__(self, listening: socket.socket, key: bytes, device: str) -> None:
        self._listening, self._key, self._device = listening, key, device
        self._news = threading.Condition()
        self._held: dict[Served, _Held] = {}
        self._batch: list[_Asked] = []
        self._ends_at: float | None = None

    def run(self) -> None:
        """Runs until the process that started this one is gone."""
        threading.Thread(target=self._watch, args=(os.getppid(),), daemon=True).start()
        threading.Thread(target=self._accept, daemon=True).start()
        while True:
            self._work(self._next())

    def _next(self) -> _Held:
        """The model that is to be loaded, or whose first question has waited longest."""
        with self._news:
            while True:
                ready = [held for held in self._held.values() if held.wanted or held.waiting]
                if ready:
                    return min(ready, key=lambda held: (not held.wanted, held.since))
                self._news.wait()

    def _work(self, held: _Held) -> None:
        if held.wanted:
            self._load(held)
            return
        batch = self._gathered(held)
        limits = [asked.limit_s for asked in batch if asked.limit_s is not None]
        self._batch, self._ends_at = batch, time.monotonic() + min(limits) if limits else None
        for asked in batch:
            asked.shared[0] = 1
        assert held.loaded
        _answer(held.loaded.result(), batch)
        self._batch, self._ends_at = [], None

    def _load(self, held: _Held) -> None:
        future, began = held.loaded, time.monotonic()
        assert future
        held.wanted = False
        try:
            loaded = held.served.load(self._device, *held.served.arguments)
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, whatever it is
            with self._news:
                held.loaded = None  # it may be had later
            future.set_exception(error)
            return
        log.info(
            "%s%s is on %s, loaded in %.1f s%s", held.served.load.__name__.strip("_"), _shown(held.served.arguments),
            self._device, time.monotonic() - began, free_memory(self._device),
        )  # fmt: skip
        future.set_result(loaded)

    def _gathered(self, held: _Held) -> list[_Asked]:
        """The next questions, as many as may go together."""
        with self._news:
            until = held.since + GATHER_S
            while len(held.waiting) < held.served.most and (left := until - time.monotonic()) > 0:
                self._news.wait(left)
            held.since = time.monotonic()
            return next_batch(held.waiting, held.served.most, lambda asked: asked.alone)

    def _accept(self) -> None:
        while True:
            link, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(Connection(link.detach()),), daemon=True).start()

    def _serve(self, link: Connection) -> None:
        """Answers one connection until it is closed."""
        shared = mmap(-1, ALIGNED)
        # What an asker that was killed leaves behind is nobody's loss.
        with suppress(EOFError, OSError), link:
            deliver_challenge(link, self._key)
            answer_challenge(link, self._key)
            while True:
                request = link.recv()
                if request.shared:
                    shared = _mapped(recv_handle(link), request.shared)
                link.send_bytes(_packed(self._replied(request, shared)))

    def _replied(self, request: Request, shared: mmap) -> "list[Any] | Exception":
        try:
            questions = pickle.loads(request.questions, buffers=list(buffers_in(shared, request.sizes)))
            loaded = self._model(request.model).result()
            if loaded.prepare:
                questions = [loaded.prepare(question) for question in questions]
            asked = [
                _Asked(q, request.alone or bool(loaded.alone and loaded.alone(q)), request.limit_s, shared)
                for q in questions
            ]
            with self._news:
                held = self._held[request.model]
                if not held.waiting:
                    held.since = time.monotonic()
                held.waiting += asked
                self._news.notify_all()
            return [one.answer.result() for one in asked]
        except Exception as error:  # noqa: BLE001 - it is the asker's
            return error

    def _model(self, served: Served) -> "Future[Loaded]":
        with self._news:
            held = self._held.setdefault(served, _Held(served))
            if held.loaded is None:
                held.loaded, held.wanted = Future(), True
                self._news.notify_all()
            return held.loaded

    def _watch(self, forked_by: int) -> None:
        while not parent_ended(forked_by, WATCH_S):
            ends_at, batch = self._ends_at, self._batch
            if ends_at is not None and time.monotonic() > ends_at:
                self._end_for_time(batch)
        os._exit(1)

    def _end_for_time(self, batch: Sequence[_Asked]) -> None:
        for asked in batch:
            with suppress(Exception):  # answered at this very moment
                asked.answer.set_exception(
                    ItemFailed(TIME_LIMIT, f"took longer than {asked.limit_s or 0:.0f} s and was stopped")
                )
        time.sleep(TOLD_S)
        os._exit(ENDED_BY_TIME)


def next_batch(waiting: deque[T], most: int, alone: Callable[[T], bool] | None) -> list[T]:
    """Takes the first questions, as many as may go together."""
    batch: list[T] = []
    while waiting and len(batch) < most:
        if batch and alone and (alone(batch[0]) or alone(waiting[0])):
            break
        batch.append(waiting.popleft())
    return batch


def _answer(model: Loaded, batch: Sequence[_Asked]) -> None:
    """Answers a batch; where that fails, its halves, so that a question which can't be answered, or a batch too large
    for the memory, is no harm to others."""
    try:
        answers = model.answer([asked.question for asked in batch])
    except Exception as error:
        if _device_is_lost(error):
            log.exception("the device can't be used any more: the process ends, and is started again")
            os._exit(DEVICE_LOST)
        if len(batch) == 1:
            batch[0].answer.set_exception(error)
            return
        log.warning("%s for %d questions at once: half as many are asked", type(error).__name__, len(batch))
    else:
        for asked, answer in zip(batch, answers, strict=True):
            asked.answer.set_result(answer)
        return
    for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
        _answer(model, half)


def _device_is_lost(error: Exception) -> bool:
    """Whether PyTorch says that its context is broken (a fault of a kernel or of the driver): all later calls fail."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def buffers_in(shared: mmap, sizes: Sequence[int]) -> Iterator[memoryview]:
    """The buffers of a request, as they lie in its memory."""
    start = ALIGNED
    for size in sizes:
        yield memoryview(shared)[start : start + size]
        start += -(-size // ALIGNED) * ALIGNED


def _mapped(handle: int, size: int) -> mmap:
    try:
        return mmap(handle, size)
    finally:
        os.close(handle)


def _packed(reply: "list[Any] | Exception") -> bytes:
    """The reply for its way between processes. Not every library's error can travel."""
    try:
        packed = pickle.dumps(reply, protocol=5)
        if isinstance(reply, Exception):
            pickle.loads(packed)
    except Exception:  # noqa: BLE001 - pickle raises whatever the object does
        return pickle.dumps(RuntimeError(f"{type(reply).__name__}: {reply}"))
    return packed


def _shown(arguments: tuple[Any, ...]) -> str:
    return f" {' '.join(map(str, arguments))}" if arguments else ""


def free_memory(device: str) -> str:
    """What a GPU has free, in words; empty for the CPU."""
    if not device.startswith("cuda"):
        return ""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return f"; {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"


def main(
    listening: socket.socket, key: bytes, device: str, environment: Mapping[str, str], threads: int, level: int
) -> None:
    """What the process runs.

    Args:
        environment: of the process that starts it.
        threads: of native libraries on a CPU.
        level: of the log, which goes to standard error.
    """
    on_gpu = device.startswith("cuda")
    if not on_gpu:
        take_over(environment, threads)
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
    # Libraries' progress bars share a lock between processes, which this one would leave behind: it is ended at once.
    tqdm.set_lock(threading.RLock())
    stand_for(device)
    if on_gpu:
        import torch

        torch.cuda.set_device(device)  # what asks for "cuda" gets this one
        log.info("models run on %s (%s)%s", device, torch.cuda.get_device_name(device), free_memory(device))
    InferenceProcess(listening, key, device).run()
