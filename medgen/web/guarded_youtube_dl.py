"""yt-dlp under the guard: all its requests, redirects included, pass `medgen.web.guard`.

yt-dlp sends through urllib; the guard stands there as a handler, and makes the connections too. It is given no other
client, and what brings one of its own is `confined`.
"""

import http.client
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast
from urllib.parse import urlsplit

import yt_dlp
from yt_dlp.extractor import gen_extractor_classes
from yt_dlp.networking import RequestDirector
from yt_dlp.networking import _urllib as yt_dlp_urllib  # type: ignore[attr-defined]  # the stubs leave it out
from yt_dlp.networking.exceptions import HTTPError, TransportError

from medgen.errors import ItemFailed
from medgen.web.egress import confined, unconfined
from medgen.web.failures import Refused, Stopped, without_credentials
from medgen.web.guard import GuardedResponse, WebGuard

# yt-dlp reads all certificates for each of its objects, a third of what a download costs. Nothing in them differs.
_contexts: dict[bool, ssl.SSLContext] = {}


class GuardedYoutubeDL(yt_dlp.YoutubeDL):
    """yt-dlp with a guard at its only way to the web."""

    def __init__(self, options: dict[str, Any], guard: WebGuard) -> None:
        self._guard = guard
        super().__init__(options)  # type: ignore[arg-type]  # the stubs' TypedDict of options is private
        guard.proxies = _proxy_hosts(self.proxies)

    def extract_info(self, *arguments: Any, **options: Any) -> Any:
        # Entries of a list that are asked for later are its caller's to confine.
        with confined():
            return super().extract_info(*arguments, **options)

    def urlopen(self, req: Any) -> Any:
        with confined():
            return super().urlopen(req)

    def add_default_info_extractors(self) -> None:
        # As yt-dlp does, but without comparing all their names with each other, which costs half of a small download.
        for extractor in gen_extractor_classes():
            if extractor._ENABLED:  # type: ignore[attr-defined]  # the stubs leave it out
                self.add_info_extractor(extractor)  # type: ignore[arg-type]  # it takes classes too

    def build_request_director(self, handlers: Any, preferences: Any = None) -> RequestDirector:
        guard = self._guard

        class UrllibRH(yt_dlp_urllib.UrllibRH):  # type: ignore[misc]  # the stubs leave it out
            def _create_instance(
                self, proxies: Any, cookiejar: Any, legacy_ssl_support: Any = None
            ) -> urllib.request.OpenerDirector:
                opener: urllib.request.OpenerDirector = super()._create_instance(proxies, cookiejar, legacy_ssl_support)
                context = self._make_sslcontext(legacy_ssl_support=legacy_ssl_support)
                opener.add_handler(_Gate(guard, context, self.source_address))
                return opener

            def _make_sslcontext(self, legacy_ssl_support: Any = None) -> ssl.SSLContext:
                legacy = self.legacy_ssl_support if legacy_ssl_support is None else legacy_ssl_support
                if legacy not in _contexts:
                    _contexts[legacy] = super()._make_sslcontext(legacy_ssl_support=legacy)
                return _contexts[legacy]

            def _get_proxies(self, request: Any) -> dict[str, str | None]:
                return dict(self.proxies)  # the operator's, whatever an extractor asks for

            def _prepare_headers(self, _: Any, headers: Any) -> None:
                headers.setdefault("Accept-Encoding", "gzip, deflate")  # what `WebGuard` decompresses

            def _send(self, request: Any) -> Any:
                try:
                    return super()._send(request)
                except HTTPError as error:
                    guard.last_error = error
                    raise  # it is an answer too, which may be read
                except BaseException as error:
                    guard.leave()
                    if isinstance(error, TransportError):
                        guard.last_error = error
                    if isinstance(error, Stopped):  # in the body of a redirect; yt-dlp knows only its own errors here
                        raise Refused(error.failure) from error
                    raise

        return super().build_request_director([UrllibRH], preferences)  # type: ignore[list-item]  # it takes classes


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

    def http_response(self, request: urllib.request.Request, answer: GuardedResponse) -> Any:
        return self._guard.receive(request, answer)

    https_response = http_response

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        response: http.client.HTTPResponse = self._transport.http_open(request)
        return response

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        response: http.client.HTTPResponse = self._transport.https_open(request)
        return response

    def ftp_request(self, request: urllib.request.Request) -> urllib.request.Request:
        url = without_credentials(request.full_url)[:200]
        raise Refused(ItemFailed("host_refused", f"only http and https are fetched, not {url!r}"))

    data_request = ftp_request


class _Transport(yt_dlp_urllib.HTTPHandler):  # type: ignore[misc]  # the stubs leave it out
    """yt-dlp's connections, made by the guard."""

    def __init__(self, guard: WebGuard, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._guard = guard

    def _make_conn_class(self, base: type[http.client.HTTPConnection], request: Any) -> Callable[..., Any]:
        guard, socks = self._guard, request.headers.get("Ytdl-socks-proxy")

        class Connection(base):  # type: ignore[valid-type, misc]
            response_class = GuardedResponse

            def connect(self) -> None:
                self._create_connection = guard.connect
                super().connect()

        connection = yt_dlp_urllib.HTTPHandler._make_conn_class(Connection, request)
        if not socks:
            return cast(Callable[..., Any], connection)

        class ConnectionBySocks(connection):  # type: ignore[valid-type, misc]
            def connect(self) -> None:  # to the operator's proxy, by code of yt-dlp
                with unconfined():
                    super().connect()

        return ConnectionBySocks


def _proxy_hosts(proxies: Mapping[str, str | None]) -> frozenset[str]:
    hosts = set()
    for scheme, proxy in proxies.items():
        if proxy and proxy != "__noproxy__" and scheme != "no":
            with suppress(ValueError):
                hosts.add((urlsplit(proxy if "//" in proxy else f"//{proxy}").hostname or "").lower())
    return frozenset(hosts - {""})
