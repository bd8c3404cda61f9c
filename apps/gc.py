"""`medgen gc`."""

from typing import Annotated

import typer

from apps.console import Json, finite, out, print_json, report_expected_errors


def gc(
    grace_minutes: Annotated[
        float, typer.Option(callback=finite, help="Leave what is younger: work may be in progress.")
    ] = 60.0,
    dry_run: Annotated[bool, typer.Option(help="Only count.")] = False,
    as_json: Json = False,
) -> None:
    """Sweep what killed runs left: objects without a record, scratch files. Finish takedowns that were cut short."""
    from medgen.gc import collect_garbage
    from medgen.ledger import open_ledger
    from tasks.operations.takedown import finish

    with report_expected_errors():
        ledger = open_ledger()
        finished = [] if dry_run else finish(ledger)
        if finished and not as_json:
            out.print(f"finished the takedown of {', '.join(takedown.video_id for takedown in finished)}")
        swept = collect_garbage(ledger, grace_s=60 * grace_minutes, dry_run=dry_run)
        if as_json:
            print_json(vars(swept))
        else:
            word = "would remove" if dry_run else "removed"
            out.print(f"{word} {swept.objects} objects and {swept.scratch_files} scratch files, {swept.bytes} bytes")
