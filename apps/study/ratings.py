"""All that raters said in a study, as it is on record."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from medgen.catalog import Study, StudyAnswer, StudyPair, StudyRater
from medgen.errors import RunStopped
from models.metrics.mllm_judge import ERROR_FROM
from tasks.evaluation.study import ERRORS

MIN_CHECKS_RIGHT = 0.8
CHECKED_AXIS = "visual_quality"


@dataclass(frozen=True)
class Ratings:
    """All that is on record of a study."""

    study: Study
    pairs: dict[int, StudyPair]
    raters: Sequence[StudyRater]
    answers: Sequence[StudyAnswer]

    def checks_right(self, rater: int) -> list[bool]:
        """Whether each attention check that the rater answered was answered rightly."""
        return [
            (
                (answer.error_level or 0) >= ERROR_FROM
                if self.study.kind == ERRORS
                else getattr(answer, CHECKED_AXIS) == self.pairs[answer.pair].expected
            )
            for answer in self.answers
            if answer.rater == rater and self.pairs[answer.pair].kind == "check"
        ]

    def attentive(self, rater: int) -> bool:
        """See above."""
        right = self.checks_right(rater)
        return not right or sum(right) >= MIN_CHECKS_RIGHT * len(right)


def read_ratings(engine: Engine, name: str) -> Ratings:
    """The ratings of a study as they stand now. Raises RunStopped when there is no such study."""
    with Session(engine) as session:
        study = session.get(Study, name)
        if study is None:
            raise RunStopped(f"no study goes by {name[:80]!r}; see `medgen study list`")
        pairs = session.scalars(select(StudyPair).where(StudyPair.study_name == name).order_by(StudyPair.number))
        raters = session.scalars(select(StudyRater).where(StudyRater.study_name == name).order_by(StudyRater.number))
        answers = session.scalars(
            select(StudyAnswer).where(StudyAnswer.study_name == name).order_by(StudyAnswer.rater, StudyAnswer.pair)
        )
        ratings = Ratings(study, {pair.number: pair for pair in pairs}, raters.all(), answers.all())
        session.expunge_all()
    return ratings
