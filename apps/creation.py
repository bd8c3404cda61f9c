"""`medgen creation`: list, show, approve, export."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, out, print_json, report_expected_errors, stop
from apps.create import print_statements

creation_app = typer.Typer(help="Look at videos made for a use, approve them, hand them out.", no_args_is_help=True)


@creation_app.command("list")
def creation_list(as_json: Json = False) -> None:
    """List all creations, newest first."""
    from medgen.ledger import open_ledger
    from tasks.creation.on_record import approved_names, creation_rows

    with report_expected_errors():
        ledger = open_ledger()
        rows = creation_rows(ledger)
        approved = approved_names(ledger)
        rows = [row | {"approved": row["name"] in approved} for row in rows]
        if as_json:
            print_json(rows)
            return
        table = Table()
        table.add_column(
            "name", no_wrap=True, min_width=max((len(row["name"]) for row in rows), default=0)
        )  # in one piece
        for column in ("topic", "language", "shots", "approved", "made"):
            table.add_column(column)
        for row in rows:
            shots = f"{row['made']} of {row['shots']}"
            yes = "yes" if row["approved"] else "no"
            table.add_row(row["name"], escape(row["topic"]), row["language"], shots, yes, f"{row['created_at']:%F %R}")
        out.print(table)


@creation_app.command("show")
def creation_show(name: str, as_json: Json = False) -> None:
    """Show a creation: its storyboard, scores, checklist and files."""
    from medgen.ledger import open_ledger
    from tasks.creation.lay_out import creations_folder
    from tasks.creation.on_record import approval_of, creation_on_record

    with report_expected_errors():
        ledger = open_ledger()
        creation = creation_on_record(ledger, name)
        approval = approval_of(ledger, creation)
        detail = approval.detail if approval else None
        folder = creations_folder() / creation.name
        if as_json:
            print_json({"name": creation.name, "approval": detail, "folder": str(folder), **creation.content})
            return
        board = creation.storyboard
        out.print(f"[bold]{escape(board.topic)}[/]  {creation.name}", highlight=False, soft_wrap=True)
        out.print(f"{escape(board.goal)} Words by {escape(board.writer)}.", highlight=False, soft_wrap=True)
        for row in creation.content["shots"]:
            score = row["chosen"]["score"] if row["chosen"] else None
            told = "left out" if not row["chosen"] else "not measured" if score is None else f"{score:.3f}"
            out.print(f" {row['place']}. {escape(row['title'])}: {escape(row['narration'])} ({told})", soft_wrap=True)
        print_statements([one["text"] for one in creation.content["statements"]], ticked=approval is not None)
        out.print(f"approved by {escape(detail['by'])}" if detail else "approved by nobody", highlight=False)
        out.print(f"folder: {escape(str(folder))}", soft_wrap=True, highlight=False)


@creation_app.command("approve")
def creation_approve(
    name: str,
    by: Annotated[str, typer.Option(help="Who approves.")],
    tick: Annotated[
        list[str], typer.Option(help="Number of a statement that you confirm; several: repeat; `all`: each of them.")
    ],
    note: Annotated[str, typer.Option(help="What was looked at, and by which sources.")] = "",
    as_json: Json = False,
) -> None:
    """Approve a video: each statement must be ticked. The finished video is laid out then, without the word draft."""
    from medgen.ledger import open_ledger
    from medgen.shard import close_pools
    from tasks.creation.approve import approve_creation, ticked_numbers

    with report_expected_errors():
        ledger = open_ledger()
        try:
            approved = approve_creation(ledger, name, by, ticked_numbers(ledger, name, tick), note)
        finally:
            close_pools()
        if as_json:
            facts = {"creation": approved.record.subject, "by": approved.record.detail["by"]}
            print_json(facts | {"video": str(approved.video), "step_run": approved.record.id})
            return
        who = escape(approved.record.detail["by"])
        out.print(
            f"{approved.record.subject} approved by {who}; it lies in {escape(str(approved.folder))}", soft_wrap=True
        )


@creation_app.command("export")
def creation_export(
    name: str,
    folder: Annotated[Path, typer.Argument(help="Where video, subtitles, page and facts go.")],
    draft: Annotated[bool, typer.Option(help="Hand out what nobody approved; its picture says so.")] = False,
    even_for_patients: Annotated[bool, typer.Option(help="With --draft: also of a use that patients see.")] = False,
    as_json: Json = False,
) -> None:
    """Hand out a video. One that nobody approved is refused."""
    from medgen.ledger import open_ledger
    from medgen.shard import close_pools
    from tasks.creation.approve import finish
    from tasks.creation.lay_out import hand_out
    from tasks.creation.on_record import approval_of, creation_on_record

    with report_expected_errors():
        if even_for_patients and not draft:
            stop("--even-for-patients goes with --draft")
        ledger = open_ledger()
        creation = creation_on_record(ledger, name)
        try:
            finished = finish(ledger, creation, approval_of(ledger, creation), flow_run_id=None)
        finally:
            close_pools()
        hand_out(ledger, creation, finished, folder, draft=draft, to_patients=even_for_patients)
        if as_json:
            print_json({"creation": creation.name, "approved": finished.approval is not None, "folder": str(folder)})
            return
        out.print(f"{creation.name} lies in {escape(str(folder))}", soft_wrap=True, highlight=False)
