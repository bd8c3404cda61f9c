"""Prefect's server as medgen starts it: it knows its installation, logs the operator in, and answers to nobody else.

    python -m apps.prefect_app --port PORT [--host HOST] [--allow-host NAME]

It is told all else by Prefect's own variables; `PREFECT_SERVER_API_AUTH_STRING` must be among them. Started with
`--users FILE` it ends when no process holds a lock on that file any more.
"""

import fcntl
import os
import threading
import time
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs

import typer
import uvicorn
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from apps.host_check import AllowHost, HostCheck
from apps.parameter_suggestions import ParameterSuggestions
from apps.prefect_access import LOG_IN_PATH, PROOF_PATH, proof

UNUSED_LIMIT_S = 2.0
# Where Prefect's UI looks for what is typed at its log-in (prefect/server/ui, `prefect-password`).
_SCRIPT = (
    "try{localStorage.setItem('prefect-password',btoa(decodeURIComponent(location.hash.slice(1))))}finally"
    "{location.replace('/')}"
)
_PAGE = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Log in</title></head>
<body><p>Logging in to Prefect.</p><script>{_SCRIPT}</script></body></html>"""
_POLICY = f"default-src 'none'; script-src 'sha256-{b64encode(sha256(_SCRIPT.encode()).digest()).decode()}'"


class InstallationServer:
    """ASGI middleware before Prefect's own app: proves whose server it is, and logs a browser in."""

    def __init__(self, app: ASGIApp, auth: str) -> None:
        self.app = app
        self.auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answer(scope) if scope["type"] == "http" and scope["method"] == "GET" else None
        await (answer or self.app)(scope, receive, send)

    def _answer(self, scope: Scope) -> Response | None:
        if scope["path"] == PROOF_PATH:
            (challenge, *_) = parse_qs(scope["query_string"].decode("latin-1")).get("challenge", [""])
            return JSONResponse({"proof": proof(self.auth, challenge[:100])})
        if scope["path"] == LOG_IN_PATH:
            headers = {
                "Content-Security-Policy": _POLICY, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
                "X-Frame-Options": "DENY",
            }  # fmt: skip
            return HTMLResponse(_PAGE, headers=headers)
        return None


def end_when_unused(users: Path, starting: Path, record: Path) -> None:
    """Ends this process once no other holds a lock on `users`, however they ended.

    Args:
        starting: its lock is held by who looks for a running server, so that none is found that is about to end.
        record: where the server stands on record.
    """
    with starting.open("w") as start, users.open("w") as use:
        while True:
            time.sleep(UNUSED_LIMIT_S)
            try:
                fcntl.flock(start, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(start, fcntl.LOCK_UN)
                continue
            record.unlink(missing_ok=True)
            os._exit(0)  # the locks go with the process, not before; its database is safe at any moment


def main(
    port: Annotated[int, typer.Option()],
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    allow_host: AllowHost = None,
    installation: Annotated[Path | None, typer.Option(help="Folder of the installation's Prefect files.")] = None,
) -> None:
    """Serves until it is told to stop, or until nobody uses it."""
    auth = os.environ["PREFECT_SERVER_API_AUTH_STRING"]
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    if installation:
        arguments = (installation / "use.lock", installation / "start.lock", installation / "server")
        threading.Thread(target=end_when_unused, args=arguments, daemon=True).start()
    settings = get_current_settings().server
    app = HostCheck(InstallationServer(ParameterSuggestions(create_app(final=True)), auth), host, allow_host or ())
    uvicorn.run(
        app, host=host, port=port, timeout_keep_alive=settings.api.keepalive_timeout,
        log_level=settings.logging_level.lower(), server_header=False,
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
