"""MedVidCL as its authors lay it out: JSON lists of YouTube videos with one of three labels, and the videos by id.

Gupta, Attal, Demner-Fushman, "A dataset for medical instructional video classification and question answering",
arXiv 2201.12888. The lists are train.json, val.json and test.json of the set (doi 10.17605/OSF.IO/PC594): records with
``video_id`` and ``label``, and ``video_title``, ``video_sub_title`` where the authors' `prepare/Text_Extraction.py`
added them. That script writes to ``data/text``, and their `prepare/Extract_MedVidCL_ViT.py` downloads the videos to
``data/videos/medvidcl/VIDEO_ID.avi`` (github.com/deepaknlp/MedVidQACL). The set holds no videos itself.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgen.errors import SourceUnreadable
from tasks.augmentation.labelled_folder import videos_in
from tasks.augmentation.labelled_videos import Labelled, LabelledVideo, LeftOut, shown, take

LABELS = ("Medical Instructional", "Medical Non-instructional", "Non-medical")
PARTS = ("train", "val", "test")
LIST_FOLDERS = (".", "data/text")
VIDEO_FOLDER = "data/videos/medvidcl"
VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{11}")
MOST_BYTES = 1 << 30  # of a list; with all subtitles those of the set are some 50 MB


def lists_of(place: Path) -> dict[str, Path]:
    """Part → its list: of the set's folder, or the one list that is the place itself. Empty where there is none."""
    if place.is_file():
        return {place.stem: place} if place.suffix.lower() == ".json" else {}
    found = {}
    for part in PARTS:
        for folder in LIST_FOLDERS:
            if (path := place / folder / f"{part}.json").is_file():
                found[part] = path  # the later one has the subtitles too
    return found


def is_medvidcl(place: Path) -> bool:
    """Whether there are lists of records with ``video_id``. Raises SourceUnreadable as `read_medvidcl`."""
    rows = [row for path in list(lists_of(place).values())[:1] for row in _rows(path)[:1]]
    return any("video_id" in row for row in rows)


def read_medvidcl(place: Path, synthetic: bool, parts: Sequence[str], video_folder: str) -> Labelled:
    """The videos of the set, each a source of its own.

    Args:
        place: the set's folder, or one list.
        parts: of train, val, test; all of them when empty.
        video_folder: where the videos are, named by their ids with any video's suffix; by default where the authors'
            script puts them.

    Raises:
        SourceUnreadable: no_lists, unreadable_json, several_labels, unknown_part, no_video_folder.
    """
    lists = lists_of(place)
    if not lists:
        raise SourceUnreadable("no_lists", f"{place} has none of MedVidCL's lists train.json, val.json and test.json")
    if unknown := set(parts) - set(lists):
        raise SourceUnreadable(
            "unknown_part", f"{place} has no part {', '.join(sorted(unknown))}: it has {', '.join(lists)}"
        )
    folder = Path(video_folder) if video_folder else (place if place.is_dir() else place.parent) / VIDEO_FOLDER
    if not folder.is_dir():
        raise SourceUnreadable(
            "no_video_folder",
            f"{folder} is no folder: MedVidCL's lists name YouTube videos, which you fetch yourself (VIDEO_ID.mp4); "
            "say with video_folder where they are",
        )
    left_out: list[LeftOut] = []
    files: dict[str, list[Path]] = defaultdict(list)
    for path, _ in videos_in(folder, left_out):
        files[path.stem].append(path)
    labels = _labels({part: path for part, path in lists.items() if not parts or part in parts}, left_out)
    videos: list[LabelledVideo] = []
    for video_id, (label, name) in labels.items():
        own = files.get(video_id, [])
        if len(own) == 1:
            videos += take(own[0], label, video_id, synthetic, name, left_out)
        else:
            reason = "two_files" if own else "missing_file"
            left_out.append(LeftOut(name, reason, f"{len(own)} files of {folder.name} are called {video_id}"))
    taken = [part for part in lists if not parts or part in parts]
    note = (
        f"read as MedVidCL: {len(videos)} of the {len(labels)} videos of {', '.join(taken)}, put together, as the "
        "experiment makes folds of its own"
    )
    return Labelled(tuple(videos), tuple(left_out), (note,))


def _labels(lists: dict[str, Path], left_out: list[LeftOut]) -> dict[str, tuple[str, str]]:
    """Id → (label, name for messages) of the videos with one label of the set."""
    found: dict[str, dict[str, str]] = defaultdict(dict)  # id → label → name
    for part, path in lists.items():
        for number, row in enumerate(_rows(path), start=1):
            name = f"{part}.json record {number}"
            video_id, label = row.get("video_id"), _label(row, name)
            if not isinstance(video_id, str) or not VIDEO_ID.fullmatch(video_id):
                left_out.append(LeftOut(name, "no_video_id", f"{shown(str(video_id))!r} is no id of a YouTube video"))
            elif label not in LABELS:
                message = f"{shown(label)!r} is none of the set's labels: {', '.join(LABELS)}"
                left_out.append(LeftOut(f"{name}: {video_id}", "unknown_label", message))
            else:
                found[video_id].setdefault(label, f"{name}: {video_id}")
    for video_id, labels in found.items():
        if len(labels) > 1:
            name = next(iter(labels.values()))
            left_out.append(LeftOut(name, "two_labels", f"the lists call {video_id} {' and '.join(labels)}"))
    return {video_id: next(iter(labels.items())) for video_id, labels in found.items() if len(labels) == 1}


def _label(row: dict[str, Any], name: str) -> str:
    if "label" not in row and "level_2_category_labels" in row:
        raise SourceUnreadable(
            "several_labels",
            f"{name} has several labels: this is the set's Med-Instr-Hierarchical; the experiment needs one label a "
            "video, as in train.json, val.json and test.json of MedVidCL",
        )
    label = row.get("label")
    if isinstance(label, list) and len(label) == 1:  # which the authors' code takes too
        label = label[0]
    return label if isinstance(label, str) else ""


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SourceUnreadable("unreadable_json", f"{path.name} has more than {MOST_BYTES:,} bytes")
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceUnreadable("unreadable_json", f"{path.name} is no JSON in UTF-8: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SourceUnreadable("unreadable_json", f"{path.name} is no list of records, as MedVidCL's are")
    return rows
