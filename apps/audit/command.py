"""`medgen audit`: starts the site."""

import secrets
from typing import Annotated

import typer
from rich.markup import escape

from apps.console import err, out, report_expected_errors
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
    user_header: Annotated[
        str,
        typer.Option(
            envvar="MEDGEN_AUDIT_USER_HEADER",
            help="Header in which a reverse proxy names whom it let in (OpenID Connect …), as X-Forwarded-User.",
        ),
    ] = "",
    proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address of that proxy; from others the header means nothing.", show_default="127.0.0.1"),
    ] = None,
    allow_host: AllowHost = None,
    frame_encoder: Annotated[
        str, typer.Option(help="Searches by words: where the clips' frame encoder is, if not in the hub's cache.")
    ] = "",
    text_encoder: Annotated[str, typer.Option(help="The same of the encoder of captions and titles.")] = "",
) -> None:
    """Open the audit site: every clip's life, releases, models, lineage. It only shows; it changes nothing."""
    with report_expected_errors():
        with err.status("opening the audit site"):
            from apps.audit.access import Visitors
            from apps.audit.access_log import AccessLog
            from apps.audit.application import create_site
            from apps.audit.people import People
            from apps.audit.people_command import folder
            from apps.serve import listen, serve
            from medgen.errors import RunStopped
            from tasks.curation.clip_search import Encoders
        if token is not None and len(token) < 8:
            raise RunStopped("the token is too short: take at least 8 characters")
        people = People(folder() / "people.json")
        named = bool(user_header or people.names())
        if token is None and not named and not is_loopback(host):
            token = secrets.token_urlsafe(24)
        visitors = Visitors(token, people, user_header, tuple(proxy or ["127.0.0.1"]), AccessLog(folder()))
        listening, url = listen(host, port)
        encoders = Encoders(frame_encoder, text_encoder)
        site = create_site(visitors, listening=host, allowed=allow_host or (), encoders=encoders)
        address = f"{url}/" + (f"?token={token}" if token else "")
        out.print(f"audit site: [bold]{escape(address)}[/]   (Ctrl-C stops)", soft_wrap=True, highlight=False)
        if named and not token:
            out.print("[dim]who may look says so: by a token of `medgen auditors`, or by the proxy[/]", soft_wrap=True)
        serve(site, listening, proxy_headers=False)
