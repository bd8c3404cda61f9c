"""Asks models, which run in inference processes: one for each GPU, and one for the CPU where there is none.

Whoever needs a model asks here, from any process and thread of the installation. On a machine without a GPU a model
that is `packaged` (small, from a package) is held by each process that asks instead: there a process between would cost
more than it saves.

The first process of the installation that runs tasks on a machine owns the inference processes: it starts them when
somebody asks, again when they die, and ends them when it ends; then the next one owns them. Questions travel in memory
that is shared (memfd: no file, no name, freed by the kernel with its last user).
"""

import hashlib
import logging
import multiprocessing
import os
import pickle
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from itertools import count
from mmap import PAGESIZE, mmap
from multiprocessing.connection import Client, Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import send_handle
from select import select
from typing import Any

from filelock import FileLock

from medgen.devices import CPU, SERVED_ELSEWHERE, devices, gpus, is_inference_process, this_device
from medgen.errors import ItemFailed
from medgen.forks import fork_context
from medgen.home import private_home
from medgen.inference_process import ALIGNED, Loaded, Request, Served, main, next_batch
from medgen.settings import current

log = logging.getLogger(__name__)

DEATHS = 3  # of the process at work on the same questions; after the first they are in a batch of their own
MOST_DEATHS_OF_OTHERS = 30  # while questions waited: for those of others, each of which may cause `DEATHS`
START_S = 300.0  # until an owner has started the process: another run may be ending its own
POLL_S = 0.2
BACKLOG = 128


class InferenceDied(ItemFailed):
    """The inference process died, each time that it was asked."""


def ask(
    model: Served, questions: Iterable[Any], *, device: str | None = None, limit_s: float | None = None
) -> list[Any]:
    """What a model says of each question, in order. Equal questions get equal answers, whatever else is asked.

    Args:
        questions: arrays, texts, tuples of these; large arrays are copied once.
        device: one of `devices()`; by default they take turns.
        limit_s: for a batch; by default as long as it takes.

    Raises:
        InferenceDied: transient. The model's own errors, ModelUnavailable among them; ItemFailed: time_limit.
    """
    asked = list(questions)
    return _answers(model, asked, device, limit_s) if asked else []


def ensure_loaded(model: Served) -> None:
    """Loads a model where it will be asked, so that one that can't be had is known before any work.

    Raises:
        as `ask`.
    """
    for device in [None] if stays_here(model) else devices():
        _answers(model, [], device, None)


def _answers(model: Served, asked: list[Any], device: str | None, limit_s: float | None) -> list[Any]:
    if stays_here(model):
        return _here(model).answers(asked)
    device = device or devices()[next(_turns) % len(devices())]
    deaths = others = 0
    while deaths < DEATHS and others < MOST_DEATHS_OF_OTHERS:
        link = _link(device)
        try:
            return link.answers(model, asked, alone=deaths > 0, limit_s=limit_s)
        except (EOFError, ConnectionError):
            _drop_link(device)
            deaths, others = (deaths + 1, others) if link.begun else (deaths, others + 1)
            if link.begun:
                log.warning("the inference process of %s died at work on %s; it is asked again", device, model)
    raise InferenceDied(
        "inference_died", f"the inference process of {device} died {deaths or others} times", transient=True
    )


def stays_here(model: Served) -> bool:
    """Whether a model is held by the process that asks. Raises as `devices`.

    An inference process that asks, from a step that runs on it, would wait for itself.
    """
    if is_inference_process():
        return True
    return model.packaged and not (gpus() and (not model.onnx or onnx_has_gpus()))


def onnx_has_gpus() -> bool:
    """Whether this build of ONNX Runtime knows CUDA."""
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def onnx_providers(device: str) -> list[Any]:
    """What ONNX Runtime is told to run on: a GPU where its build knows it, then the CPU."""
    on_cpu: list[Any] = ["CPUExecutionProvider"]
    if device == CPU or not onnx_has_gpus():
        return on_cpu
    return [("CUDAExecutionProvider", {"device_id": device.partition(":")[2] or "0"}), *on_cpu]


_turns = count(os.getpid())


class _Here:
    """A model of this process, asked by one thread at a time."""

    def __init__(self, model: Served) -> None:
        self._model = model
        self._turn = threading.Lock()
        self._loaded: Loaded | None = None

    def answers(self, questions: list[Any]) -> list[Any]:
        """See `ask`."""
        with self._turn:
            loaded = self._loaded = self._loaded or self._model.load(this_device(), *self._model.arguments)
            prepared = deque(map(loaded.prepare, questions) if loaded.prepare else questions)
            answers: list[Any] = []
            while prepared:
                answers += loaded.answer(next_batch(prepared, self._model.most, loaded.alone))
            return answers


_held: dict[Served, _Here] = {}
_holding = threading.Lock()


def _here(model: Served) -> _Here:
    with _holding:
        return _held.setdefault(model, _Here(model))


class _Link:
    """A connection of one thread to an inference process, with the memory that the two share."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._memory = mmap(-1, PAGESIZE)
        self._shared = 0  # bytes of it that the other side sees

    def answers(self, model: Served, questions: list[Any], *, alone: bool, limit_s: float | None) -> list[Any]:
        """See `ask`. Raises EOFError or ConnectionError when the process is gone."""
        buffers: list[pickle.PickleBuffer] = []
        packed = pickle.dumps(questions, protocol=5, buffer_callback=buffers.append)
        raw = [buffer.raw() for buffer in buffers]
        sizes = tuple(part.nbytes for part in raw)
        handle = self._grown(ALIGNED + sum(-(-size // ALIGNED) * ALIGNED for size in sizes))
        start = ALIGNED
        for part, size in zip(raw, sizes, strict=True):
            self._memory[start : start + size] = part
            start += -(-size // ALIGNED) * ALIGNED
        shared = len(self._memory) if handle is not None else 0
        self._memory[0] = 0
        try:
            self._connection.send(Request(model, packed, sizes, shared, alone, limit_s))
            if handle is not None:
                send_handle(self._connection, handle, None)
        finally:
            if handle is not None:
                os.close(handle)
        reply = pickle.loads(self._connection.recv_bytes())
        if isinstance(reply, Exception):
            raise reply
        answers: list[Any] = reply
        return answers

    @property
    def begun(self) -> bool:
        """Whether a batch with the last questions was begun."""
        return self._memory[0] == 1

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _grown(self, size: int) -> int | None:
        """The handle of new memory when what is shared is too small."""
        if size <= self._shared:
            return None
        self._shared = size = max(PAGESIZE, 1 << (size - 1).bit_length())
        handle = os.memfd_create("medgen-questions")
        os.truncate(handle, size)
        self._memory = mmap(handle, size)
        return handle


_of_thread = threading.local()


def _link(device: str) -> _Link:
    links: dict[str, _Link] = _of_thread.__dict__.setdefault("links", {})
    if device not in links:
        links[device] = _Link(_connected(device))
    return links[device]


def _drop_link(device: str) -> None:
    if link := _of_thread.__dict__.get("links", {}).pop(device, None):
        link.close()


def _connected(device: str) -> Connection:
    """A connection. Raises ConnectionError when the process dies meanwhile; ItemFailed: inference_unavailable."""
    until = time.monotonic() + START_S
    while True:
        own_inference()
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return Client(_address(device), authkey=_key())
        if time.monotonic() > until:
            raise ItemFailed("inference_unavailable", f"no process of this run serves {device}", transient=True)
        time.sleep(POLL_S)


def _address(device: str) -> str:
    """A name in Linux's abstract namespace, which ends with its socket and is as long as it likes."""
    home = hashlib.sha256(str(current().home).encode()).hexdigest()[:32]
    return f"\0medgen-{os.getuid()}-{home}-{device}"


@cache
def _key() -> bytes:
    """The installation's secret, without which nobody is answered: abstract names are open to all users."""
    folder = private_home(current().home) / "locks"
    folder.mkdir(exist_ok=True)
    file = folder / "inference.key"
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            part = file.with_suffix(".part")
            part.touch(0o600)
            part.write_bytes(os.urandom(32))
            part.rename(file)
        return file.read_bytes()


class _Owner:
    """Listens for one device, and keeps a process that answers while somebody asks."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._over = threading.Event()
        self._process: BaseProcess | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"medgen-inference-{device}", daemon=True)
        self._thread.start()
        self._ready.wait(POLL_S)  # as a rule nobody else owns it

    def close(self) -> None:
        """Ends the process."""
        self._over.set()
        while self._thread.is_alive():  # it may be starting one at this very moment
            if self._process is not None:
                self._process.kill()
            self._thread.join(POLL_S)

    def _run(self) -> None:
        while not self._over.is_set():
            listening = socket.socket(socket.AF_UNIX)
            try:
                listening.bind(_address(self.device))
            except OSError:  # another process of the installation owns it
                listening.close()
                self._over.wait(POLL_S)
                continue
            with listening:
                listening.listen(BACKLOG)
                self._ready.set()
                self._keep(listening)

    def _keep(self, listening: socket.socket) -> None:
        # Not a fork on a GPU: what was imported before might have touched CUDA.
        context = fork_context() if self.device == CPU else multiprocessing.get_context("spawn")
        while not self._over.is_set():
            if not select([listening], [], [], POLL_S)[0]:
                continue
            level = logging.getLogger().getEffectiveLevel()
            arguments = (listening, _key(), self.device, dict(os.environ), current().workers, level)
            process = context.Process(target=main, args=arguments, name=f"inference {self.device}", daemon=True)
            try:
                process.start()
            except (OSError, EOFError) as error:  # no room for one, or what forks it was killed just now
                log.warning("the inference process of %s does not start: %s", self.device, error or "it ended")
                self._over.wait(POLL_S)
                continue
            self._process = process
            process.join()


_owners: list[_Owner] = []
_owning = threading.Lock()
_may_own = True


def own_inference() -> None:
    """Makes this process the owner of the installation's inference processes on this machine, if none is yet."""
    with _owning:
        if _may_own and not _owners and SERVED_ELSEWHERE not in os.environ:
            _owners.extend(_Owner(device) for device in devices())


def never_own() -> None:
    """For worker processes: their parent owns."""
    global _may_own
    _may_own = False


def close_inference() -> None:
    """Ends what this process owns, and frees the devices' memory; whoever asks again starts anew."""
    with _owning:
        for owner in _owners:
            owner.close()
        _owners.clear()
    with _holding:
        _held.clear()
