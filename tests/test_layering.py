"""The floors of the code and the imports between its modules, read from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("medgen", "models", "tasks", "flows", "apps", "bench")  # from the ground up


def _modules() -> dict[str, Path]:
    """Name → file of every module on the floors; a package is the module of its `__init__.py`."""
    files = [file for floor in FLOORS for file in (ROOT / floor).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = _modules()


def _module_of(name: str) -> str | None:
    """The module that a dotted name lies in, itself if it is one; None for libraries."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def _imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(local name, full dotted name) of what an import statement brings; nothing of other statements."""
    if isinstance(node, ast.Import):
        yield from ((alias.asname or alias.name, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module, f"relative import in line {node.lineno}"
        yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _imports(file: Path) -> dict[str, set[str]]:
    """Module → full names imported from it, wherever the statement stands: functions and TYPE_CHECKING too."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for _, full in _imported(node):
            if module := _module_of(full):
                found.setdefault(module, set()).add(full)
    return found


def test_imports_point_down_only() -> None:
    upward = [
        f"{name} imports {module}"
        for name, file in MODULES.items()
        for module in _imports(file)
        if FLOORS.index(module.partition(".")[0]) > FLOORS.index(name.partition(".")[0])
    ]
    assert upward == []


def test_no_imports_go_round_in_a_circle() -> None:
    graph = {name: _imports(file).keys() - {name} for name, file in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError("circle of imports: " + " <- ".join(error.args[1])) from None


def _foreign_private_names(file: Path) -> Iterator[str]:
    """Private names of other modules that a file imports, or reads as attributes of an imported module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = {}
    for node in ast.walk(tree):
        for local, full in _imported(node):
            if full in MODULES:
                modules[local] = full
            elif _module_of(full) and _is_private(full.rpartition(".")[2]):
                yield full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and ast.unparse(node.value) in modules:
            yield f"{modules[ast.unparse(node.value)]}.{node.attr}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_private_names_stay_in_their_module() -> None:
    assert [f"{name} uses {full}" for name, file in MODULES.items() for full in _foreign_private_names(file)] == []


def test_what_is_on_record_is_read_without_prefect() -> None:
    """It takes seconds to import, which those would wait for who only ask for the status or a page."""
    readers = "apps.verdicts, apps.history, apps.audit.application, tasks.operations.failures"
    code = f"import sys, {readers}; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
