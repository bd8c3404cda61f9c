"""`medgen audit`: starts the site."""

import secrets
from typing import Annotated

import typer
from rich.markup import escape

from apps.audit.access import is_loopback
from apps.console import out, report_expected_errors


def audit(
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 4300,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="MEDGEN_AUDIT_TOKEN", help="What visitors must know; made up when it is needed and not given."
        ),
    ] = None,
) -> None:
    """Open the audit site: every clip's life, releases, models, lineage. It only shows; it changes nothing."""
    import socket

    import uvicorn

    from apps.audit.application import create_site
    from medgen.errors import RunStopped

    with report_expected_errors():
        loopback = is_loopback(host)
        if token is not None and len(token) < 8:
            raise RunStopped("the token is too short: take at least 8 characters")
        if token is None and not loopback:
            token = secrets.token_urlsafe(24)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # asyncio turns off Nagle's algorithm only where the protocol is named: 40 ms less for each answer.
            listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
        except OSError as error:
            raise RunStopped(f"can't listen on {host}:{port}: {error.strerror}; choose another with --port") from error
        site = create_site(token, loopback=loopback)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
        out.print(f"audit site: [bold]{escape(address)}[/]   (Ctrl-C stops)", soft_wrap=True, highlight=False)
        config = uvicorn.Config(
            site, access_log=False, log_level="warning", server_header=False, timeout_graceful_shutdown=3
        )
        uvicorn.Server(config).run(sockets=[listening])
