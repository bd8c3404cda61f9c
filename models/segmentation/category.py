"""Which of the paper's categories does a medical clip belong to?

MedVideoCap-55K sorts clips into medical teaching, clinical practice, popular science, medical animation and medical
imaging. The picture says how likely each is by the frame head; the words beside the video (title, tags, description,
transcript) by `models.segmentation.category_text`. Both are weighed together in a log-linear model,

    log p(category) = picture * log p(category | picture) + text * log p(category | words) + bias[category] + constant,

whose weights were learnt from pictures that were judged by heads that saw none of their sources, with titles drawn for
each category (`models.segmentation.evidence`). A picture that is more likely not medical is "non-medical".
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from models.segmentation.heads import NON_MEDICAL, softmax

CLINICAL_PRACTICE, ANIMATION, IMAGING = "clinical practice", "medical animation", "medical imaging"
TEACHING, POPULAR_SCIENCE = "medical teaching", "popular science"
CATEGORIES = (TEACHING, CLINICAL_PRACTICE, POPULAR_SCIENCE, ANIMATION, IMAGING)
DESCRIPTION_CHARS = 400  # further down stand links, disclaimers and the channel's advertisement
LEAST_SHARE = 0.01  # no evidence is surer than this of what it excludes


class CategoryWeights(NamedTuple):
    """Of the log-linear model: see the module. `bias` has a number for each of `CATEGORIES`."""

    picture: float
    text: float
    bias: tuple[float, ...]


class Category(NamedTuple):
    """A category and what decided it.

    Args:
        name: one of `CATEGORIES`, "non-medical", or "medical" when neither picture nor words tell the kind.
        by: "text" where the words moved it away from what the picture alone says.
        words: words that speak for it, lower case, the clearest first.
        probability: of `name` by picture and words together, 0 to 1; of "non-medical" by the picture.
        picture: what the picture alone says.
        picture_probability: probability of that from the picture, 0 to 1.
    """

    name: str
    by: Literal["picture", "text"]
    words: tuple[str, ...]
    probability: float
    picture: str
    picture_probability: float


def category(
    picture: Mapping[str, float], words: "Words | None", weights: CategoryWeights, medical: float | None = None
) -> Category:
    """The category of a clip.

    Args:
        picture: class of the frame head → mean probability over the clip's frames; holds "non-medical".
        words: what the words say; None where there are none.
        medical: P(medical) of the clip, where other evidence was weighed in; the picture's by default.

    Raises:
        KeyError: `picture` lacks "non-medical".
    """
    kinds = {name: p for name, p in picture.items() if name != NON_MEDICAL}
    likeliest = max(kinds, key=lambda name: (kinds[name], name))
    if (1.0 - picture[NON_MEDICAL] if medical is None else medical) < 0.5:
        other = picture[NON_MEDICAL]
        return Category(NON_MEDICAL, "picture", (), other, NON_MEDICAL, other)
    known = [name for name in CATEGORIES if name in kinds]
    if not known and words is None:
        return Category(likeliest, "picture", (), kinds[likeliest], likeliest, kinds[likeliest])
    shown = _shares(kinds, known)
    logits = weights.picture * np.log(shown)
    if words is not None:
        said = np.maximum([words.shares[name] for name in CATEGORIES], LEAST_SHARE)
        logits = logits + weights.text * np.log(said) + np.array(weights.bias)
    shares = softmax(logits[None])[0]
    place = int(shares.argmax())
    name = CATEGORIES[place]
    by_text = words is not None and name != likeliest
    told = words.evidence[name] if words is not None and by_text else ()
    return Category(name, "text" if by_text else "picture", told, float(shares[place]), likeliest, kinds[likeliest])


class Words(NamedTuple):
    """What the words beside a video say: the share of each of `CATEGORIES`, and the words that speak for it."""

    shares: Mapping[str, float]
    evidence: Mapping[str, tuple[str, ...]]


def _shares(kinds: Mapping[str, float], known: list[str]) -> np.ndarray:
    """float64 (5,), adding up to 1: what the picture says of each category.

    A head that knows fewer kinds sees teaching and popular science as people and organs: they get what clinical
    practice has, for the words to decide; a head that knows none gives even shares.
    """
    total = sum(kinds[name] for name in known) or 1.0
    of_people = 0.999 * kinds.get(CLINICAL_PRACTICE, total / len(CATEGORIES)) / total
    shares = np.array([kinds[name] / total if name in known else of_people for name in CATEGORIES])
    shares = np.maximum(shares, LEAST_SHARE)
    found: np.ndarray = shares / shares.sum()
    return found
