"""The offline captioner: it words the evidence on record and knows nothing of the picture."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medgen.canonical import digest_of
from models.captioning.captioner import TEMPLATE_NAME, Caption, CaptionRejected, Evidence
from models.captioning.checks import CaptionLimits, check
from models.captioning.untrusted_text import clean, quoted, visible, without_instructions, without_promotion, words
from models.relevance.dictionary import dictionary_digest, load_medical_dictionary

TEMPLATE_VERSION = "v4"  # of the sentences below: raise it when their wording changes
MAX_TITLE_CHARS = 120
MAX_TITLE_WORDS = 10  # in the brief caption, which has at most 20 words besides
MAX_TERMS_NAMED = 12
# It can't say 170 words without inventing: with no title, speech or terms on record it has 85 to 92 to say.
DETAILED_MIN_WORDS = 80

_CAMERA_SENTENCES: dict[str, str] = {
    "still": "The picture stands still for the whole clip.",
    "static": "The camera stands still while something in the picture moves.",
    "pan": "The camera pans sideways during the clip.",
    "tilt": "The camera tilts up or down during the clip.",
    "zoom_in": "The camera comes closer during the clip.",
    "zoom_out": "The camera draws back during the clip.",
    "roll": "The camera turns about its axis during the clip.",
    "handheld": "The camera moves as if held in a hand.",
    "tracking": "The camera follows something that moves.",
}
_CAMERA_PHRASES: dict[str, str] = {
    "still": "a still picture",
    "static": "a static camera",
    "pan": "a panning camera",
    "tilt": "a tilting camera",
    "zoom_in": "a camera that comes closer",
    "zoom_out": "a camera that draws back",
    "roll": "a camera that rolls",
    "handheld": "a handheld camera",
    "tracking": "a camera that follows something",
}


class EvidenceTemplateCaptioner:
    """Offline and weaker: plain sentences about what is on record, nothing about the picture.

    The title appears only between quotation marks, cleaned and cut, without addresses, calls to subscribe and
    orders to language models; of description, tags and speech only the terms of the medical dictionary are named.
    Deterministic.
    """

    name = TEMPLATE_NAME
    needs_frames = False

    def __init__(self, limits: CaptionLimits | None = None) -> None:
        limits = limits or CaptionLimits()
        self.digest = template_digest()
        self._limits = replace(limits, detailed_min_words=min(limits.detailed_min_words, DETAILED_MIN_WORDS))

    def ensure_available(self) -> None:
        """It always is."""

    def caption(self, evidence: Evidence, frames: Sequence[np.ndarray] = ()) -> Caption:
        """Both captions in plain sentences; `frames` are not looked at. Raises CaptionRejected."""
        category = quoted(evidence.category.replace("_", " "), MAX_TITLE_CHARS) or "no category"
        harmless = [without_promotion(without_instructions(visible(text))[0]) for text in evidence.untrusted]
        title, description, tags, transcript, _ = harmless
        dictionary = load_medical_dictionary()  # only now: it takes seconds, and most nights few clips are new
        listed = dictionary.match("\n".join((title, description, tags)))
        spoken = dictionary.match(transcript)
        end_s = evidence.start_s + evidence.duration_s

        brief = (
            f"A clip of {evidence.duration_s:.1f} seconds from {_video(_few_words(title))}, "
            f"sorted under {category}, with {_CAMERA_PHRASES[evidence.motion_type]}."
        )
        detailed = " ".join(
            (
                f"The clip lasts {evidence.duration_s:.1f} seconds and comes from {_video(title)}, where it runs from "
                f"second {evidence.start_s:.1f} to second {end_s:.1f}.",
                f"It measures {evidence.width} by {evidence.height} pixels at {evidence.fps:g} frames per second.",
                _sorted(category, evidence.category_probability),
                _CAMERA_SENTENCES[evidence.motion_type],
                f"The title, description and tags of the video name {_terms_phrase(listed)}.",
                f"The words spoken in the clip name {_terms_phrase(spoken)}."
                if clean(transcript, MAX_TITLE_CHARS)
                else "No speech is on record for the clip.",
                "This caption words the records alone; the picture was not looked at.",
            )
        )
        texts = {"brief": brief, "detailed": detailed}
        checks = check(texts, evidence, self._limits)
        if not all(result.passed for result in checks):
            raise CaptionRejected(checks, brief)
        return Caption(brief, detailed, self.name, self.digest, TEMPLATE_VERSION, checks=tuple(checks))


def template_digest() -> str:
    """sha256 (hex) over the template's version, settings and dictionary."""
    settings = [MAX_TITLE_CHARS, MAX_TITLE_WORDS, MAX_TERMS_NAMED]
    return digest_of(
        {"name": TEMPLATE_NAME, "version": TEMPLATE_VERSION, "settings": settings, "dictionary": dictionary_digest()}
    )


def _sorted(category: str, probability: float | None) -> str:
    if probability is None:
        return f"A multimodal model that saw frames of it sorts it under {category}."
    return f"A classifier sorts it under {category} with a probability of {probability:.2f}."


def _video(title: str) -> str:
    title = quoted(title, MAX_TITLE_CHARS)
    return f"a video titled {title}" if words(title) else "an untitled video"


def _few_words(title: str) -> str:
    kept = full = clean(title, MAX_TITLE_CHARS)
    while len(words(kept)) > MAX_TITLE_WORDS:
        # Without spaces ("a/b/c/…") half of the letters go instead of the last word.
        kept = kept.rpartition(" ")[0] or kept[: len(kept) // 2]
    return kept if kept == full else f"{kept}…"


def _terms_phrase(terms: list[str]) -> str:
    if not terms:
        return "no term of the medical dictionary"
    noun = "term" if len(terms) == 1 else "terms"
    more = len(terms) - MAX_TERMS_NAMED
    return f"the medical {noun} {', '.join(terms[:MAX_TERMS_NAMED])}" + (f" and {more} more" if more > 0 else "")
