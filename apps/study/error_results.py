"""What a study of errors found: the share of wrong videos of each system, by majority, and how far raters agree.

Definitions, which an independent count must meet:

- A video is wrong when more than half of those who rated it gave it the level `ERROR_FROM` or more: with three raters,
  two of three, as in the paper (arXiv 2507.05675), which counts videos so ("WE") but does not print its levels. So the
  shares from every level on are given too. Videos with fewer than two ratings don't count.
- Intervals come from drawing prompts with all their videos: they hold for other prompts of this kind, not for other
  raters.
- Fleiss' κ is over videos with two ratings or more, once with the four levels as categories, once with right and wrong.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from apps.study.figures import cohen, difference, interval, number, share
from apps.study.ratings import Ratings
from models.metrics import rating_statistics, statistics
from models.metrics.mllm_judge import ERROR_FROM
from tasks.evaluation.study import LEVEL, LEVELS

LEAST_RATINGS = 2


def over_errors(ratings: Ratings, raters: Sequence[int]) -> dict[str, Any]:
    """Results over some raters, as JSON; numbers that are not defined are null."""
    answers = [a for a in ratings.answers if a.rater in raters and ratings.pairs[a.pair].kind == "rated"]
    videos = [video for video in ratings.pairs.values() if video.kind == "rated"]
    place = {video.number: at for at, video in enumerate(videos)}
    counts = np.zeros((len(videos), LEVELS))
    for answer in answers:
        counts[place[answer.pair], int(answer.error_level or 0)] += 1
    prompts = {text: at for at, text in enumerate(sorted({video.prompt for video in videos}))}
    cluster = np.array([prompts[video.prompt] for video in videos], int)
    weights = statistics.bootstrap_weights(len(prompts), ratings.study.seed, rating_statistics.DRAWS)
    judged = counts.sum(1) >= LEAST_RATINGS
    wrong = {level: judged & (counts[:, level:].sum(1) > counts.sum(1) / 2) for level in range(1, LEVELS)}
    systems = list(ratings.study.systems)
    mine = {system: np.array([video.first_system == system for video in videos]) for system in systems}
    both = np.stack([counts[:, :ERROR_FROM].sum(1), counts[:, ERROR_FROM:].sum(1)], axis=1)

    def of(system: str) -> dict[str, Any]:
        here = judged & mine[system]
        return {
            "system": system,
            "videos": int(here.sum()),
            "wrong": int((wrong[ERROR_FROM] & here).sum()),
            "error_share": share(wrong[ERROR_FROM] & here, here, cluster, weights),
            "share_from": {str(level): share(bad & here, here, cluster, weights) for level, bad in wrong.items()},
            "levels": [int(each) for each in (counts * mine[system][:, None]).sum(0)],
        }

    return {
        "raters": list(raters),
        "votes": int(counts.sum()),
        LEVEL: {"wrong_from": ERROR_FROM, "levels": LEVELS},
        "systems": [of(system) for system in systems],
        "differences": [
            {
                "first": a,
                "second": b,
                "difference": _lead(wrong[ERROR_FROM], judged & mine[a], judged & mine[b], cluster, weights),
            }
            for a, b in itertools.combinations(systems, 2)
        ],
        "fleiss_kappa": number(rating_statistics.fleiss_kappa(both))
        | interval(rating_statistics.fleiss_interval(both, weights[:, cluster])),
        "fleiss_kappa_levels": number(rating_statistics.fleiss_kappa(counts))
        | interval(rating_statistics.fleiss_interval(counts, weights[:, cluster])),
        "cohen_kappa": [
            {"raters": [a, b], **cohen(answers, a, b, LEVEL)} for a, b in itertools.combinations(raters, 2)
        ],
    }


def _lead(
    wrong: np.ndarray, first: np.ndarray, second: np.ndarray, cluster: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """Share of wrong videos of the first system less that of the second, over prompts of which both were judged."""
    clusters = weights.shape[1]
    sums = [rating_statistics.per_cluster(cluster, rows * 1.0, clusters) for rows in (first, second)]
    common = (np.minimum(*sums) > 0)[cluster]
    return difference(wrong * (first * 1.0 - second) * common, (first & common) * 1.0, cluster, weights)
