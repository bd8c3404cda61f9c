"""A video over time: its clips in their order, and how medical it looked to classify."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from apps.audit import charts
from medgen.catalog import Clip, ItemStatus
from medgen.errors import ItemFailed
from medgen.store import Store

MANY = 400  # clips of one video that a page lists


def clips_of_video(session: Session, video_id: str) -> list[dict[str, Any]]:
    """The clips of a video in their order, with where they stand."""
    rows = session.execute(
        select(
            Clip.id, Clip.start_s, Clip.end_s, Clip.start_frame, ItemStatus.status, ItemStatus.step, ItemStatus.reason,
            ItemStatus.category,
        )
        .join(ItemStatus, ItemStatus.id == Clip.id)
        .where(Clip.video_id == video_id)
        .order_by(Clip.start_frame, Clip.id)
        .limit(MANY)
    )  # fmt: skip
    return [dict(row._mapping) for row in rows]


def strip_of(
    store: Store, steps: Sequence[Mapping[str, Any]], clips: Sequence[Mapping[str, Any]], current: str | None
) -> charts.Strip | None:
    """The video over time, as classify saw it."""
    step = next((s for s in reversed(steps) if s["step"] == "classify" and s["status"] != "failed"), None)
    if step is None:
        return None
    digest = next((o["sha256"] for o in step["outputs"] if o["role"] == "classification"), None)
    samples: Sequence[Mapping[str, Any]] = ()
    if digest:
        try:
            samples = _samples(store, digest)
        except ItemFailed:
            samples = ()
    return charts.strip(samples, clips, current, float(step["params"].get("medical_threshold", 0.5)), 0.0)


@lru_cache(maxsize=256)
def _samples(store: Store, digest: str) -> tuple[dict[str, Any], ...]:
    report = json.loads(store.read(digest))
    return tuple({name: sample[name] for name in ("time_s", "shot", "medical")} for sample in report["samples"])
