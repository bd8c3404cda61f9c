"""`medgen models`."""

from rich.markup import escape
from rich.table import Table

from apps.console import Json, out, print_json, report_expected_errors

SHOWN = ("text_alignment", "medical_accuracy", "imaging_quality", "fvd")  # metrics that a line has room for


def models(as_json: Json = False) -> None:
    """List the models on record: what trained them, their loss on held-out clips, and how they were evaluated."""
    from medgen.ledger import open_ledger
    from tasks.training.model_list import model_rows

    with report_expected_errors():
        rows = model_rows(open_ledger())
        if as_json:
            print_json(rows)
            return
        if not rows:
            out.print("no model is on record yet: `medgen train` makes one")
            return
        table = Table("name", "release", "base", "steps", "clips", "held-out loss", "evaluated", "made")
        for row in rows:
            table.add_row(
                escape(row["name"]),
                escape(row["release"] or ""),
                escape(row["base_name"] or ""),
                _text(row["steps"]),
                _text(row["train_clips"]),
                "" if row["held_out_loss"] is None else f"{row['held_out_loss']:.4f}",
                escape(_evaluated(row["evaluations"])),
                row["created_at"][:16],
            )
        out.print(table)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _evaluated(values: dict[str, float]) -> str:
    """Some metrics by name, with their backbone left out, and how many more there are."""
    chosen = [name for name in values if name.partition("[")[0] in SHOWN]
    told = ", ".join(f"{name} {values[name]:.3g}" for name in chosen)
    more = len(values) - len(chosen)
    return told + (f"{', ' if told else ''}{more} more (--json)" if more else "")
