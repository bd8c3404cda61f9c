"""Clips that a search by meaning found, with what people want to know of them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, select

from medgen.among import among
from medgen.catalog import ItemStatus
from models.retrieval.vector_index import Neighbour

COLUMNS = (
    ItemStatus.id, ItemStatus.video_id, ItemStatus.title, ItemStatus.status, ItemStatus.step, ItemStatus.reason,
    ItemStatus.category, ItemStatus.channel, ItemStatus.licence,
)  # fmt: skip


def described(engine: Engine, clips: Sequence[Neighbour]) -> list[dict[str, Any]]:
    """Of each clip its similarity and columns of `item_status`, in the same order."""
    query = select(*COLUMNS).where(among(ItemStatus.id, [neighbour.clip for neighbour in clips]))
    with engine.connect() as connection:
        known = {row["id"]: dict(row) for row in connection.execute(query).mappings()}
    return [
        {"similarity": round(neighbour.similarity, 4), **known[neighbour.clip]}
        for neighbour in clips
        if neighbour.clip in known
    ]
