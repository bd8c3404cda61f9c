"""Hand-made labels of videos: what a MANIFEST.csv says of each file.

Columns that are read (others are ignored, missing ones leave their question unasked): file, source, sha256, is_medical,
kind, has_black_border, has_subtitles_or_heavy_text, n_hard_cuts, cut_times_s, quality_note; and, in folders made by
`medgen sample`, clip_id, step, verdict, reason and correct.
"""

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

YES = {"yes", "y", "true", "1"}
NO = {"no", "n", "false", "0"}
SPAN = re.compile(r"(?:between|gradual|fade[sd]?)\D*?(\d+(?:\.\d+)?)\s*(?:-|–|to|and)\s*(\d+(?:\.\d+)?)")
MOMENT = re.compile(r"\d+(?:\.\d+)?")
# Words of quality_note, by what the pipeline has to make of them.
UNREADABLE = ("unreadable", "corrupt", "no picture", "empty file", "truncated")
STILL = ("static", "still")
DEGRADED = ("blur", "nois", "block")
DEGRADED_FROM = 2  # a video with one of these may be as its device gives it; with two it was spoilt


class BadManifest(ValueError):
    """The folder's MANIFEST.csv is missing or can't be read."""


@dataclass(frozen=True)
class Cuts:
    """Labelled shot boundaries.

    Args:
        moments: times of hard cuts, seconds.
        spans: stretches (start, end) that hold one boundary somewhere, seconds.
        gradual: stretches (start, end) of dissolves and fades, seconds.
        complete: whether every boundary of the file is labelled with its time; if not, further ones are not judged.
    """

    moments: tuple[float, ...] = ()
    spans: tuple[tuple[float, float], ...] = ()
    gradual: tuple[tuple[float, float], ...] = ()
    complete: bool = True


@dataclass(frozen=True)
class Label:
    """What people said of one file; None where they said nothing."""

    file: str
    sources: frozenset[str] = frozenset()
    medical: bool | None = None
    kind: str = ""
    border: bool | None = None
    overlay_text: bool | None = None
    cuts: Cuts | None = None
    unreadable: bool | None = None
    still: bool | None = None
    degraded: bool | None = None
    correct: bool | None = None
    sampled: dict[str, str] = field(default_factory=dict)  # step, verdict, reason, clip_id of `medgen sample`


def read_labels(folder: Path) -> list[Label]:
    """The labels of a folder, one per row of its MANIFEST.csv.

    Raises:
        BadManifest: no such file, no column "file", a file named twice or lying outside the folder.
    """
    path = folder / "MANIFEST.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadManifest(f"{path} can't be read: {error}") from error
    if "file" not in columns:
        raise BadManifest(f"{path} has no column 'file' (it has: {', '.join(columns) or 'none'})")
    seen: set[str] = set()
    for row in rows:
        name = row["file"]
        if name in seen:
            raise BadManifest(f"{path} names {name!r} twice")
        if name and not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise BadManifest(f"{path} names {name!r}, which lies outside the folder")
        seen.add(name)
    return [_label(row) for row in rows if row["file"]]


def _label(row: dict[str, str]) -> Label:
    note = row.get("quality_note", "").lower()
    unreadable = any(word in note for word in UNREADABLE) if note else None
    flaws = sum(word in note for word in DEGRADED)
    looked_at = bool(note) and not unreadable
    return Label(
        file=row["file"],
        sources=frozenset(part.strip() for part in row.get("source", "").split(" + ") if part.strip()),
        medical=None if unreadable else _flag(row.get("is_medical", "")),
        kind=row.get("kind", ""),
        border=None if unreadable else _flag(row.get("has_black_border", "")),
        overlay_text=None if unreadable else _flag(row.get("has_subtitles_or_heavy_text", "")),
        cuts=None if unreadable else _cuts(row.get("n_hard_cuts", ""), row.get("cut_times_s", "").lower()),
        unreadable=unreadable,
        still=any(word in note for word in STILL) if looked_at else None,
        # One such word alone is neither yes nor no.
        degraded=(None if 0 < flaws < DEGRADED_FROM else flaws >= DEGRADED_FROM) if looked_at else None,
        correct=_flag(row.get("correct", "")),
        sampled={name: row.get(name, "") for name in ("clip_id", "step", "verdict", "reason") if row.get(name)},
    )


def _flag(text: str) -> bool | None:
    word = text.lower()
    return True if word in YES else False if word in NO else None


def _cuts(count: str, text: str) -> Cuts | None:
    """Times are separated by semicolons; a part may be a moment, a span, or words."""
    if not count.isdigit():
        return None
    moments: list[float] = []
    spans: list[tuple[float, float]] = []
    gradual: list[tuple[float, float]] = []
    vague = False
    for part in re.split(r"[;|]", text):
        span = SPAN.search(part)
        if span:
            bounds = (float(span[1]), float(span[2]))
            (gradual if "gradual" in part or "fade" in part else spans).append(bounds)
            continue
        number = MOMENT.match(part.strip())
        if number:
            moments.append(float(number[0]))
            part = part.strip()[number.end() :]
        if "fade" in part or "jump" in part or "frame" in part or "gradual" in part:
            vague = True
    complete = not vague and len(moments) + len(spans) >= int(count)
    return Cuts(tuple(moments), tuple(spans), tuple(gradual), complete)
