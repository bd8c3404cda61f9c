"""Shows what is on record of a model: what it was trained on, and how it was evaluated."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from apps.console import out

PARTS = {"trained_on": "trained on", "held_out": "held out", "quarantined": "left out"}


def print_model_history(facts: Mapping[str, Any]) -> None:
    """Prints the facts that `tasks.training.model_lineage.trained_by` gives."""
    out.print(f"[bold]{escape(facts['name'])}[/]  {escape(facts['kind'])}\n{facts['digest']}", highlight=False)
    out.print(f"release: {escape(facts['release'] or 'none')}, made {str(facts['created_at'])[:19]}", highlight=False)
    if facts["taken_down"]:
        out.print(f"[red]of its release these videos were taken down since:[/] {', '.join(facts['taken_down'])}")
    if step := facts["step"]:
        detail = step["detail"]
        figures = [
            f"{name} {detail[name]}" for name in ("preset", "steps", "held_out_loss", "psnr_db") if name in detail
        ]
        out.print(f"made by {step['name']}, code {step['code_version']}: {escape(', '.join(figures))}", soft_wrap=True)
    if base := facts["base"]:
        out.print(f"base: {escape(base['name'])} {base['digest'][:12]}", highlight=False)
    if facts["clips"]:
        counts = Counter(PARTS.get(clip["part"], clip["part"]) for clip in facts["clips"])
        table = Table("clip", "part", "video", "title", title=f"Clips: {dict(counts)}", title_justify="left")
        for clip in facts["clips"]:
            part = PARTS.get(clip["part"], clip["part"])
            table.add_row(clip["clip_id"], part, clip["video_id"], escape(clip["title"] or ""))
        out.print(table)
    if facts["evaluations"]:
        table = Table("metric", "value", title="Evaluations", title_justify="left")
        for row in facts["evaluations"]:
            table.add_row(escape(row["metric"]), f"{row['value']:.4g}")
        out.print(table)
