"""What a rehearsal found, as JSON and as a table of docs/scale.md."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench.rehearsal {}: begin -->", "<!-- bench.rehearsal {}: end -->"
PLACE = "<!-- bench.rehearsal -->"  # before this line, sections of sizes that are not there yet are added
COLUMNS = (
    "phase", "seconds", "items", "executed", "reused", "CPU ms per item, without made-up work", "main", "workers",
    "Postgres", "Prefect", "peak MiB: main", "worker", "Postgres", "Prefect",
)  # fmt: skip


def report(
    videos: int, phases: Mapping[str, Mapping[str, Any]], order: Sequence[str], counts: Mapping[str, Any]
) -> dict[str, Any]:
    """All facts of a rehearsal of so many videos; phases in the order in which they are rehearsed."""
    rows = [{"phase": phase, **phases[phase]} for phase in order if phase in phases]
    known = {name: value for name, value in counts.items() if name != "clip_ids"}
    return {"videos": videos, "phases": rows, **known}


def section(path: Path, facts: Mapping[str, Any]) -> None:
    """Replaces the section of this size in a Markdown file, or adds it.

    Raises:
        ValueError: the file has no such section and no place for it.
    """
    text, size = path.read_text(encoding="utf-8"), facts["videos"]
    begin, end = BEGIN.format(size), END.format(size)
    written = f"{begin}\n{table(facts)}\n{end}"
    if begin in text:
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: written, text, flags=re.DOTALL)
    elif PLACE in text:
        text = text.replace(PLACE, f"{written}\n\n{PLACE}")
    else:
        raise ValueError(f"{path} has no line {PLACE}")
    path.write_text(text, encoding="utf-8")


def table(facts: Mapping[str, Any]) -> str:
    """Markdown: a row a phase, and what is on record at the end."""
    lines = [
        f"### {facts['videos']:,} videos",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * (len(COLUMNS) - 1)}",
        *(_row(phase) for phase in facts["phases"]),
        "",
        f"On record at the end: {facts['listed']:,} videos that discover kept, {facts['clips']:,} clips, "
        f"{facts['step_runs']:,} step runs; Postgres {_mb(facts['postgres_bytes'])}, Prefect's database "
        f"{_mb(facts['prefect_bytes'])}, store {_mb(facts['store_bytes'])} in {facts['store_objects']:,} objects. The "
        f"newest release, `{facts['release']}`, has {facts['released']:,} clips and the digest "
        f"`{facts['digest'][:16]}`.",
    ]
    pages: Mapping[str, Mapping[str, Any]] = next((phase["pages"] for phase in facts["phases"] if "pages" in phase), {})
    if pages:
        lines += ["", "| page | requests | p50 ms | p95 ms |", "|---|---:|---:|---:|"]
        lines += [f"| {kind} | {p['requests']} | {p['p50_ms']} | {p['p95_ms']} |" for kind, p in pages.items()]
    return "\n".join(lines)


def _row(phase: Mapping[str, Any]) -> str:
    each, peak = phase["cpu_ms_per_item"], phase["peak_mib"]
    kinds = ("main", "workers", "postgres", "prefect")
    counted = [f"{phase[name]:,}" if name in phase else "" for name in ("items", "executed", "reused")]
    cells = [phase["phase"], f"{phase['seconds']:,}", *counted, f"{each['beside']:.3f}"]
    cells += [f"{each[kind]:.3f}" for kind in kinds] + [f"{peak[kind]:,}" for kind in kinds]
    return f"| {' | '.join(cells)} |"


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
