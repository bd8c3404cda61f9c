"""`medgen audit`: starts the site."""

import secrets
from typing import Annotated

import typer
from rich.markup import escape

from apps.console import out, report_expected_errors
from apps.host_check import AllowHost, is_loopback


def audit(
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 4300,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="MEDGEN_AUDIT_TOKEN", help="What visitors must know; made up when it is needed and not given."
        ),
    ] = None,
    allow_host: AllowHost = None,
    frame_encoder: Annotated[
        str, typer.Option(help="Searches by words: where the clips' frame encoder is, if not in the hub's cache.")
    ] = "",
    text_encoder: Annotated[str, typer.Option(help="The same of the encoder of captions and titles.")] = "",
) -> None:
    """Open the audit site: every clip's life, releases, models, lineage. It only shows; it changes nothing."""
    from apps.audit.application import create_site
    from apps.serve import listen, serve
    from medgen.errors import RunStopped
    from tasks.curation.clip_search import Encoders

    with report_expected_errors():
        if token is not None and len(token) < 8:
            raise RunStopped("the token is too short: take at least 8 characters")
        if token is None and not is_loopback(host):
            token = secrets.token_urlsafe(24)
        listening, url = listen(host, port)
        encoders = Encoders(frame_encoder, text_encoder)
        site = create_site(token, listening=host, allowed=allow_host or (), encoders=encoders)
        address = f"{url}/" + (f"?token={token}" if token else "")
        out.print(f"audit site: [bold]{escape(address)}[/]   (Ctrl-C stops)", soft_wrap=True, highlight=False)
        serve(site, listening)
