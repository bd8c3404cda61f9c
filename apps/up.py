"""`medgen up`."""

import signal
from typing import Annotated

import typer

from apps.console import out, report_expected_errors, stop
from apps.deployments import tag_limits
from medgen.settings import current


def up(
    port: Annotated[int, typer.Option(help="Port of the Prefect UI, on loopback.")] = 4200,
    worker_limit: Annotated[int, typer.Option(help="Flow runs at once.")] = 1,
) -> None:
    """Start Prefect's server, UI and a worker with the deployments of prefect.yaml. Ctrl-C stops them."""
    from apps.prefect_server import prefect_server, worker

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, from the first moment on
    with report_expected_errors(), prefect_server(current().home, port) as url:
        from medgen.catalog import open_catalog

        open_catalog()  # flow runs share its embedded Postgres, which stays up between them
        with worker(current().home, worker_limit, tag_limits()) as process:
            out.print(f"Prefect UI: [bold]{url.removesuffix('/api')}[/]   (Ctrl-C stops)", soft_wrap=True)
            process.wait()
        stop("the worker ended by itself")
