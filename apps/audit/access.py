"""Who may look, and what a browser may do with what it is given."""

import hmac
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.audit.access_log import AccessLog
from apps.audit.people import MOST_CHARACTERS, People, digest_of_pass, pass_of

COOKIE = "medgen_audit"
LONGEST_URL = 8000  # bytes of path and query

HEADERS = {
    # Nothing inline and nothing from elsewhere: a title with a script in it stays a title.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

ENTRY = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Token needed · medgen audit</title><link rel="stylesheet" href="/static/medgen.css"></head>
<body class="entry"><main id="content"><h1>This site needs a token</h1>
<p>Whoever runs it can give you one: <code>medgen audit</code> prints the one for all,
<code>medgen auditors add NAME</code> makes your own. Scripts send it as <code>Authorization: Bearer TOKEN</code>.</p>
<form method="get" action="/"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="off" required><button type="submit">Enter</button></form>
</main></body></html>"""


@dataclass(frozen=True)
class Visitors:
    """Who may look. By default whoever reaches the site.

    Args:
        token: what everybody who may look knows.
        people: those with a token of their own.
        named_by: header in which a reverse proxy names who it has let in, as `X-Forwarded-User`.
        proxies: addresses from which that header counts.
        log: where it is written who looked at what.
    """

    token: str | None = None
    people: People | None = None
    named_by: str = ""
    proxies: tuple[str, ...] = ()
    log: AccessLog | None = None

    @property
    def asked_for(self) -> bool:
        """Whether who looks must say who they are."""
        return bool(self.token or self.named_by or (self.people and self.people.by_digest()))

    def by_pass(self, kept: str) -> str | None:
        """Who has a pass; empty for the token that all share; None: nobody has it."""
        found = digest_of_pass(kept)
        if self.token and hmac.compare_digest(found, digest_of_pass(pass_of(self.token))):
            return ""
        return self.people.by_digest().get(found) if self.people else None

    def by_proxy(self, scope: Scope) -> str | None:
        """Whom a proxy that is trusted has let in."""
        name = self.told_by_proxy(scope, self.named_by) if self.named_by else ""
        return name[:MOST_CHARACTERS] if name.isprintable() and name else None

    def told_by_proxy(self, scope: Scope, header: str) -> str:
        """What a proxy that is trusted says in a header; empty from anybody else."""
        return str(Headers(scope=scope).get(header, "")).strip() if _peer(scope) in self.proxies else ""


class Access:
    """ASGI middleware: looks at method, address and visitor before all else; puts safety headers on all answers."""

    def __init__(self, app: ASGIApp, visitors: Visitors) -> None:
        self.app = app
        self.visitors = visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked_for = self.visitors.asked_for
        answer = _unfit(scope)
        person: str | None = None
        if answer is None and asked_for and not scope["path"].startswith("/static/"):
            person, answer = self._entry(scope)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store" if asked_for else "no-cache")
                self._note(scope, person or "", message["status"])
            await send(message)

        await (answer or self.app)(scope, receive, sent)

    def _entry(self, scope: Scope) -> tuple[str | None, Response | None]:
        """(who asks, the answer if it is not that of the page)."""
        headers = Headers(scope=scope)
        if (named := self.visitors.by_proxy(scope)) is not None:
            return named, None
        pairs = _pairs(scope)
        for name, value in pairs:
            if name == "token" and (person := self.visitors.by_pass(pass_of(value))) is not None:
                answer = RedirectResponse(_without_token(scope), 303)
                secure = "https" in (scope.get("scheme"), self.visitors.told_by_proxy(scope, "x-forwarded-proto"))
                answer.set_cookie(COOKIE, pass_of(value), httponly=True, samesite="lax", secure=secure)
                return person, answer
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and (person := self.visitors.by_pass(pass_of(given.strip()))) is not None:
            return person, None
        if (person := self.visitors.by_pass(_cookie(headers.get("cookie", "")))) is not None:
            return person, None
        return None, HTMLResponse(ENTRY, 401, {"WWW-Authenticate": "Bearer"})

    def _note(self, scope: Scope, person: str, status: int) -> None:
        if self.visitors.log and not scope["path"].startswith("/static/"):
            # The last one is what the proxy itself saw; those before it anybody may have made up.
            address = self.visitors.told_by_proxy(scope, "x-forwarded-for").rpartition(",")[2].strip() or _peer(scope)
            self.visitors.log.write(person, address, scope["method"], _without_token(scope)[:LONGEST_URL], status)


def _unfit(scope: Scope) -> Response | None:
    """The answer to what this site takes from nobody."""
    query: bytes = scope.get("query_string", b"")
    if scope["method"] not in ("GET", "HEAD"):
        return PlainTextResponse("this site only shows", 405, {"Allow": "GET, HEAD"})
    if len(scope.get("raw_path") or b"") + len(query) > LONGEST_URL:
        return PlainTextResponse("the address is too long", 414)
    if not scope["path"].isprintable() or b"%00" in query:
        return PlainTextResponse("the address has control characters", 400)
    return None


def _peer(scope: Scope) -> str:
    """Address of whoever holds the other end of the connection."""
    return str((scope.get("client") or ("",))[0])


def _pairs(scope: Scope) -> list[tuple[str, str]]:
    query: bytes = scope.get("query_string", b"")
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)


def _without_token(scope: Scope) -> str:
    """Path and query of what was asked, without its token."""
    rest = urlencode([(name, value) for name, value in _pairs(scope) if name != "token"])
    # Only a path may follow: "//elsewhere" would be another site.
    path: str = scope["path"]
    return "/" + path.lstrip("/\\") + (f"?{rest}" if rest else "")


def _cookie(header: str) -> str:
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE:
            return value
    return ""
