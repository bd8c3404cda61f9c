"""Who may look, and what a browser may do with what it is given."""

import hashlib
import hmac
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
<p>Whoever started it was shown one: <code>medgen audit</code> prints it. Scripts send it as
<code>Authorization: Bearer TOKEN</code>.</p>
<form method="get" action="/"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="off" required><button type="submit">Enter</button></form>
</main></body></html>"""


class Access:
    """ASGI middleware: looks at method, address and token before anything else; puts safety headers on all answers.

    Args:
        token: what visitors must know; None: whoever reaches the site may look.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app = app
        self.token = token.encode() if token else None
        self.pass_ = hashlib.sha256(b"medgen audit " + token.encode()).hexdigest() if token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store" if self.token else "no-cache")
            await send(message)

        answer = self._refusal(scope)
        await (answer or self.app)(scope, receive, sent)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        query: bytes = scope.get("query_string", b"")
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("this site only shows", 405, {"Allow": "GET, HEAD"})
        if len(scope.get("raw_path") or b"") + len(query) > LONGEST_URL:
            return PlainTextResponse("the address is too long", 414)
        if not scope["path"].isprintable() or b"%00" in query:
            return PlainTextResponse("the address has control characters", 400)
        if self.token is None or scope["path"].startswith("/static/"):
            return None
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        for name, value in pairs:
            if name == "token" and self._right(value.encode("latin-1", "replace")):
                rest = urlencode([(k, v) for k, v in pairs if k != "token"])
                # Only a path may follow: "//elsewhere" would be another site.
                path = "/" + scope["path"].lstrip("/\\")
                answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
                answer.set_cookie(
                    COOKIE, self.pass_, httponly=True, samesite="lax", secure=scope.get("scheme") == "https"
                )
                return answer
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._right(given.strip().encode("latin-1", "replace")):
            return None
        if hmac.compare_digest(_cookie(headers.get("cookie", "")).encode("latin-1", "replace"), self.pass_.encode()):
            return None
        return HTMLResponse(ENTRY, 401, {"WWW-Authenticate": "Bearer"})

    def _right(self, given: bytes) -> bool:
        assert self.token is not None
        return hmac.compare_digest(given, self.token)


def _cookie(header: str) -> str:
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE:
            return value
    return ""
