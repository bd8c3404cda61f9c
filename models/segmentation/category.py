"""Which of the paper's categories does a medical clip belong to?

MedVideoCap-55K sorts clips into medical teaching, clinical practice, popular science, medical animation and medical
imaging. A picture shows animation, imaging or real people and organs; whether real pictures teach professionals or
inform the public is said by the words around them. The rule, in this order:

1. The picture is more likely non-medical than medical: "non-medical".
2. The picture is clearly an animation or imaging (`CLEAR_PICTURE`): that, whatever the title says.
3. The title and tags, else the beginning of the description, hold words of teaching or of popular science: the one
   with more different words; medical teaching when they tie, the commonest category of the paper (56 %, against 9 %).
4. Otherwise the picture's likeliest category.

Words are English. The rule reads words and understands nothing: a record names the words, so that it can be checked.
"""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

NON_MEDICAL = "non-medical"
CLINICAL_PRACTICE, ANIMATION, IMAGING = "clinical practice", "medical animation", "medical imaging"
TEACHING, POPULAR_SCIENCE = "medical teaching", "popular science"
# What a picture alone can show: the classes of the frame heads.
PICTURE_CATEGORIES = (CLINICAL_PRACTICE, ANIMATION, IMAGING)
CATEGORIES = (TEACHING, CLINICAL_PRACTICE, POPULAR_SCIENCE, ANIMATION, IMAGING)
# Share of the medical probability that animation or imaging must have to outweigh the words: three times the rest.
CLEAR_PICTURE = 0.75
DESCRIPTION_CHARS = 400  # further down stand links, disclaimers and the channel's advertisement

_WORDS = {
    TEACHING: (
        r"anatomy|physiology|pathology|pharmacology|histology|embryology|radiology",
        r"lectures?|lessons?|courses?|classes|webinar|grand rounds?|case (?:report|study|presentation)s?|curriculum",
        r"tutorials?|demonstrat\w+|step[ -]by[ -]step|masterclass|workshops?|training|instructional|how to perform",
        r"osce|usmle|nclex|plab|mrcp|mrcs|cme|cpd|board review|exam (?:prep|review)|revision",
        r"students?|residents?|trainees?|nursing skills?|clinical skills?|medical school|for (?:nurses|doctors)",
        r"(?:surgical|operative|examination|injection|suturing|clinical) techniques?|physical exam(?:ination)?s?",
        r"techniques?|procedures?|insertion|catheteri[sz]ation|cannulation|intubation|dissection|auscultation",
        r"first aid|cpr|resuscitation|splint(?:ing)?|bandag\w+|exercises?|stretch(?:es|ing)?|range of motion",
        r"education(?:al)?|teach(?:es|ing)?|learn(?:ing)?|introduction to|basics of|principles of|guidelines?",
    ),
    POPULAR_SCIENCE: (
        r"what (?:is|are|causes|happens)|why (?:do|does|is|are|we|you)|did you know|facts?|myths?|explained",
        r"symptoms?|signs|warning|causes?|risk factors?|prevent(?:ion|ing)?|screening|awareness|early detection",
        r"tips?|remed(?:y|ies)|naturally|natural|at home|diets?|foods?|eat(?:ing)?|vitamins?|weight loss|benefits?",
        r"health (?:tips|news|talk|matters|show|minute)|wellness|healthy|lifestyle|self[ -]care|get rid of",
        r"should (?:you|i)|can (?:you|i)|do (?:you|i) (?:need|have)|when to see|ask (?:the|a|your|dr|doctor)",
        r"ted(?:x| talk)?|documentary|podcast|interview|vlog|news|story|stories|journey|amazing|incredible",
        r"for patients|patient (?:information|guide|education|stor(?:y|ies))|public health|everything you need",
        r"science of|how (?:\w+ )?(?:body|brain|heart|vaccines?|immune system) (?:\w+ )?works?",
    ),
}
_PATTERNS = {name: re.compile(rf"\b(?:{'|'.join(parts)})\b", re.IGNORECASE) for name, parts in _WORDS.items()}


class Category(NamedTuple):
    """A category and what decided it.

    Args:
        name: one of `CATEGORIES`, "non-medical", or "medical" when neither picture nor words tell the kind.
        by: "picture" or "text".
        words: the words that decided, lower case, sorted; empty when the picture did.
        picture: what the picture alone says.
        picture_probability: probability of that from the picture, 0 to 1.
    """

    name: str
    by: Literal["picture", "text"]
    words: tuple[str, ...]
    picture: str
    picture_probability: float


def category(picture: Mapping[str, float], title: str = "", tags: str = "", description: str = "") -> Category:
    """The category of a clip by the rule above.

    Args:
        picture: class of the frame head → mean probability over the clip's frames; holds "non-medical".
        title, tags, description: of the video that the clip is from.

    Raises:
        KeyError: `picture` lacks "non-medical".
    """
    medical = 1.0 - picture[NON_MEDICAL]
    kinds = {name: p for name, p in picture.items() if name != NON_MEDICAL}
    likeliest = max(kinds, key=lambda name: (kinds[name], name))
    if medical < 0.5:
        return Category(NON_MEDICAL, "picture", (), NON_MEDICAL, picture[NON_MEDICAL])
    by_picture = Category(likeliest, "picture", (), likeliest, kinds[likeliest])
    if likeliest in (ANIMATION, IMAGING) and kinds[likeliest] >= CLEAR_PICTURE * medical:
        return by_picture
    name, words = category_of_text(title, tags, description)
    return Category(name, "text", words, likeliest, kinds[likeliest]) if name else by_picture


def category_of_text(title: str, tags: str = "", description: str = "") -> tuple[str | None, tuple[str, ...]]:
    """Medical teaching or popular science by the words, and the words; (None, ()) when there are none."""
    for text in (f"{title}\n{tags}", description[:DESCRIPTION_CHARS]):
        matches = {name: {match.lower() for match in pattern.findall(text)} for name, pattern in _PATTERNS.items()}
        name = max(_PATTERNS, key=lambda name: len(matches[name]))  # the first of equals: medical teaching
        if matches[name]:
            return name, tuple(sorted(matches[name]))
    return None, ()
