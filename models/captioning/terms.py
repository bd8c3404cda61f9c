"""Which medical terms of a text does nothing on record support?

Diagnoses, operations and drugs are found by their word endings (Greek and Latin suffixes; the stems of
international nonproprietary names, WHO) and by short lists of those without a telling ending. What can be seen,
such as anatomy, instruments and imaging, is a captioner's own to name.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import Literal

from models.captioning.untrusted_text import words
from models.relevance.dictionary import MedicalDictionary, load_medical_dictionary

TermPolicy = Literal["specific", "all", "none"]


# Endings that name a disease, an operation or (INN stems) a drug. Imaging and viewing (-scopy, -graphy) are left out:
# that is what the picture shows.
_ENDINGS = re.compile(
    r"""\w*(?:
    itis|oma|osis|iasis|emia|aemia|penia|algia|plegia|paresis|megaly|trophy|uria|pathy|rrhea|rrhoea|plasia|malacia|ectasis
    |ectomy|otomy|ostomy|plasty|pexy|rrhaphy|desis|centesis|tripsy
    |cillin|mycin|floxacin|cycline|conazole|prazole|olol|sartan|statin|mab|tinib|parin|caine|dipine|gliptin|gliflozin
    |glutide|setron|triptan|azepam|azolam|barbital|curonium|curium|profen|coxib|nisone|nisolone|methasone|formin|fentanil
    |thiazide|semide|prost|vudine|vir|taxel|platin|rubicin|micin|trozole|nidazole|pril|oxetine|traline|tidine|tomidine
    |flurane|tocin)""",
    re.VERBOSE,
)
_EVERYDAY = """
    academia anastomosis antipathy april apathy apoptosis aroma bohemia chroma coma dichotomy diagnosis diploma empathy
    endocytosis exocytosis homeopathy hypnosis meiosis metamorphosis mitosis nostalgia oklahoma osmosis osteopathy
    phagocytosis photosynthesis prognosis stoma stroma symbiosis sympathy telepathy trophy zygoma
"""
_WITHOUT_ENDING = """
    cancer tumor tumour malignancy metastasis sarcoma infarction infarct aneurysm embolism diabetes hypertension
    hypotension asthma pneumonia pneumothorax emphysema epilepsy dementia alzheimer alzheimer's parkinson parkinson's
    autism schizophrenia covid covid-19 influenza hiv malaria measles tetanus sepsis gangrene hernia fracture arrhythmia
    fibrillation tachycardia bradycardia regurgitation cataract eczema ebola dengue leprosy polio rabies syphilis gout
    abscess adhd aids anorexia ascites bulimia chickenpox chlamydia cholera concussion copd croup gallstone haemophilia
    hemophilia herpes ileus jaundice lupus migraine mumps obesity ptsd rubella scabies sciatica shingles smallpox stroke
    ulcer whiplash
    preeclampsia transplant transplantation amputation bypass cesarean caesarean chemotherapy radiotherapy dialysis
    insulin heparin aspirin paracetamol acetaminophen morphine ketamine propofol ibuprofen epinephrine adrenaline
    warfarin botox fentanyl
"""
_EPONYM = re.compile(r"(?<=[a-z,;] )([A-Z][a-z]{2,})(?:['’]s)?\s+(?:disease|syndrome|palsy)\b")
# Beginnings of roots and plain words for the same thing. One of a row supports the others.
_CONCEPTS = (
    "cancer tumor tumour carcin oncol malign neoplas metasta sarcom lymphom melanom leukem",
    "cholecyst gallblad biliar cholelith choledoch",
    "nephr renal kidney",
    "hepat liver",
    "gastr stomach",
    "myocard infarc coronar angina cardiac cardi heart",
    "cerebrovasc stroke",
    "diabet insulin glucos glycem",
    "pneum pulmon lung bronch",
    "arthr joint",
    "oste bone fractur",
    "derm skin",
    "enceph brain crani neuro",
    "hyster uter",
    "oophor ovar",
    "mast mamm breast",
    "colo colect bowel",
    "enter intestin bowel",
    "ophthalm ocul kerat cornea catarac eye",
    "otit tympan ear",
    "rhin nasal nose",
    "laryng pharyn throat tonsil",
    "myos muscl",
    "angi arter vascul vessel thromb",
    "phleb vein venous varic",
    "spondyl spin lamin vertebr",
    "chondr cartilag",
    "tendon tendin tenot tenos",
    "cyst bladder",
    "lymph",
    "hemat anem blood",
    "periton abdom lapar",
    "thora chest pleur",
    "trache airway",
    "proct rect hemorrh",
    "dent tooth teeth gingiv",
    "episio birth deliver labor labour obstet cesar caesar pregnan",
    "anesth anaesth sedat",
    "transplant graft",
    "dialys hemodialys",
    "hernia inguinal",
)
_SPELLINGS = (("ae", "e"), ("oe", "e"), ("ch", "c"), ("ph", "f"), ("th", "t"), ("rh", "r"), ("y", "i"), ("z", "c"))


@cache
def _folded(word: str) -> str:
    """A word with the spellings of Greek and Latin roots made one across European languages."""
    for old, new in _SPELLINGS:
        word = word.replace(old, new)
    word = word.replace("k", "c")
    return re.sub(r"([a-z])\1", r"\1", word)


class Support:
    """The words on record, ready to be asked for."""

    def __init__(self, texts: Iterable[str]) -> None:
        joined = "\n".join(texts)
        self._words = {form for word in words(joined) for form in (word, *_singulars(word))}
        parts = {part for word in self._words for part in (word, *word.split("-"))}
        self._folded = {_folded(part) for part in parts}
        self._long = {_folded(part) for part in parts if len(part) >= 5}  # "para" must not support paracetamol

    def has_word(self, word: str) -> bool:
        """The record has this very word."""
        return word in self._words

    def has_term(self, word: str) -> bool:
        """The record has the word, one that begins alike, or another root or plain word for it."""
        if self.has_word(word):
            return True
        folded = _folded(word)
        for known in self._folded:
            # A whole word on record ("lap chole", folded "cole"), or six letters in common.
            if (known in self._long and folded.startswith(known)) or (len(known) >= 6 and known[:6] == folded[:6]):
                return True
        rows = [row for row in _concepts() if any(folded.startswith(r) or (len(r) > 4 and r in folded) for r in row)]
        if folded.endswith("oma"):
            rows.append(_concepts()[0])
        roots = {root for row in rows for root in row}
        return any(known == r or (len(r) > 3 and known.startswith(r)) for r in roots for known in self._folded)


@cache
def _concepts() -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(_folded(root) for root in row.split()) for row in _CONCEPTS)


def unsupported_terms(text: str, supported: Support, policy: TermPolicy = "specific") -> list[str]:
    """Medical terms in `text` that the record does not support, sorted.

    Args:
        policy: "specific" (diagnoses, operations, drugs), "all" (every term of the dictionary besides) or "none".
    """
    if policy == "none":
        return []
    unsupported = {word for word in words(text) if _is_specific(word) and not supported.has_term(word)}
    for name in _EPONYM.findall(text):
        if not supported.has_term(name.lower()):
            unsupported.add(name.lower())
    if policy == "all":
        for term in _dictionary().match(text):
            parts = [part for part in words(term) if len(part) > 2]
            if not all(supported.has_term(part) for part in parts):
                unsupported.add(term)
    return sorted(unsupported)


def _is_specific(word: str) -> bool:
    everyday, listed = _word_set(_EVERYDAY), _word_set(_WITHOUT_ENDING)
    forms = (word, *_singulars(word))
    if any(form in everyday for form in forms) or (len(word) < 6 and word not in listed):
        return False
    return any(form in listed or _ENDINGS.fullmatch(form) for form in forms)


def _singulars(word: str) -> tuple[str, ...]:
    word = word.removesuffix("'s")
    forms = [word]
    if word.endswith("s"):
        forms.append(word[:-1])
    if word.endswith("es") and not word.endswith("oses"):  # closes, poses, exposes
        forms.append(f"{word[:-2]}is")
    if word.endswith("ies"):
        forms.append(f"{word[:-3]}y")
    if word.endswith("omata"):
        forms.append(word[:-2])
    return tuple(forms)


@cache
def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


@cache
def _dictionary() -> MedicalDictionary:
    return load_medical_dictionary()
