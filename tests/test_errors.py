"""The tree of errors in `medgen.errors` names the classes that there are."""

import importlib
import pkgutil

import apps
import flows
import medgen
import medgen.errors
import models
import tasks

FLOORS = (apps, flows, tasks, models, medgen)


def test_the_tree_of_errors_is_as_documented() -> None:
    assert tree() in (medgen.errors.__doc__ or "")


def tree() -> str:
    """All public error classes, indented below their first base class, each with its module."""
    children: dict[type, list[type]] = {}
    for error in _errors():
        children.setdefault(error.__bases__[0], []).append(error)
    below = {error for errors in children.values() for error in errors}
    roots = sorted((base for base in children if base not in below), key=lambda base: base.__name__)
    return "\n".join(line for root in roots for line in _lines(root, children, 1))


def _lines(error: type, children: dict[type, list[type]], depth: int) -> list[str]:
    own = error.__module__.partition(".")[0] in {floor.__name__ for floor in FLOORS}
    line = f"{'    ' * depth}{error.__name__}"
    lines = [f"{line:<36}{error.__module__}" if own else line]
    for child in sorted(children.get(error, ()), key=lambda child: (child.__name__, child.__module__)):
        lines += _lines(child, children, depth + 1)
    return lines


def _errors() -> set[type[BaseException]]:
    """Error classes that the modules of the five floors define; names with an underscore are a module's own."""
    found: set[type[BaseException]] = set()
    for floor in FLOORS:
        for module in pkgutil.walk_packages(floor.__path__, f"{floor.__name__}."):
            if module.name.endswith("__main__") or ".migrations." in module.name:
                continue
            for name, value in vars(importlib.import_module(module.name)).items():
                own = isinstance(value, type) and value.__module__ == module.name and not name.startswith("_")
                if own and issubclass(value, BaseException):
                    found.add(value)
        found |= {
            value
            for name, value in vars(floor).items()
            if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == floor.__name__
        }
    return found
