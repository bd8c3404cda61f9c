"""Which source goes by which name on record.

A source is known by its place: a path, or the URL of what lies elsewhere. What people call it, the name of a file or
the NAME in ``NAME=PATH``, is a label, and two sources may have the same. The first of a label goes by it; the next goes
by ``label (2)``, and keeps that name whatever is listed beside it later. So names hold no folders, which may name
people, and a release says the same on another machine.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from sqlalchemy import Engine, func, or_, select
from sqlalchemy.orm import Session

from medgen.among import among
from medgen.catalog import SourceIdentity, StepRun
from medgen.errors import SourceUnreadable
from medgen.listings.shards import KnownFiles, shards
from medgen.listings.sources import Feed

# Any number; all medgen processes must use the same one.
NAMING_LOCK = 0x736F75726365


def identified(engine: Engine, feeds: Sequence[Feed]) -> list[Feed]:
    """The same sources, in their order, under the names that they go by on record.

    Those that are new get names in an order of their own, so that the order in which they are given does not matter.
    A source that was moved keeps its name. It counts as moved when nothing is left at its old place, and the new one
    holds the same, or was recorded under that name before, or is called so by ``NAME=``.
    """
    with Session(engine) as session, session.begin():
        standing = [_standing(session, feed) for feed in feeds]
        if any(known is None or known.uri != feed.uri for known, feed in zip(standing, feeds, strict=True)):
            session.execute(select(func.pg_advisory_xact_lock(NAMING_LOCK)))
            session.expire_all()  # another process may have named them meanwhile
            for feed in sorted(set(feeds), key=lambda feed: (feed.label, feed.place)):
                _settle(session, KnownFiles(engine), feed)
            standing = [_standing(session, feed) for feed in feeds]
        return [replace(feed, name=known.name) for known, feed in zip(standing, feeds, strict=True) if known]


def _called(session: Session, label: str) -> list[SourceIdentity]:
    """All sources on record that are called so, or go by that name, in the order in which they came."""
    query = select(SourceIdentity).where(or_(SourceIdentity.label == label, SourceIdentity.name == label))
    return list(session.scalars(query.order_by(SourceIdentity.added_at, SourceIdentity.name)))


def _standing(session: Session, feed: Feed) -> SourceIdentity | None:
    """The source on record that a feed is, if any: by its place as it is written, else by where links lead."""
    alike = _called(session, feed.label)
    by_place = [known for known in alike if known.place == feed.place]
    return next(iter(by_place or [known for known in alike if _leads_to(known, feed)]), None)


def _leads_to(known: SourceIdentity, feed: Feed) -> bool:
    """Whether what is on record under another spelling of its place is the same file or folder."""
    if known.uri != feed.uri:
        return False
    return bool(feed.url) or known.place == known.uri or os.path.realpath(known.place) == feed.uri


def _settle(session: Session, files: KnownFiles, feed: Feed) -> None:
    """Puts on record which name a feed goes by, and where it lies now."""
    known = _standing(session, feed)
    if known is not None:
        known.uri = feed.uri  # a link may lead elsewhere by now
    elif moved := next((one for one in _called(session, feed.label) if _was_moved(session, files, one, feed)), None):
        moved.place, moved.uri = feed.place, feed.uri
    else:
        names = (feed.label if number == 1 else f"{feed.label} ({number})" for number in count(1))
        name = next(name for name in names if session.get(SourceIdentity, name) is None)
        session.add(SourceIdentity(name=name, label=feed.label, place=feed.place, uri=feed.uri))
    session.flush()


def _was_moved(session: Session, files: KnownFiles, known: SourceIdentity, feed: Feed) -> bool:
    """Whether a feed is the source on record, which lies elsewhere now."""
    if feed.url or not known.uri.startswith("/") or not (_is_gone(known.place) and _is_gone(known.uri)):
        return False
    if feed.named and feed.label == known.name:
        return True
    try:
        digests = [shard.digest for shard in shards(feed, files) if shard.digest]
    except (SourceUnreadable, OSError):
        digests = []  # listing it will say why
    read = select(StepRun.id).where(
        StepRun.step == "discover",
        StepRun.detail["source"].astext == known.name,
        or_(among(StepRun.context["digest"].astext, digests), StepRun.detail["uri"].astext == feed.uri),
    )
    return session.scalar(select(read.exists())) or False


def _is_gone(path: str) -> bool:
    """Whether there is nothing at a path. One that can't be looked at may be there."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
