"""Statistics of ratings: what must hold whatever the numbers are."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from models.metrics.rating_statistics import (
    DRAWS,
    bradley_terry,
    bradley_terry_samples,
    cohen_kappa,
    fleiss_interval,
    fleiss_kappa,
    ratio_interval,
)
from models.metrics.statistics import bootstrap_weights, percentile_interval

COUNTS = st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=12).map(np.array)


def test_fleiss_kappa_of_the_original_example() -> None:
    """Fleiss 1971 rated 30 patients; these are the 10 subjects by 14 raters that textbooks carry, κ = 0.210."""
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(np.array(counts)) == pytest.approx(0.20993, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.permutations(range(3)), st.randoms(use_true_random=False))
def test_fleiss_kappa_knows_no_order_of_items_or_categories(counts, order, random) -> None:
    kappa = fleiss_kappa(counts)
    shuffled = list(range(len(counts)))
    random.shuffle(shuffled)
    again = fleiss_kappa(counts[shuffled][:, list(order)])
    assert again == pytest.approx(kappa, nan_ok=True)
    assert math.isnan(kappa) or kappa <= 1 + 1e-12


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=20), st.integers(2, 6))
def test_perfect_agreement_is_one_and_one_category_is_not_defined(choices, raters) -> None:
    counts = np.eye(3)[choices] * raters
    expected = 1.0 if len(set(choices)) > 1 else math.nan
    assert fleiss_kappa(counts) == pytest.approx(expected, nan_ok=True)
    assert cohen_kappa(np.array(choices), np.array(choices)) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30), st.permutations(range(3)))
def test_cohen_kappa_is_scikit_learns_and_symmetric_and_knows_no_labels(pairs, names) -> None:
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    kappa = cohen_kappa(first, second)
    assert cohen_kappa(second, first) == pytest.approx(kappa, nan_ok=True)
    assert cohen_kappa(np.array(names)[first], np.array(names)[second]) == pytest.approx(kappa, nan_ok=True)
    if len({*first, *second}) > 1:
        assert kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=5), st.permutations(range(5)))
def test_bradley_terry_finds_the_strengths_behind_expected_wins(strengths, order) -> None:
    true = np.array(strengths) - np.mean(strengths)
    chance = 1 / (1 + np.exp(true[None] - true[:, None]))
    wins = 100 * chance * ~np.eye(len(true), dtype=bool)
    assert bradley_terry(wins, prior=0.0) == pytest.approx(true, abs=1e-6)
    place = [index for index in order if index < len(true)]
    assert bradley_terry(wins[np.ix_(place, place)], prior=0.0) == pytest.approx(true[place], abs=1e-6)
    # Beforehand wins pull towards equality and keep the order.
    pulled = bradley_terry(wins)
    assert abs(pulled).max() <= abs(true).max() + 1e-6
    assert all(pulled[a] > pulled[b] - 1e-6 for a in place for b in place if true[a] > true[b])


def test_bradley_terry_at_its_limits() -> None:
    assert np.isnan(bradley_terry(np.zeros((3, 3)))).all()  # nothing was compared
    apart = np.zeros((4, 4))
    apart[0, 1] = apart[2, 3] = 5  # two islands have no common scale
    assert np.isnan(bradley_terry(apart)).all()
    never_lost = np.array([[0.0, 9.0], [0.0, 0.0]])
    assert bradley_terry(never_lost) == pytest.approx([math.log(19) / 2, -math.log(19) / 2])
    # Of two systems it is the closed form: half the log of the odds.
    assert bradley_terry(np.array([[0, 30.0], [10.0, 0]]), prior=0.0) == pytest.approx(
        [math.log(3) / 2, -math.log(3) / 2]
    )
    # Hunter 2004: a chain 0 > 1 > 2 without direct games of 0 and 2 gives the same odds on both links.
    chain = np.array([[0, 3.0, 0], [1.0, 0, 3.0], [0, 1.0, 0]])
    assert np.diff(bradley_terry(chain, prior=0.0)) == pytest.approx([-math.log(3)] * 2)


def test_intervals_cover_and_are_the_same_twice() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        wins = (generator.random(60) < 0.3).astype(float)
        low, high = ratio_interval(wins, np.ones(60), bootstrap_weights(60, trial, 400))
        covered += low <= 0.3 <= high
    assert covered >= 175  # of 200, nominally 190
    weights = bootstrap_weights(12, 5, DRAWS)
    assert (weights == bootstrap_weights(12, 5, DRAWS)).all() and (weights.sum(1) == 12).all()
    counts = generator.multinomial(3, [0.5, 0.3, 0.2], size=12)
    low, high = fleiss_interval(counts, weights)
    assert low <= fleiss_kappa(counts) <= high
    assert all(math.isnan(edge) for edge in percentile_interval(np.array([np.nan])))
    per_prompt = np.zeros((12, 2, 2))
    per_prompt[:, 0, 1], per_prompt[:, 1, 0] = 2, 1
    assert bradley_terry_samples(per_prompt, weights)[:, 0] == pytest.approx(np.log(24.5 / 12.5) / 2)
