"""The guard of a download: every request and every byte of a body passes here, whichever client asks.

Where to: only http and https, only hosts that the policy allows (`medgen.web.host_policy`). The address that was
checked is the address that is connected to, so a name that resolves anew in between changes nothing, and no other
client connects (`medgen.web.egress`). (Behind a proxy it is the proxy that connects; then only names are checked.) How:
at the rate that all workers share, one request of a download at a time. How much: bodies are read in pieces, within
limits of size, time, speed and the quotas of bytes.
"""

import email.utils
import http.client
import re
import socket
import time
import urllib.request
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from urllib.response import addinfourl

from yt_dlp.networking.exceptions import TransportError

from medgen.errors import ItemFailed
from medgen.web.egress import unconfined
from medgen.web.failures import Refused, Stopped
from medgen.web.host_policy import Address, HostPolicy, addresses_of, canonical_host, host_of
from medgen.web.quotas import DownloadQuota
from medgen.web.rate_limits import LONGEST_PAUSE_S, HostBusy, RateLimits, Slot

MAX_PAGE_BYTES = 64 << 20  # of what is no video: pages, playlists
CHUNK = 1 << 16


@dataclass
class FetchLimits:
    """How much one download may read, and how fast it has to be.

    Args:
        max_bytes: of one body.
        deadline_s: seconds for all, not counting the waits for hosts.
        stall_s: over this time `min_speed` bytes per second must have come.
    """

    max_bytes: int
    deadline_s: float
    stall_s: float
    min_speed: float


@dataclass
class WebGuard:
    """Holds the requests of one download to the policy. Belongs to one thread."""

    hosts: HostPolicy
    limits: FetchLimits
    rate_limits: RateLimits
    quota: DownloadQuota
    proxies: frozenset[str] = frozenset()  # hosts that connect for us, chosen by the operator
    last_error: Exception | None = field(default=None, init=False)  # of a connection or body

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.limits.deadline_s
        self._slot: Slot | None = None
        self._answer: GuardedResponse | None = None
        self._validators: dict[str, str] = {}

    # --- before a request

    def enter(self, request: urllib.request.Request) -> None:
        """Checks a request, waits until its host may be asked, and takes a slot.

        Raises:
            Refused: by the policy, for want of time, or because the host is busy.
        """
        host = host_of(request.full_url)
        if "@" in urlsplit(request.full_url).netloc:
            raise Refused(ItemFailed("credentials_in_url", f"a redirect to {host!r} holds a user name or password"))
        self.hosts.check_name(host)
        if self.proxies:  # else `connect` checks
            with suppress(OSError):  # only the proxy may know this name
                for address, _ in addresses_of(host, None):
                    self.hosts.check_address(host, address)
        self.leave()
        started = time.monotonic()
        if started > self._deadline:
            raise Refused(self._too_late())
        limits = self.rate_limits
        try:
            self._slot = limits.limiter.enter(
                host,
                simultaneous=limits.simultaneous,
                interval_s=limits.interval_s,
                slot_wait_s=self.limits.deadline_s,
                interval_wait_s=limits.interval_wait_s,
            )
        except HostBusy as busy:
            raise Refused(ItemFailed("host_busy", str(busy), later=True)) from busy
        self._deadline += time.monotonic() - started
        first, validator = _first_byte(request.get_header("Range")), self._validators.get(request.full_url)
        if first not in (None, "0") and validator:
            request.add_unredirected_header("If-range", validator)  # the rest of the same file, or all of another

    def leave(self) -> None:
        """Ends the request under way, if there is one: a download makes one at a time."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.abandon()
        self.free()

    def free(self) -> None:
        """Frees the slot of the request under way."""
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()

    def connect(
        self, address: tuple[str, int], timeout: float | None = None, source_address: tuple[str, int] | None = None
    ) -> socket.socket:
        """A connection to one of the addresses of a host. All its addresses are checked first.

        Raises:
            Refused: one of them may not be asked.
            OSError: the name can't be resolved, or no address can be reached.
        """
        host, port = address
        resolved = list(addresses_of(host, port))
        if host.lower() not in self.proxies:
            name = canonical_host(host)
            self.hosts.check_name(name)
            for ip_address, _ in resolved:
                self.hosts.check_address(name, ip_address)
        error = OSError(f"host {host!r} has no address")
        for ip_address, socket_address in resolved:
            try:
                return _connected(ip_address, socket_address, timeout, source_address)
            except OSError as failed:
                error = failed
        raise error

    # --- after the headers of an answer

    def receive(self, request: urllib.request.Request, answer: "GuardedResponse") -> "GuardedResponse | addinfourl":
        """Checks an answer by its headers. Returns what yt-dlp may read: the answer, or its body decompressed."""
        answer.guard, self._answer = self, answer
        seconds = retry_after(answer.headers.get("Retry-After"))
        if answer.status in (429, 503) and seconds is not None:
            self.rate_limits.limiter.back_off(host_of(request.full_url), seconds)
        if answer.status < 300:
            self._accept(request, answer)
        return self._decoded(answer) if answer.headers.get("Content-Encoding", "identity") != "identity" else answer

    def _accept(self, request: urllib.request.Request, answer: "GuardedResponse") -> None:
        """Raises Refused or TransportError when the body is too large, or not what was asked for."""
        self.last_error = None
        if answer.length is not None:  # of what is still to come; a HEAD promises nothing
            if answer.length > self.limits.max_bytes:
                message = f"{answer.length} bytes are promised, allowed {self.limits.max_bytes}"
                raise Refused(ItemFailed("file_too_large", message))
            try:
                self.quota.check(answer.length)
            except ItemFailed as failure:
                raise Refused(failure) from failure
        if answer.status == 206:
            asked, sent = request.get_header("Range"), answer.headers.get("Content-Range")
            if _first_byte(asked) != _first_byte(sent):
                raise TransportError(f"asked for {asked}, the server sent {sent}")
        etag = answer.headers.get("ETag") or ""
        validator = etag if etag.startswith('"') else answer.headers.get("Last-Modified")
        if validator:
            self._validators[request.full_url] = validator

    def _decoded(self, answer: "GuardedResponse") -> addinfourl:
        """A compressed body, decompressed; its decompressed size is bounded like any page's."""
        encoding = answer.headers["Content-Encoding"].strip().lower()
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise Refused(ItemFailed("unknown_encoding", f"the body is encoded as {encoding[:50]!r}"))
        limit = min(MAX_PAGE_BYTES, self.limits.max_bytes)
        packed = answer.read()
        try:
            data = _decompressed(packed, encoding, limit)
        except zlib.error as error:
            raise TransportError(cause=error) from error
        if len(data) > limit:
            raise Refused(ItemFailed("file_too_large", f"a page is larger than {limit} bytes unpacked"))
        headers = answer.headers
        del headers["Content-Encoding"], headers["Content-Length"]
        unpacked = addinfourl(BytesIO(data), headers, answer.url, answer.status)
        unpacked.msg = answer.msg  # type: ignore[attr-defined]  # urllib sets and reads it on every response
        return unpacked

    # --- while a body is read

    def read(self, answer: "GuardedResponse", amount: int | None) -> bytes:
        """Up to `amount` bytes of a body, or all of it."""
        most = min(MAX_PAGE_BYTES, self.limits.max_bytes) if amount is None else amount
        data = bytearray()
        while not (amount is not None and len(data) >= min(amount, CHUNK)):
            if answer.isclosed() or answer.length == 0:
                break
            piece = self._piece(answer, CHUNK if amount is None else amount - len(data))
            if not piece:
                break
            data += piece
            if amount is None and len(data) > most:
                raise Stopped(ItemFailed("file_too_large", f"a page is larger than {most} bytes"))
        if answer.isclosed() and answer.length:
            error = self._noted(http.client.IncompleteRead(bytes(data), answer.length))
            if amount is None or not data:
                raise error
        return bytes(data)

    def _piece(self, answer: "GuardedResponse", amount: int) -> bytes:
        size = self.quota.acquire(min(amount, CHUNK), answer.length)
        started = time.monotonic()
        piece = b""
        try:
            piece = answer.read1(size or 1)  # one byte tells whether the body ends just where the budget does
        except (OSError, http.client.HTTPException) as error:
            raise self._noted(error) from None
        finally:
            self.quota.refund(max(0, size - len(piece)))
        if piece and not size:
            raise Stopped(self.quota.exhausted())
        now = time.monotonic()
        if now > self._deadline:
            raise Stopped(self._too_late())
        answer.window_s += now - started
        answer.window_bytes += len(piece)
        if answer.window_s > self.limits.stall_s:
            if answer.window_bytes < self.limits.min_speed * answer.window_s:
                message = f"{answer.window_bytes} bytes in {answer.window_s:.1f} s"
                raise Stopped(ItemFailed("too_slow", message, transient=True))
            answer.window_s, answer.window_bytes = 0.0, 0
        return piece

    def _too_late(self) -> ItemFailed:
        return ItemFailed("time_limit", f"the download took longer than {self.limits.deadline_s:.0f} s")

    def _noted(self, error: Exception) -> Exception:
        self.last_error = error
        return error


class GuardedResponse(http.client.HTTPResponse):
    """A response whose body is read through the guard, and which ends its request when it is closed."""

    guard: WebGuard | None = None  # none: the answer of a proxy to CONNECT
    abandoned = False
    window_s, window_bytes = 0.0, 0  # since the speed was last looked at

    def read(self, amount: int | None = None) -> bytes:
        if self.guard is None:
            return super().read(amount)
        if self.abandoned:
            raise ConnectionAbortedError("this answer was closed by the next request of its download")
        try:
            data = self.guard.read(self, amount)
        except BaseException:
            self.close()
            raise
        if self.isclosed() or self.length == 0 or (not data and amount != 0):
            self.close()
        return data

    def abandon(self) -> None:
        """Closes it for good."""
        self.abandoned = not self.isclosed()
        self.close()

    def close(self) -> None:
        super().close()
        guard = self.guard
        if guard is not None and guard._answer is self:
            guard._answer = None
            guard.free()


def _connected(
    ip_address: Address,
    socket_address: tuple[Any, ...],
    timeout: float | None,
    source_address: tuple[str, int] | None,
) -> socket.socket:
    """A connection to just this address: nothing is resolved once more."""
    connection = socket.socket(socket.AF_INET if ip_address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        if source_address:
            connection.bind(source_address)
        with unconfined():
            connection.connect(socket_address)
    except BaseException:
        connection.close()
        raise
    return connection


def retry_after(header: str | None) -> float | None:
    """Seconds that a server asks to wait, at most an hour; None when it asks for nothing that can be read.

    RFC 9110, section 10.2.3: a number of seconds or a date.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_PAUSE_S) if seconds == seconds else None


def _first_byte(span: str | None) -> str | None:
    """The number of the first byte, in the words of a Range or Content-Range header."""
    match = re.match(r"bytes[= ](\d+)-", span or "")
    return match and match.group(1)


def _decompressed(packed: bytes, encoding: str, limit: int) -> bytes:
    """The first `limit` + 1 bytes of a gzip or deflate body. Some servers send deflate without its zlib header."""
    if encoding != "deflate":
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, limit + 1)
    try:
        return zlib.decompressobj().decompress(packed, limit + 1)
    except zlib.error:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, limit + 1)
