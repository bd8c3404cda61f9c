"""What the pages read and write: a rater by token, their pairs in their order, their answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from medgen.catalog import Study, StudyAnswer, StudyPair, StudyRater, now
from tasks.evaluation.study import AXES, ERRORS, LEVEL, LEVELS, token_digest

SIDES = ("left", "right", "neither", "both")  # what a rater of pairs chooses
LEVEL_CHOICES = tuple(map(str, range(LEVELS)))  # what a rater of errors chooses
MAX_COMMENT = 2000  # characters
MAX_TOKEN = 100
MAX_SECONDS = 86_400.0


@dataclass(frozen=True)
class Rater:
    """A rater as their pages know them. Positions count from 1, in the rater's own order."""

    study: str
    kind: str
    number: int
    consent: str
    consented: bool
    pairs: tuple[int, ...]
    swapped: tuple[bool, ...]
    answered: frozenset[int]  # positions

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Question → what may be chosen, in the order of the page."""
        return {LEVEL: LEVEL_CHOICES} if self.kind == ERRORS else dict.fromkeys(AXES, SIDES)

    @property
    def total(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    @property
    def next(self) -> int | None:
        """First position without an answer; None when all are answered."""
        return next((p for p in range(1, self.total + 1) if p not in self.answered), None)

    @property
    def reachable(self) -> int:
        """Last position that may be opened: the first without an answer, or the last of all."""
        return self.next or self.total


@dataclass(frozen=True)
class Given:
    """An answer in terms of the screen: question → what was chosen, and the comment."""

    sides: Mapping[str, str]
    comment: str


def rater_of(engine: Engine, study: str, token: str) -> Rater | None:
    """The rater of this study who holds the token."""
    if not 0 < len(token) <= MAX_TOKEN or not token.isascii():
        return None
    with Session(engine) as session:
        row = session.execute(
            select(StudyRater, Study.consent, Study.kind)
            .join(Study, Study.name == StudyRater.study_name)
            .where(StudyRater.token_sha256 == token_digest(token), StudyRater.study_name == study)
            .where(StudyRater.withdrawn_at.is_(None))
        ).first()
        if row is None:
            return None
        rater, consent, kind = row
        mine = select(StudyAnswer.pair).where(StudyAnswer.study_name == study, StudyAnswer.rater == rater.number)
        done = set(session.scalars(mine))
        pairs = tuple(rater.showing["pairs"])
        return Rater(
            study, kind, rater.number, consent, rater.consented_at is not None, pairs, tuple(rater.showing["swapped"]),
            frozenset(position for position, pair in enumerate(pairs, 1) if pair in done),
        )  # fmt: skip


def agree(engine: Engine, rater: Rater) -> None:
    """Puts on record that the rater consents. The first time stands."""
    with Session(engine) as session, session.begin():
        session.execute(
            update(StudyRater)
            .where(StudyRater.study_name == rater.study, StudyRater.number == rater.number)
            .where(StudyRater.consented_at.is_(None))
            .values(consented_at=now())
        )


def prompt_at(engine: Engine, rater: Rater, position: int) -> str:
    """The prompt of the pair at a position."""
    with Session(engine) as session:
        return session.get_one(StudyPair, (rater.study, rater.pairs[position - 1])).prompt


def video_at(engine: Engine, rater: Rater, position: int, side: str) -> str:
    """sha256 of the video that the rater sees on that side."""
    with Session(engine) as session:
        pair = session.get_one(StudyPair, (rater.study, rater.pairs[position - 1]))
        second = (side == "right") != rater.swapped[position - 1]
        return pair.second_sha256 if second else pair.first_sha256


def answer_at(engine: Engine, rater: Rater, position: int) -> Given | None:
    """What this rater answered at a position."""
    with Session(engine) as session:
        row = session.get(StudyAnswer, (rater.study, rater.number, rater.pairs[position - 1]))
        if row is None:
            return None
        if rater.kind == ERRORS:
            return Given({LEVEL: str(row.error_level)}, row.comment)
        return Given({axis: _turned(getattr(row, axis), row.swapped) for axis in AXES}, row.comment)


def save(engine: Engine, rater: Rater, position: int, given: Given, seconds: float | None) -> None:
    """Writes an answer. The same answer again changes nothing; another one revises it, and the count says so."""
    swapped = rater.swapped[position - 1]
    chosen: dict[str, Any] = (
        {LEVEL: int(given.sides[LEVEL])}
        if rater.kind == ERRORS
        else {axis: _turned(side, swapped) for axis, side in given.sides.items()}
    )
    chosen["comment"] = given.comment
    key = {"study_name": rater.study, "rater": rater.number, "pair": rater.pairs[position - 1]}
    row = insert(StudyAnswer).values(
        **key, **chosen, swapped=swapped, seconds=seconds, revisions=0, answered_at=now(), revised_at=None
    )
    changed = [getattr(StudyAnswer, name).is_distinct_from(value) for name, value in chosen.items()]
    with Session(engine) as session, session.begin():
        # A rater who withdraws at this moment has the last word.
        standing = session.scalar(
            select(func.count())
            .select_from(StudyRater)
            .where(StudyRater.study_name == rater.study, StudyRater.number == rater.number)
            .where(StudyRater.withdrawn_at.is_(None))
        )
        if standing:
            session.execute(
                row.on_conflict_do_update(
                    index_elements=list(key),
                    set_=chosen | {"revisions": StudyAnswer.revisions + 1, "revised_at": now()},
                    where=or_(*changed),
                )
            )


def _turned(choice: str, swapped: bool) -> str:
    """left and right to first and second, and back."""
    there = {"left": "second", "right": "first"} if swapped else {"left": "first", "right": "second"}
    return (there | {there[side]: side for side in there} | {"neither": "neither", "both": "both"})[choice]
