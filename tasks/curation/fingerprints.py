"""The fingerprints of clips on record, and the index of them on this machine, which is filled as it is used."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from sqlalchemy import ColumnElement, Engine, Float, case, select
from sqlalchemy.orm import aliased

from medgen.among import among, pages
from medgen.catalog import Score, StepInput, StepRun
from medgen.settings import current
from medgen.takedown import IMPORT
from models.duplicates.fingerprint import Fingerprint
from models.duplicates.index import Entry, FingerprintIndex, IndexDamaged, open_index

log = logging.getLogger(__name__)

QUALITY = "quality"  # the step that takes fingerprints, as imports do; named only, for its module loads Prefect

Read = Callable[[Iterable[int]], Iterable[Entry]]
"""Ids of step runs that took fingerprints → what the index holds of each that has a usable fingerprint."""

T = TypeVar("T")


def measured_clip() -> ColumnElement[str]:
    """The clip whose fingerprint a step run took. An import's subject is a row of a set; its record names the clip."""
    return case((StepRun.step == IMPORT, StepRun.detail["clip"]["id"].as_string()), else_=StepRun.subject)


def read_entries(engine: Engine, ids: Iterable[int]) -> Iterator[Entry]:
    """What the index holds of step runs that took fingerprints: clip, fingerprint and, as facts, the words over five
    frames, the detail and the bits per second. Runs with a fingerprint of another kind are passed over."""
    cut = aliased(StepRun)
    words, detail = aliased(Score), aliased(Score)
    query = (
        select(
            StepRun.id,
            measured_clip(),
            StepRun.detail["fingerprint"].as_string(),
            words.value,
            detail.value,
            cut.detail["bit_rate"].as_string().cast(Float),
        )
        .outerjoin(words, (words.step_run_id == StepRun.id) & (words.metric == "overlay_words"))
        .outerjoin(detail, (detail.step_run_id == StepRun.id) & (detail.metric == "detail"))
        .outerjoin(StepInput, (StepInput.step_run_id == StepRun.id) & (StepInput.role == "cut"))
        .outerjoin(cut, cut.id == StepInput.parent_id)
    )
    for page in pages(ids):
        with engine.connect() as connection:
            rows = connection.execute(query.where(among(StepRun.id, page)).order_by(StepRun.id)).all()
        for run_id, clip, text, *facts in rows:
            try:
                fingerprint = Fingerprint.parse(text or "")
            except ValueError as error:
                log.warning("step run %d, of clip %s, is compared with none: %s", run_id, clip, error)
                continue
            first, second, third = (np.nan if fact is None else float(fact) for fact in facts)
            yield Entry(run_id, clip, (first, second, third), fingerprint)


def newest(runs: Iterable[tuple[int, str]]) -> tuple[np.ndarray, np.ndarray]:
    """(int64 ids of step runs, bytes: the clip of each): of every clip the newest run, by clip."""
    ids, clips = [np.zeros(0, np.int64)], [np.zeros(0, "S1")]
    for page in pages(runs):
        ids.append(np.array([run_id for run_id, _ in page], np.int64))
        clips.append(np.array([clip.encode() for _, clip in page]))
    every, of = np.concatenate(ids), np.concatenate(clips)
    order = np.lexsort((every, of))
    every, of = every[order], of[order]
    last = np.append(of[1:] != of[:-1], True)[: len(of)]
    return every[last], of[last]


def fill(index: FingerprintIndex, ids: np.ndarray, clips: np.ndarray, read: Read) -> np.ndarray:
    """Adds what the index does not hold yet. Gives bool (N,): what it holds now; the rest has no usable fingerprint.

    Args:
        ids, clips: as `newest`.

    Raises:
        IndexDamaged: it holds other clips under these ids.
    """
    held = index.holds(ids, clips)
    if not held.all():
        for page in pages(ids[~held].tolist()):
            index.add(read(page))
        held = index.holds(ids, clips)
    return held


def index_folder() -> Path:
    """Where the index of this installation is. It may be removed at any time while nothing runs."""
    return current().home / "fingerprints"


def searched(folder: Path, search: Callable[[FingerprintIndex], T]) -> T:
    """What `search` finds in the index in a folder. It begins anew with an empty one when the index was damaged."""
    with open_index(folder) as index:
        try:
            return search(index)
        except IndexDamaged as error:
            log.warning("the index of fingerprints is made anew: %s", error)
            index.clear()
            return search(index)
