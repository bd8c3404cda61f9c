"""`medgen deploy`."""

from apps.console import out, report_expected_errors
from apps.deployments import register, tag_limits
from medgen.settings import current


def deploy() -> None:
    """Register work pool, limits, deployments and automations with the Prefect server at PREFECT_API_URL."""
    from apps.prefect_server import prefect_server

    with report_expected_errors(), prefect_server(current().home) as server:
        register(tag_limits())
        out.print(
            f"registered with {server.url}: see `prefect deployment ls` and `prefect automation ls`", soft_wrap=True
        )
