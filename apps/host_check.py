"""Which names a server of medgen answers to, and to pages of which site.

A page on the web can make its visitor's browser send requests to this machine, and can give this machine's address a
name of its own (DNS rebinding). The first tells on itself by its `Origin`, the second by its `Host`.
"""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Annotated
from urllib.parse import urlsplit

import typer
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="NAME",
        help="A name, such as that of a proxy, by which it may be asked too; repeatable.",
    ),
]
FORBIDDEN = 403
NOT_OURS = 400
POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The name or address in a `Host` header, without port and brackets, in lower case; "" when it is malformed."""
    if header.startswith("["):
        host, closed, _ = header[1:].partition("]")
        return host.lower() if closed else ""
    return (header.rpartition(":")[0] if header.count(":") == 1 else header).lower()


class HostCheck:
    """ASGI middleware: refuses requests under a foreign name (400) and from pages of other sites (403).

    Args:
        listening: the address that the server listens on. On loopback it answers to loopback's names and addresses;
            on others also to any bare address, which no foreign page can be under, and to this machine's name.
        allowed: further names.
    """

    def __init__(self, app: ASGIApp, listening: str, allowed: Iterable[str] = ()) -> None:
        self.app = app
        self.local = is_loopback(listening)
        self.names = {name.lower() for name in allowed}
        if not self.local:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        status, why = self._refusal(Headers(scope=scope))
        if not status:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(POLICY_VIOLATION, why)(scope, receive, send)
        else:
            await PlainTextResponse(why, status)(scope, receive, send)

    def _refusal(self, headers: Headers) -> tuple[int, str]:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.answers_to(host_of(hosts[0])):
            where = "as localhost" if self.local else "by its address"
            return NOT_OURS, f"this site answers only {where}, or to names given with --allow-host\n"
        origins = headers.getlist("origin")
        # A form of a page that sends no referrer, as ours do, has the origin "null"; the browser's own word tells it
        # from one of a sandboxed page.
        if origins == ["null"] and headers.getlist("sec-fetch-site") == ["same-origin"]:
            return 0, ""
        if any(urlsplit(origin).netloc.lower() != hosts[0].lower() for origin in origins):
            return FORBIDDEN, "a page of another site asks\n"
        return 0, ""

    def answers_to(self, host: str) -> bool:
        """Whether the server goes by this name or address."""
        return is_loopback(host) or host in self.names or (not self.local and _is_address(host))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
