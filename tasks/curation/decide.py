"""Decide: is a measured clip good enough? Pure arithmetic on scores on record: other thresholds decode nothing.

Order and rules follow the paper's funnel: resolution, borders, overlay text, aesthetics, technical quality, the joint
rule for clips that are mediocre in both; still pictures are dropped too (Panda-70M).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NotRequired, TypedDict, cast

from pydantic import Field

from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.parameters import MOST_PIXELS_A_SIDE, Parameters
from medgen.shard import Item, Past, Step
from medgen.store import Store
from models.quality.camera_motion import CameraPath
from models.quality.defects import (
    MAX_BLACK_SHARE,
    MAX_BLOCKINESS,
    MAX_COMBING,
    MAX_FLASHES_PER_S,
    MAX_FREEZE_SHARE,
    MAX_NOISE,
    MIN_SHARPNESS,
)
from models.quality.motion import STILL_BELOW, Motion, MotionType, is_panned_photograph, motion_type
from tasks.curation import thresholds
from tasks.curation.curation_step import CurationStep
from tasks.curation.cut import CUT
from tasks.curation.quality import QUALITY, CameraFacts, MotionFacts, QualityDetail, QualityParams, QualityScores


class DecideParams(Parameters):
    """Thresholds of decide. "At least" is on the better side whichever way a metric's scale runs.

    Parameters that name the metrics as well must set thresholds that lie on their scales.
    """

    min_short_side: float = Field(
        480, ge=0, le=MOST_PIXELS_A_SIDE, description="Short side of the picture, pixels (paper: 480)."
    )
    keep_uncropped_borders: bool = Field(False, description="Keep clips whose borders could not be cropped away.")
    max_words: float = Field(
        1e6, ge=0, le=1e6, description="Words of any kind over 5 frames: overlay, scene and device (paper: 20)."
    )
    max_overlay_words: float = Field(20, ge=0, le=1e6, description="Words of overlay text over 5 frames (paper: 20).")
    max_overlay_share: float = Field(0.15, ge=0, le=1, description="Part of the picture under overlay text, 0 to 1.")
    # A scale and settings are part of the picture; a whole menu is not.
    max_imaging_words: float = Field(100, ge=0, le=1e6, description="Words of the imaging device over 5 frames.")
    # The defaults are those of the offline metrics; `models.quality.scales` says why, and has others'.
    aesthetic_threshold: float = Field(
        0.5,
        ge=-1e6,
        le=1e6,
        description="Aesthetic score at least this good (entropy: 0.5; laion_aes: 3.0, the paper's).",
    )
    technical_threshold: float = Field(
        95.0, ge=-1e6, le=1e6, description="Technical score at least this good (piqe: 95; dover: 0.13)."
    )
    mediocre_aesthetic: float = Field(
        0.0, ge=-1e6, le=1e6, description="Joint rule: mediocre if worse in both (entropy: 0; laion_aes: 4.0)."
    )
    mediocre_technical: float = Field(
        95.0, ge=-1e6, le=1e6, description="Joint rule: mediocre if worse in both (piqe: 95; dover: 0.5)."
    )
    # Defects: the defaults drop no good medical video of the samples; docs/judgement.md has the table behind them.
    min_sharpness: float = Field(
        MIN_SHARPNESS, ge=0, le=1e6, description="Sharpest edges that fit into the short side."
    )
    max_freeze_share: float = Field(MAX_FREEZE_SHARE, ge=0, le=1, description="Part of the time in frozen pictures.")
    max_black_share: float = Field(MAX_BLACK_SHARE, ge=0, le=1, description="Part of the pictures that are black.")
    max_flashes_per_s: float = Field(
        MAX_FLASHES_PER_S, ge=0, le=1e6, description="Flashes per second (ITU-R BT.1702: 3)."
    )
    max_combing: float = Field(MAX_COMBING, ge=0, le=1, description="Part of the pixels combed by interlacing.")
    max_blockiness: float = Field(MAX_BLOCKINESS, ge=0, le=1e6, description="Steps at 8x8 blocks over steps elsewhere.")
    max_noise: float = Field(MAX_NOISE, ge=0, le=1e6, description="Noise in calm parts, grey levels.")
    drop_panned_photographs: bool = Field(True, description="Drop pans and zooms over one picture.")
    still_below: float = Field(STILL_BELOW, ge=0, le=1e6, description="Clips that move less are still pictures.")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that do not go together."""
        yield from super().conflicts()
        if isinstance(self, QualityParams):
            yield from thresholds.conflicts(self)

    @classmethod
    def conflict_schemas(cls) -> list[dict[str, Any]]:
        """The same as JSON schemas."""
        ours: list[dict[str, Any]] = (
            thresholds.conflict_schemas(cls.model_fields) if issubclass(cls, QualityParams) else []
        )
        return [*super().conflict_schemas(), *ours]


Side = Literal["at least", "at most", "more than"]


@dataclass(frozen=True)
class Check:
    """One comparison: a score, its threshold, the direction that passes, and the result."""

    reason: str
    metric: str
    score: float
    threshold: float
    passes_when: Side
    passed: bool


class CheckFacts(TypedDict):
    """The fields of `Check`."""

    reason: str
    metric: str
    score: float
    threshold: float
    passes_when: Side
    passed: bool


class DecideDetail(TypedDict):
    """What decide puts on record: every comparison; of a rejected clip the first that failed, and all reasons."""

    checks: list[CheckFacts]
    motion_type: MotionType
    metric: NotRequired[str]
    score: NotRequired[float]
    threshold: NotRequired[float]
    all_reasons: NotRequired[list[str]]


DECIDE: Handover[DecideDetail] = Handover("decide")


class DecideContext(TypedDict):
    """What decide sees of a clip."""

    scores: QualityScores
    technical_lower_is_better: bool
    aesthetic_lower_is_better: bool
    motion: MotionFacts
    camera: CameraFacts
    kind: str
    cropped: bool


@dataclass(frozen=True)
class Facts:
    """What decide must know of a clip beside its scores."""

    technical_lower_is_better: bool
    aesthetic_lower_is_better: bool
    motion: Motion
    camera: CameraPath
    uncropped_border: bool

    @classmethod
    def of(cls, measured: QualityDetail | DecideContext, *, border: str, cropped: bool) -> "Facts":
        """From quality's detail and what cut made of the borders."""
        return cls(
            measured["technical_lower_is_better"],
            measured["aesthetic_lower_is_better"],
            Motion(**measured["motion"]),
            CameraPath(**measured["camera"]),
            border != "none" and not cropped,
        )


def decide(work: Work, store: Store, params: DecideParams) -> Outcome:
    """Compares scores with thresholds. The first failed check is the reason; all are on record."""
    context = cast(DecideContext, work.context)
    facts = Facts.of(context, border=context["kind"], cropped=context["cropped"])
    compared = checks(context["scores"], facts, params)
    detail: DecideDetail = {
        "checks": [cast(CheckFacts, vars(check)) for check in compared],
        "motion_type": motion_type(facts.motion, facts.camera, params.still_below),
    }
    failed = [check for check in compared if not check.passed]
    if not failed:
        return Outcome("kept", detail=detail)
    first = failed[0]
    detail |= {"metric": first.metric, "score": first.score, "threshold": first.threshold}
    detail["all_reasons"] = sorted({check.reason for check in failed})
    return Outcome("rejected", first.reason, detail)


def checks(scores: QualityScores, facts: Facts, params: DecideParams) -> list[Check]:
    """Every comparison, in the order of the paper's funnel; the first that fails is the reason of a rejection."""
    technical, aesthetic = _side(facts.technical_lower_is_better), _side(facts.aesthetic_lower_is_better)
    uncropped = float(facts.uncropped_border and not params.keep_uncropped_borders)
    compared = [
        _check("resolution_too_low", "short_side", scores["short_side"], params.min_short_side, "at least"),
        _check("border_not_croppable", "uncropped_borders", uncropped, 0.0, "at most"),
        _check("overlay_text", "words", scores["words"], params.max_words, "at most"),
        _check("overlay_text", "overlay_words", scores["overlay_words"], params.max_overlay_words, "at most"),
        _check("overlay_text", "overlay_share", scores["overlay_share"], params.max_overlay_share, "at most"),
        _check("overlay_text", "imaging_words", scores["imaging_words"], params.max_imaging_words, "at most"),
        _check("poor_aesthetic", "aesthetic", scores["aesthetic"], params.aesthetic_threshold, aesthetic),
        _check("poor_technical_quality", "technical", scores["technical"], params.technical_threshold, technical),
    ]
    both = [
        _check("mediocre", "aesthetic", scores["aesthetic"], params.mediocre_aesthetic, aesthetic),
        _check("mediocre", "technical", scores["technical"], params.mediocre_technical, technical),
    ]
    if any(check.passed for check in both):  # a joint rule: failing one of the two is forgiven
        both = [replace(check, passed=True) for check in both]
    defects = [
        _check("blurred", "sharpness", scores["sharpness"], params.min_sharpness, "at least"),
        _check("frozen", "freeze_share", scores["freeze_share"], params.max_freeze_share, "at most"),
        _check("black", "black_share", scores["black_share"], params.max_black_share, "at most"),
        _check("flicker", "flashes_per_s", scores["flashes_per_s"], params.max_flashes_per_s, "at most"),
        _check("interlaced", "combing", scores["combing"], params.max_combing, "at most"),
        _check("blocky", "blockiness", scores["blockiness"], params.max_blockiness, "at most"),
        _check("noisy", "noise", scores["noise"], params.max_noise, "at most"),
    ]
    photograph = float(is_panned_photograph(facts.motion) and params.drop_panned_photographs)
    panned = _check("panned_photograph", "panned_photograph", photograph, 0.0, "at most")
    moving = facts.motion.moving_fraction
    still = _check("still_picture", "motion_moving_fraction", moving, params.still_below, "more than")
    if motion_type(facts.motion, facts.camera, params.still_below) != "still":
        still = replace(still, passed=True)
    return [*compared, still, panned, *defects, *both]


def _check(reason: str, metric: str, score: float, threshold: float, passes_when: Side) -> Check:
    passed = {
        "at least": score >= threshold,
        "at most": score <= threshold,
        "more than": score > threshold,
    }[passes_when]
    return Check(reason, metric, score, threshold, passes_when, passed)


def _side(lower_is_better: bool) -> Literal["at least", "at most"]:
    return "at most" if lower_is_better else "at least"


def step(params: DecideParams) -> Step:
    """Decide, ready to run."""
    return Step(
        StepIdentity("decide", 4, params.model_dump(mode="json"), {}),
        partial(decide, params=params),
        work_of=work_of,
        runs_in="inline",
    )


def work_of(item: Item, past: Past) -> Work:
    """The scores of a clip, and what must be known beside them."""
    measured, borders, scores = QUALITY.detail(past), CUT.detail(past)["borders"], QUALITY.scores(past)
    if inner := CUT.detail(past).get("inner"):  # a larger size given to a clip makes it no better
        scores = {**scores, "short_side": min(scores["short_side"], float(min(inner)))}
    context: DecideContext = {
        "scores": scores,
        "technical_lower_is_better": measured["technical_lower_is_better"],
        "aesthetic_lower_is_better": measured["aesthetic_lower_is_better"],
        "motion": measured["motion"],
        "camera": measured["camera"],
        "kind": borders["kind"],
        "cropped": borders["cropped"],
    }
    return Work(item.subject, context=context)


STEP = CurationStep("decide", DecideParams, step)
