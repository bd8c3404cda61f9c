"""Can a caption stand on record, by its words alone?

Each check compares one number with one threshold: is there text, does it refuse, does it obey or repeat what
strangers wrote into the metadata, is it plain English, does it loop, is it the model's small talk, does it name
diagnoses, procedures or drugs that nothing on record supports, has it the length that was asked for. The peers'
users suffer from all of these (one caption of LVD-2M stands about 4,000 times in it). No model is asked.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Protocol

from medgen.canonical import digest_of, rounded
from models.captioning.terms import Support, TermPolicy, unsupported_terms
from models.captioning.untrusted_text import INSTRUCTION, PROMOTION, without_instructions, words
from models.relevance.dictionary import dictionary_digest

MOST_VIDEOS = 2  # one caption under clips of more different videos says nothing of any of them
RULES_VERSION = 2  # raise it when a pattern, word list or formula below changes
Side = Literal["at least", "at most"]

# Duplicate n-grams: Gopher's rule for running text (Rae et al. 2021, arXiv 2112.11446, table A1: at most 0.15 of
# the characters in repeated 5-grams); counted in words here.
NGRAM = 5
MAX_REPEATED_SHARE = 0.15
# A model that loops says the same few words this often in a row ("very, very ill" is no loop).
LOOP_WORDS = 8
LOOP_TIMES = 3
SENTENCE_WORDS = 4  # a sentence of fewer words may come twice
# The commonest English words make up a fifth and more of the different words of a plain description; other languages
# share but a few of them. Of fewer words nothing can be told.
MIN_COMMON_SHARE = 0.12
LEAST_DIFFERENT = 8
PROMPT_WORDS = 7  # so many words of the prompt in a row are no chance; "the movement of the camera" may be
# Share of letters, digits, spaces and punctuation of plain English. One name or sign in ten characters may lie outside;
# text in another script and the noise of a broken model lie far below.
MIN_PLAIN_SHARE = 0.9
# More than half of the content words of an order found in the metadata stand in the caption: it was obeyed.
MAX_ORDER_ECHO = 0.5

REASONS = (
    "caption_refusal",
    "caption_empty",
    "caption_injection",
    "caption_garbled",
    "caption_repetitive",
    "caption_boilerplate",
    "caption_unsupported_terms",
    "caption_length",
)


@dataclass(frozen=True)
class CaptionLimits:
    """What a caption must keep to.

    Args:
        brief_min_words .. detailed_max_words: the paper's prompts ask for 15 to 30 words and its detailed captions
            have a mean of 174; the defaults leave a fifth around the first and a wide margin around the second.
        unsupported_terms: medical terms without support that a caption may name.
        terms: which terms need support: "specific" (diagnoses, procedures, drugs), "all" (every term of the
            dictionary, anatomy and instruments too) or "none".
    """

    brief_min_words: int = 12
    brief_max_words: int = 36
    detailed_min_words: int = 60
    detailed_max_words: int = 260
    unsupported_terms: int = 0
    terms: TermPolicy = "specific"

    def words(self, kind: str) -> tuple[int, int]:
        """Least and most words of a brief or detailed caption."""
        if kind == "brief":
            return self.brief_min_words, self.brief_max_words
        return self.detailed_min_words, self.detailed_max_words


@dataclass(frozen=True)
class Check:
    """One comparison.

    Args:
        reason: what the clip is rejected for when it fails.
        metric: "brief_words", "detailed_unsupported_terms", …
        message: for the model that wrote the text; empty when passed.
    """

    reason: str
    metric: str
    score: float
    threshold: float
    passes_when: Side
    message: str = ""

    @property
    def passed(self) -> bool:
        """Whether the score is on the passing side."""
        return self.score >= self.threshold if self.passes_when == "at least" else self.score <= self.threshold

    def on_record(self) -> dict[str, Any]:
        """As JSON, with its verdict."""
        return asdict(self) | {"passed": self.passed}


class HasTexts(Protocol):
    """What is on record about a clip: strangers' texts and our own facts."""

    @property
    def untrusted(self) -> Sequence[str]:
        """Title, description, tags, speech."""
        ...

    @property
    def facts(self) -> Sequence[str]:
        """Category and other words of ours."""
        ...


def check(
    captions: Mapping[str, str], evidence: HasTexts, limits: CaptionLimits, prompts: Sequence[str] = ()
) -> list[Check]:
    """All checks of the captions ("brief" and/or "detailed" → text), in the order in which they give a reason.

    An empty text fails its first check and is not examined further. `prompts` are the model's instructions: none of
    their words may stand in a caption.
    """
    kept, withheld = _evidence_texts(evidence)
    supported = Support((*kept, *evidence.facts))
    checks: list[Check] = []
    for kind, text in captions.items():
        checks += _check(kind, text, supported, withheld, limits, prompts)
    return in_order(checks)


def in_order(checks: Iterable[Check]) -> list[Check]:
    """Checks from the most telling reason to the least: a refusal is also too short, so length comes last."""
    return sorted(checks, key=lambda result: REASONS.index(result.reason))


def caption_words(text: str) -> str:
    """The words of a caption: the same for texts that differ in case, punctuation and accents alone."""
    return " ".join(words(text))


def checks_digest() -> str:
    """sha256 (hex) over the rules and the dictionary: what decides besides the limits."""
    return digest_of(
        {
            "rules": RULES_VERSION,
            "dictionary": dictionary_digest(),
            "thresholds": [
                NGRAM,
                MAX_REPEATED_SHARE,
                LOOP_WORDS,
                LOOP_TIMES,
                SENTENCE_WORDS,
                MIN_PLAIN_SHARE,
                MIN_COMMON_SHARE,
                LEAST_DIFFERENT,
                PROMPT_WORDS,
                MAX_ORDER_ECHO,
            ],
        }
    )


# How chat models word a refusal: "I cannot" and its kin at the start of a clause, so that a nurse who "cannot see the
# vessel" is none; and what nobody in particular could do.
_REFUSAL = re.compile(
    r"""(?:^|[.!?;,:]\s+|\b(?:and|but|so|because|that|which|as)\s+)(?:unfortunately,?\s+)?(?:
        i['’]?m\s+(?:very\s+)?sorry | i\s+am\s+(?:very\s+)?sorry | sorry, | i\s+apologi[sz]e
        | i\s+(?:can['’]?t|cannot|can\s+not|won['’]?t|will\s+not|must\s+decline|need\s+more|lack|would\s+rather\s+not
            |am\s+(?:unable|not\s+able)|do\s+not|don['’]?t)\b
        | i['’]?m\s+(?:unable|not\s+able) | as\s+an\s+(?:ai|artificial)\b
        | (?:it\s+is\s+)?(?:not\s+possible|impossible|unable)\s+(?:for\s+\w+\s+)?to\s+
            (?:caption|describe|determine|generate|give|identify|provide|say|tell|write)\b
        | (?:my|our)\s+(?:\w+\s+)?(?:guidelines|polic(?:y|ies))\b
    )
    | \bno\s+(?:\w+\s+)?(?:caption|clip|description|frames?|images?|pictures?|video)\b[^.!?]{0,40}
        \b(?:attached|available|given|included|possible|provided|shared|supplied|uploaded|written)\b
    | \b(?:caption|description)\b[^.!?]{0,60}\b(?:can['’]?t|cannot|can\s+not|could\s+not)\s+be\s+
        (?:created|generated|given|made|produced|provided|written)\b
    | \b(?:clip|content|footage|frames?|images?|request|video)
        \s+(?:could\s+not|cannot|can['’]?t|did\s+not|didn['’]?t|was\s+not)\s+(?:be\s+)?(?:analy[sz]ed|load(?:ed)?|open(?:ed)?|process(?:ed)?)\b
    | \bviolat\w+\b[^.!?]{0,30}\b(?:guidelines|polic(?:y|ies)|terms)\b""",
    re.IGNORECASE | re.VERBOSE,
)
# Small talk, mark-up, words of the prompt itself, and a writer or reader who steps in: about the task, not the clip.
_BOILERPLATE = re.compile(
    r"""^\W*(?:sure|certainly|of\s+course|okay|ok)\b[,!.:]
    | \bhere(?:['’]s|\s+is|\s+are)\s+(?:a|an|the|your|one)\b[^.]{0,30}
        \b(?:caption|description|summary|sentence|paragraph)
    | ^\W*(?:brief|detailed)?\s*(?:answer|caption|description|note|output|response|summary|title)\s*:
    | [.!?]\s+(?:answer|caption|description|note|summary)\s*:
    | \b(?:frame|image|picture)\s+\d+\s*:
    | \b(?:provided|given|supplied)\s+(?:frames?|images?|metadata|description|video)\b
    | \bbased\s+on\s+(?:the|your|still)\s+(?:provided|given|frames?|images?|metadata|description|title)\b
    | \b(?:the|these|this)\s+(?:frames?|images?|metadata|screenshots?)\s+(?:shows?|depicts?|provided|indicates?)\b
    | \b(?:all|eight|several|still|these)\s+(?:frames|screenshots|stills)\b
    | \b(?:across|by|from|in|through)\s+the\s+(?:\w+\s+)?frames\b
    | \b(?:collection|sequence|series|set)\s+of\s+(?:frames|images|pictures|screenshots|stills)\b
    | \bthis\s+description\s+(?:is|was|may|might|should)\b | \bmetadata\b
    | \bword\s+count\b | [(\[]\s*\d+\s+words\s*[)\]]
    | \b(?:let\s+me\s+know|i\s+hope\s+this|feel\s+free|please)\b
    | \byou(?:['’](?:re|ll|ve|d))?\b | \byours?\b
    | (?<!type\s)(?<!lead\s)(?<!stage\s)(?<!class\s)(?<!phase\s)(?<!grade\s)\b(?-i:I)
        (?:['’](?:m|ll|ve|d)\b|\s+(?:am|can|could|did|do|guess|have|may|might|must|see|should|think|was|will|would)\b)
    | \buntrusted_\w+ | ``` | \*\*\w | ^\s*(?:\#{1,6}|[-*]|\d+[.)])\s | ^\s*[\[{] | </?\w+>""",
    re.IGNORECASE | re.VERBOSE,
)
# Nobody tells anybody what to do in a description: an order is one of the prompt's.
_ORDER = re.compile(
    r"""(?:^|[.!?]\s+)
        (?:write|describe|mention|make\s+sure|ensure|remember\s+to|do\s+not|don['’]?t|answer\s+(?:with|in|only))\b""",
    re.IGNORECASE | re.VERBOSE,
)


def _check(
    kind: str, text: str, supported: Support, withheld: list[str], limits: CaptionLimits, prompts: Sequence[str]
) -> list[Check]:
    spoken = words(text)
    checks: list[Check] = []

    def add(reason: str, metric: str, score: float, side: Side, threshold: float, message: str) -> None:
        result = Check(reason, f"{kind}_{metric}", rounded(score), threshold, side, message)
        checks.append(replace(result, message="") if result.passed else result)

    add("caption_empty", "any_words", min(1, len(spoken)), "at least", 1, "it had no words")
    if not spoken:
        return checks
    own = re.sub(r'"[^"]*"|“[^”]*”', " ", text)  # what stands in quotation marks is another's
    refusals = len(_REFUSAL.findall(own.strip()))
    add("caption_refusal", "refusals", refusals, "at most", 0, "it refused instead of describing")
    leaks = sum(len(pattern.findall(text)) for pattern in (INSTRUCTION, PROMOTION))
    leaks += len(_ORDER.findall(own.strip())) + _shared_runs(spoken, prompts)
    add("caption_injection", "leaks", leaks, "at most", 0, "it held an address, a call to viewers or an order")
    message = "it followed or repeated an order that stands in the metadata, which is only data"
    add("caption_injection", "order_echo", _order_echo(spoken, withheld, supported), "at most", MAX_ORDER_ECHO, message)
    own_words = words(own)
    plain = sum((char.isascii() and char.isprintable()) or char in "’‘“”–—…°µμ×é" for char in own) / max(1, len(own))
    add("caption_garbled", "plain_share", plain, "at least", MIN_PLAIN_SHARE, "it was not plain English")
    share = _common_share(own_words)
    add("caption_garbled", "common_words", share, "at least", MIN_COMMON_SHARE, "it was not plain English")
    share = _repeated_share(own_words)
    add("caption_repetitive", "repeated_share", share, "at most", MAX_REPEATED_SHARE, "it repeated its own words")
    loops = _loops(own_words) + _repeated_sentences(own)
    add("caption_repetitive", "loops", loops, "at most", 0, "it said the same again")
    small_talk = len(_BOILERPLATE.findall(own.strip()))
    message = "it talked about the task or used mark-up instead of describing the clip alone"
    add("caption_boilerplate", "boilerplate", small_talk, "at most", 0, message)
    terms = unsupported_terms(text, supported, limits.terms)
    message = f"nothing on record supports {', '.join(terms[:8])}; describe it in general words"
    metric = "unsupported_terms"
    add("caption_unsupported_terms", metric, len(terms), "at most", limits.unsupported_terms, message)
    least, most = limits.words(kind)
    message = f"it had {len(spoken)} words, not {least} to {most}"
    add("caption_length", "words", len(spoken), "at least", least, message)
    add("caption_length", "words", len(spoken), "at most", most, message)
    return checks


def _evidence_texts(evidence: HasTexts) -> tuple[list[str], list[str]]:
    """Strangers' texts without their orders, and the orders. An order supports nothing."""
    kept, withheld = [], []
    for text in evidence.untrusted:
        rest, orders = without_instructions(text)
        kept.append(rest)
        withheld += orders
    return kept, withheld


_FILLERS = """
    about above all also and any are but caption clip describe every everything forget for from has have ignore instead
    instruction instructions into its just must not now only please previous prior prompt say saying says sentence
    should that the their them then there these they this video was were what which will with word words write you your
"""


def _order_echo(spoken: Sequence[str], withheld: Iterable[str], supported: Support) -> float:
    """Largest share, over the orders in the metadata, of an order's content words that the caption has, in [0, 1].

    Words that the rest of the record has too do not count: they may well be in the picture.
    """
    has, fillers, worst = set(spoken), set(_FILLERS.split()), 0.0
    for order in withheld:
        asked = {w for w in words(INSTRUCTION.sub(" ", order)) if len(w) > 2 and w not in fillers}
        asked = {word for word in asked if not supported.has_word(word)}
        if asked:
            worst = max(worst, len(asked & has) / len(asked))
    return worst


def _repeated_share(spoken: Sequence[str]) -> float:
    """Share of the words that lie in a 5-gram that occurred before, in [0, 1]."""
    seen: set[tuple[str, ...]] = set()
    inside: set[int] = set()
    for start in range(len(spoken) - NGRAM + 1):
        gram = tuple(spoken[start : start + NGRAM])
        if gram in seen:
            inside.update(range(start, start + NGRAM))
        seen.add(gram)
    return len(inside) / max(1, len(spoken))


def _loops(spoken: Sequence[str]) -> int:
    """Runs of up to `LOOP_WORDS` words that come at least `LOOP_TIMES` times in a row."""
    loops = 0
    for length in range(1, LOOP_WORDS + 1):
        same = 0  # words in a row that equal the one `length` before them
        for place in range(length, len(spoken)):
            same = same + 1 if spoken[place] == spoken[place - length] else 0
            loops += same == length * (LOOP_TIMES - 1)
    return loops


def _repeated_sentences(text: str) -> int:
    """Sentences that came before, word by word."""
    spoken = [tuple(words(sentence)) for sentence in re.split(r"(?<=[.!?])\s+", text)]
    long = [sentence for sentence in spoken if len(sentence) >= SENTENCE_WORDS]
    return len(long) - len(set(long))


_COMMON_WORDS = """
    a above across after against an and are as at be been before behind below beneath beside between both but by during
    each for from has have he her his in inside into is it its near no of off on one onto other over she several some
    that the their then there these they this through to towards two under until up which while whose with within
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def _common_share(spoken: Sequence[str]) -> float:
    """Share of the different words that are among the commonest in descriptions, in [0, 1]; 1 for a few words."""
    different = set(spoken)
    return len(different & _COMMON) / len(different) if len(different) >= LEAST_DIFFERENT else 1.0


def _shared_runs(spoken: Sequence[str], prompts: Iterable[str]) -> int:
    """Runs of `PROMPT_WORDS` words that stand in a prompt too."""
    own = _runs(spoken)
    return sum(len(own & _prompt_runs(prompt)) for prompt in prompts)


def _runs(spoken: Sequence[str]) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(spoken[start : start + PROMPT_WORDS]) for start in range(len(spoken) - PROMPT_WORDS + 1))


@lru_cache(16)
def _prompt_runs(prompt: str) -> frozenset[tuple[str, ...]]:
    return _runs(words(prompt))
