"""Names of flow runs that say what runs, where a template of parameters would show Python's lists or nothing."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from prefect.runtime import flow_run

LONGEST = 80  # characters


def run_name(flow: str, *parameters: str) -> Callable[[], str]:
    """What Prefect calls for the name of a run: the flow's name, what the parameters name, and the day (UTC).

    Args:
        parameters: of the flow, single texts or lists of them; those that are not given are left out. Of NAME=PATH
            the name stands, of a path its last part, of a URL all but its scheme and its query.
    """

    def name() -> str:
        given: dict[str, Any] = flow_run.parameters
        parts: list[str] = []
        for parameter in parameters:
            value = given.get(parameter) or ()
            parts += [_short(text) for text in ([value] if isinstance(value, str) else value)]
        full_name = "-".join([flow, "+".join(parts)] if parts else [flow])
        day = f"-{datetime.now(UTC):%Y-%m-%d}"
        room = LONGEST - len(day)
        return (full_name if len(full_name) <= room else full_name[: room - 1] + "…") + day

    return name


def _short(text: str) -> str:
    name, given, rest = text.partition("=")
    if given and name and not set(name) & set("/:?"):
        return name
    scheme, url, rest = text.partition("://")
    if url:
        return rest.partition("?")[0].rstrip("/") or scheme
    return text.rstrip("/").rpartition("/")[2] or text
