"""Releases on record: the one that is meant by a name, and whether it may be used."""

import re

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from medgen.among import PAGE
from medgen.catalog import Release, StepRun
from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from medgen.parameters import suggestion

APPROVE = "approve"  # the step by which a person approves a release
LATEST = "latest"


def awaits_approval(session: Session, release: Release) -> bool:
    """Whether a release's policy asks for an approval that it has not got."""
    if release.policy.get("approval", "none") == "none":
        return False
    approved = select(StepRun.id).where(
        StepRun.step == APPROVE, StepRun.subject == release.name, StepRun.status == "kept"
    )
    return session.scalar(approved.limit(1)) is None


def of_prefix(prefix: str) -> ColumnElement[bool]:
    """A condition on `Release`: its name is the prefix and the beginning of a digest."""
    return Release.name.regexp_match(f"^{re.escape(prefix)}-[0-9a-f]{{12}}$")


def named_release(ledger: Ledger, text: str) -> str:
    """The name of the release that is meant.

    Args:
        text: a name, ``latest`` for the newest release of all, or the first part of a name (`release_prefix`) for the
            newest that begins so. Those that await approval are passed over.

    Raises:
        ItemFailed: unknown_release, with the name that may be meant.
    """
    with Session(ledger.engine) as session:
        if session.get(Release, text) is not None:
            return text
        newest = select(Release).order_by(Release.created_at.desc(), Release.name)
        if text != LATEST:
            newest = newest.where(of_prefix(text))
        for release in session.scalars(newest.execution_options(yield_per=PAGE)):
            if not awaits_approval(session, release):
                return release.name
        if text == LATEST:
            raise ItemFailed("unknown_release", "there is no release to use yet: make one with `medgen refresh`")
        known = session.scalars(select(Release.name).order_by(Release.created_at.desc()).limit(PAGE)).all()
    meant = suggestion(text, tuple(known))
    raise ItemFailed("unknown_release", f"no release goes by {text[:200]!r}{meant}; see `medgen release list`")
