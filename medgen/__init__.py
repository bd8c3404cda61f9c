"""The ground of medgen: settings, catalog, ledger, store and media. It knows nothing of medicine.

For Python: `open_release` and `list_releases` read releases; see docs/researchers.md.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_PUBLIC = ("Clip", "LearnedModel", "Release", "Step", "list_releases", "open_release")


def __getattr__(name: str) -> Any:
    # Loaded when asked for: whoever imports another module of this package does not wait for these. Their types
    # stand in __init__.pyi.
    if name in _PUBLIC:
        return getattr(import_module("medgen.release_reader"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
