"""`medgen show`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from apps.console import Json, err, out, print_json, report_expected_errors
from apps.pictures_in_words import pictures_in_words

if TYPE_CHECKING:  # loaded when the command needs it
    from medgen.ledger import Ledger

MOST_ROWS = 20  # of listings that are shown
LOOK_S = 120.0  # how long listings are looked through for a URL


def show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Clip or video: id, its beginning, digest or URL. Model: name or digest."),
    ],
    every: Annotated[bool, typer.Option("--all", help="List every comparison, also those that were passed.")] = False,
    as_json: Json = False,
) -> None:
    """Show the whole life of a clip or video, or of a model what trained it."""
    with err.status("opening the records"):
        from apps.history import Unknown, history
        from apps.model_history import print_model_history
        from medgen.errors import ItemFailed
        from medgen.ledger import open_ledger
        from tasks.training.model_lineage import trained_by

    with report_expected_errors(Unknown):
        ledger = open_ledger()
        try:
            facts = history(ledger, name)
            print_facts: Callable[[Mapping[str, Any]], None] = partial(print_history, every=every)
        except Unknown as unknown:
            if "://" in name and (rows := _rows_of(ledger, name)):
                _show_rows(name, rows, as_json)
                return
            try:
                facts, print_facts = trained_by(ledger, name), print_model_history
            except ItemFailed as failure:
                raise (unknown if failure.reason == "unknown_model" else failure) from None
        if as_json:
            print_json(facts)
        else:
            print_facts(facts)


def _rows_of(ledger: "Ledger", url: str) -> list[dict[str, Any]]:
    """The rows of listings that name a URL, when no video came of it: words or meaning turned it down."""
    from tasks.curation.listed_rows import WantedRows, listed_rows

    return listed_rows(ledger, WantedRows(text=url), most=MOST_ROWS, seconds=LOOK_S).rows


def _show_rows(url: str, rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"kind": "listed", "url": url, "rows": rows})
        return
    table = Table(title="Listed, and no video came of it", title_justify="left", show_lines=True)
    for column in ("source and row", "title", "verdict", "why"):
        table.add_column(column, overflow="fold")
    for row in rows:
        why = [row["message"] or ""]
        for name, score, threshold in (
            ("words weigh", row["word_score"], row["keyword_threshold"]),
            ("medical by its text:", row["text_probability"], row["text_threshold"]),
        ):
            if score is not None:
                wanted = f", at least {threshold:g} is wanted" if threshold is not None else ""
                why.append(f"{name} {score:.2g}{wanted}")
        verdict = "\n".join(filter(None, (row["status"], row["reason"])))
        where = f"{row['source']} row {row['row']}\n[dim]step run {row['step_run_id']}[/]"
        table.add_row(where, escape(row["title"] or "–"), escape(verdict), escape("\n".join(filter(None, why))))
    out.print(table)


def print_history(history: Mapping[str, Any], *, every: bool = False) -> None:
    """Prints the history of a clip or video, as `apps.history.history` gives it.

    Args:
        every: list all comparisons; else those that were passed are one line, which names the closest call.
    """
    from apps.history import verdict

    sentence = escape(verdict(history))
    lines = [f"[red]{sentence}[/]" if history["forgotten"] else sentence]
    if history["vanished"]:
        lines.append(f"[yellow]Vanished from its source, found {history['vanished'][:19]}.[/]")
    about = _about(history)
    out.print(
        Panel(
            Group(*lines, "", about),
            title=f"{history['kind']} {history['id']}",
            title_align="left",
            expand=out.is_terminal,
        )
    )
    steps = Table(title="Decisions", title_justify="left", show_lines=True)
    for column in ("step", "verdict", "scores and facts", "model and code"):
        steps.add_column(column, overflow="fold")
    for step in history["steps"]:
        steps.add_row(
            f"{step['step']} v{step['version']}\n[dim]{step['finished_at'][:19]}[/]",
            _verdict_cell(step),
            escape(_facts(step, every)),
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
    about.add_column(no_wrap=True)
    about.add_column(overflow="fold")
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


def _facts(step: Mapping[str, Any], every: bool) -> str:
    checks = step["detail"].get("checks", [])
    compared = {check["metric"] for check in checks}  # whose scores stand in the comparison
    lines = [f"{score['metric']} {score['value']:g}" for score in step["scores"] if score["metric"] not in compared]
    if listed := step.get("listed"):
        lines.append(f"row {listed['row']}")
        if listed["terms"]:
            lines.append(f"words weigh {listed['word_score']:g}: {', '.join(listed['terms'][:10])}")
        if listed["text_probability"] is not None:
            lines.append(f"medical by its text: {listed['text_probability']:.2f}")
    detail = step["detail"]
    lines += _checks(checks, every)
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
            lines.append(f"{name}: {_plainly(detail[name])}")
    if imported := detail.get("imported"):
        lines.append(f"row {imported['row']} of {imported['list']}, sha256 {imported['list_sha256']}")
        lines.append(f"file {imported['file']}, sha256 {imported['file_sha256']}")
        lines += [f"{kind} caption from {column}" for kind, column in detail.get("caption_columns", {}).items()]
    if step["step"] == "segment":
        lines += pictures_in_words(detail)
    if step["status"] == "rejected" and "score" in detail and "checks" not in detail:
        lines.append(f"{detail.get('metric', 'score')} {detail['score']:g}, threshold {detail['threshold']:g}")
    return "\n".join(lines)


def _checks(checks: Sequence[Mapping[str, Any]], every: bool) -> list[str]:
    """Comparisons with thresholds: those that failed, and of those that passed the number and the closest call."""
    passed = [check for check in checks if check["passed"]]
    if every or len(passed) < 2:
        return [_check(check) for check in checks]
    failed = [_check(check) for check in checks if not check["passed"]]
    closest = min(passed, key=_room)
    return [*failed, f"ok  {len(passed)} comparisons passed, the closest: {_check(closest).removeprefix('ok  ')}"]


def _check(check: Mapping[str, Any]) -> str:
    mark = "ok" if check["passed"] else "NO"
    return f"{mark}  {check['metric']} {check['score']:g}, {check['passes_when']} {check['threshold']:g}"


def _room(check: Mapping[str, Any]) -> float:
    """How far a score is from its threshold, as a share of the larger of the two, 0 to 2; of what is 0 or 1 against 0
    or 1, such as flags, 1: there is no middle."""
    score, threshold = check["score"], check["threshold"]
    if {score, threshold} <= {0, 1}:
        return 1.0
    return float(abs(score - threshold) / max(abs(score), abs(threshold)))


def _plainly(value: Any) -> str:
    """A fact as people read it: of several the names and values, without those that say nothing."""
    if isinstance(value, Mapping):
        said = {name: item for name, item in value.items() if item not in (None, False, "none", "", [], {})}
        return ", ".join(f"{name.replace('_', ' ')} {_plainly(item)}" for name, item in said.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plainly, value)) or "none"
    return "yes" if value is True else str(value)


def _provenance(step: Mapping[str, Any]) -> str:
    lines = [f"{role} {digest[:12]}" for role, digest in step["models"].items()]
    return "\n".join([*lines, f"code {step['code_version']}", f"record {step['record_hash'][:12]}"])
