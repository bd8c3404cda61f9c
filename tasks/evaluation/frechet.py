"""FID and FVD of each system against the clips of the training release."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from medgen.canonical import rounded
from models.metrics.frechet import frechet_distance
from tasks.training.released import ReleasedClip

PLACES = 4


class FrechetRow(TypedDict):
    """One distance: `videos` and `clips` that it rests on, `ours` and `theirs` features of `dimensions` numbers."""

    system: str
    metric: str
    model: str
    value: float
    videos: int
    clips: int
    ours: int
    theirs: int
    dimensions: int


def reference_clips(clips: Sequence[ReleasedClip], most: int) -> list[ReleasedClip]:
    """At most so many of a release's clips, the same ones each time: those whose digests come first."""
    return sorted(clips, key=lambda clip: clip.sha256)[:most]


def frechet_rows(
    features: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    reference: Sequence[Mapping[str, np.ndarray]],
    names: Mapping[str, str],
    digests: Mapping[str, str],
) -> list[FrechetRow]:
    """A row for each system and metric that has two features or more on both sides.

    Args:
        features: system → tensors of each of its videos, as `tasks.evaluation.frechet_features.read_features` gives.
        reference: tensors of each clip.
        names, digests: tensor → name of the metric, and digest of the model behind it.
    """
    rows: list[FrechetRow] = []
    for tensor, metric in names.items():
        theirs = [one[tensor] for one in reference if tensor in one]
        for system, videos in features.items():
            ours = [one[tensor] for one in videos if tensor in one]
            if sum(map(len, ours)) < 2 or sum(map(len, theirs)) < 2:
                continue
            mine, other = np.concatenate(ours), np.concatenate(theirs)
            rows.append(
                {
                    "system": system,
                    "metric": metric,
                    "model": digests[tensor],
                    "value": rounded(frechet_distance(mine, other), PLACES),
                    "videos": len(ours),
                    "clips": len(theirs),
                    "ours": len(mine),
                    "theirs": len(other),
                    "dimensions": mine.shape[1],
                }
            )
    return rows


def frechet_table(rows: Sequence[FrechetRow]) -> list[dict[str, str]]:
    """The distances as a table of texts."""
    return [
        {
            "system": row["system"],
            "metric": row["metric"],
            "distance (lower is nearer)": f"{row['value']:.3f}",
            "videos": str(row["videos"]),
            "clips": str(row["clips"]),
            "features": f"{row['ours']} and {row['theirs']} of {row['dimensions']} numbers",
        }
        for row in rows
    ]


def frechet_warning(rows: Sequence[FrechetRow]) -> str:
    """What people must know before they compare distances; "" for nothing."""
    if not rows:
        return ""
    told = "Fréchet distances grow as sets get smaller: compare only systems with as many videos."
    if any(min(row["ours"], row["theirs"]) <= row["dimensions"] for row in rows):
        told += " Here a set has fewer features than a feature has numbers: the values say little by themselves."
    if len({(row["metric"], row["videos"]) for row in rows}) > len({row["metric"] for row in rows}):
        told += " The systems here do not have as many videos."
    return told
