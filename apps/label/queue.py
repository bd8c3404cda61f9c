"""Which file is shown next: mostly the one that the model doubts most, every so often any one."""

import hashlib
from collections.abc import Collection, Mapping, Sequence

from apps.label.guesses import Guess

# One in so many is drawn whatever the model says: labels of doubtful files alone would say nothing of how often the
# model is wrong where it is sure (the sampling bias of active learning; Dasgupta 2011, "Two faces of active learning").
ANY_EVERY = 5
DOUBT, ANY = "doubt", "any"


def next_file(
    files: Sequence[str], answered: Collection[str], guesses: Mapping[str, Guess], by: str
) -> tuple[str, str] | None:
    """(file, why it is shown) among those not answered yet; None when all are.

    The draw depends on the person and the file alone, so that it does not change on the way.
    """
    left = [file for file in files if file not in answered]
    if not left:
        return None
    judged = [file for file in left if file in guesses]
    if not judged or len(answered) % ANY_EVERY == ANY_EVERY - 1:
        return min(left, key=lambda file: hashlib.sha256(f"{by}\n{file}".encode()).digest()), ANY
    return max(judged, key=lambda file: (guesses[file].doubt, file)), DOUBT
