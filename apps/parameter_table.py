"""All parameters of a refresh with what a profile sets. Loading every step to ask takes seconds, so that the answer for
the profiles that come along is kept in the user's folder of caches until the code changes."""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("flows", "tasks", "models", "medgen")  # whose code says what parameters there are
KEPT = ("offline", "paper")  # profiles


def parameter_table(profile: str) -> dict[str, dict[str, Any]]:
    """Name of a parameter → its JSON schema, with its default, and as `value` what the profile sets.

    Raises:
        ValidationError: there is no such profile, or it is bad.
    """
    place = user_cache_path("medgen") / f"parameters-{profile}-{_code_digest()}.json" if profile in KEPT else None
    if place:
        with suppress(OSError, ValueError):
            kept: dict[str, dict[str, Any]] = json.loads(place.read_text())
            return kept
    table = _asked(profile)
    if place:
        with suppress(OSError):
            _keep(place, json.dumps(table))
    return table


def _asked(profile: str) -> dict[str, dict[str, Any]]:
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    from flows.refresh import RefreshParameters

    values = RefreshParameters(profile=profile)
    shown: dict[str, dict[str, Any]] = RefreshParameters.model_json_schema()["properties"]
    said = {name: field.default for name, field in RefreshParameters.model_fields.items()}
    table = {
        name: known | {"default": said[name], "value": getattr(values, name), "shown": str(getattr(values, name))}
        for name, known in shown.items()
    }
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(table, default=str))
    return plain


def _code_digest() -> str:
    """Of names, times and sizes of the files that say what parameters there are: a change of any changes it."""
    digest = hashlib.sha256()
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*")):
            if path.suffix in (".py", ".toml") and path.is_file():
                facts = path.stat()
                digest.update(f"{path} {facts.st_mtime_ns} {facts.st_size}\n".encode())
    return digest.hexdigest()[:16]


def _keep(place: Path, text: str) -> None:
    """Writes in one move; what an earlier version of the code kept goes."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for old in place.parent.glob(f"{place.name.rpartition('-')[0]}-*.json"):
        old.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(place)
