"""Egress: while yt-dlp reads what a site says, the guard's connections are the only way out of the thread.

The guard stands at the one client that yt-dlp is given. But an extractor or downloader may bring another (websockets, a
socket of its own), and a page may lead yt-dlp to a program that fetches by itself (rtmpdump, PhantomJS, ffmpeg). Python
announces every connection and every program before it makes them (audit events, PEP 578), whoever asks; here they are
refused.
"""

import errno
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import PurePath
from typing import Any, TypeVar

from medgen.errors import ItemFailed
from medgen.web.failures import Refused

T = TypeVar("T")

_CONNECTIONS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_PROGRAMS = frozenset(
    {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "pty.spawn"}
)
_WATCHED = _CONNECTIONS | _PROGRAMS

_thread = threading.local()


@contextmanager
def confined() -> Iterator[None]:
    """Within it this thread connects nowhere and starts no program.

    What tries raises Refused, for a connection, or PermissionError, for a program: to yt-dlp it is not installed.
    """
    _watch()
    with _set(confined=True):
        yield


@contextmanager
def unconfined() -> Iterator[None]:
    """For what the guard does itself: it connects to an address that it has checked, and asks the catalog."""
    with _set(confined=False):
        yield


def each_confined(entries: Iterable[T]) -> Iterator[T]:
    """Each step of an iterator is `confined`; what is done between the steps is not."""
    iterator = iter(entries)
    while True:
        with confined():
            try:
                entry = next(iterator)
            except StopIteration:
                return
        yield entry


@contextmanager
def _set(*, confined: bool) -> Iterator[None]:
    before = getattr(_thread, "confined", False)
    _thread.confined = confined
    try:
        yield
    finally:
        _thread.confined = before


@cache
def _watch() -> None:
    """Hooks into this process, once: a hook can't be taken away again."""
    sys.addaudithook(_check)


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _WATCHED or not getattr(_thread, "confined", False):
        return
    if event in _CONNECTIONS:
        where = str(arguments[1])[:100]
        raise Refused(ItemFailed("host_refused", f"a connection to {where} that does not pass the guard"))
    if event != "subprocess.Popen" or not _sandboxed(arguments[1]):
        raise PermissionError(errno.EACCES, "no program is started while a site is read")


def _sandboxed(command: Any) -> bool:
    """Whether a command is deno without permissions, in which yt-dlp runs scripts of sites: they reach nothing."""
    if isinstance(command, str) or not command:
        return False
    program, *arguments = map(str, command)
    return PurePath(program).name == "deno" and all(
        argument in ("run", "-") or (argument.startswith("--") and not argument.startswith(("--allow", "--permission")))
        for argument in arguments
    )
