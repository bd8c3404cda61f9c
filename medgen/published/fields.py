"""What a row of a published set says of a clip, whatever its columns are called; checked, because it is untrusted."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from medgen.errors import ItemFailed
from medgen.listings.rows import MAX_URL, check_url, storable_text
from medgen.listings.sources import FOLDER_SCHEME
from medgen.published.layout import SPLITS

MAX_CAPTION = 20_000  # characters
MAX_PATH = 1_024
MAX_SHORT = 500  # characters of a category, a licence and the like; longer ones are cut
MAX_NUMBER = 1e15  # the catalog gives larger ones back in another form
MAX_GIVEN = 64  # further numbers of a row
# Field → what sets call it, in order of preference. Among them MedVideoCap-55K's, as its paper lists them.
ALIASES: dict[str, tuple[str, ...]] = {
    "file": (
        "file_name", "video_file_name", "file", "filename", "video_path", "video_file", "video", "clip_path", "path",
        "clip", "clip_name", "video_name", "name",
    ),
    "brief": ("brief_caption", "brief", "short_caption", "caption_brief", "caption_short", "summary"),
    "detailed": (
        "detailed_caption", "detailed", "long_caption", "dense_caption", "caption_detailed", "caption_long", "caption",
        "text", "prompt", "txt", "description",
    ),
    "category": ("category", "class", "label", "video_category", "topic"),
    "licence": ("licence", "license"),
    "split": ("split", "subset"),
    "title": ("title", "video_title"),
    "url": ("url", "video_url", "source_url", "webpage_url", "youtube_url"),
    "source_video": ("video_id", "source_video", "source_id", "youtube_id", "ytid", "videoid"),
    "channel": ("channel", "uploader", "author"),
    "published": ("published", "published_at", "upload_date"),
    "start_s": ("start_s", "start", "start_time", "clip_start", "start_sec"),
    "camera_motion": ("camera_motion", "camera_motion_type", "motion_type"),
    "captioner": ("captioner", "caption_model"),
    "captioner_kind": ("captioner_kind",),
    "sha256": ("clip_sha256", "sha256", "video_file_sha256"),
    "aesthetic": ("aesthetic_score", "aesthetic", "aesthetics", "laion_score", "laion_aesthetic"),
    "aesthetic_model": ("aesthetic_model",),
    "technical_model": ("technical_model",),
    "dover": ("dover_score", "dover", "dover_technical", "technical_score", "technical_quality"),
}  # fmt: skip
CLAIMS = ("resolution", "bit_rate", "bitrate", "duration", "duration_s", "fps", "width", "height", "num_frames")
SCORES = ("aesthetic", "dover")
NOTHING = frozenset(["", "nan", "none", "null", "n/a", "na", "-"])
PUBLISHED_SCHEME = "published:"  # of the address that a source video without one gets
OWN_SCHEMES = (PUBLISHED_SCHEME, FOLDER_SCHEME)
SHA256 = re.compile(r"[0-9a-f]{64}")
DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True)
class PublishedRow:
    """What a row says. Texts are storable; None or empty where it says nothing.

    Args:
        file: relative path of the video, or its name where it lies in the row's own file.
        brief, detailed: captions.
        columns: field → the column that it was read from.
        url: of the source video.
        source_video: what the publisher calls the source video.
        start_s: where the clip begins in its source video, seconds.
        sha256: that the video's bytes should have.
        scores: aesthetic and dover, as given, and further columns whose names end in "score".
        claims: what else the row says of the file: resolution, duration, …
    """

    file: str
    brief: str = ""
    detailed: str = ""
    category: str = ""
    licence: str = ""
    split: str = ""
    title: str = ""
    url: str = ""
    source_video: str = ""
    channel: str = ""
    published: str = ""
    camera_motion: str = ""
    captioner: str = ""
    captioner_kind: str = ""
    aesthetic_model: str = ""
    technical_model: str = ""
    sha256: str = ""
    start_s: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    claims: Mapping[str, float | str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)


def field_mapping(texts: Sequence[str]) -> dict[str, str]:
    """Reads ``FIELD=COLUMN`` texts: field of ALIASES → the set's name for it.

    Raises:
        ValueError: a text is no such pair, names an unknown field, or a field is named twice.
    """
    mapping: dict[str, str] = {}
    for text in texts:
        name, equals, column = (part.strip() for part in text.partition("="))
        if not (equals and column):
            raise ValueError(f"{text[:100]!r} is not FIELD=COLUMN, for example detailed=long_caption")
        if name not in ALIASES:
            raise ValueError(f"{name[:100]!r} is no field of a published set; there are {', '.join(sorted(ALIASES))}")
        if name in mapping:
            raise ValueError(f"field {name!r} is named twice")
        mapping[name] = column
    return mapping


def published_row(values: Mapping[str, Any], mapping: Mapping[str, str]) -> PublishedRow:
    """Checks a row.

    Raises:
        ItemFailed: missing_column, when `mapping` names one that the row lacks; missing_file, unsafe_path,
            caption_too_long, bad_row, bad_split; as `medgen.listings.rows.check_url` but for an empty URL.
    """
    known: dict[str, str] = {}  # a name as ALIASES has it → the column
    for name in values:
        known.setdefault(re.sub(r"[\s-]+", "_", str(name).strip().lower()), name)
    columns = {name: column for name in ALIASES if (column := _column(name, known, values, mapping)) is not None}

    def text(name: str, most: int = MAX_SHORT) -> str:
        value = values.get(columns[name]) if name in columns else None
        if isinstance(value, dict) and name == "file":  # Hugging Face's feature of a video that lies beside
            value = value.get("path")
        if isinstance(value, list | dict):
            raise ItemFailed("bad_row", f"{columns[name]} is no text: {str(value)[:50]!r}")
        return storable_text(value).strip()[:most] if not _is_nothing(value) else ""

    captions = {kind: text(kind, MAX_CAPTION + 1) for kind in ("brief", "detailed")}
    if longest := next((kind for kind, words in captions.items() if len(words) > MAX_CAPTION), None):
        raise ItemFailed("caption_too_long", f"{columns[longest]} has more than {MAX_CAPTION} characters")
    sha256 = text("sha256").lower()
    used = set(columns.values())
    return PublishedRow(
        file=safe_path(text("file", MAX_PATH + 1)),
        **captions,
        **{
            name: text(name)
            for name in (
                "category", "licence", "title", "source_video", "channel", "published", "camera_motion", "captioner",
                "captioner_kind", "aesthetic_model", "technical_model",
            )
        },
        split=_split(text("split")),
        url=_source_url(text("url", MAX_URL + 1)),
        sha256=sha256 if SHA256.fullmatch(sha256) else "",
        start_s=_number("start_s", values.get(columns.get("start_s", ""))),
        scores=_scores(values, columns, used),
        claims=_claims(values, known, used),
        columns={name: storable_text(column)[:MAX_SHORT] for name, column in columns.items()},
    )  # fmt: skip


def safe_path(text: str) -> str:
    """A relative path, its parts joined by "/", that leads down from where it starts.

    Raises:
        ItemFailed: missing_file; unsafe_path, for one that is absolute, climbs, or is a URL.
    """
    if not text:
        raise ItemFailed("missing_file", "the row names no video; name its column, for example columns=file=NAME")
    path = text.replace("\\", "/")
    parts = PurePosixPath(path).parts
    if len(text) > MAX_PATH or "://" in path or path.startswith("/") or DRIVE.match(path) or ".." in parts or not parts:
        raise ItemFailed("unsafe_path", f"{text[:200]!r} is no relative path of a file of the set")
    return "/".join(parts)


def _column(name: str, known: Mapping[str, str], values: Mapping[str, Any], mapping: Mapping[str, str]) -> str | None:
    if name in mapping:
        if mapping[name] not in values:
            held = ", ".join(storable_text(column)[:50] for column in [*values][:50])
            raise ItemFailed(
                "missing_column", f"there is no column {mapping[name]!r}, named for {name}; there are {held}"
            )
        return mapping[name]
    taken = set(mapping.values())
    names = (known[alias] for alias in ALIASES[name] if alias in known)
    return next((column for column in names if column not in taken and not _is_nothing(values[column])), None)


def _is_nothing(value: Any) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and value.strip().lower() in NOTHING


def _source_url(text: str) -> str:
    """The address of the source video, also as another medgen wrote it; empty for what is no address."""
    if "://" in text:
        return check_url(text)
    return text if text.startswith(OWN_SCHEMES) and len(text) <= MAX_URL and text.isprintable() else ""


def _split(text: str) -> str:
    word = text.lower()
    return SPLITS.get(word, storable_text(word)[:40])


def _scores(values: Mapping[str, Any], columns: Mapping[str, str], used: set[str]) -> dict[str, float]:
    scores = {name: _number(columns[name], values[columns[name]]) for name in SCORES if name in columns}
    for column, value in values.items():
        name = re.sub(r"[^a-z0-9_]+", "_", str(column).lower())[:60]
        if column not in used and name.endswith("score") and not isinstance(value, list | dict):
            scores[name] = _number(str(column), value)
    return {name: value for name, value in [*scores.items()][:MAX_GIVEN] if value is not None}


def _claims(values: Mapping[str, Any], known: Mapping[str, str], used: set[str]) -> dict[str, float | str]:
    found = ((name, values[known[name]]) for name in CLAIMS if name in known and known[name] not in used)
    return {
        name: value + 0.0
        if isinstance(value, int | float) and abs(value) < MAX_NUMBER
        else storable_text(value)[:MAX_SHORT]
        for name, value in found
        if not _is_nothing(value) and not isinstance(value, list | dict)
    }


def _number(name: str, value: Any) -> float | None:
    if _is_nothing(value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) < MAX_NUMBER:
        raise ItemFailed("bad_row", f"{storable_text(name)[:100]} is not a number that is meant: {_shown(value)}")
    return number + 0.0  # no -0.0: the catalog has none


def _shown(value: Any) -> str:
    try:
        return repr(storable_text(value)[:50])
    except ValueError:  # an integer of more digits than Python writes
        return "too many digits"
