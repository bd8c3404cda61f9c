"""Decide: is a measured clip good enough? Pure arithmetic on scores on record: other thresholds decode nothing.

Order and rules follow the paper's funnel: resolution, borders, overlay text, aesthetics, technical quality, the joint
rule for clips that are mediocre in both; still pictures are dropped too (Panda-70M).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.shard import Item, ShardResult, Step
from medgen.store import Store
from models.motion import STILL_BELOW, Motion, motion_type
from tasks.prefect_step import run_in_prefect, step_task


class DecideParams(BaseModel):
    """Thresholds of decide. "At least" is on the better side whichever way a metric's scale runs."""

    model_config = ConfigDict(frozen=True)

    min_short_side: float = Field(480, ge=0, description="Short side of the picture, pixels (paper: 480).")
    keep_uncropped_borders: bool = Field(False, description="Keep clips whose borders could not be cropped away.")
    max_overlay_words: float = Field(20, ge=0, description="Words of overlay text over 5 frames (paper: 20).")
    # The defaults fit the offline metrics, which only tell empty or structureless pictures: 95 and 0.5 dropped
    # nothing else among 54 real videos. With laion_aes and DOVER use the paper's numbers.
    aesthetic_threshold: float = Field(0.5, description="Aesthetic score at least this good (paper, LAION: 3.0).")
    technical_threshold: float = Field(95.0, description="Technical score at least this good.")
    mediocre_aesthetic: float = Field(0.0, description="Joint rule: mediocre if worse (paper, LAION: 4.0).")
    mediocre_technical: float = Field(95.0, description="Joint rule: mediocre if worse, in both.")
    still_below: float = Field(STILL_BELOW, ge=0, description="Clips that move less are still pictures.")


@dataclass(frozen=True)
class Check:
    """One comparison: a score, its threshold, the direction that passes, and the result."""

    reason: str
    metric: str
    score: float
    threshold: float
    passes_when: Literal["at least", "at most", "more than"]

    @property
    def passed(self) -> bool:
        """Whether the score is on the passing side."""
        if self.passes_when == "at least":
            return self.score >= self.threshold
        return self.score <= self.threshold if self.passes_when == "at most" else self.score > self.threshold


def decide(work: Work, store: Store, params: DecideParams) -> Outcome:
    """Compares scores with thresholds. The first failed check is the reason; all are on record."""
    scores, facts = work.context["scores"], work.context["facts"]
    technical = _side(facts["technical_lower_is_better"])
    aesthetic = _side(facts["aesthetic_lower_is_better"])
    motion = Motion(**work.context["motion"])
    uncropped = facts["border"] != "none" and not facts["cropped"] and not params.keep_uncropped_borders
    checks = [
        Check("resolution_too_low", "short_side", scores["short_side"], params.min_short_side, "at least"),
        Check("border_not_croppable", "uncropped_borders", float(uncropped), 0.0, "at most"),
        Check("overlay_text", "overlay_words", scores["overlay_words"], params.max_overlay_words, "at most"),
        Check("poor_aesthetic", "aesthetic", scores["aesthetic"], params.aesthetic_threshold, aesthetic),
        Check("poor_technical_quality", "technical", scores["technical"], params.technical_threshold, technical),
    ]
    mediocre = [
        Check("mediocre", "aesthetic", scores["aesthetic"], params.mediocre_aesthetic, aesthetic),
        Check("mediocre", "technical", scores["technical"], params.mediocre_technical, technical),
    ]
    failed = [check for check in checks if not check.passed]
    if not any(check.passed for check in mediocre):
        failed += mediocre
    kind = motion_type(motion, params.still_below)
    if kind == "still":
        failed.append(
            Check("still_picture", "motion_moving_fraction", motion.moving_fraction, params.still_below, "more than")
        )
    detail: dict[str, Any] = {
        "checks": [vars(check) | {"passed": check.passed} for check in (*checks, *mediocre)],
        "motion_type": kind,
    }
    if not failed:
        return Outcome("kept", detail=detail)
    first = failed[0]
    detail |= {"metric": first.metric, "score": first.score, "threshold": first.threshold}
    detail["all_reasons"] = sorted({check.reason for check in failed})
    return Outcome("rejected", first.reason, detail)


def _side(lower_is_better: bool) -> Literal["at least", "at most"]:
    return "at most" if lower_is_better else "at least"


def step(params: DecideParams) -> Step:
    """Decide, ready to run."""
    identity = StepIdentity("decide", 1, params.model_dump(mode="json"), {})
    return Step(identity, partial(decide, params=params), "inline")


def _work(item: Item, past: Mapping[str, Record]) -> Work:
    measured, borders = past["quality"], past["cut"].detail["borders"]
    facts = {name: measured.detail[name] for name in ("technical_lower_is_better", "aesthetic_lower_is_better")}
    return Work(
        item.subject,
        context={
            "scores": measured.scores,
            "motion": measured.detail["motion"],
            "facts": facts | {"border": borders["kind"], "cropped": borders["cropped"]},
        },
    )


@step_task("decide", "cpu")
def decide_shard(
    label: str, upstream: ShardResult, params: DecideParams, retry_quarantined: bool = False
) -> ShardResult:
    """Decides on a shard of clips."""
    return run_in_prefect(step(params), upstream.kept, _work, retry_quarantined=retry_quarantined)
