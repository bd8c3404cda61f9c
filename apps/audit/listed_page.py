"""Listed rows: what listings held and what became of each, also of those that words or meaning turned down."""

import base64
import json
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from apps.audit.reading import STATEMENT_S
from apps.audit.site import site_of
from tasks.curation.listed_rows import WantedRows, listed_rows

router = APIRouter()

PAGE = 50
LOOK_S = STATEMENT_S / 2


@router.get("/listed")
def listed(
    request: Request,
    q: Annotated[str, Query(max_length=2000)] = "",
    status: Annotated[str, Query(max_length=20)] = "",
    reason: Annotated[str, Query(max_length=120)] = "",
    source: Annotated[str, Query(max_length=300)] = "",
    after: Annotated[str, Query(max_length=2000)] = "",
) -> Response:
    """Rows of all listings as they were last read, in their order."""
    site = site_of(request)
    given = {"q": q, "status": status, "reason": reason, "source": source}
    wanted = {name: "".join(c for c in value if c.isprintable()).strip() for name, value in given.items()}
    found = listed_rows(
        site.ledger,
        WantedRows(wanted["q"], wanted["status"], wanted["reason"], wanted["source"]),
        most=PAGE,
        seconds=LOOK_S,
        after=_parsed(after),
    )
    return site.page(
        "listed.html", rows=found.rows, wanted=wanted, began=bool(after), after=_cursor(found.after),
        whole_page=len(found.rows) == PAGE,
    )  # fmt: skip


def _cursor(place: tuple[str, int] | None) -> str | None:
    return place and base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _parsed(after: str) -> tuple[str, int] | None:
    """A cursor as it was given; a made-up one begins at the beginning."""
    try:
        shard, row = json.loads(base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)))
    except (ValueError, TypeError):
        return None
    good = isinstance(shard, str) and shard.isprintable() and isinstance(row, int)
    return (shard, row) if good else None
