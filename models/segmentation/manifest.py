"""A folder of labelled videos or pictures: its MANIFEST.csv.

Columns: file, source (or repository) and is_medical, and if it likes kind (or category), made, licence and sha256.
is_medical is yes or no (true/false and 1/0 too); rows with anything else are left out. Sources are joined by " + ", and
told apart without regard to case. A row with anything in `made` trains and is not judged: a picture that was drawn,
rendered or derived from others for training. "ORIGINAL: PATH" in its column `path` names the repository that it was
derived from, whose fold it then shares, where `made` says "derived".
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medgen.errors import SourceUnreadable
from models.hub_files import file_digest
from models.segmentation.category import CATEGORIES
from models.segmentation.heads import NON_MEDICAL

MANIFEST = "MANIFEST.csv"
OTHER_NAMES = {"source": "repository", "kind": "category"}  # ours → how pictures' manifests call it
MEDICAL = "medical"  # the one medical class where no video's kind is known

_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")


@dataclass(frozen=True)
class LabelledFile:
    """A row of the manifest. `kind` is None where a medical item's kind is none of the paper's. `path` is the file."""

    file: str
    medical: bool
    kind: str | None
    sources: frozenset[str]
    licence: str
    sha256: str
    made: bool = False
    path: Path = Path()

    def row(self) -> dict[str, Any]:
        """As it stands in a data list."""
        label = self.kind or MEDICAL
        facts = {
            "file": self.file,
            "class": label,
            "source": sorted(self.sources),
            "licence": self.licence,
            "sha256": self.sha256,
        }
        return facts | ({"made": True} if self.made else {})


def read_manifests(folders: Sequence[Path]) -> tuple[list[LabelledFile], dict[str, str]]:
    """The labelled items of folders together, and file → reason for those left out. Raises as `read_manifest`; whether
    the sources suffice is asked of all folders together."""
    files: list[LabelledFile] = []
    left_out: dict[str, str] = {}
    for folder in folders:
        own, gone = _read(folder)
        prefix = f"{folder.resolve().name}/" if len(folders) > 1 else ""
        files += [replace(file, file=f"{prefix}{file.file}") for file in own]
        left_out |= {f"{prefix}{name}": reason for name, reason in gone.items()}
    check_sources(files)
    return files, left_out


def read_manifest(folder: Path) -> tuple[list[LabelledFile], dict[str, str]]:
    """The labelled videos of a folder, and file → reason for those left out.

    Raises:
        SourceUnreadable: no_manifest, column_missing, file_missing, file_changed (its sha256 is not the manifest's),
            file_outside, file_twice, too_few_sources.
    """
    return read_manifests([folder])


def _read(folder: Path) -> tuple[list[LabelledFile], dict[str, str]]:
    path = folder / MANIFEST
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceUnreadable("no_manifest", f"{path} cannot be read: {error}") from error
    columns |= {ours for ours, theirs in OTHER_NAMES.items() if theirs in columns}
    if missing := [name for name in ("file", "source", "is_medical") if name not in columns]:
        raise SourceUnreadable(
            "column_missing", f"{path} lacks the column {', '.join(missing)}; it has {', '.join(sorted(columns))}"
        )
    files: dict[str, LabelledFile] = {}
    left_out: dict[str, str] = {}
    for row in rows:
        name, answer = row["file"] or "", (row["is_medical"] or "").strip().lower()
        if answer not in (*_YES, *_NO):
            left_out[name] = f"is_medical is {answer!r}, neither yes nor no"
            continue
        if name in files:
            raise SourceUnreadable("file_twice", f"{path} lists {name!r} twice")
        files[name] = _labelled(folder, name, answer in _YES, row)
    return list(files.values()), left_out


def _labelled(folder: Path, name: str, medical: bool, row: dict[str, str | None]) -> LabelledFile:
    video = (folder / name).resolve()
    if not video.is_relative_to(folder.resolve()):
        raise SourceUnreadable("file_outside", f"{name!r} lies outside {folder}")
    if not video.is_file():
        raise SourceUnreadable("file_missing", f"{MANIFEST} lists {name!r}, which is not in {folder}")
    sha256, promised = file_digest(video), (row.get("sha256") or "").strip().lower()
    if promised and promised != sha256:
        raise SourceUnreadable("file_changed", f"{name!r} has sha256 {sha256}, {MANIFEST} says {promised}")
    kind, source = (_cell(row, name) or _cell(row, OTHER_NAMES[name]) for name in ("kind", "source"))
    made = _cell(row, "made")
    if made.startswith("derived") and ": " in _cell(row, "path"):
        source = _cell(row, "path").rsplit(": ", 1)[0]
    sources = frozenset(_same(part) for part in source.split(" + ")) - {""}
    return LabelledFile(
        file=name,
        medical=medical,
        kind=(kind.lower() if kind.lower() in CATEGORIES else None) if medical else NON_MEDICAL,
        sources=sources or frozenset({name}),  # a file without a source is its own
        licence=_cell(row, "licence"),
        sha256=sha256,
        made=bool(made),
        path=video,
    )


def _cell(row: dict[str, str | None], name: str) -> str:
    return (row.get(name) or "").strip()


def _same(source: str) -> str:
    """A source's name, the same however its case and its kind of package are written."""
    return " ".join(source.lower().split()).replace("debian package ", "debian:")


def check_sources(files: Sequence[LabelledFile]) -> None:
    """Raises SourceUnreadable (too_few_sources) unless both sides are left whichever source is left out."""
    for sources in {file.sources for file in files} or {frozenset[str]()}:
        sides = {file.medical for file in files if not file.sources & sources}
        if len(sides) < 2:
            counts = {side: len({file.sources for file in files if file.medical is side}) for side in (True, False)}
            raise SourceUnreadable(
                "too_few_sources",
                f"{counts[True]} medical and {counts[False]} non-medical sources: validation leaves out one source "
                "at a time, and needs medical and non-medical videos of others each time; two sources each at least",
            )
