"""On what terms videos of a source are kept: legal basis, for how long, whom to ask. Stated by people, never guessed.

What was stated stays on record; the newest word on a source counts.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy import Engine, Select, func, select
from sqlalchemy.orm import Session

from medgen.catalog import Source, SourceTerms, Tombstone, Video, now
from medgen.errors import RunStopped

LONGEST = 2000  # characters of a statement
MOST_DAYS = 36_500
BATCH = 5000


class TermsUnusable(RunStopped):
    """There is no such source, or a statement is too long, empty or no line of text."""


def state_terms(
    engine: Engine, source: str, *, by: str, legal_basis: str, retain_days: int | None, contact: str = ""
) -> SourceTerms:
    """Puts on record on what terms videos of a source are kept.

    Args:
        by: who says so.
        retain_days: after a video was listed its retention ends; None: it has no end.

    Raises:
        TermsUnusable: names what is wrong.
    """
    for name, statement in (("legal basis", legal_basis), ("contact", contact), ("name of who states it", by)):
        if len(statement) > LONGEST or not statement.isprintable():
            raise TermsUnusable(f"the {name} must be one line of at most {LONGEST} characters")
    if not by.strip() or not legal_basis.strip():
        raise TermsUnusable("legal basis and who states it must be given")
    if retain_days is not None and not 1 <= retain_days <= MOST_DAYS:
        raise TermsUnusable(f"a retention of {retain_days} days is not between 1 and {MOST_DAYS}")
    with Session(engine, expire_on_commit=False) as session, session.begin():
        if session.get(Source, source) is None:
            raise TermsUnusable(f"there is no source {source[:80]!r}: `medgen source` lists them")
        terms = SourceTerms(
            source_name=source, legal_basis=legal_basis, retain_days=retain_days, contact=contact, stated_by=by,
            stated_at=now(),
        )  # fmt: skip
        session.add(terms)
    return terms


def terms_of(session: Session, source: str) -> list[SourceTerms]:
    """What was stated about a source, the newest, which counts, first."""
    return list(
        session.scalars(
            select(SourceTerms).where(SourceTerms.source_name == source).order_by(SourceTerms.id.desc()).limit(100)
        )
    )


def current_terms() -> Select[tuple[SourceTerms]]:
    """The word that counts on each source that there is one on."""
    newest = select(func.max(SourceTerms.id)).group_by(SourceTerms.source_name)
    return select(SourceTerms).where(SourceTerms.id.in_(newest))


def retention_ended(engine: Engine, at: datetime | None = None) -> Iterator[tuple[str, str, str]]:
    """(id, URL, source) of the videos whose retention has ended and that were not taken down, by source.

    Args:
        at: as if it were then.
    """
    at = at or now()
    with Session(engine) as session:
        limits = [
            (terms.source_name, at - timedelta(days=terms.retain_days))
            for terms in session.scalars(current_terms().order_by(SourceTerms.source_name))
            if terms.retain_days is not None
        ]
    for source, limit in limits:
        query = (
            select(Video.id, Video.url)
            .outerjoin(Tombstone, Tombstone.video_id == Video.id)
            .where(Video.source_name == source, Video.discovered_at < limit, Tombstone.video_id.is_(None))
            .order_by(Video.id)
        )
        with engine.connect() as connection:
            for row in connection.execution_options(yield_per=BATCH).execute(query):
                yield row.id, row.url, source
