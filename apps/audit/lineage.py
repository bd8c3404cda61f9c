"""What lies before and after a thing, from sources to evaluations, and the records between."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.orm import Session

from apps.audit.model_page import model_of
from apps.audit.release_page import release_of
from apps.history import Unknown, history_of
from medgen.catalog import (
    Clip,
    Evaluation,
    ModelVersion,
    Release,
    ReleaseClip,
    Source,
    Standing,
    StepInput,
    StepRun,
    Video,
)
from medgen.ledger import Ledger

KINDS = ("source", "video", "clip", "release", "model", "evaluation")
SHOWN = 8  # things of a kind in a picture
BATCH = 2000  # members of a release read at once


@dataclass(frozen=True)
class Node:
    """A thing in the picture. `more` stands for those of its kind that are not shown."""

    kind: str
    id: str
    name: str
    under: str = ""
    status: str = ""
    more: bool = False


@dataclass
class Graph:
    """Nodes by kind, and edges between (kind, id) pairs."""

    here: tuple[str, str]
    nodes: dict[tuple[str, str], Node] = field(default_factory=dict)
    edges: set[tuple[tuple[str, str], tuple[str, str]]] = field(default_factory=set)

    def ids(self, kind: str) -> list[str]:
        """Ids of the nodes of a kind that are not `more`."""
        return [node.id for node in self.nodes.values() if node.kind == kind and not node.more]

    def add(self, nodes: Sequence[Node]) -> None:
        """Adds nodes, as many of a kind as are shown; then one that stands for the rest."""
        for node in nodes:
            key = (node.kind, node.id)
            if key in self.nodes:
                continue
            if len(self.ids(node.kind)) >= SHOWN:
                self.nodes.setdefault((node.kind, "…"), Node(node.kind, "…", "and others", more=True))
                return
            self.nodes[key] = node


def graph_of(connection: Connection, kind: str, identity: str) -> Graph:
    """The surroundings of a thing, from its sources to its evaluations. Raises `Unknown`."""
    graph = Graph((kind, identity))
    if kind == "source":
        found = connection.execute(select(Source.name, Source.kind).where(Source.name == identity)).first()
        if found is None:
            raise Unknown(f"there is no source {identity[:80]}")
        graph.add([Node("source", found.name, found.name, found.kind)])
    elif kind == "video":
        graph.add(_videos(connection, Video.id == identity))
    elif kind == "clip":
        graph.add(_clips(connection, Clip.id == identity))
    elif kind == "release":
        release_of(connection, identity)
        graph.add(_releases(connection, [identity]))
    elif kind == "model":
        model = model_of(connection, identity)
        graph.here = (kind, model["digest"])
        graph.add([Node("model", model["digest"], model["name"], model["kind"])])
    elif kind == "evaluation" and identity.isdigit() and int(identity) < 2**62:
        graph.add(_evaluations(connection, Evaluation.step_run_id == int(identity)))
    if graph.here not in graph.nodes:
        raise Unknown(f"there is no {kind} {identity[:80]}")
    _before(connection, graph, KINDS.index(kind))
    _after(connection, graph, KINDS.index(kind))
    _edges(connection, graph)
    return graph


def _before(connection: Connection, graph: Graph, at: int) -> None:
    if at >= 5:
        evaluated = select(Evaluation.model_digest).where(Evaluation.step_run_id.in_(map(int, graph.ids("evaluation"))))
        graph.add(_models(connection, ModelVersion.digest.in_(evaluated)))
    if at >= 4:
        named = select(ModelVersion.release_name).where(ModelVersion.digest.in_(graph.ids("model")))
        graph.add(_releases(connection, [name for name in connection.scalars(named) if name]))
    if at >= 3:
        for name in graph.ids("release"):
            members = select(ReleaseClip.clip_id).where(ReleaseClip.release_name == name)
            ids = connection.scalars(members.order_by(ReleaseClip.clip_id).limit(SHOWN + 1)).all()
            graph.add(_clips(connection, Clip.id.in_(ids)))
    if at >= 2:
        graph.add(_videos(connection, Video.id.in_(select(Clip.video_id).where(Clip.id.in_(graph.ids("clip"))))))
    if at >= 1:
        named = select(Video.source_name).where(Video.id.in_(graph.ids("video"))).distinct()
        rows = connection.execute(select(Source.name, Source.kind).where(Source.name.in_(named)).limit(SHOWN + 1))
        graph.add([Node("source", row.name, row.name, row.kind) for row in rows])


def _after(connection: Connection, graph: Graph, at: int) -> None:
    if at <= 0:
        graph.add(_videos(connection, Video.source_name.in_(graph.ids("source"))))
    if at <= 1:
        graph.add(_clips(connection, Clip.video_id.in_(graph.ids("video"))))
    if at <= 2:
        named = select(ReleaseClip.release_name).where(ReleaseClip.clip_id.in_(graph.ids("clip"))).distinct()
        graph.add(_releases(connection, connection.scalars(named.limit(SHOWN + 1)).all()))
    if at <= 3:
        graph.add(_models(connection, ModelVersion.release_name.in_(graph.ids("release"))))
    if at <= 4:
        graph.add(_evaluations(connection, Evaluation.model_digest.in_(graph.ids("model"))))


def _edges(connection: Connection, graph: Graph) -> None:
    """Edges among the nodes that are shown."""
    pairs: list[tuple[tuple[str, str], tuple[str, str]]] = []
    for row in connection.execute(select(Video.source_name, Video.id).where(Video.id.in_(graph.ids("video")))):
        pairs.append((("source", row[0]), ("video", row[1])))
    for row in connection.execute(select(Clip.video_id, Clip.id).where(Clip.id.in_(graph.ids("clip")))):
        pairs.append((("video", row[0]), ("clip", row[1])))
    held = select(ReleaseClip.clip_id, ReleaseClip.release_name).where(
        ReleaseClip.clip_id.in_(graph.ids("clip")), ReleaseClip.release_name.in_(graph.ids("release"))
    )
    pairs += [(("clip", row[0]), ("release", row[1])) for row in connection.execute(held)]
    trained = select(ModelVersion.release_name, ModelVersion.digest).where(ModelVersion.digest.in_(graph.ids("model")))
    pairs += [(("release", row[0]), ("model", row[1])) for row in connection.execute(trained)]
    runs = [int(i) for i in graph.ids("evaluation")]
    evaluated = select(Evaluation.model_digest, Evaluation.step_run_id).where(Evaluation.step_run_id.in_(runs))
    pairs += [(("model", row[0]), ("evaluation", str(row[1]))) for row in connection.execute(evaluated.distinct())]
    graph.edges = {(a, b) for a, b in pairs if a in graph.nodes and b in graph.nodes}


def _videos(connection: Connection, condition: Any) -> list[Node]:
    rows = connection.execute(
        select(Video.id, Video.title, Standing.status, Standing.reason)
        .outerjoin(Standing, Standing.id == Video.id)
        .where(condition)
        .order_by(Video.id)
        .limit(SHOWN + 1)
    )
    return [Node("video", row.id, row.title or row.id, row.reason or row.id, row.status or "") for row in rows]


def _clips(connection: Connection, condition: Any) -> list[Node]:
    rows = connection.execute(
        select(Clip.id, Clip.start_s, Clip.end_s, Standing.status, Standing.reason, Standing.category)
        .outerjoin(Standing, Standing.id == Clip.id)
        .where(condition)
        .order_by(Clip.video_id, Clip.start_frame, Clip.id)
        .limit(SHOWN + 1)
    )
    return [
        Node("clip", r.id, r.id, f"{r.start_s:.1f} to {r.end_s:.1f} s, {r.reason or r.category or ''}", r.status or "")
        for r in rows
    ]


def _releases(connection: Connection, names: Sequence[str]) -> list[Node]:
    query = select(Release.name, Release.clips).where(Release.name.in_(names)).order_by(Release.created_at.desc())
    rows = connection.execute(query.limit(SHOWN + 1))
    return [Node("release", row.name, row.name, f"{row.clips:,} clips") for row in rows]


def _models(connection: Connection, condition: Any) -> list[Node]:
    query = select(ModelVersion.digest, ModelVersion.name, ModelVersion.kind).where(condition)
    rows = connection.execute(query.order_by(ModelVersion.created_at.desc()).limit(SHOWN + 1))
    return [Node("model", row.digest, row.name, row.kind) for row in rows]


def _evaluations(connection: Connection, condition: Any) -> list[Node]:
    query = (
        select(Evaluation.step_run_id, StepRun.step, StepRun.subject)
        .join(StepRun, StepRun.id == Evaluation.step_run_id)
        .where(condition)
        .distinct()
        .order_by(Evaluation.step_run_id.desc())
    )
    rows = connection.execute(query.limit(SHOWN + 1))
    return [Node("evaluation", str(row.step_run_id), f"{row.step} {row.step_run_id}", row.subject) for row in rows]


@dataclass(frozen=True)
class ClipLineage:
    """All records behind a clip, and what it went into.

    Args:
        history: as `apps.history.history_of` gives it.
        inputs: step run id → its rows (role, artifact, parent).
        releases, models, evaluations: rows.
    """

    history: Mapping[str, Any]
    inputs: Mapping[int, Sequence[Mapping[str, Any]]]
    source: Mapping[str, Any]
    releases: Sequence[Mapping[str, Any]]
    models: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]


def clip_lineage(ledger: Ledger, clip_id: str) -> ClipLineage:
    """Raises `Unknown`."""
    history = history_of(ledger, "clip", clip_id)
    names = [release["name"] for release in history["releases"]]
    with Session(ledger.engine) as session:
        connection = session.connection()
        inputs: dict[int, list[Mapping[str, Any]]] = {}
        query = select(StepInput.__table__).where(StepInput.step_run_id.in_([s["id"] for s in history["steps"]]))
        for row in connection.execute(query.order_by(StepInput.step_run_id, StepInput.role)).mappings():
            inputs.setdefault(row["step_run_id"], []).append(dict(row))
        source = connection.execute(
            select(Source.__table__).where(Source.name == history["video"]["source_name"])
        ).mappings()
        found = dict(source.one())
        releases = connection.execute(
            select(Release.name, Release.digest, Release.created_at, Release.clips).where(Release.name.in_(names))
        ).mappings()
        releases = [dict(row) for row in releases]
        models, evaluations = trained_on(connection, names)
    return ClipLineage(history, inputs, found, releases, models, evaluations)


def trained_on(connection: Connection, names: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Models that were trained on these releases, and their evaluations."""
    query = select(ModelVersion.__table__).where(ModelVersion.release_name.in_(names))
    models = [dict(row) for row in connection.execute(query.order_by(ModelVersion.digest)).mappings()]
    evaluated = select(Evaluation.__table__).where(Evaluation.model_digest.in_([m["digest"] for m in models]))
    return models, [dict(row) for row in connection.execute(evaluated.order_by(Evaluation.id)).mappings()]


def members(engine: Engine, release: str) -> Iterator[Sequence[Mapping[str, Any]]]:
    """The clips of a release in batches, in order of their ids: clip, digest, video, its source, url and licence."""
    after = ""
    while True:
        query = (
            select(
                Clip.id, Clip.digest, Clip.video_id, Clip.start_s, Clip.end_s, Video.url, Video.licence,
                Video.source_name, Video.title, StepRun.record_hash,
            )
            .select_from(ReleaseClip)
            .join(Clip, Clip.id == ReleaseClip.clip_id)
            .join(Video, Video.id == Clip.video_id)
            .join(StepRun, StepRun.id == ReleaseClip.step_run_id)
            .where(ReleaseClip.release_name == release, ReleaseClip.clip_id > after)
            .order_by(ReleaseClip.clip_id)
            .limit(BATCH)
        )  # fmt: skip
        with engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        if not rows:
            return
        yield rows
        after = rows[-1]["id"]
