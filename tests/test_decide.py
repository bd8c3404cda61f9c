"""Decide: thresholds on scores on record; the first check that fails is the reason, all are on record."""

from typing import Any

import pytest

from medgen.ledger import Outcome, Work
from medgen.settings import Settings
from medgen.store import Store
from tasks.curation.decide import DecideParams, decide

GOOD = {
    "short_side": 480.0, "words": 30.0, "overlay_words": 3.0,
    "overlay_share": 0.02, "imaging_words": 10.0, "aesthetic": 5.0,
    "technical": 40.0, "sharpness": 60.0, "freeze_share": 0.0, "black_share": 0.0, "flashes_per_s": 0.0,
    "combing": 0.0, "blockiness": 0.0, "noise": 1.0,
}  # fmt: skip
MOVING = {"mean_change": 5.0, "max_change": 9.0, "moving_fraction": 0.4}


@pytest.fixture
def store(tmp_path):
    return Store(Settings(home=tmp_path))


def decided(
    store: Store,
    scores: dict[str, float] | None = None,
    motion: dict[str, float] | None = None,
    border: tuple[str, bool] = ("none", False),
    **params: Any,
) -> Outcome:
    context = {
        "scores": GOOD | (scores or {}), "technical_lower_is_better": True, "aesthetic_lower_is_better": False,
        "motion": MOVING | (motion or {}), "camera": {}, "kind": border[0], "cropped": border[1],
    }  # fmt: skip
    return decide(Work("clip", context=context), store, DecideParams(**params))


def test_a_good_clip_is_kept_with_every_comparison_on_record(store):
    outcome = decided(store)
    assert outcome.status == "kept" and all(check["passed"] for check in outcome.detail["checks"])
    assert {check["metric"] for check in outcome.detail["checks"]} > GOOD.keys()


@pytest.mark.parametrize(
    ("scores", "reason", "metric", "threshold"),
    [
        ({"short_side": 479.0}, "resolution_too_low", "short_side", 480),
        ({"overlay_words": 21.0}, "overlay_text", "overlay_words", 20),
        ({"words": 1e7}, "overlay_text", "words", 1e6),
        ({"aesthetic": 0.4}, "poor_aesthetic", "aesthetic", 0.5),
        ({"technical": 95.5}, "poor_technical_quality", "technical", 95),  # lower is better
    ],
)
def test_a_rejection_names_score_and_threshold(store, scores, reason, metric, threshold):
    outcome = decided(store, scores)
    assert (outcome.status, outcome.reason) == ("rejected", reason)
    assert outcome.detail["metric"] == metric and outcome.detail["threshold"] == threshold
    assert outcome.detail["score"] == scores[metric]


def test_the_first_failure_in_the_order_of_the_funnel_is_the_reason_and_all_are_named(store):
    outcome = decided(store, {"noise": 1000.0, "overlay_words": 50.0, "short_side": 100.0})
    assert outcome.reason == "resolution_too_low"
    assert outcome.detail["all_reasons"] == ["noisy", "overlay_text", "resolution_too_low"]


def test_a_clip_must_be_mediocre_in_both_to_be_dropped_for_it(store):
    limits = {"mediocre_aesthetic": 4.0, "mediocre_technical": 60.0}
    assert decided(store, {"aesthetic": 3.0}, **limits).status == "kept"
    assert decided(store, {"technical": 70.0}, **limits).status == "kept"
    assert decided(store, {"aesthetic": 3.0, "technical": 70.0}, **limits).reason == "mediocre"


def test_borders_that_were_cropped_away_do_no_harm(store):
    assert decided(store, border=("letterbox", True)).status == "kept"
    assert decided(store, border=("letterbox", False)).reason == "border_not_croppable"
    assert decided(store, border=("letterbox", False), keep_uncropped_borders=True).status == "kept"


def test_a_still_picture_is_dropped(store):
    still = {"mean_change": 0.0, "max_change": 0.0, "moving_fraction": 0.0}
    assert decided(store, motion=still).reason == "still_picture"
