"""`medgen up`."""

import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from apps.console import err, out, report_expected_errors, stop
from apps.deployments import tag_limits
from medgen.settings import current

if TYPE_CHECKING:
    from apps.prefect_server import Server


def up(
    port: Annotated[int, typer.Option(help="Port of the Prefect UI, on loopback.")] = 4200,
    worker_limit: Annotated[int, typer.Option(help="Flow runs at once.")] = 1,
) -> None:
    """Start Prefect's server, UI and a worker with the deployments of prefect.yaml. Ctrl-C stops them."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, from the first moment on
    with report_expected_errors(), ExitStack() as opened:
        with err.status("starting Prefect's server, Postgres and a worker"):
            from apps.prefect_server import LOOK_S, prefect_server
            from apps.worker import worker

            server = opened.enter_context(prefect_server(current().home, port))
            from medgen.catalog import open_catalog

            open_catalog()  # flow runs share its embedded Postgres, which stays up between them
            process = opened.enter_context(worker(current().home, server, worker_limit, tag_limits()))
        _tell(server)
        while process.poll() is None:
            server.revive()
            time.sleep(LOOK_S)
        opened.close()
        stop("the worker ended by itself")


def _tell(server: "Server") -> None:
    """Where the UI is and how to get in. The secret is shown to a person only, not to a log."""
    from apps.prefect_access import auth_string, log_in_link

    page = server.url.removesuffix("/api")
    if server.folder is None:
        out.print(f"Prefect UI: [bold]{page}[/]   (Ctrl-C stops)", soft_wrap=True)
    elif out.is_terminal:
        link = log_in_link(server.url, auth_string(server.folder))
        out.print(f"Prefect UI: [bold]{link}[/]   (Ctrl-C stops)", soft_wrap=True, highlight=False)
    else:
        secret = server.folder / "auth"
        out.print(f"Prefect UI: {page}   (Ctrl-C stops; log in with what {secret} holds)", soft_wrap=True)
