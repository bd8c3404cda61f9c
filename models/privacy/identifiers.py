"""Does text on a picture name a patient? Names, numbers and birth dates as imaging devices burn them in.

Rules on what was read, in the forms that DICOM (PS3.3, Patient Module; PS3.5, person names as FAMILY^GIVEN) and
devices' screens use, in English, German, French, Spanish, Italian and Portuguese. Scales, settings and clocks are not
identifiers. A date alone, or an institution, does not name a patient: it is reported as weak.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from medgen.canonical import digest_of

Kind = Literal["name", "number", "birth date", "date", "institution"]

STRONG: frozenset[Kind] = frozenset({"name", "number", "birth date"})
LEAST_CONFIDENCE = 0.5

_DATE = (
    r"(?:\d{1,2}[./-]\d{1,2}[./-](?:19|20)?\d{2}|(?:19|20)\d{2}[./-]?\d{2}[./-]?\d{2}|\d{1,2}[ -][A-Za-z]{3}[ -]\d{4})"
)
# Readers take one sign for another: a colon for a semicolon, O for zero, a dot in a date for nothing.
_LABEL = r"\s*[:;?#=.]+\s*"
_BIRTH = r"\d(?:[ ./,:-]{0,2}\d){5,9}(?!\d)"
_RULES: tuple[tuple[Kind, str], ...] = (
    ("name", r"\b[A-ZÀ-Þ][A-Za-zÀ-ÿ'-]+\^[A-Za-zÀ-ÿ'-]*"),
    (
        "name",
        r"\b(?:pat[ij]ent+(?:\s*name|enname)?|pat\.?(?:\s*name)?|name|nom|nombre|nome|paziente|paciente|surname|vorname"
        r"|last\s*name|first\s*name)" + _LABEL + r"(?=[A-ZÀ-Þa-zß-ÿ]{2}|[A-ZÀ-Þ]\.)(?!unknown|anonym|none|test|n/?a\b)",
    ),
    ("name", r"(?-i:\b(?:Mr|Mrs|Ms|Herr|Frau|Mme|Sra?)\.?\s+[A-ZÀ-Þ][a-zß-ÿ]{2,})"),
    (
        "number",
        r"\b(?:mrn|patient\s*(?:id|no|nr|number)|pat\.?\s*(?:id|nr|no)|pid|id|case\s*(?:no|nr|id)|acc(?:ession)?\.?"
        r"(?:\s*(?:no|nr|number|#))?|ssn|nhs(?:\s*no)?|hospital\s*(?:no|id)|fall-?nr)"
        + _LABEL
        + r"(?=[\w-]*\d)[\w-]{4,}",
    ),
    ("number", r"\b\d{3}-\d{2}-\d{4}\b"),
    (
        "birth date",
        r"(?:\b(?:[dq][o0]b|d\.o\.b\.?|birth(?:\s*date|day)?|date\s+of\s+birth|born|geb(?:oren|\.|datum|urtsdatum)?"
        r"|n[ée]e?\s*le|naissance|f\.?\s*nac(?:imiento)?|nato|nascita|nascimento)\s*[:;,#=.]*\s*)"
        r"(?:" + _DATE + "|" + _BIRTH + r")|[*]\s*" + _DATE,
    ),
    (
        "institution",
        r"\b(?:hospital|clinic|klinik(?:um)?|krankenhaus|h[oô]pital|clinique|cl[ií]nica|ospedale|universit[\wä]+)\b",
    ),
    ("date", r"\b" + _DATE + r"\b"),
)
_COMPILED = tuple(
    (kind, re.compile(rule, re.IGNORECASE if "(?-i:" not in rule and r"\^" not in rule else 0)) for kind, rule in _RULES
)
IDENTIFIERS = digest_of({"name": "identifiers", "version": 2, "rules": _RULES, "least_confidence": LEAST_CONFIDENCE})


class ReadText(Protocol):
    """A piece of text on a frame, as `models.quality.text_reader.TextBox` is one."""

    @property
    def text(self) -> str: ...
    @property
    def confidence(self) -> float: ...
    @property
    def x(self) -> int: ...
    @property
    def y(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


@dataclass(frozen=True)
class Identifier:
    """What kind of identifier stands in which box (pixels of the frame). The text itself is not kept."""

    kind: Kind
    x: int
    y: int
    width: int
    height: int

    @property
    def strong(self) -> bool:
        """Whether it can name a patient by itself."""
        return self.kind in STRONG


def identifiers(boxes: Iterable[ReadText]) -> list[Identifier]:
    """Identifiers among the text boxes of one frame. A label and its value may stand in two boxes of a line."""
    read = sorted((box for box in boxes if box.confidence >= LEAST_CONFIDENCE), key=lambda box: (box.y, box.x))
    identified: dict[tuple[int, int, int, int], Identifier] = {}
    for place, box in enumerate(read):
        kind = kind_of(box.text)
        if kind:
            identified.setdefault((box.x, box.y, box.width, box.height), _at(kind, box))
            continue
        for other in read[place + 1 :] + read[:place]:
            gap = other.x - (box.x + box.width)
            same_line = abs(other.y + other.height / 2 - box.y - box.height / 2) < 0.6 * min(box.height, other.height)
            if same_line and 0 <= gap < 3 * box.height and not kind_of(other.text):
                joined = kind_of(f"{box.text.rstrip(' :#=.')}: {other.text}")
                if joined in STRONG:
                    for part in (box, other):
                        identified[part.x, part.y, part.width, part.height] = _at(joined, part)
    return list(identified.values())


def kind_of(text: str) -> Kind | None:
    """The kind of identifier that a line of text holds, the strongest first; None for none."""
    return next((kind for kind, rule in _COMPILED if rule.search(text)), None)


def _at(kind: Kind, box: ReadText) -> Identifier:
    return Identifier(kind, box.x, box.y, box.width, box.height)
