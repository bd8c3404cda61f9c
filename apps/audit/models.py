"""Models as they are on record."""

from typing import Any

from sqlalchemy import Connection, select

from apps.history import Unknown
from medgen.catalog import ModelVersion


def model_of(connection: Connection, name: str) -> dict[str, Any]:
    """Columns of a model, by digest or (the newest of that) name. Raises `Unknown`."""
    for condition in (ModelVersion.digest == name, ModelVersion.name == name):
        query = select(ModelVersion.__table__).where(condition).order_by(ModelVersion.created_at.desc()).limit(1)
        if row := connection.execute(query).mappings().first():
            return dict(row)
    raise Unknown(f"there is no model {name[:80]}")
