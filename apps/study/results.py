"""What a study found: win rates, ranking, agreement, for all raters and for those who passed the attention checks.

Definitions, which an independent count must meet:

- A vote is one rater's answer on one rated pair and one axis. Attention checks are no votes.
- The win rate of a system is its wins over all votes on pairs that it is in; "both lose" and "equally good" count among
  the votes.
- Intervals come from drawing prompts with all their pairs and votes (see `models.metrics.statistics`): with two
  systems that is drawing pairs. They hold for other prompts of this kind, not for other raters.
- In the Bradley–Terry ranking "both lose" and "equally good" are half a win for each side, since they prefer neither.
- Fleiss' κ is over pairs that two or more raters answered, with the categories first, second, neither and both; Cohen's
  κ over the pairs that both raters answered.
- A rater is attentive who answered at least `MIN_CHECKS_RIGHT` of their attention checks rightly: the video that is
  not broken wins on visual quality. Who has answered no check yet counts as attentive.

Those of a study of errors stand in `apps.study.error_results`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from apps.study.error_results import over_errors
from apps.study.figures import cohen, difference, interval, number, share
from apps.study.ratings import Ratings
from medgen.catalog import StudyAnswer, StudyRater
from models.metrics import rating_statistics, statistics
from tasks.evaluation.study import AXES, CHOICES, ERRORS


def results(ratings: Ratings) -> dict[str, Any]:
    """Everything as JSON; numbers that are not defined are null. The same answers give the same numbers."""
    standing = [rater.number for rater in ratings.raters if rater.withdrawn_at is None]
    attentive = [rater for rater in standing if ratings.attentive(rater)]
    kinds = [pair.kind for pair in ratings.pairs.values()]
    over = over_errors if ratings.study.kind == ERRORS else _over
    return {
        "study": ratings.study.name,
        "kind": ratings.study.kind,
        "systems": list(ratings.study.systems),
        "pairs": kinds.count("rated"),
        "checks": kinds.count("check"),
        "interval": statistics.CONFIDENCE,
        "raters": [_rater(ratings, rater) for rater in ratings.raters],
        "all_raters": over(ratings, standing),
        "attentive_raters": over(ratings, attentive) if attentive != standing else None,
    }


def _rater(ratings: Ratings, rater: StudyRater) -> dict[str, Any]:
    mine = [answer for answer in ratings.answers if answer.rater == rater.number]
    seconds = [answer.seconds for answer in mine if answer.seconds is not None]
    right = ratings.checks_right(rater.number)
    left = [
        (getattr(answer, axis) == "second") == answer.swapped
        for answer in mine
        for axis in AXES
        if getattr(answer, axis) in ("first", "second") and ratings.pairs[answer.pair].kind == "rated"
    ]
    return {
        "rater": rater.number,
        "answered": len(mine),
        "of": len(ratings.pairs),
        "agreed": rater.consented_at is not None,
        "withdrawn": rater.withdrawn_at is not None,
        "checks_answered": len(right),
        "checks_failed": right.count(False),
        "attentive": ratings.attentive(rater.number),
        "median_seconds": float(np.median(seconds)) if seconds else None,
        "left_share": sum(left) / len(left) if left else None,  # near one half unless sides sway the rater
        "comments": sum(bool(answer.comment) for answer in mine),
    }


def _over(ratings: Ratings, raters: Sequence[int]) -> dict[str, Any]:
    """Results over some raters."""
    answers = [a for a in ratings.answers if a.rater in raters and ratings.pairs[a.pair].kind == "rated"]
    return {"raters": list(raters), "axes": {axis: _axis(ratings, answers, raters, axis) for axis in AXES}}


def _axis(ratings: Ratings, answers: Sequence[StudyAnswer], raters: Sequence[int], axis: str) -> dict[str, Any]:
    systems = list(ratings.study.systems)
    place = {system: index for index, system in enumerate(systems)}
    pairs = [pair for pair in ratings.pairs.values() if pair.kind == "rated"]
    row = {pair.number: index for index, pair in enumerate(pairs)}
    counts = np.zeros((len(pairs), len(CHOICES)))
    for answer in answers:
        counts[row[answer.pair], CHOICES.index(getattr(answer, axis))] += 1
    prompts = {text: index for index, text in enumerate(sorted({pair.prompt for pair in pairs}))}
    cluster = np.array([prompts[pair.prompt] for pair in pairs], int)
    weights = statistics.bootstrap_weights(len(prompts), ratings.study.seed, rating_statistics.DRAWS)
    sides = np.array([(place[pair.first_system], place[pair.second_system]) for pair in pairs], int)
    return {
        "votes": int(counts.sum()),
        "systems": [
            {"system": system, **_win_rate(counts, sides, place[system], cluster, weights)} for system in systems
        ],
        "both_lose": share(counts[:, 2], counts.sum(1), cluster, weights),
        "equally_good": share(counts[:, 3], counts.sum(1), cluster, weights),
        "head_to_head": [
            {"first": a, "second": b, **_head_to_head(counts, sides, (place[a], place[b]), cluster, weights)}
            for a, b in itertools.combinations(systems, 2)
            if ((sides == (place[a], place[b])).all(1)).any()
        ],
        "bradley_terry": _ranking(counts, sides, systems, cluster, weights),
        "fleiss_kappa": number(rating_statistics.fleiss_kappa(counts))
        | interval(rating_statistics.fleiss_interval(counts, weights[:, cluster])),
        "cohen_kappa": [{"raters": [a, b], **cohen(answers, a, b, axis)} for a, b in itertools.combinations(raters, 2)],
    }


def _win_rate(
    counts: np.ndarray, sides: np.ndarray, system: int, cluster: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    inside = (sides == system).any(1)
    won = np.where(sides[:, 0] == system, counts[:, 0], np.where(sides[:, 1] == system, counts[:, 1], 0.0))
    votes = counts.sum(1) * inside
    return {"wins": int(won.sum()), "votes": int(votes.sum()), "win_rate": share(won, votes, cluster, weights)}


def _head_to_head(
    counts: np.ndarray, sides: np.ndarray, two: tuple[int, int], cluster: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """Votes, and the pairs that most raters decided alike."""
    here = (sides == two).all(1)
    mine = counts * here[:, None]
    votes = mine.sum(1)
    most = mine[votes > 0]
    clear = most.argmax(1)[most.max(1) > most.sum(1) / 2] if len(most) else np.array([], int)
    return {
        "pairs": int((votes > 0).sum()),
        "votes": int(votes.sum()),
        "wins": [int(mine[:, 0].sum()), int(mine[:, 1].sum())],
        "both_lose": int(mine[:, 2].sum()),
        "equally_good": int(mine[:, 3].sum()),
        "first_win_rate": share(mine[:, 0], votes, cluster, weights),
        "second_win_rate": share(mine[:, 1], votes, cluster, weights),
        "lead": difference(mine[:, 0] - mine[:, 1], votes, cluster, weights),
        "majority": {choice: int((clear == index).sum()) for index, choice in enumerate(CHOICES)}
        | {"undecided": len(most) - len(clear)},
    }


def _ranking(
    counts: np.ndarray, sides: np.ndarray, systems: Sequence[str], cluster: np.ndarray, weights: np.ndarray
) -> list[dict[str, Any]]:
    """Best first: log strength, rank, and the chance to beat an average system."""
    wins = np.zeros((len(counts), len(systems), len(systems)))
    rows = np.arange(len(counts))
    undecided = counts[:, 2] + counts[:, 3]
    wins[rows, sides[:, 0], sides[:, 1]] = counts[:, 0] + undecided / 2
    wins[rows, sides[:, 1], sides[:, 0]] = counts[:, 1] + undecided / 2
    grouped = rating_statistics.per_cluster(cluster, wins, weights.shape[1])
    strengths = rating_statistics.bradley_terry(wins.sum(0))
    samples = rating_statistics.bradley_terry_samples(grouped, weights)
    ranks = (samples[:, None, :] > samples[:, :, None]).sum(2) + 1.0
    ranks[~np.isfinite(samples)] = np.nan
    order = sorted(range(len(systems)), key=lambda index: (-np.nan_to_num(strengths[index], nan=-1e9), index))
    listed = []
    for index in order:
        strength = float(strengths[index])
        known = math.isfinite(strength)
        low, high = statistics.percentile_interval(ranks[:, index])
        listed.append(
            {
                "system": systems[index],
                "rank": 1 + int((strengths > strength).sum()) if known else None,
                "rank_interval": [round(low), round(high)] if math.isfinite(low) else None,
                "log_strength": number(strength) | interval(statistics.percentile_interval(samples[:, index])),
                "beats_average": 1 / (1 + math.exp(-strength)) if known else None,
            }
        )
    return listed
