"""The index of clips by what they show and by what is said of them, filled from what is on record.

What they show: the mean of a clip's frames in the embeddings that classify kept. What is said: the embedding of the
brief caption, or of the video's title where there is none. Released and rejected clips are in it alike; clips that were
classified before embeddings were kept are not. It may be removed at any time while nothing runs.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pebble import ProcessExpired
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from medgen.among import among, pages
from medgen.catalog import Caption, Clip, StepOutput, StepRun, Tombstone, Video
from medgen.ledger import Ledger
from medgen.settings import current
from medgen.step_processes import step_processes
from medgen.store import ArtifactLost, Store
from medgen.worker_processes import failure_of
from models.encoders import shown_name
from models.retrieval.vector_file import VectorFile
from models.retrieval.vector_index import Entry, Space, VectorIndex, unpack
from models.text_encoders import served_text_encoder, text_encoder_digest
from tasks.curation.vector_table import VectorTable, has_table, make_table

log = logging.getLogger(__name__)

CLASSIFY = "classify"  # the step that embeds frames; named only, for its module loads Prefect
EMBEDDINGS = "embeddings"  # role of its output
PAGE = 1_000  # clips that are looked at together
MOST_TEXT = 1_000  # characters of a text that is embedded
EMBEDDING_LIMIT_S = 600.0  # of the texts of so many clips

EmbedTexts = Callable[[Sequence[str]], np.ndarray]
"""Texts → float32 (N, D), each row of length 1, or 0 for a text without a word."""


def index_folder() -> Path:
    """Where the index is, if it is in files."""
    return current().home / "embeddings"


def open_index(engine: Engine, *, writing: bool) -> VectorIndex:
    """The index: in the catalog where its server has pgvector, else in files of this machine.

    Args:
        writing: make the tables where they are not there yet; a reader has to take what it finds.
    """
    if make_table(engine) if writing else has_table(engine):
        return VectorTable(engine)
    return VectorFile(index_folder())


def fill_frames(ledger: Ledger, index: VectorIndex) -> int:
    """Adds what classify kept of clips that the index lacks, or has of another run. Gives how many were added.

    Raises:
        StoreUnavailable.
    """
    added = 0
    for clips in _clips(ledger.engine):
        wanted = _of_their_runs(clips, _embedded_runs(ledger.engine, {clip.video_id for clip in clips}))
        for space in {run.space for run, _ in wanted.values()}:
            held = index.held(space, [*wanted])
            fresh = (
                run.entry(clip, place, ledger.store)
                for clip, (run, place) in wanted.items()
                if run.space == space and held.get(clip) != run.id
            )
            entries = [entry for entry in fresh if entry]
            index.put(space, entries)
            added += len(entries)
    return added


def fill_texts(ledger: Ledger, index: VectorIndex, encoder: str, embed: EmbedTexts) -> int:
    """Adds the embeddings of captions and titles that the index lacks. Gives how many were added.

    Args:
        encoder: name of the text encoder.
        embed: embeds by that encoder.

    Raises:
        ModelUnavailable.
    """
    digest = text_encoder_digest(encoder)
    space: Space | None = next((known for known in index.spaces() if known.digest == digest), None)
    added = 0
    for clips in _clips(ledger.engine):
        told = _texts(ledger.engine, clips)
        held = index.held(space, [*told]) if space else {}
        missing = {clip: (run, words) for clip, (run, words) in told.items() if held.get(clip) != run}
        if not missing:
            continue
        texts = sorted({words for _, words in missing.values()})  # a video's clips share its title
        vectors = dict(zip(texts, embed(texts), strict=True))
        space = space or Space("text", digest, shown_name(encoder), len(vectors[texts[0]]))
        index.put(space, [Entry(clip, run, vectors[words]) for clip, (run, words) in missing.items()])
        added += len(missing)
    return added


def indexes(engine: Engine) -> list[VectorIndex]:
    """All that there are: of files and, where the catalog has them, of tables."""
    files = [VectorFile(index_folder())] if index_folder().is_dir() else []
    return [*files, *([VectorTable(engine)] if has_table(engine) else [])]


def remove_taken_down(engine: Engine, index: VectorIndex, videos: Sequence[str] | None = None) -> None:
    """Takes the clips of these videos out of the index; of all that were taken down by default."""
    query = select(Clip.id).join(Tombstone, Tombstone.video_id == Clip.video_id).order_by(Clip.id)
    if videos is not None:
        query = query.where(among(Clip.video_id, videos))
    with Session(engine) as session:
        for page in pages(session.scalars(query.execution_options(yield_per=PAGE))):
            index.remove(page)


class _Run:
    """A run of classify that kept embeddings; these are read when a clip needs them."""

    def __init__(self, run_id: int, detail: Mapping[str, Any], digest: str) -> None:
        self.id, self.digest = run_id, digest
        self.places = {(clip["start_frame"], clip["end_frame"]): place for place, clip in enumerate(detail["clips"])}
        encoder = detail["encoder"]
        self.space = Space("frames", encoder["digest"], encoder["name"], encoder["dimension"])
        self._vectors: np.ndarray | None = None

    def entry(self, clip: str, place: int, store: Store) -> Entry | None:
        """The vector of a clip; None where it can't be had."""
        if self._vectors is None:
            try:
                self._vectors = unpack(store.read(self.digest))
            except (ArtifactLost, ValueError) as error:
                log.warning("the embeddings of step run %d can't be had: %s", self.id, error)
                self._vectors = np.zeros((0, 0), np.float32)
        if place >= len(self._vectors) or self._vectors.shape[1] != self.space.dimension:
            return None
        return Entry(clip, self.id, self._vectors[place])


def _clips(engine: Engine) -> Iterator[list[Any]]:
    """Rows (id, video_id, start_frame, end_frame) of all clips whose video stands, some at a time, by id."""
    after = ""
    query = (
        select(Clip.id, Clip.video_id, Clip.start_frame, Clip.end_frame)
        .where(~select(Tombstone).where(Tombstone.video_id == Clip.video_id).exists())
        .order_by(Clip.id)
        .limit(PAGE)
    )
    while True:
        with Session(engine) as session:  # one a page: filling is long, and no transaction should be
            rows = list(session.execute(query.where(Clip.id > after)))
        if not rows:
            return
        yield rows
        after = rows[-1].id


def _embedded_runs(engine: Engine, videos: set[str]) -> dict[str, list[_Run]]:
    """Video → its runs of classify with embeddings, the newest first."""
    query = (
        select(StepRun.id, StepRun.subject, StepRun.detail, StepOutput.artifact_sha256)
        .join(StepOutput, (StepOutput.step_run_id == StepRun.id) & (StepOutput.role == EMBEDDINGS))
        .where(among(StepRun.subject, videos), StepRun.step == CLASSIFY, StepRun.status == "kept")
        .order_by(StepRun.id.desc())
    )
    found: dict[str, list[_Run]] = {}
    with Session(engine) as session:
        for run_id, video, detail, digest in session.execute(query):
            if "encoder" in detail:
                found.setdefault(video, []).append(_Run(run_id, detail, digest))
    return found


def _of_their_runs(clips: Sequence[Any], runs: Mapping[str, Sequence[_Run]]) -> dict[str, tuple[_Run, int]]:
    """Clip → the newest run that laid it out, and its place there."""
    found = {}
    for clip in clips:
        frames = clip.start_frame, clip.end_frame
        run = next((run for run in runs.get(clip.video_id, ()) if frames in run.places), None)
        if run:
            found[clip.id] = run, run.places[frames]
    return found


def _texts(engine: Engine, clips: Sequence[Any]) -> dict[str, tuple[int, str]]:
    """Clip → (run of its newest brief caption, its text), or (0, the title of its video)."""
    titles = select(Video.id, Video.title).where(among(Video.id, {clip.video_id for clip in clips}))
    captions = (
        select(Caption.clip_id, Caption.step_run_id, Caption.text)
        .where(among(Caption.clip_id, {clip.id for clip in clips}), Caption.kind == "brief")
        .order_by(Caption.step_run_id)
    )
    with Session(engine) as session:
        title = dict(session.execute(titles).tuples().all())
        told = {clip.id: (0, title.get(clip.video_id, "")) for clip in clips}
        told |= {clip_id: (run_id, words) for clip_id, run_id, words in session.execute(captions)}
    return {clip: (run, words[:MOST_TEXT]) for clip, (run, words) in told.items() if words.strip()}


def embed_apart(encoder: str, texts: Sequence[str]) -> np.ndarray:
    """As `EmbedTexts`, in a worker process: what runs flows loads no model.

    Raises:
        ItemFailed: as `medgen.worker_processes.failure_of`.
        ModelUnavailable.
    """
    with step_processes() as pool:
        try:
            done = pool.schedule(_embed, args=(encoder, list(texts)), timeout=EMBEDDING_LIMIT_S)
            embedded: np.ndarray = done.result()
        except (TimeoutError, ProcessExpired) as end:
            raise failure_of(end, EMBEDDING_LIMIT_S) from end
    return embedded


def _embed(encoder: str, texts: list[str]) -> np.ndarray:
    return _text_encoder(encoder).embed(texts)


_text_encoder = cache(served_text_encoder)
