"""What people said of the files of a folder: kept line by line as they say it, written out as a MANIFEST.csv.

`labels.jsonl` in the folder holds every answer, the newest last; nothing in it is changed. An export makes the manifest
of it that `medgen train-frames` and `medgen judge` read, and keeps columns and rows that the manifest has already.
"""

import csv
import fcntl
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from medgen.errors import SourceUnreadable
from medgen.listings.sources import VIDEO_SUFFIXES
from medgen.store import file_digest
from models.segmentation.category import CATEGORIES
from models.segmentation.heads import NON_MEDICAL
from models.segmentation.manifest import MANIFEST

ANSWERS = "labels.jsonl"
IMAGE_SUFFIXES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
UNSURE = "unsure"
CHOICES = (*CATEGORIES, NON_MEDICAL, UNSURE)
WRITTEN = ("file", "source", "sha256", "is_medical", "kind", "labelled_by")


@dataclass(frozen=True)
class Answer:
    """What one person said of one file: `choice` is one of `CHOICES`; `because` says why the file was shown."""

    file: str
    by: str
    choice: str
    because: str
    at: str


def files_of(folder: Path) -> list[str]:
    """Videos and pictures of a folder and those below, as paths within it, sorted. Links that lead out are left out.

    Raises:
        SourceUnreadable: no_such_folder, nothing_to_label.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise SourceUnreadable("no_such_folder", f"{folder} is no folder")
    found = [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES.keys()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
        and path.resolve().is_relative_to(root)
    ]
    if not found:
        raise SourceUnreadable("nothing_to_label", f"{folder} holds no video and no picture")
    return found


class Answers:
    """The answers of a folder, in memory and in its file. Safe to use from several threads.

    Raises:
        SourceUnreadable: answers_unreadable, the line is named.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ANSWERS
        self._lock = threading.Lock()
        self._newest: dict[tuple[str, str], Answer] = {}
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                answer = Answer(**json.loads(line))
                if answer.choice not in CHOICES:
                    raise ValueError(f"no such choice: {answer.choice!r}")
            except (ValueError, TypeError) as error:
                if number == len(lines):
                    continue  # half a line, see `add`
                raise SourceUnreadable("answers_unreadable", f"{self.path}, line {number}: {error}") from error
            self._newest[answer.file, answer.by] = answer

    def add(self, file: str, by: str, choice: str, because: str) -> None:
        """Puts an answer on the disk, then in memory. Raises ValueError for another choice; OSError."""
        if choice not in CHOICES:
            raise ValueError(f"no such choice: {choice!r}")
        answer = Answer(file, by, choice, because, datetime.now(UTC).isoformat(timespec="seconds"))
        with self._lock, self.path.open("ab+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # of other people's processes too; closing unlocks
            stream.seek(0)
            # A last line without its end is what a killed process left; that answer was never confirmed.
            stream.truncate(stream.read().rfind(b"\n") + 1)
            stream.write(json.dumps(vars(answer), ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
            self._newest[file, by] = answer

    def of(self, by: str) -> dict[str, Answer]:
        """file → the newest answer of a person."""
        with self._lock:
            return {file: answer for (file, name), answer in self._newest.items() if name == by}

    def of_all(self) -> dict[str, list[Answer]]:
        """file → the newest answer of each person."""
        gathered: dict[str, list[Answer]] = {}
        with self._lock:
            for (file, _), answer in sorted(self._newest.items()):
                gathered.setdefault(file, []).append(answer)
        return gathered


@dataclass(frozen=True)
class Exported:
    """How many files the manifest labels medical and non-medical, and of which people said different things."""

    medical: int
    other: int
    disputed: list[str]


def export(folder: Path, files: Sequence[str], answers: Answers) -> Exported:
    """Writes the folder's MANIFEST.csv, whole or not at all.

    A file is labelled where all who were sure said the same; where they differ on medical or not its label stays empty,
    where they differ on the category that does. The source of a file is what the manifest says already, else the folder
    that it lies in, else the file itself: name sources in it, or train-frames takes each file for a source of its own.

    Raises:
        SourceUnreadable: manifest_unreadable.
        OSError: it cannot be written.
    """
    path = folder / MANIFEST
    rows, columns = _manifest(path)
    said = answers.of_all()
    counts = {True: 0, False: 0}
    disputed = []
    for file in dict.fromkeys([*files, *said]):
        choices = {answer.choice for answer in said.get(file, ())} - {UNSURE}
        row = rows.setdefault(file, {"file": file})
        row["source"] = row.get("source") or (str(Path(file).parent) if "/" in file else file)
        if not choices:
            continue
        sides = {choice != NON_MEDICAL for choice in choices}
        row["is_medical"] = "" if len(sides) > 1 else "yes" if sides == {True} else "no"
        row["kind"] = choices.pop() if len(choices) == 1 and sides == {True} else ""
        row["labelled_by"] = "; ".join(sorted({answer.by for answer in said[file]}))
        row["sha256"] = file_digest(folder / file)[0] if (folder / file).is_file() else ""
        if len(sides) > 1:
            disputed.append(file)
        else:
            counts[sides.pop()] += 1
    part = path.with_name(f".{MANIFEST}.part")
    with part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [*columns, *(name for name in WRITTEN if name not in columns)], restval="")
        writer.writeheader()
        writer.writerows(rows.values())
    part.replace(path)
    return Exported(counts[True], counts[False], disputed)


def _manifest(path: Path) -> tuple[dict[str, dict[str, str]], Iterable[str]]:
    """file → row of a manifest, and its columns; none where there is none."""
    if not path.exists():
        return {}, ()
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows: list[Mapping[str, str | None]] = list(reader)
            columns = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceUnreadable("manifest_unreadable", f"{path} cannot be read: {error}") from error
    if "file" not in columns:
        raise SourceUnreadable("manifest_unreadable", f"{path} has no column 'file'; it has {', '.join(columns)}")
    return {row["file"] or "": {key: row.get(key) or "" for key in columns} for row in rows}, columns
