"""The guard of downloads from the web: every request that yt-dlp makes, redirects included, passes here.

Where to: only http and https, only hosts that the policy allows, and no address that is not public unless it is
allowed by name. The address that was checked is the address that is connected to, so a name that resolves anew in
between changes nothing. (Behind a proxy it is the proxy that connects; then names are checked alone.) How: at the
pace that all workers share, one request of a download at a time. How much: bodies are read in pieces, within limits
of size, time, speed and the budgets of bytes.
"""

import email.utils
import http.client
import ipaddress
import re
import socket
import ssl
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from urllib.response import addinfourl

import yt_dlp
from yt_dlp.extractor import gen_extractor_classes
from yt_dlp.networking import RequestDirector
from yt_dlp.networking import _urllib as yt_dlp_urllib
from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError
from yt_dlp.utils import DownloadCancelled

from medgen.errors import ItemFailed
from medgen.web.budget import Allowance
from medgen.web.politeness import HostBusy, Politeness, Slot

MAX_PAGE_BYTES = 64 << 20  # what is no video: pages, playlists
CHUNK = 1 << 16
LONGEST_RETRY_AFTER_S = 3600.0

# yt-dlp reads all certificates for each of its objects, a third of what a download costs. Nothing in them differs.
_contexts: dict[bool, ssl.SSLContext] = {}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_ADDRESS = re.compile(r"[0-9a-f:]+[.:]", re.IGNORECASE)  # how patterns of addresses begin


class Refused(RequestError):
    """A request that may not be sent, or whose answer may not be read; raised while it is opened."""

    def __init__(self, failure: ItemFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Stopped(DownloadCancelled):
    """A limit of ours ended a download; raised while a body is read."""

    def __init__(self, failure: ItemFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


def without_credentials(text: str) -> str:
    """`text` with user names and passwords of the URLs in it left out."""
    return re.sub(r"(?<=://)[^\s/?#'\"]*@", "", text)


@dataclass(frozen=True)
class HostPolicy:
    """Which hosts may be asked.

    Args:
        allowed: names and addresses, with * as wildcard; none listed: any public host. An address that is not public
            must be listed itself, or its host without a wildcard.
        denied: likewise; what is denied is never allowed.
    """

    allowed: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()

    def check_name(self, host: str) -> None:
        """Raises Refused when a host may not be asked, by its name alone."""
        if _listed(host, self.denied):
            raise Refused(ItemFailed("host_refused", f"host {host!r} is denied"))
        if self.allowed and not _listed(host, self.allowed):
            listed = ", ".join(self.allowed)
            raise Refused(ItemFailed("host_refused", f"host {host!r} is not among those allowed: {listed}"))

    def check_address(self, host: str, address: Address) -> None:
        """Raises Refused when a host may not be asked because of where it is."""
        if _address_listed(address, self.denied):
            raise Refused(ItemFailed("host_refused", f"host {host!r} is at {address}, which is denied"))
        named = host in (pattern.lower() for pattern in self.allowed) or _address_listed(address, self.allowed)
        if not named and not _is_public(address):
            message = f"host {host!r} is at {address}, which is no public address; list it to allow it"
            raise Refused(ItemFailed("host_refused", message))


def _listed(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns)


def _address_listed(address: Address, patterns: Iterable[str]) -> bool:
    """Whether an address, or the one that it stands for, is listed as such: a pattern for names lists none."""
    spelled = [_spelled(pattern) for pattern in patterns if _ADDRESS.match(pattern)]
    return _listed(str(address), spelled) or _listed(str(_inner(address)), spelled)


def _spelled(pattern: str) -> str:
    try:
        return str(ipaddress.ip_address(pattern))
    except ValueError:
        return pattern


def _is_public(address: Address) -> bool:
    inner = _inner(address)
    return inner.is_global and not inner.is_multicast and not inner.is_reserved


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for (mapped, 6to4, Teredo, NAT64 of RFC 6052), or itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in ipaddress.ip_network("64:ff9b::/96"):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or address
    return address


def host_of(url: str) -> str:
    """The host of a URL, as names are compared. Raises ValueError when there is no reading it."""
    return canonical_host(urlsplit(url).hostname or "")


def canonical_host(host: str) -> str:
    """A host's name in lower case, in ASCII, without a final dot."""
    with suppress(UnicodeError):  # names too long or odd for IDNA fail when they are looked up
        host = host.encode("idna").decode()
    return host.lower().rstrip(".")


def _addresses(host: str, port: int | None) -> Iterator[tuple[Address, tuple[Any, ...]]]:
    """(address, socket address) of all that a host name stands for. Raises OSError when it can't be looked up."""
    for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        yield ipaddress.ip_address(str(place[0]).split("%")[0]), place


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
class Manners:
    """How hosts are treated: see `medgen.web.politeness.Politeness.enter`."""

    politeness: Politeness
    simultaneous: int
    interval_s: float
    pace_wait_s: float


@dataclass
class WebGuard:
    """Holds the requests of one download to the policy. Belongs to one thread."""

    hosts: HostPolicy
    limits: FetchLimits
    manners: Manners
    allowance: Allowance
    proxies: frozenset[str] = frozenset()  # hosts that connect for us, chosen by the operator
    trouble: Exception | None = field(default=None, init=False)  # the last that a body or connection had

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.limits.deadline_s
        self._slot: Slot | None = None
        self._answer: _Answer | None = None
        self._validators: dict[str, str] = {}

    # --- before a request

    def enter(self, request: urllib.request.Request) -> None:
        """Checks a request, waits until its host may be asked, and takes a slot."""
        host = host_of(request.full_url)
        if "@" in urlsplit(request.full_url).netloc:
            raise Refused(ItemFailed("credentials_in_url", f"a redirect to {host!r} holds a user name or password"))
        self.hosts.check_name(host)
        if self.proxies:  # else `connect` checks
            with suppress(OSError):  # only the proxy may know this name
                for address, _ in _addresses(host, None):
                    self.hosts.check_address(host, address)
        self.leave()
        started = time.monotonic()
        if started > self._deadline:
            raise Refused(self._too_late())
        manners = self.manners
        try:
            self._slot = manners.politeness.enter(
                host,
                simultaneous=manners.simultaneous,
                interval_s=manners.interval_s,
                slot_wait_s=self.limits.deadline_s,
                pace_wait_s=manners.pace_wait_s,
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
        """A connection to one of the addresses of a host, all of which are checked first."""
        host, port = address
        places = list(_addresses(host, port))
        if host.lower() not in self.proxies:
            name = canonical_host(host)
            self.hosts.check_name(name)
            for found, _ in places:
                self.hosts.check_address(name, found)
        error = OSError(f"host {host!r} has no address")
        for _, place in places:
            try:
                return socket.create_connection(place[:2], timeout, source_address)
            except OSError as failed:
                error = failed
        raise error

    # --- after the headers of an answer

    def receive(self, request: urllib.request.Request, answer: "_Answer") -> Any:
        """Looks at an answer's headers and gives what yt-dlp may read."""
        answer.guard, self._answer = self, answer
        seconds = retry_after(answer.headers.get("Retry-After"))
        if answer.status in (429, 503) and seconds is not None:
            self.manners.politeness.push(host_of(request.full_url), seconds)
        if answer.status < 300:
            self._accept(request, answer)
        return self._decoded(answer) if answer.headers.get("Content-Encoding", "identity") != "identity" else answer

    def _accept(self, request: urllib.request.Request, answer: "_Answer") -> None:
        """Raises Refused or TransportError when the body is too large, or not what was asked for."""
        self.trouble = None
        if answer.length is not None:  # of what is still to come; a HEAD promises nothing
            if answer.length > self.limits.max_bytes:
                message = f"{answer.length} bytes are promised, allowed {self.limits.max_bytes}"
                raise Refused(ItemFailed("file_too_large", message))
            try:
                self.allowance.check(answer.length)
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

    def _decoded(self, answer: "_Answer") -> addinfourl:
        """A compressed body laid out, whose size unpacked is bounded like any page's."""
        encoding = answer.headers["Content-Encoding"].strip().lower()
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise Refused(ItemFailed("unknown_encoding", f"the body is encoded as {encoding[:50]!r}"))
        limit = min(MAX_PAGE_BYTES, self.limits.max_bytes)
        packed = answer.read()
        try:
            data = _unpacked(packed, encoding, limit)
        except zlib.error as error:
            raise TransportError(cause=error) from error
        if len(data) > limit:
            raise Refused(ItemFailed("file_too_large", f"a page is larger than {limit} bytes unpacked"))
        headers = answer.headers
        del headers["Content-Encoding"], headers["Content-Length"]
        unpacked = addinfourl(BytesIO(data), headers, answer.url, answer.status)
        unpacked.msg = answer.msg
        return unpacked

    # --- while a body is read

    def read(self, answer: "_Answer", amount: int | None) -> bytes:
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
            error = self._troubled(http.client.IncompleteRead(bytes(data), answer.length))
            if amount is None or not data:
                raise error
        return bytes(data)

    def _piece(self, answer: "_Answer", amount: int) -> bytes:
        size = self.allowance.spend(min(amount, CHUNK), answer.length)
        started = time.monotonic()
        piece = b""
        try:
            piece = answer.read1(size or 1)  # one byte tells whether the body ends just where the budget does
        except (OSError, http.client.HTTPException) as error:
            raise self._troubled(error) from None
        finally:
            self.allowance.unspend(max(0, size - len(piece)))
        if piece and not size:
            raise Stopped(self.allowance.spent())
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

    def _troubled(self, error: Exception) -> Exception:
        self.trouble = error
        return error


class _Answer(http.client.HTTPResponse):
    """A response whose body is read through the guard, and which ends its request when it is closed."""

    guard: WebGuard | None = None  # none: the answer of a proxy to CONNECT
    abandoned = False
    window_s, window_bytes = 0.0, 0  # since the speed was last looked at

    def read(self, amount: int | None = None) -> bytes:  # type: ignore[override]
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


class GuardedYoutubeDL(yt_dlp.YoutubeDL):
    """yt-dlp with a guard at its only way to the web."""

    def __init__(self, options: dict[str, Any], guard: WebGuard) -> None:
        self._guard = guard
        super().__init__(options)
        guard.proxies = _proxy_hosts(self.proxies)

    def add_default_info_extractors(self) -> None:
        # As yt-dlp does, but without comparing all their names with each other, which costs half of a small download.
        for extractor in gen_extractor_classes():
            if extractor._ENABLED:
                self.add_info_extractor(extractor)

    def build_request_director(self, handlers: Any, preferences: Any = None) -> RequestDirector:
        guard = self._guard

        class UrllibRH(yt_dlp_urllib.UrllibRH):
            def _create_instance(
                self, proxies: Any, cookiejar: Any, legacy_ssl_support: Any = None
            ) -> urllib.request.OpenerDirector:
                opener = super()._create_instance(proxies, cookiejar, legacy_ssl_support)
                context = self._make_sslcontext(legacy_ssl_support=legacy_ssl_support)
                opener.add_handler(_Gate(guard, context, self.source_address))
                return opener

            def _make_sslcontext(self, legacy_ssl_support: Any = None) -> ssl.SSLContext:
                legacy = self.legacy_ssl_support if legacy_ssl_support is None else legacy_ssl_support
                if legacy not in _contexts:
                    _contexts[legacy] = super()._make_sslcontext(legacy_ssl_support=legacy)
                return _contexts[legacy]

            def _prepare_headers(self, _: Any, headers: Any) -> None:
                headers.setdefault("Accept-Encoding", "gzip, deflate")  # what `_decoded` unpacks

            def _send(self, request: Any) -> Any:
                try:
                    return super()._send(request)
                except HTTPError as error:
                    guard.trouble = error
                    raise  # it is an answer too, which may be read
                except BaseException as error:
                    guard.leave()
                    if isinstance(error, TransportError):
                        guard.trouble = error
                    if isinstance(error, Stopped):  # in the body of a redirect; yt-dlp knows only its own errors here
                        raise Refused(error.failure) from error
                    raise

        return super().build_request_director([UrllibRH], preferences)


class _Gate(urllib.request.BaseHandler):
    """Where urllib's requests and answers pass the guard: before yt-dlp's own handlers, behind that for proxies."""

    handler_order = 200

    def __init__(self, guard: WebGuard, context: Any, source_address: Any) -> None:
        self._guard = guard
        self._transport = _Transport(guard, context=context, source_address=source_address)

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        self._guard.enter(request)
        return request

    https_request = http_request

    def http_response(self, request: urllib.request.Request, answer: _Answer) -> Any:
        return self._guard.receive(request, answer)

    https_response = http_response

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self._transport.http_open(request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self._transport.https_open(request)

    def ftp_request(self, request: urllib.request.Request) -> urllib.request.Request:
        told = without_credentials(request.full_url)[:200]
        raise Refused(ItemFailed("host_refused", f"only http and https are fetched, not {told!r}"))

    data_request = ftp_request


class _Transport(yt_dlp_urllib.HTTPHandler):
    """yt-dlp's connections, made by the guard."""

    def __init__(self, guard: WebGuard, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._guard = guard

    def _make_conn_class(self, base: type[http.client.HTTPConnection], request: Any) -> Callable[..., Any]:  # type: ignore[override]
        guard = self._guard

        class Connection(base):  # type: ignore[valid-type, misc]
            response_class = _Answer

            def connect(self) -> None:
                self._create_connection = guard.connect
                super().connect()

        return yt_dlp_urllib.HTTPHandler._make_conn_class(Connection, request)


def _proxy_hosts(proxies: Mapping[str, str | None]) -> frozenset[str]:
    hosts = set()
    for scheme, proxy in proxies.items():
        if proxy and proxy != "__noproxy__" and scheme != "no":
            with suppress(ValueError):
                hosts.add((urlsplit(proxy if "//" in proxy else f"//{proxy}").hostname or "").lower())
    return frozenset(hosts - {""})


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
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S) if seconds == seconds else None


def _first_byte(span: str | None) -> str | None:
    found = re.match(r"bytes[= ](\d+)-", span or "")
    return found and found.group(1)


def _unpacked(packed: bytes, encoding: str, limit: int) -> bytes:
    """At most `limit` + 1 bytes."""
    if encoding != "deflate":
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, limit + 1)
    try:
        return zlib.decompressobj().decompress(packed, limit + 1)
    except zlib.error:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, limit + 1)
