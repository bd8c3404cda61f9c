"""What every page of the site needs: the catalog to read, the store, the templates; and how addresses are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from jinja2 import Environment
from sqlalchemy import Engine
from starlette.responses import HTMLResponse

from medgen.ledger import Ledger
from medgen.store import Store
from tasks.curation.clip_search import Encoders


@dataclass(frozen=True)
class Site:
    """What a page needs: the catalog to read, the store, the templates; by what words are embedded."""

    ledger: Ledger
    templates: Environment
    encoders: Encoders = field(default_factory=Encoders)

    @property
    def engine(self) -> Engine:
        """Read-only connections to the catalog."""
        return self.ledger.engine

    @property
    def store(self) -> Store:
        """The artifacts."""
        return self.ledger.store

    def page(self, template: str, code: int = 200, /, **values: Any) -> HTMLResponse:
        """A rendered template, answered with an HTTP status code."""
        return HTMLResponse(self.templates.get_template(template).render(values), code)


def site_of(request: Request) -> Site:
    """The site that a request came to."""
    site: Site = request.app.state.site
    return site


def query(values: Mapping[str, Any] | None = None, **more: Any) -> str:
    """A query string of what is set; empty when nothing is."""
    given = {k: v for k, v in {**(values or {}), **more}.items() if v not in ("", None)}
    return "?" + urlencode(given) if given else ""
