"""HyperKvasir's labelled videos as their authors lay them out: a tree of classes, and a CSV of findings.

Borgli et al., "HyperKvasir, a comprehensive multi-class image and video dataset for gastrointestinal endoscopy",
Scientific Data 7:283 (2020). In ``labeled-videos`` lie ``ORGAN/CLASSIFICATION/FINDING/FILE``, such as
``lower-gi-tract/pathological-findings/polyps/UUID.avi``, and ``video-labels.csv``, by semicolons (by commas in some
copies), with the columns Video file (no suffix), Organ, Finding 1, Classification 1, Detailed description of finding,
Finding 2, Classification 2. The authors' scripts (github.com/simula/hyper-kvasir, scripts/) also take all files in one
folder beside the CSV; labels are the CSV's then.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from medgen.errors import SourceUnreadable
from tasks.augmentation.labelled_folder import videos_in
from tasks.augmentation.labelled_videos import Labelled, LabelledVideo, LeftOut, shown, take

Level = Literal["finding", "classification", "organ"]
ORGANS = ("lower-gi-tract", "upper-gi-tract")
LABELLED, LABELS = "labeled-videos", "video-labels.csv"
LEVELS: tuple[Level, ...] = ("organ", "classification", "finding")  # of the tree, from its root
COLUMNS: dict[Level, str] = {"organ": "organ", "classification": "classification 1", "finding": "finding 1"}
TREE = "ORGAN/CLASSIFICATION/FINDING/FILE"
MOST_BYTES = 1 << 26  # of the CSV; the set's has 40 kB
OWN_SOURCES = "HyperKvasir does not say which videos are of one patient: each counts as a source of its own"

_Row = dict[str, str]  # column, in small letters → cell


def videos_folder(folder: Path) -> Path | None:
    """Where the labelled videos are: the folder itself, or ``labeled-videos`` in the whole set. None: neither."""
    for candidate in (folder, folder / LABELLED):
        if (candidate / LABELS).is_file() or any((candidate / organ).is_dir() for organ in ORGANS):
            return candidate
    return None


def read_hyperkvasir(folder: Path, synthetic: bool, parts: Sequence[str], level: Level) -> Labelled:
    """The labelled videos of the set.

    A class whose name stands in several places of the tree goes by its path, so that none are taken for one silently.

    Args:
        parts: of lower-gi-tract, upper-gi-tract; both when empty.
        level: of the tree, that labels are taken from.

    Raises:
        SourceUnreadable: not_hyperkvasir where files lie elsewhere than the set's do; missing_columns, unreadable_csv,
            unknown_part, no_videos.
    """
    root = videos_folder(folder)
    if root is None:
        raise SourceUnreadable(
            "not_hyperkvasir", f"{folder} has neither {LABELS} nor {' or '.join(ORGANS)}, nor has {LABELLED} in it"
        )
    if unknown := set(parts) - set(ORGANS):
        raise SourceUnreadable("unknown_part", f"HyperKvasir has {' and '.join(ORGANS)}, not {', '.join(unknown)}")
    rows = _read_rows(root / LABELS) if (root / LABELS).is_file() else {}
    left_out: list[LeftOut] = []
    found = list(videos_in(root, left_out))
    if not found:
        raise SourceUnreadable("no_videos", f"{root} holds no video")
    in_tree = _in_tree([part for _, part in found])
    places = {path: _place(parts_, rows.get(path.stem), in_tree) for path, parts_ in found}
    paths = defaultdict(set)  # name of a class → its places in the tree
    depth = LEVELS.index(level) + 1
    for place in places.values():
        if place:
            paths[place[depth - 1]].add(place[:depth])
    videos: list[LabelledVideo] = []
    for path, parts_ in found:
        name, place = shown("/".join(parts_)), places[path]
        if place is None:
            left_out.append(LeftOut(name, "no_label", f"{LABELS} has no row with organ, class and finding for it"))
        elif in_tree and (contradiction := _contradiction(place, rows.get(path.stem))):
            left_out.append(LeftOut(name, "two_labels", contradiction))
        elif not parts or any(_alike(place[0], part) for part in parts):
            label = place[depth - 1] if len(paths[place[depth - 1]]) == 1 else "/".join(place[:depth])
            videos += take(path, label, path.stem, synthetic, name, left_out)
    known = {path.stem for path, _ in found}
    left_out += [
        LeftOut(shown(f"{LABELS}: {stem}"), "missing_file", "there is no such video")
        for stem in rows
        if stem not in known
    ]
    return Labelled(tuple(videos), tuple(left_out), _notes(videos, rows, level, in_tree))


def _in_tree(found: Sequence[tuple[str, ...]]) -> bool:
    """Whether the files lie in the tree; else they lie beside the CSV."""
    depths = {len(parts) for parts in found}
    strange = [parts for parts in found if len(parts) not in (1, 4) or (len(parts) == 4 and parts[0] not in ORGANS)]
    if strange:
        raise SourceUnreadable(
            "not_hyperkvasir",
            f"{shown('/'.join(strange[0]))} lies where HyperKvasir has none: its videos are {TREE} with the organs "
            f"{' and '.join(ORGANS)}, or all beside {LABELS}. Folders of your own are read with layout=labels",
        )
    if len(depths) > 1:
        raise SourceUnreadable(
            "not_hyperkvasir",
            f"some videos lie in the tree {TREE} and some beside {LABELS}: one finding would be two classes",
        )
    return depths == {4}


def _place(parts: tuple[str, ...], row: _Row | None, in_tree: bool) -> tuple[str, ...] | None:
    """(organ, classification, finding) of a video, by the tree or by the CSV."""
    if in_tree:
        return parts[:3]
    place = tuple(re.sub(r"\s+", " ", (row or {}).get(COLUMNS[level], "")).strip().lower() for level in LEVELS)
    return place if all(place) else None


def _contradiction(place: tuple[str, ...], row: _Row | None) -> str:
    """Where the CSV says another organ or classification than the tree. Findings are worded too differently to tell."""
    for folder, level in zip(place[:2], LEVELS[:2], strict=True):
        told = (row or {}).get(COLUMNS[level], "").strip()
        if told and not _alike(folder, told):
            return f"its folder says {shown(folder)}, {LABELS} says {shown(told)}"
    return ""


def _alike(one: str, other: str) -> bool:
    """``lower-gi-tract`` and ``Lower GI``, ``quality-of-mucosal-view`` and ``Quality of mucosal views``."""
    short, long = sorted((re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") for text in (one, other)), key=len)
    return long.startswith(short)


def _read_rows(path: Path) -> dict[str, _Row]:
    """Video file, without its suffix → its row."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SourceUnreadable("unreadable_csv", f"{path.name} has more than {MOST_BYTES:,} bytes")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        reader = csv.DictReader(lines, delimiter=";" if lines and ";" in lines[0] else ",")
        names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
        needed = ("video file", *COLUMNS.values())
        if missing := [name for name in needed if name not in names]:
            raise SourceUnreadable("missing_columns", f"{path.name} has no column {' and no column '.join(missing)}")
        rows = [{key: (row.get(name) or "").strip() for key, name in names.items()} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceUnreadable("unreadable_csv", f"{path.name} is no CSV file in UTF-8: {error}") from error
    return {row["video file"].removesuffix(".avi"): row for row in rows if row["video file"]}


def _notes(videos: Sequence[LabelledVideo], rows: dict[str, _Row], level: Level, in_tree: bool) -> tuple[str, ...]:
    notes = [f"read as HyperKvasir: the label is the {level} of {'the folders' if in_tree else LABELS} (label_level)"]
    second = sum(bool(rows.get(video.source, {}).get("finding 2")) for video in videos)
    if second and level == "finding":
        notes.append(
            f"{second} videos show a second finding by {LABELS}; the first is their label, as in the set's folders"
        )
    return (*notes, OWN_SOURCES)
