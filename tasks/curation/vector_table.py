"""An index of vectors in the catalog, by pgvector: a large space has an HNSW index (Malkov and Yashunin 2016), by which
neighbours are approximate; a small one is searched exactly.

The two tables are a cache of what is on record and no part of the schema: they are made where the server has the
extension and lets us use it.
"""

import json
from collections.abc import Iterator, Sequence

import numpy as np
from sqlalchemy import ARRAY, Connection, Engine, Text, bindparam, text
from sqlalchemy.exc import DBAPIError

from medgen.among import pages
from models.retrieval.vector_index import SPACE, Entry, Neighbour, Space, unit

LOCK = 0x766563746F7273  # held while the tables are made
FEW = 5_000  # clips of a space that is searched exactly
MOST_INDEXED = 4_000  # dimensions that pgvector's HNSW takes of halfvec
MOST_NEIGHBOURS = 1_000  # that HNSW gives at once
# What is asked for often lies beside all clips (words among pictures): with pgvector's own 64 and 100 one graph in 25
# missed a quarter of the nearest, with these none more than 3 % (1,500 vectors in five heaps, 20 strange ones sought).
BUILT_OVER = 200  # ef_construction
LEAST_SEARCHED = 200  # ef_search
PAGE = 500  # vectors of one statement: as text each has some 15 kB
TABLES = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    "CREATE TABLE IF NOT EXISTS clip_vector_space (name text PRIMARY KEY, kind text NOT NULL, digest text NOT NULL, "
    "encoder text NOT NULL, dimension integer NOT NULL, added_at timestamptz NOT NULL DEFAULT now())",
    "CREATE TABLE IF NOT EXISTS clip_vector (space text NOT NULL REFERENCES clip_vector_space (name), "
    "clip_id text NOT NULL, run_id bigint NOT NULL, embedding halfvec NOT NULL, PRIMARY KEY (clip_id, space))",
)


def has_table(engine: Engine) -> bool:
    """Whether the tables are there."""
    with engine.connect() as connection:
        return connection.scalar(text("SELECT to_regclass('clip_vector') IS NOT NULL")) or False


def make_table(engine: Engine) -> bool:
    """Makes the tables where the server has pgvector and we may use it; whether they are there."""
    if has_table(engine):
        return True
    with engine.connect() as connection:
        if not connection.scalar(text("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector')")):
            return False
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
            for statement in TABLES:
                connection.execute(text(statement))
    except DBAPIError:  # not our right; or a version without halfvec
        return False
    return True


class VectorTable:
    """The index in the tables."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def spaces(self) -> list[Space]:
        """See `VectorIndex`."""
        query = text("SELECT kind, digest, encoder, dimension FROM clip_vector_space ORDER BY added_at DESC, name")
        with self.engine.connect() as connection:
            return [Space(**row) for row in connection.execute(query).mappings()]

    def size(self, space: Space) -> int:
        """See `VectorIndex`."""
        with self.engine.connect() as connection:
            return _size(connection, space)

    def held(self, space: Space, clips: Sequence[str]) -> dict[str, int]:
        """See `VectorIndex`."""
        query = text("SELECT clip_id, run_id FROM clip_vector WHERE space = :space AND clip_id = ANY(:clips)")
        query = query.bindparams(bindparam("clips", type_=ARRAY(Text)))
        found: dict[str, int] = {}
        with self.engine.connect() as connection:
            for page in pages(clips):
                found |= dict(connection.execute(query, {"space": space.name, "clips": page}).tuples().all())
        return found

    def put(self, space: Space, entries: Sequence[Entry]) -> None:
        """See `VectorIndex`. Raises ValueError for a vector of another space."""
        entries = [*{entry.clip: entry for entry in entries}.values()]
        if wrong := [entry.clip for entry in entries if entry.vector.shape != (space.dimension,)]:
            raise ValueError(f"{wrong[0]} has no vector of {space.name}")
        added = text(
            "INSERT INTO clip_vector (space, clip_id, run_id, embedding) "
            "VALUES (:space, :clip, :run, CAST(:vector AS halfvec)) "
            "ON CONFLICT (clip_id, space) DO UPDATE SET run_id = excluded.run_id, embedding = excluded.embedding"
        )
        for page in pages(sorted(entries, key=lambda entry: entry.clip), PAGE):  # in order: two writers wait in turn
            rows = [
                {"space": space.name, "clip": entry.clip, "run": entry.run, "vector": _written(entry.vector)}
                for entry in page
            ]
            with self.engine.begin() as connection:
                connection.execute(_SPACE, vars(space) | {"name": space.name})
                connection.execute(added, rows)
        with self.engine.begin() as connection:
            if space.dimension <= MOST_INDEXED and _size(connection, space) > FEW:
                connection.execute(text(_index_of(space)))

    def vectors(self, space: Space, clips: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """See `VectorIndex`."""
        query = text(
            "SELECT clip_id, embedding::real[] FROM clip_vector WHERE space = :space AND clip_id = ANY(:clips)"
        ).bindparams(bindparam("clips", type_=ARRAY(Text)))
        for page in pages(clips, PAGE):
            with self.engine.connect() as connection:
                rows = connection.execute(query, {"space": space.name, "clips": page}).all()
            for clip, vector in rows:
                yield clip, unit(np.array(vector, np.float32))

    def nearest(self, space: Space, vector: np.ndarray, count: int) -> list[Neighbour]:
        """See `VectorIndex`. Of a large space at most `MOST_NEIGHBOURS`."""
        kind = f"halfvec({space.dimension:d})"
        # The name of the space as a literal, and the cast as in the index: only so is the partial index used.
        query = text(
            f"SELECT clip_id, 1 - (embedding::{kind} <=> CAST(:vector AS {kind})) AS similarity FROM clip_vector "
            f"WHERE space = '{_checked(space)}' ORDER BY embedding::{kind} <=> CAST(:vector AS {kind}) LIMIT :count"
        )
        breadth = min(MOST_NEIGHBOURS, max(LEAST_SEARCHED, 2 * count))
        with self.engine.connect() as connection:
            connection.execute(text(f"SET LOCAL hnsw.ef_search = {breadth:d}"))
            rows = connection.execute(query, {"vector": _written(unit(vector)), "count": count}).all()
        found = [Neighbour(clip, float(similarity)) for clip, similarity in rows]
        return sorted(found, key=lambda neighbour: (-neighbour.similarity, neighbour.clip))

    def remove(self, clips: Sequence[str]) -> None:
        """See `VectorIndex`."""
        query = text("DELETE FROM clip_vector WHERE clip_id = ANY(:clips)")
        query = query.bindparams(bindparam("clips", type_=ARRAY(Text)))
        for page in pages(clips):
            with self.engine.begin() as connection:
                connection.execute(query, {"clips": page})


_SPACE = text(
    "INSERT INTO clip_vector_space (name, kind, digest, encoder, dimension) "
    "VALUES (:name, :kind, :digest, :encoder, :dimension) ON CONFLICT (name) DO NOTHING"
)


def _size(connection: Connection, space: Space) -> int:
    query = text("SELECT count(*) FROM clip_vector WHERE space = :space")
    return int(connection.scalar(query, {"space": space.name}) or 0)


def _index_of(space: Space) -> str:
    name = _checked(space)
    return (
        f"CREATE INDEX IF NOT EXISTS ix_clip_vector_{space.kind}_{space.digest[:16]} ON clip_vector USING hnsw "
        f"((embedding::halfvec({space.dimension:d})) halfvec_cosine_ops) "
        f"WITH (ef_construction = {BUILT_OVER:d}) WHERE space = '{name}'"
    )


def _checked(space: Space) -> str:
    """The name of a space, fit for a statement."""
    if not SPACE.fullmatch(space.name):
        raise ValueError(f"{space.name!r} is no name of a space")
    return space.name


def _written(vector: np.ndarray) -> str:
    return json.dumps([round(float(number), 6) for number in vector], separators=(",", ":"))
