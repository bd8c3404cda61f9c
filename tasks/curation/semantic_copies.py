"""Which clips show the same kind of thing as a better one, by the embeddings that classify kept."""

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from medgen.canonical import rounded
from medgen.ledger import open_ledger
from models.duplicates.semantic import semantic_duplicates
from models.retrieval.vector_index import Space
from tasks.curation.clip_vectors import fill_frames, open_index

EMBEDDING_COSINE = "embedding_cosine"


def semantic_copies(clips: Sequence[str], classified: int, threshold: float) -> dict[str, dict[str, Any]]:
    """Clip → the better clip that it duplicates, with their cosine and the threshold.

    Args:
        clips: the best first.
        classified: id of a run of classify, by whose encoder all of them were embedded.
        threshold: cosine from which two are duplicates.

    Raises:
        ValueError: the run kept no embeddings.
    """
    ledger = open_ledger()
    index = open_index(ledger.engine, writing=True)
    fill_frames(ledger, index)
    encoder = ledger.load([classified])[classified].detail.get("encoder")
    if encoder is None:
        raise ValueError(f"step run {classified} kept no embeddings")
    space = Space("frames", encoder["digest"], encoder["name"], encoder["dimension"])
    with tempfile.TemporaryFile() as scratch:  # on disk: there may be millions
        vectors = np.memmap(scratch, np.float16, "w+", shape=(max(1, len(clips)), space.dimension))
        there = np.zeros(len(clips), bool)
        place = {clip: row for row, clip in enumerate(clips)}
        for clip, vector in index.vectors(space, clips):
            vectors[place[clip]], there[place[clip]] = vector, True
        rows = np.flatnonzero(there)
        for to, row in enumerate(rows):  # those that have none close up
            vectors[to] = vectors[row]
        found = semantic_duplicates(vectors[: len(rows)], threshold)
    return {
        clips[rows[copy]]: {
            "clip": clips[rows[better]],
            "similarity": rounded(cosine),
            "threshold": threshold,
            "metric": EMBEDDING_COSINE,
        }
        for copy, (better, cosine) in found.items()
    }
