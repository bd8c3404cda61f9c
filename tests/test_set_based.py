"""No statement, and no list in memory, grows with the catalog.

Two sides of it: the source has no `IN` with a parameter a value, and what reads or sweeps the whole catalog works where
there is more of everything than a statement takes parameters (65,535).
"""

import ast
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from typer.testing import CliRunner

from apps.audit.application import create_site
from apps.cli import app
from medgen.catalog import open_catalog
from medgen.gc import collect_garbage
from medgen.ledger import open_ledger
from medgen.takedown import referenced
from medgen.verify import verify
from tasks.operations.takedown import take_down
from tests.conftest import ROOT

FLOORS = ("medgen", "models", "tasks", "flows", "apps", "bench")

MANY = 66_000  # more than 65,535
FAILED = 5_000
ADDRESSES = ("/", "/releases", "/releases/big", "/items?release=big", "/clips/c-1", "/videos/v-one", "/takedowns")


def _unbounded(tree: ast.Module) -> Iterator[int]:
    """Lines with `.in_(…)` or `.not_in(…)` of anything but constants or a query."""
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.Module | ast.FunctionDef):
            continue
        own = list(_own_nodes(scope))
        queries = {
            target.id
            for node in own
            if isinstance(node, ast.Assign) and _is_query(node.value, frozenset())
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in own:
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("in_", "not_in")
            ):
                (values,) = node.args
                if not (_is_constant(values) or _is_query(values, frozenset(queries))):
                    yield node.lineno


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a module or function that are in no function within it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, ast.FunctionDef):
            yield from _own_nodes(child)


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.List | ast.Tuple) and all(isinstance(item, ast.Constant) for item in node.elts)


def _is_query(node: ast.expr, queries: frozenset[str]) -> bool:
    """Whether an expression is `select(…)`, with whatever methods called on it, or the name of one."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id == "select"
    return isinstance(node, ast.Name) and node.id in queries


def test_no_statement_binds_a_parameter_a_value() -> None:
    found: dict[str, list[int]] = {}
    for file in (path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))):
        if lines := list(_unbounded(ast.parse(file.read_text(encoding="utf-8")))):
            found[file.relative_to(ROOT).as_posix()] = lines
    assert found == {}, "medgen.among says how to put many values into a statement"


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("x.in_([1, 'a'])\nx.not_in((1, 2))", []),
        ("x.in_(select(a).where(b).distinct())", []),
        ("def f():\n    q = select(a)\n    return x.in_(q)", []),
        ("def f(q):\n    return x.in_(q)", [2]),
        ("q = [1]\nx.in_(q)\nx.in_(list(q))\nx.not_in([a])\nx.in_({1})", [2, 3, 4, 5]),
        ("def g():\n    q = select(a)\ndef f(q):\n    x.in_(q)", [4]),
    ],
)
def test_the_search_tells_queries_from_lists(code: str, lines: list[int]) -> None:
    assert list(_unbounded(ast.parse(code))) == lines


# One video with so many clips, each with its own file, in a release; a listing's worth of other videos that were taken
# down; and so many failures.
MAKE = """
SET LOCAL session_replication_role = replica;
INSERT INTO source VALUES ('big', 'listing', 'big.jsonl', now());
INSERT INTO video (id, source_name, url, title, description, tags, discovered_at)
  VALUES ('v-one', 'big', 'https://example.org/', 'A title', '', '{}', now());
INSERT INTO artifact SELECT md5(n::text) || md5('x' || n), 'video/mp4', 10, now() FROM generate_series(1, :many) n;
INSERT INTO step_run
    (id, step, subject, status, reason, transient, detail, context, key, superseded, version, params, models,
     code_version, attempts, decodes, started_at, finished_at, record_hash)
  SELECT n, step, subject, status, reason, transient, detail, context, md5(n::text) || md5('k'), false, 1, '{}', '{}',
      '1', 1, 1, now(), now(), md5('r') || md5('h') FROM (
    SELECT n, 'cut' AS step, 'v-one/' || n || '-' || n + 1 AS subject, 'kept' AS status, NULL AS reason,
        false AS transient, '{}'::jsonb AS detail, '{}'::jsonb AS context FROM generate_series(1, :many) n
    UNION ALL SELECT :many + n, 'download', 'w-' || n, 'failed', 'http_50' || n % 3, true, '{"message": "no"}',
        '{"url": "https://example.org/"}' FROM generate_series(1, :failed) n
    UNION ALL SELECT 2 * :many, 'release', 'release', 'kept', NULL, false, '{}', '{}'
    UNION ALL SELECT 2 * :many + 1, 'classify', 'v-one', 'kept', NULL, false, '{}', '{}') made;
INSERT INTO step_input SELECT n, 'classify', NULL, 2 * :many + 1 FROM generate_series(1, :many) n;
INSERT INTO step_output SELECT n, 'clip', md5(n::text) || md5('x' || n) FROM generate_series(1, :many) n;
INSERT INTO clip SELECT 'c-' || n, 'v-one', n, n, n + 1, n, n + 1, 640, 480, 25, md5(n::text) || md5('x' || n)
  FROM generate_series(1, :many) n;
INSERT INTO release VALUES ('big', md5('d') || md5('d'), '{}', :many, md5('r') || md5('r'), 2 * :many, now());
INSERT INTO release_clip SELECT 'big', 'c-' || n, n FROM generate_series(1, :many) n;
INSERT INTO tombstone SELECT 'w-' || n, 'https://example.org/' || n, 'asked', '{}', now()
  FROM generate_series(1, :many) n;
INSERT INTO item_status (id, kind, video_id, step, status, decided_at, source_name, title, words)
  VALUES ('v-one', 'video', 'v-one', 'segment', 'kept', now(), 'big', 'A title', ''),
         ('c-1', 'clip', 'v-one', 'cut', 'kept', now(), 'big', 'A title', '');
SELECT setval('step_run_id_seq', 3 * :many);
"""


@pytest.fixture
def many(home: Path) -> Engine:
    """A catalog with more of everything than a statement takes parameters."""
    engine = open_catalog()
    with engine.begin() as connection:
        connection.execute(text(MAKE.replace(":many", str(MANY)).replace(":failed", str(FAILED))))
    return engine


def test_more_of_everything_than_a_statement_takes_parameters(many: Engine) -> None:
    ledger = open_ledger()
    orphan = ledger.store.put_bytes(b"nobody's", "text/plain")
    assert collect_garbage(ledger, grace_s=-1, dry_run=True).objects == 1

    # Nothing of it was written by a ledger, and every fault is found.
    found = Counter(_kind_of_fault(fault) for fault in verify(ledger, ledger.store.folder, artifacts=False))
    assert found == {
        "step run": 2 * (MANY + FAILED + 2), "artifact": MANY, "clip": MANY, "release": 1, "takedown": MANY
    }  # fmt: skip

    told = facts("status")
    assert [entry["kept"] for entry in told["funnel"] if entry["step"] == "cut"] == [MANY]
    assert sum(entry["count"] for entry in told["failures"]) == FAILED and told["taken_down"] == MANY
    assert len(facts("forget", "--list")) == MANY
    with TestClient(create_site(), base_url="http://localhost") as site:
        for address in ADDRESSES:
            assert site.get(address).status_code == 200, address

    (report,) = take_down(ledger, {"v-one": "https://example.org/v-one"}, "asked")
    assert len(report.clips) == len(report.removed) == report.releases["big"] == MANY
    with Session(many) as session:
        assert len(referenced(session, report.removed)) == 0
    assert collect_garbage(ledger, grace_s=3600).objects == 0 and ledger.store.missing([orphan.sha256]) == set()


def facts(*arguments: str) -> Any:
    """What a command says to machines."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def _kind_of_fault(fault: str) -> str:
    return next(kind for kind in ("step run", "artifact", "clip", "release", "takedown") if fault.startswith(kind))
