"""Shots: which video each shot of a storyboard gets, which are too weak to keep, and which are tried again.

A video is weak when it is a near copy of a training clip, was judged medically wrong, could not be measured, or scores
less than asked for. The weak shots get further seeds while the budget lasts; then the best that there is stands, with
its faults on record and in the checklist. A near copy never stands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field

from medgen.canonical import digest_of, rounded
from medgen.parameters import MOST_ITEMS, Parameters
from models.generation.prompt_set import Prompt
from models.metrics.terms import TERM_MEAN
from models.storyboards.storyboard import Storyboard
from tasks.evaluation.generate import Plan
from tasks.evaluation.leaderboard import metric_family, with_terms
from tasks.evaluation.measured import Measured
from tasks.evaluation.mllm_judge import ACCURACY

Fault = Literal["near_copy", "not_measured", "judged_wrong", "below_score"]
FAULTS: tuple[Fault, ...] = get_args(Fault)  # worst first


class ShotParams(Parameters):
    """Parameters of the choice of shots."""

    shot_attempts: int = Field(3, ge=1, le=1_000, description="Rounds in which a weak shot gets another video.")
    shot_budget: int = Field(
        0, ge=0, le=MOST_ITEMS, description="Most videos made for all shots together; 0: as the rounds need."
    )
    min_shot_score: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Mean of the measured terms (imaging quality, subject and background consistency, motion "
        "smoothness, medical accuracy) below which a shot is weak.",
    )
    against: str = Field(
        "",
        description="Release whose clips no shot may copy; empty: those that the model learned from, where on record.",
    )


@dataclass(frozen=True)
class Candidate:
    """A video of a shot.

    Args:
        shot: place in the storyboard, from 1.
        seed: that it was made with.
        score: mean of its measured terms, 0 to 1; None when none was measured.
        faults: why it is weak, worst first; none for a good one.
    """

    shot: int
    seed: int
    measured: Measured
    score: float | None
    faults: tuple[Fault, ...]

    @property
    def rank(self) -> tuple[int, float, int]:
        """The least is the best: by the worst fault, then by score, then the first made."""
        worst = min((FAULTS.index(fault) for fault in self.faults), default=len(FAULTS))
        return -worst, -(self.score or 0.0), self.seed


def shot_prompts(storyboard: Storyboard) -> dict[int, Prompt]:
    """Place of a shot, from 1 → its prompt."""
    return {
        place: Prompt(f"shot-{place:02}-{digest_of(shot.prompt)[:8]}", shot.prompt)
        for place, shot in enumerate(storyboard.shots, 1)
    }


def candidate(shot: int, seed: int, measured: Measured, params: ShotParams) -> Candidate:
    """A measured video with what is wrong with it."""
    scores = with_terms(measured.scores)
    score = rounded(scores[TERM_MEAN]) if TERM_MEAN in scores else None
    wrong = any(metric_family(name) == ACCURACY and value < 1 for name, value in measured.scores.items())
    found: dict[Fault, bool] = {
        "near_copy": bool(measured.nearest and measured.nearest.near_copy),
        "not_measured": score is None,
        "judged_wrong": wrong,
        "below_score": score is not None and score < params.min_shot_score,
    }
    return Candidate(shot, seed, measured, score, tuple(fault for fault in FAULTS if found[fault]))


def weak_shots(prompts: Mapping[int, Prompt], candidates: Sequence[Candidate]) -> list[int]:
    """Places of the shots that have no video without a fault."""
    good = {one.shot for one in candidates if not one.faults}
    return [place for place in prompts if place not in good]


def next_round(
    prompts: Mapping[int, Prompt], candidates: Sequence[Candidate], made: int, each: int, params: ShotParams
) -> list[int]:
    """Places of the shots that get further videos, as far as the budget goes.

    Args:
        made: videos so far.
        each: videos that each of them gets.
    """
    weak = weak_shots(prompts, candidates)
    return weak[: max(0, params.shot_budget - made) // each] if params.shot_budget else weak


def chosen(candidates: Sequence[Candidate]) -> dict[int, Candidate]:
    """Place of a shot → its best video. Near copies never stand: a shot that has nothing else is not in it."""
    usable = [one for one in candidates if "near_copy" not in one.faults]
    return {one.shot: one for one in sorted(usable, key=lambda one: one.rank, reverse=True)}


def training_releases(plan: Plan, against: str) -> list[str]:
    """Names of the releases that a model's videos are compared with.

    Args:
        against: as `ShotParams`.
    """
    if against:
        return [against]
    versions = (plan.version, *(version for _, version in plan.loras))
    return sorted({version.release_name for version in versions if version and version.release_name})
