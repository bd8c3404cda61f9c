"""The lineage graph as a picture: SVG drawn on the server, in which every node is a link that goes on from there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from apps.audit.lineage_graph import KINDS, Graph, Node, graph_of
from apps.audit.shown_text import plain
from apps.audit.site import query, site_of
from apps.history import Unknown

router = APIRouter()

WIDTH, HEIGHT, GAP_X, GAP_Y, TOP = 186, 46, 38, 12, 34
COLUMNS = {"source": "Source", "video": "Video", "clip": "Clip", "release": "Release", "model": "Model",
           "evaluation": "Evaluation", "creation": "Video for a use"}  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """A node with its place, its link and the words in it."""

    node: Node
    x: float
    y: float
    href: str
    name: str
    under: str
    here: bool


@router.get("/lineage/{kind}/{identity:path}")
def lineage(request: Request, kind: str, identity: Annotated[str, Path(max_length=2000)]) -> Response:
    """The graph around one node."""
    if kind not in KINDS:
        raise Unknown(f"lineage goes from {', '.join(KINDS)}; not from {kind[:40]}")
    site = site_of(request)
    with site.engine.connect() as connection:
        graph = graph_of(connection, kind, identity)
    placed, edges, height = laid_out(graph)
    here = graph.nodes[graph.here]
    width = len(KINDS) * WIDTH + (len(KINDS) - 1) * GAP_X
    columns = [(COLUMNS[k], n * (WIDTH + GAP_X)) for n, k in enumerate(KINDS)]
    return site.page(
        "lineage.html", here=here, page=page_of(here), placed=placed, edges=edges, width=width, height=height,
        columns=columns, box=(WIDTH, HEIGHT), word=COLUMNS[here.kind],
    )  # fmt: skip


def page_of(node: Node) -> str:
    """Address of a node's own page."""
    name = quote(node.id, safe="")
    return {
        "source": "/sources" + query(name=node.id),
        "video": f"/videos/{name}",
        "clip": f"/clips/{name}",
        "release": f"/releases/{name}",
        "model": f"/models/{name}",
        "evaluation": f"/steps/{name}",
        "creation": f"/creations/{name}",
    }[node.kind]


def laid_out(graph: Graph) -> tuple[list[Placed], list[tuple[str, bool]], float]:
    """Nodes in columns by kind, each column in the middle of the picture's height; edges as paths."""
    columns = {kind: [n for n in graph.nodes.values() if n.kind == kind] for kind in KINDS}
    tallest = max(len(nodes) for nodes in columns.values())
    height = TOP + tallest * (HEIGHT + GAP_Y)
    at: dict[tuple[str, str], tuple[float, float]] = {}
    placed = []
    for number, kind in enumerate(KINDS):
        nodes = columns[kind]
        top = TOP + (height - TOP - len(nodes) * (HEIGHT + GAP_Y)) / 2
        for row, node in enumerate(nodes):
            x, y = number * (WIDTH + GAP_X), round(top + row * (HEIGHT + GAP_Y), 1)
            at[node.kind, node.id] = (x, y)
            href = _list_of(graph, node) if node.more else f"/lineage/{kind}/{quote(node.id, safe='')}"
            here = (node.kind, node.id) == graph.here
            placed.append(Placed(node, x, y, href, plain(node.name, 23), plain(node.under, 27), here))
    edges = []
    for start, end in sorted(graph.edges):
        (x1, y1), (x2, y2) = at[start], at[end]
        x1, y1, y2 = x1 + WIDTH, y1 + HEIGHT / 2, y2 + HEIGHT / 2
        middle = (x1 + x2) / 2
        edges.append((f"M{x1},{y1} C{middle},{y1} {middle},{y2} {x2},{y2}", graph.here in (start, end)))
    return placed, sorted(edges, key=lambda edge: edge[1]), height


def _list_of(graph: Graph, node: Node) -> str:
    """Where the nodes are listed that had no room."""
    kind, identity = graph.here
    lists: Mapping[str, str] = {
        "release": "/releases",
        "model": "/models",
        "evaluation": "/models",
        "creation": "/creations",
        "source": "/sources",
    }
    if node.kind in lists:
        return lists[node.kind]
    by: dict[str, dict[str, str]] = {
        "source": {"source": identity},
        "release": {"release": identity},
        "model": {"model": identity},
        "video": {"q": identity},
    }
    return "/items" + query(by.get(kind, {}), kind=node.kind)
