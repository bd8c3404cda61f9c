"""`medgen retry`."""

from typing import Annotated

import typer

from apps.console import Json, out, print_json, report_expected_errors, stop


def retry(
    reason: Annotated[str, typer.Option(help="Why they failed, as `medgen status` says.")],
    step: Annotated[str, typer.Option(help="Only failures of this step.")] = "",
    as_json: Json = False,
) -> None:
    """Have the next run try items again that failed for good for a reason. Rejected ones it leaves: set a threshold."""
    from sqlalchemy.orm import Session

    from medgen.counted import counted
    from medgen.ledger import open_ledger
    from medgen.parameters import suggestion
    from medgen.retries import request_retry
    from tasks.operations.failures import failures

    with report_expected_errors():
        ledger = open_ledger()
        with Session(ledger.engine) as session, session.begin():
            count = request_retry(session, reason, step)
        if not count:
            known = sorted({entry["reason"] for entry in failures(ledger)})
            among = f" in the step {step}" if step else ""
            listed = f"; failures on record: {', '.join(known)}" if known else "; no failure is on record"
            stop(f"nothing failed with {reason!r}{among}{suggestion(reason, tuple(known)) or listed}")
        if as_json:
            print_json({"reason": reason, "step": step, "items": count})
            return
        out.print(f"{counted(count, 'item')} that failed with {reason}: the next run tries them again", highlight=False)
