"""`medgen show`."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from apps.console import Json, out, print_json, report_expected_errors
from apps.pictures_in_words import pictures_in_words


def show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Clip or video: id, its beginning, digest or URL. Model: name or digest."),
    ],
    as_json: Json = False,
) -> None:
    """Show the whole life of a clip or video, or of a model what trained it."""
    from apps.history import Unknown, history
    from apps.model_history import print_model_history
    from medgen.errors import ItemFailed
    from medgen.ledger import open_ledger
    from tasks.training.model_lineage import trained_by

    with report_expected_errors(Unknown):
        ledger = open_ledger()
        try:
            facts = history(ledger, name)
            print_facts: Callable[[Mapping[str, Any]], None] = print_history
        except Unknown as unknown:
            try:
                facts, print_facts = trained_by(ledger, name), print_model_history
            except ItemFailed as failure:
                raise (unknown if failure.reason == "unknown_model" else failure) from None
        if as_json:
            print_json(facts)
        else:
            print_facts(facts)


def print_history(history: Mapping[str, Any]) -> None:
    """Prints the history of a clip or video, as `apps.history.history` gives it."""
    from apps.history import verdict

    sentence = escape(verdict(history))
    lines = [f"[red]{sentence}[/]" if history["forgotten"] else sentence]
    if history["vanished"]:
        lines.append(f"[yellow]Vanished from its source, found {history['vanished'][:19]}.[/]")
    about = _about(history)
    out.print(Panel(Group(*lines, "", about), title=f"{history['kind']} {history['id']}", title_align="left"))
    steps = Table(title="Decisions", title_justify="left", show_lines=True)
    for column in ("step", "verdict", "scores and facts", "model and code"):
        steps.add_column(column, overflow="fold")
    for step in history["steps"]:
        steps.add_row(
            f"{step['step']} v{step['version']}\n[dim]{step['finished_at'][:19]}[/]",
            _verdict_cell(step),
            escape(_facts(step)),
            escape(_provenance(step)),
        )
    out.print(steps)
    for caption in history.get("captions", []):
        out.print(
            f"[bold]{caption['kind']} caption[/] [dim]by {escape(caption['model'])} {caption['prompt_version']}[/]"
        )
        out.print(escape(caption["text"]), "")
    if "clip" in history:
        out.print("releases:", ", ".join(r["name"] for r in history["releases"]) or "none")
        entered = {row["name"]: row["part"].replace("_", " ") for row in history["trained"]}
        names = {**dict.fromkeys(history["models"]), **entered}
        out.print("models:", ", ".join(f"{name} ({entered.get(name, 'by its release')})" for name in names) or "none")
    else:
        out.print("clips:", ", ".join(history["clips"]) or "none")


def _about(history: Mapping[str, Any]) -> Table:
    """Where the clip or video comes from."""
    video = history["video"]
    about = Table.grid(padding=(0, 2))
    for name, value in (
        ("title", video["title"]),
        ("url", video["url"]),
        ("channel", video["channel"]),
        ("licence", video["licence"] or "not stated by the source"),
        ("published", video["published"]),
        ("source", video["source_name"]),
        ("video", video["id"]),
    ):
        about.add_row(f"[dim]{name}[/]", escape(str(value or "–")))
    if clip := history.get("clip"):
        about.add_row("[dim]clip[/]", f"{clip['id']}  {clip['width']}x{clip['height']}  {clip['fps']:g} fps")
        about.add_row(
            "[dim]cut from[/]",
            f"{clip['start_s']:g} s to {clip['end_s']:g} s (frames {clip['start_frame']} to {clip['end_frame'] - 1})",
        )
        about.add_row("[dim]sha256[/]", clip["digest"])
    return about


def _verdict_cell(step: Mapping[str, Any]) -> str:
    colour = {"kept": "green", "rejected": "yellow", "failed": "red"}[step["status"]]
    lines = [f"[{colour}]{step['status']}[/]"]
    if step["reason"]:
        lines.append(escape(step["reason"]))
    if step["superseded"]:
        lines.append("[dim]superseded[/]")
    return "\n".join(lines)


def _facts(step: Mapping[str, Any]) -> str:
    lines = [f"{score['metric']} {score['value']:g}" for score in step["scores"]]
    if listed := step.get("listed"):
        lines.append(f"row {listed['row']}")
        if listed["terms"]:
            lines.append(f"words weigh {listed['word_score']:g}: {', '.join(listed['terms'][:10])}")
        if listed["text_probability"] is not None:
            lines.append(f"medical by its text: {listed['text_probability']:.2f}")
    detail = step["detail"]
    for check in detail.get("checks", []):
        mark = "ok" if check["passed"] else "NO"
        lines.append(f"{mark}  {check['metric']} {check['score']:g}, {check['passes_when']} {check['threshold']:g}")
    for name in (
        "message",
        "keyword_filter",
        "text_classifier",
        "word_filter",  # as records before version 0.2 have it
        "meaning_filter",
        "borders",
        "shots",
        "frames",
        "motion_type",
        "technical_model",
        "aesthetic_model",
    ):
        if detail.get(name) is not None:
            lines.append(f"{name}: {detail[name]}")
    if imported := detail.get("imported"):
        lines.append(f"row {imported['row']} of {imported['list']}, sha256 {imported['list_sha256']}")
        lines.append(f"file {imported['file']}, sha256 {imported['file_sha256']}")
        lines += [f"{kind} caption from {column}" for kind, column in detail.get("caption_columns", {}).items()]
    if step["step"] == "segment":
        lines += pictures_in_words(detail)
    if step["status"] == "rejected" and "score" in detail and "checks" not in detail:
        lines.append(f"{detail.get('metric', 'score')} {detail['score']:g}, threshold {detail['threshold']:g}")
    return "\n".join(lines)


def _provenance(step: Mapping[str, Any]) -> str:
    lines = [f"{role} {digest[:12]}" for role, digest in step["models"].items()]
    return "\n".join([*lines, f"code {step['code_version']}", f"record {step['record_hash'][:12]}"])
