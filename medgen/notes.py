"""Notes of people on clips and videos: what they saw, and a flag. On record like every step, in the chain of records.

A note changes no verdict. The newest flag of an item is the one that stands; ``cleared`` ends it. A takedown blanks the
words of notes with those of the video.
"""

from typing import Literal, TypedDict, get_args

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import aliased

from medgen.catalog import ItemStatus, StepRun, now
from medgen.errors import ItemFailed
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work

NOTE = "note"  # the step
Flag = Literal["", "check", "wrong", "privacy", "licence", "cleared"]
FLAGS: tuple[str, ...] = get_args(Flag)
LONGEST = 10_000  # characters


class NoteDetail(TypedDict):
    """What a note puts on record; `message` is its text."""

    by: str
    message: str
    flag: str


def add_note(ledger: Ledger, subject: str, by: str, text: str, flag: Flag = "") -> Record:
    """Puts a note on record. The same note of the same person once more changes nothing.

    Args:
        subject: id of a clip or video.

    Raises:
        ItemFailed: bad_note: nobody's, empty, or too long.
    """
    by, text = by.strip(), text.strip()
    if not by or not (text or flag) or len(text) > LONGEST or len(by) > 200:
        raise ItemFailed("bad_note", f"a note needs who writes it, and a text of up to {LONGEST} characters or a flag")
    detail: NoteDetail = {"by": by, "message": text, "flag": flag}
    record, _ = ledger.once(
        StepIdentity(NOTE, 1, {}, {}),
        Work(subject, context={**detail, "day": now().date().isoformat()}),
        lambda: Outcome("kept", detail=detail),
    )
    return record


def flagged(flag: str) -> ColumnElement[bool]:
    """A condition on `ItemStatus`: the newest flag of the item is this one."""
    later = aliased(StepRun)
    newer = select(later.id).where(
        later.step == NOTE, later.subject == StepRun.subject, later.id > StepRun.id, ~later.superseded,
        later.detail["flag"].astext != "",
    )  # fmt: skip
    return ItemStatus.id.in_(
        select(StepRun.subject).where(
            StepRun.step == NOTE, ~StepRun.superseded, StepRun.detail["flag"].astext == flag, ~newer.exists()
        )
    )
