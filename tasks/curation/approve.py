"""Approve: a person says that a release may be used. On record like every step."""

from pathlib import Path

from sqlalchemy.orm import Session

from medgen.catalog import Release
from medgen.errors import ItemFailed
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.releases import APPROVE
from tasks.curation.release import RELEASE
from tasks.curation.release_files import materialize


def approve(ledger: Ledger, name: str, by: str, note: str = "") -> tuple[Record, Path]:
    """Puts the approval on record and lays the release out. Repeating it changes nothing.

    Raises:
        ItemFailed: unknown_release; no_approver when `by` is empty.
    """
    if not by.strip():
        raise ItemFailed("no_approver", "an approval needs the name of who approves")
    with Session(ledger.engine) as session:
        release = session.get(Release, name)
        if release is None:
            raise ItemFailed("unknown_release", f"no release goes by {name!r}; see `medgen release list`")
        run_id = release.step_run_id
    made = ledger.load([run_id])[run_id]
    identity = StepIdentity(APPROVE, 1, {}, {})
    work = Work(
        name, {"manifest": RELEASE.outputs(made)["manifest"]}, {"by": by.strip(), "note": note}, {"release": run_id}
    )
    outcome = Outcome("kept", detail={"by": by.strip(), "note": note})
    record, _ = ledger.once(identity, work, lambda: outcome)
    return record, materialize(ledger.store, name, RELEASE.outputs(made)["manifest"])
