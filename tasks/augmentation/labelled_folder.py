"""Labelled videos laid out for this experiment: a folder whose sub-folders are labels, or a CSV.

- Folder: sub-folders are labels; a folder below a label is the source of the videos in it, and a video straight in a
  label's folder is a source of its own. Where classes are nested, `label_depth` says how many levels of folders make
  a label; the levels below them make the source.
- CSV: columns ``path,label,source``; ``synthetic`` (1/0, yes/no) marks videos that are only ever trained on, and
  ``trained_on`` names the sources, by semicolons, that a synthetic video's generator saw. Paths are relative to it.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from medgen.errors import SourceUnreadable
from medgen.listings.sources import VIDEO_SUFFIXES
from tasks.augmentation.labelled_videos import Labelled, LabelledVideo, LeftOut, shown, take

MOST_ROWS = 1_000_000
YES, NO = frozenset(["1", "yes", "true"]), frozenset(["", "0", "no", "false"])
PLAIN_DEPTH = 3  # LABEL/SOURCE/VIDEO: what lies deeper may be a tree of classes
ALONE = (
    "videos straight in a label's folder count as sources of their own: if several come from one recording, put them "
    "into a folder of their own below the label, or name sources in a CSV"
)


def videos_in(folder: Path, left_out: list[LeftOut]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """(path, its parts below the folder) of every video file, by name. Hidden files are passed over, links left out."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() not in VIDEO_SUFFIXES or any(part.startswith(".") for part in parts):
            continue
        if path.is_file() and not path.is_symlink():
            yield path, parts
        else:
            left_out.append(LeftOut(shown("/".join(parts)), "no_ordinary_file", "links and special files are not read"))


def read_folder(folder: Path, synthetic: bool, label_depth: int | None) -> Labelled:
    """The videos of a folder whose sub-folders are labels.

    Args:
        label_depth: levels of folders that make a label, joined by slashes. None: one, where nothing lies deeper than
            LABEL/SOURCE/VIDEO.

    Raises:
        SourceUnreadable: nested_folders where folders lie deeper than LABEL/SOURCE and `label_depth` is None;
            no_videos.
    """
    left_out: list[LeftOut] = []
    found = list(videos_in(folder, left_out))
    deep = next((parts for _, parts in found if len(parts) > PLAIN_DEPTH), None)
    if label_depth is None and deep:
        raise SourceUnreadable(
            "nested_folders",
            f"{shown('/'.join(deep))} lies in {len(deep) - 1} levels of folders: which of them are classes, and which "
            "sources, is not to be known. Say with label_depth how many levels make a label (the others make the "
            "source), or with layout which set it is",
        )
    depth = label_depth or 1
    videos: list[LabelledVideo] = []
    for path, parts in found:
        name = shown("/".join(parts))
        if len(parts) <= depth:
            message = f"it lies in {len(parts) - 1} level(s) of folders, and {depth} make a label"
            left_out.append(LeftOut(name, "no_label", message))
        else:
            source = "/".join(parts[:-1]) if len(parts) > depth + 1 else name
            videos += take(path, "/".join(parts[:depth]), source, synthetic, name, left_out)
    if not videos and not left_out:
        raise SourceUnreadable("no_videos", f"{folder} holds no videos in sub-folders named by their labels")
    return Labelled(tuple(videos), tuple(left_out), () if synthetic else _notes(found, depth, label_depth is None))


def _notes(found: list[tuple[Path, tuple[str, ...]]], depth: int, assumed: bool) -> tuple[str, ...]:
    notes = [ALONE] if any(len(parts) == depth + 1 for _, parts in found) else []
    below = Counter("/".join(parts[:-1]) for _, parts in found if len(parts) > depth + 1)
    if below and assumed:
        example, count = min(below.items())
        notes.append(
            f"the {len(below)} folder(s) below the labels were taken for sources ({shown(example)}: {count} video(s)); "
            "where they are classes of their own, say so with label_depth=2"
        )
    return tuple(notes)


def read_csv(path: Path, synthetic: bool) -> Labelled:
    """The videos that a CSV names.

    Raises:
        SourceUnreadable: missing_columns, too_many_rows, unreadable_csv, no_videos.
    """
    videos: list[LabelledVideo] = []
    left_out: list[LeftOut] = []
    needed = ("path", "label") if synthetic else ("path", "label", "source")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
            if missing := [name for name in needed if name not in names]:
                raise SourceUnreadable(
                    "missing_columns",
                    f"{path.name} has no column {' and no column '.join(missing)}: it needs {', '.join(needed)}",
                )
            for number, row in enumerate(reader, start=2):
                if number > MOST_ROWS:
                    raise SourceUnreadable("too_many_rows", f"{path.name} has more than {MOST_ROWS:,} rows")
                cell = {key: (row.get(name) or "").strip() for key, name in names.items()}
                videos += _row(path.parent, cell, synthetic, f"{path.name} row {number}", left_out)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceUnreadable("unreadable_csv", f"{path.name} is no CSV file in UTF-8: {error}") from error
    if not videos and not left_out:
        raise SourceUnreadable("no_videos", f"{path.name} has no rows")
    return Labelled(tuple(videos), tuple(left_out))


def _row(base: Path, cell: dict[str, str], synthetic: bool, where: str, left_out: list[LeftOut]) -> list[LabelledVideo]:
    marked = cell.get("synthetic", "").lower()
    name = shown(f"{where}: {cell['path']}")
    if marked not in YES | NO:
        left_out.append(LeftOut(name, "bad_synthetic_mark", f"synthetic must be 1 or 0, not {shown(marked)!r}"))
        return []
    made = synthetic or marked in YES
    source = cell.get("source", "")
    if not made and not source:
        left_out.append(LeftOut(name, "no_source", "a real video needs a source, by which splits go"))
        return []
    if not cell["path"] or "\0" in cell["path"]:
        left_out.append(LeftOut(name, "no_path", "the path is empty"))
        return []
    trained_on = frozenset(part.strip() for part in cell.get("trained_on", "").split(";") if part.strip())
    videos = take(base / cell["path"], cell["label"], source, made, name, left_out)
    return [replace(video, trained_on=trained_on if made else frozenset()) for video in videos]
