"""What the words beside a video add to what its pictures show: weights that were learnt from data, on record.

P(medical) of picture and words together is a logistic curve of both log odds (Platt 1999; the two are taken as
independent given the truth), the category a log-linear model (`models.segmentation.category`). The weights stand in
`models/weights/title_evidence.json` with what they were learnt from: `models.segmentation.train_evidence`.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np

from medgen.canonical import digest_of
from models import ModelUnavailable
from models.hub_files import file_digest
from models.segmentation.category import CATEGORIES, CategoryWeights, Words
from models.segmentation.category_text import category_text_digest, load_category_text

EVIDENCE = Path(__file__).parents[1] / "weights" / "title_evidence.json"
# Neither evidence is surer than this: a title can be false, and a picture can be anything.
SUREST = 0.99


class TitleEvidence:
    """The weights: log odds = picture * log odds of the picture + text * log odds of the words + offset."""

    def __init__(self, picture: float, text: float, offset: float, category: CategoryWeights) -> None:
        self.picture, self.text, self.offset = picture, text, offset
        self.category = category

    def medical(self, picture: np.ndarray, text: float | np.ndarray) -> np.ndarray:
        """float64 (N,): P(medical) of frames with P(medical) `picture` (N,), beside words with P(medical) `text` (of
        all or of each)."""
        odds = self.picture * log_odds(picture) + self.text * log_odds(np.asarray(text)) + self.offset
        found: np.ndarray = 1 / (1 + np.exp(-odds))
        return found


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Of probabilities no surer than `SUREST`."""
    bounded = np.clip(probability, 1 - SUREST, SUREST)
    found: np.ndarray = np.log(bounded / (1 - bounded))
    return found


@cache
def load_title_evidence() -> TitleEvidence:
    """The packaged weights. Raises ModelUnavailable: the file is missing or damaged."""
    try:
        facts = json.loads(EVIDENCE.read_text(encoding="utf-8"))
        own, kinds = facts["medical"], facts["category"]
        category = CategoryWeights(kinds["picture"], kinds["text"], tuple(kinds["bias"][name] for name in CATEGORIES))
        return TitleEvidence(own["picture"], own["text"], own["offset"], category)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"the weights {EVIDENCE.name} cannot be read: {error}") from error


def evidence_digest() -> str:
    """sha256 of the weights and of the category classifier that they weigh."""
    return digest_of({"weights": file_digest(EVIDENCE), "category": category_text_digest(), "surest": SUREST})


def words_beside(title: str, tags: str = "", description: str = "", transcript: str = "") -> Words | None:
    """What these words say of the category; None where there is no word. Raises ModelUnavailable."""
    fields = [field for field in (title, tags, description, transcript) if field.strip()]
    if not fields:
        return None
    model = load_category_text()
    shares = model.probabilities(title, tags, description, transcript)
    return Words(
        dict(zip(model.classes, map(float, shares), strict=True)),
        {name: model.evidence(name, fields) for name in CATEGORIES},
    )
