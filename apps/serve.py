"""How the commands that serve pages listen, and serve until they are stopped."""

import signal
import socket
from contextlib import suppress

from starlette.types import ASGIApp

from medgen.errors import RunStopped

LAST_ANSWERS_S = 3  # for answers under way when it ends
MOST_WAITING = 128  # connections that nobody has taken yet


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """(a socket that listens, its URL without a slash at the end).

    Args:
        port: 0 takes any free one.

    Raises:
        RunStopped: the address can't be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio turns off Nagle's algorithm only where the protocol is named: 40 ms less for each answer.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(MOST_WAITING)  # who follows the link at once waits for the first answer and is not refused
    except OSError as error:
        raise RunStopped(f"can't listen on {host}:{port}: {error.strerror}; choose another with --port") from error
    shown = f"[{host}]" if ":" in host else host
    return listening, f"http://{shown}:{listening.getsockname()[1]}"


def serve(app: ASGIApp, listening: socket.socket, proxy_headers: bool = True) -> None:
    """Serves until Ctrl-C, or SIGTERM, a service manager's way to say it. No access log: links may hold tokens.

    Args:
        proxy_headers: take scheme and address of who asks from what a proxy on this machine says; else the app does.
    """
    import uvicorn

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was opened is closed on either
    config = uvicorn.Config(
        app, access_log=False, log_level="warning", server_header=False, timeout_graceful_shutdown=LAST_ANSWERS_S,
        proxy_headers=proxy_headers,
    )  # fmt: skip
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
