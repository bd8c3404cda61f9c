"""What lies before and after a source, video, clip, release, model, evaluation or creation, as a graph."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from apps.audit.models import model_of
from apps.audit.releases import release_of
from apps.history import Unknown
from medgen.among import among
from medgen.catalog import (
    Clip,
    Evaluation,
    ItemStatus,
    ModelVersion,
    Release,
    ReleaseClip,
    Source,
    StepRun,
    Video,
)
from medgen.counted import counted
from tasks.creation.on_record import CREATE_STEP

KINDS = ("source", "video", "clip", "release", "model", "evaluation", "creation")
SHOWN = 8  # nodes of a kind in a picture


@dataclass(frozen=True)
class Node:
    """A node of the picture. `more` stands for those of its kind that are not shown."""

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
    """The surroundings of a node, from its sources to its evaluations. Raises `Unknown`."""
    graph = Graph((kind, identity))
    if kind == "source":
        source = connection.execute(select(Source.name, Source.kind).where(Source.name == identity)).first()
        if source is None:
            raise Unknown(f"there is no source {identity[:80]}")
        graph.add([Node("source", source.name, source.name, source.kind)])
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
    elif kind == "creation":
        graph.add(_creations(connection, StepRun.subject == identity))
    if graph.here not in graph.nodes:
        raise Unknown(f"there is no {kind} {identity[:80]}")
    _before(connection, graph, KINDS.index(kind))
    _after(connection, graph, KINDS.index(kind))
    _edges(connection, graph)
    return graph


def _before(connection: Connection, graph: Graph, at: int) -> None:
    if at >= 6:
        made = select(StepRun.detail["model"].astext).where(
            StepRun.step == CREATE_STEP, among(StepRun.subject, graph.ids("creation"))
        )
        graph.add(_models(connection, ModelVersion.digest.in_(made)))
    elif at >= 5:
        evaluated = select(Evaluation.model_digest).where(
            among(Evaluation.step_run_id, map(int, graph.ids("evaluation")))
        )
        graph.add(_models(connection, ModelVersion.digest.in_(evaluated)))
    if at >= 4:
        named = select(ModelVersion.release_name).where(among(ModelVersion.digest, graph.ids("model")))
        graph.add(_releases(connection, [name for name in connection.scalars(named) if name]))
    if at >= 3:
        for name in graph.ids("release"):
            members = select(ReleaseClip.clip_id).where(ReleaseClip.release_name == name)
            ids = connection.scalars(members.order_by(ReleaseClip.clip_id).limit(SHOWN + 1)).all()
            graph.add(_clips(connection, among(Clip.id, ids)))
    if at >= 2:
        graph.add(_videos(connection, Video.id.in_(select(Clip.video_id).where(among(Clip.id, graph.ids("clip"))))))
    if at >= 1:
        sources = select(Video.source_name).where(among(Video.id, graph.ids("video"))).distinct()
        rows = connection.execute(select(Source.name, Source.kind).where(Source.name.in_(sources)).limit(SHOWN + 1))
        graph.add([Node("source", row.name, row.name, row.kind) for row in rows])


def _after(connection: Connection, graph: Graph, at: int) -> None:
    if at <= 0:
        graph.add(_videos(connection, among(Video.source_name, graph.ids("source"))))
    if at <= 1:
        graph.add(_clips(connection, among(Clip.video_id, graph.ids("video"))))
    if at <= 2:
        named = select(ReleaseClip.release_name).where(among(ReleaseClip.clip_id, graph.ids("clip"))).distinct()
        graph.add(_releases(connection, connection.scalars(named.limit(SHOWN + 1)).all()))
    if at <= 3:
        graph.add(_models(connection, among(ModelVersion.release_name, graph.ids("release"))))
    if at <= 4:
        graph.add(_evaluations(connection, among(Evaluation.model_digest, graph.ids("model"))))
        graph.add(_creations(connection, among(StepRun.detail["model"].astext, graph.ids("model"))))


def _edges(connection: Connection, graph: Graph) -> None:
    """Edges among the nodes that are shown."""
    pairs: list[tuple[tuple[str, str], tuple[str, str]]] = []
    for row in connection.execute(select(Video.source_name, Video.id).where(among(Video.id, graph.ids("video")))):
        pairs.append((("source", row[0]), ("video", row[1])))
    for row in connection.execute(select(Clip.video_id, Clip.id).where(among(Clip.id, graph.ids("clip")))):
        pairs.append((("video", row[0]), ("clip", row[1])))
    held = select(ReleaseClip.clip_id, ReleaseClip.release_name).where(
        among(ReleaseClip.clip_id, graph.ids("clip")), among(ReleaseClip.release_name, graph.ids("release"))
    )
    pairs += [(("clip", row[0]), ("release", row[1])) for row in connection.execute(held)]
    trained = select(ModelVersion.release_name, ModelVersion.digest).where(
        among(ModelVersion.digest, graph.ids("model"))
    )
    pairs += [(("release", row[0]), ("model", row[1])) for row in connection.execute(trained)]
    runs = [int(i) for i in graph.ids("evaluation")]
    evaluated = select(Evaluation.model_digest, Evaluation.step_run_id).where(among(Evaluation.step_run_id, runs))
    pairs += [(("model", row[0]), ("evaluation", str(row[1]))) for row in connection.execute(evaluated.distinct())]
    made = select(StepRun.detail["model"].astext, StepRun.subject).where(
        StepRun.step == CREATE_STEP, among(StepRun.subject, graph.ids("creation"))
    )
    pairs += [(("model", row[0]), ("creation", row[1])) for row in connection.execute(made)]
    graph.edges = {(a, b) for a, b in pairs if a in graph.nodes and b in graph.nodes}


def _videos(connection: Connection, condition: Any) -> list[Node]:
    rows = connection.execute(
        select(Video.id, Video.title, ItemStatus.status, ItemStatus.reason)
        .outerjoin(ItemStatus, ItemStatus.id == Video.id)
        .where(condition)
        .order_by(Video.id)
        .limit(SHOWN + 1)
    )
    return [Node("video", row.id, row.title or row.id, row.reason or row.id, row.status or "") for row in rows]


def _clips(connection: Connection, condition: Any) -> list[Node]:
    rows = connection.execute(
        select(Clip.id, Clip.start_s, Clip.end_s, ItemStatus.status, ItemStatus.reason, ItemStatus.category)
        .outerjoin(ItemStatus, ItemStatus.id == Clip.id)
        .where(condition)
        .order_by(Clip.video_id, Clip.start_frame, Clip.id)
        .limit(SHOWN + 1)
    )
    return [
        Node("clip", r.id, r.id, f"{r.start_s:.1f} to {r.end_s:.1f} s, {r.reason or r.category or ''}", r.status or "")
        for r in rows
    ]


def _releases(connection: Connection, names: Sequence[str]) -> list[Node]:
    query = select(Release.name, Release.clips).where(among(Release.name, names)).order_by(Release.created_at.desc())
    rows = connection.execute(query.limit(SHOWN + 1))
    return [Node("release", row.name, row.name, counted(row.clips, "clip")) for row in rows]


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


def _creations(connection: Connection, condition: Any) -> list[Node]:
    query = (
        select(StepRun.subject, StepRun.detail)
        .where(StepRun.step == CREATE_STEP, StepRun.status == "kept", ~StepRun.superseded, condition)
        .order_by(StepRun.id.desc())
    )
    rows = connection.execute(query.limit(SHOWN + 1))
    return [Node("creation", row.subject, row.detail.get("topic") or row.subject, row.subject) for row in rows]
