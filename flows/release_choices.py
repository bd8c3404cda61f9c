"""Forms that ask for a release offer those on record: their names are in the schema, which takes other text besides."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from medgen.catalog import CatalogUnreachable, Release, open_catalog
from medgen.releases import LATEST, awaits_approval

if TYPE_CHECKING:  # Prefect reads its settings once, when it is imported
    from prefect.client.orchestration import SyncPrefectClient

FIELD = "release"
FORMS = {"train": False, "approve": True}  # flow with the field → whether it wants releases that await approval
MOST, LOOKED_AT = 50, 500  # releases that a form offers, out of so many: the newest

log = logging.getLogger(__name__)


def offer_releases() -> None:
    """Puts the releases on record into the forms. Where catalog or server can't be had, forms stay as they are."""
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        return
    try:
        with get_client(sync_client=True) as client:
            _put_choices(client)
    except (HTTPError, PrefectException, SQLAlchemyError, CatalogUnreachable) as error:
        log.warning("forms do not offer the newest releases: %s", error)


def _put_choices(client: "SyncPrefectClient") -> None:
    from prefect.client.schemas.filters import FlowFilter

    for flow, waiting in FORMS.items():
        for deployment in client.read_deployments(flow_filter=FlowFilter.model_validate({"name": {"any_": [flow]}})):
            schema: dict[str, Any] = deployment.parameter_openapi_schema or {}
            if FIELD in (properties := schema.get("properties", {})):
                field = with_choices(properties[FIELD], release_names(awaiting=waiting))
                changed = {**schema, "properties": {**properties, FIELD: field}}
                client.request(
                    "PATCH",
                    "/deployments/{id}",
                    path_params={"id": deployment.id},
                    json={"parameter_openapi_schema": changed},
                )


def with_choices(field: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A field's schema that offers names beside any text. Where there is no name to offer it stays text."""
    text = next((kind for kind in field.get("anyOf", ()) if "enum" not in kind), None)
    text = text or {"title": "Text", "type": "string", "minLength": field.get("minLength", 1)}
    shown = {name: value for name, value in field.items() if name not in ("anyOf", "type", "minLength")}
    if not names:
        return {**shown, **text, "title": field["title"]}
    # Text comes first: Prefect's form turns to the first kind that a value is of, at the first letter that is typed.
    return {**shown, "anyOf": [text, {"title": "On record", "type": "string", "enum": [*names]}]}


def release_names(*, awaiting: bool) -> list[str]:
    """Names that a form offers, newest first.

    Args:
        awaiting: those that await approval; else ``latest`` and those that may be used.
    """
    names = []
    with Session(open_catalog()) as session:
        newest = select(Release).order_by(Release.created_at.desc(), Release.name).limit(LOOKED_AT)
        for release in session.scalars(newest):
            if awaits_approval(session, release) == awaiting:
                names.append(release.name)
            if len(names) == MOST:
                break
    return names if awaiting or not names else [LATEST, *names]
