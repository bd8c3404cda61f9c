"""Which video did a system make of which prompt? From a folder of any system, or from what is on record.

A folder says it in one of three ways, the first that applies: by a table in it (`.csv`, `.jsonl` or `.json`), by the
record that `medgen generate` writes into its MP4 files, or by file names that are ids of a prompt file, whole or before
`-seedN`.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.canonical import digest_of
from medgen.catalog import ModelVersion, StepInput, StepOutput, StepRun
from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from medgen.store import file_digest
from medgen.video_file import read_foreign_comment
from models.generation.prompt_set import MAX_CHARS, Prompt

ON_RECORD = "medgen:"
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".m4v", ".avi", ".gif", ".mpg", ".mpeg", ".ogv", ".ts")
TABLE_SUFFIXES = (".csv", ".jsonl", ".json")
TABLE_NAMES = ("videos", "metadata", "index", "generated", "prompts")  # these go before others in a folder
FILE_COLUMNS = ("file", "path", "video", "filename", "file_name")
TEXT_COLUMNS = ("prompt", "text", "caption")
ID_COLUMNS = ("prompt_id", "id")
MAX_TABLE_BYTES = 64 << 20
MAX_COMMENT = 64 << 10  # characters of an embedded record


@dataclass(frozen=True)
class SystemVideo:
    """A video of one system.

    Args:
        sha256: of the file as it came.
        step_run_id: the step run that made it, when that is on record.
    """

    prompt: Prompt
    path: Path
    sha256: str
    step_run_id: int | None = None


@dataclass(frozen=True)
class SystemVideos:
    """Videos of one system.

    Args:
        label: what the system is called in results.
        source: as `videos_of` took it.
        videos: text of the prompt → video, one for each.
        left_out: name of a file → why.
        model: digest of the model, when that is on record.
    """

    label: str
    source: str
    videos: Mapping[str, SystemVideo]
    left_out: Mapping[str, str]
    model: str | None = None


def videos_of(ledger: Ledger, label: str, source: str, prompts: Sequence[Prompt] = ()) -> SystemVideos:
    """The videos of a system.

    Args:
        label: what the system is called in results.
        source: a folder; a table whose files lie beside it; or `medgen:` with the name or digest, or the beginning of
            either, of a model whose generated videos are on record.
        prompts: when given, only videos of these prompts are taken, under these ids.

    Raises:
        ItemFailed: bad_videos names the folder, table or model and what is wrong.
    """
    model: str | None = None
    if source.startswith(ON_RECORD):
        model, candidates = _on_record(ledger, source.removeprefix(ON_RECORD))
        left_out: dict[str, str] = {}
    else:
        candidates, left_out = _in_folder(Path(source), prompts)
    by_text = {prompt.text: prompt for prompt in prompts}
    videos: dict[str, SystemVideo] = {}
    for video in candidates:
        text = video.prompt.text
        if by_text and text not in by_text:
            left_out[video.path.name] = "its prompt is not among the prompts"
        elif text in videos:
            left_out[video.path.name] = f"{videos[text].path.name} is of the same prompt"
        else:
            videos[text] = SystemVideo(by_text.get(text, video.prompt), video.path, video.sha256, video.step_run_id)
    if not videos:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:5])
        raise ItemFailed("bad_videos", f"{source} has no video whose prompt is known" + (f" ({why})" if why else ""))
    return SystemVideos(label, source, videos, left_out, model)


def _on_record(ledger: Ledger, name: str) -> tuple[str, list[SystemVideo]]:
    """(digest of the model, its videos from the kept records of `generate`, oldest first)."""
    with Session(ledger.engine) as session:
        begins = name.replace("\\", "").replace("%", "").replace("_", "\\_")
        models = session.scalars(
            select(ModelVersion)
            .where((ModelVersion.digest.like(f"{begins}%")) | (ModelVersion.name.like(f"{begins}%")))
            .order_by(ModelVersion.created_at)
        ).all()
        exact = [model for model in models if name in (model.digest, model.name)]
        models = exact or models
        if len(models) != 1 or not name:
            several = ", ".join(f"{model.name} ({model.digest[:12]})" for model in models[:10])
            raise ItemFailed(
                "bad_videos",
                f"{ON_RECORD}{name} could be {several}; write more of it" if models else
                f"no model on record goes by {name!r}",
            )  # fmt: skip
        digest, shown = models[0].digest, models[0].name
        rows = session.execute(
            select(StepRun.id, StepRun.detail, StepOutput.artifact_sha256)
            .join(StepInput, (StepInput.step_run_id == StepRun.id) & (StepInput.role == "model"))
            .join(StepOutput, (StepOutput.step_run_id == StepRun.id) & (StepOutput.role == "video"))
            .where(StepRun.step == "generate", StepRun.status == "kept", ~StepRun.superseded)
            .where(StepInput.artifact_sha256 == digest)
            .order_by(StepRun.id)
        ).all()
    if not rows:
        raise ItemFailed("bad_videos", f"the model {shown} has generated no video: see `medgen generate`")
    videos = []
    for run_id, detail, sha256 in rows:
        prompt = _prompt({name: detail.get(name) for name in ("prompt", "prompt_id", "category", "procedure")}, {})
        if isinstance(prompt, Prompt):
            videos.append(SystemVideo(prompt, ledger.store.path(sha256), sha256, run_id))
    return digest, videos


def _in_folder(source: Path, prompts: Sequence[Prompt]) -> tuple[list[SystemVideo], dict[str, str]]:
    by_id = {prompt.id: prompt for prompt in prompts}
    table: Path | None
    if source.is_file() and source.suffix.lower() in TABLE_SUFFIXES:
        folder, table = source.parent, source
    elif source.is_dir():
        folder, table = source, _table_in(source)
    else:
        raise ItemFailed("bad_videos", f"{source} is no folder of videos, and no .csv, .jsonl or .json that lists some")
    videos: list[SystemVideo] = []
    left_out: dict[str, str] = {}
    listed: list[tuple[Path, Prompt | str]] = []
    if table is not None:
        for row, where in _rows(table):
            name = next((str(row[c]) for c in FILE_COLUMNS if row.get(c) not in (None, "")), "")
            if not name:
                raise ItemFailed("bad_videos", f"{where}: no file; name the column one of {', '.join(FILE_COLUMNS)}")
            listed.append((_inside(folder, name, where), _prompt(row, by_id)))
    else:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
        listed = [(path, _embedded(path, by_id) or _named(path, by_id)) for path in files]
    for path, prompt in listed:
        if isinstance(prompt, str):
            left_out[path.name] = prompt
        elif not path.is_file():
            left_out[path.name] = "there is no such file"
        else:
            videos.append(SystemVideo(prompt, path, file_digest(path)[0]))
    return videos, left_out


def _table_in(folder: Path) -> Path | None:
    tables = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in TABLE_SUFFIXES and p.is_file()]
    named = [p for name in TABLE_NAMES for p in tables if p.stem.lower() == name]
    if len(tables) > 1 and not named:
        names = ", ".join(p.name for p in tables[:10])
        raise ItemFailed("bad_videos", f"{folder} holds several tables ({names}): name the one that lists the videos")
    return next(iter(named or tables), None)


def _rows(table: Path) -> list[tuple[dict[str, Any], str]]:
    """(row, where it stands) of a table of videos."""
    if table.stat().st_size > MAX_TABLE_BYTES:
        raise ItemFailed("bad_videos", f"{table} is larger than {MAX_TABLE_BYTES >> 20} MB")
    try:
        text = table.read_text("utf-8-sig")
        if table.suffix.lower() == ".csv":
            rows: Any = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        elif table.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = json.loads(text)
            if isinstance(rows, dict):
                # file → prompt, or an object that holds the list
                lists = [value for value in rows.values() if isinstance(value, list)]
                plain = all(isinstance(value, str) for value in rows.values())
                rows = [{"file": f, "prompt": p} for f, p in rows.items()] if plain else next(iter(lists), None)
    except (ValueError, RecursionError, csv.Error, OSError) as error:
        raise ItemFailed("bad_videos", f"{table} can't be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ItemFailed("bad_videos", f"{table} is no list of objects with file and prompt")
    return [(row, f"{table}, row {number}") for number, row in enumerate(rows, 1)]


def _inside(folder: Path, name: str, where: str) -> Path:
    """The file of that name in the folder. Raises ItemFailed when the name leads out of it."""
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError) as error:
        raise ItemFailed("bad_videos", f"{where}: {name[:100]!r} is no file name") from error
    if not path.is_relative_to(folder.resolve()):
        raise ItemFailed("bad_videos", f"{where}: {name[:100]!r} leads out of {folder}")
    return path


def _embedded(path: Path, by_id: Mapping[str, Prompt]) -> Prompt | None:
    """The prompt that the record in the file's comment tells."""
    comment = read_foreign_comment(path)
    try:
        record = json.loads(comment) if 0 < len(comment) <= MAX_COMMENT else None
    except (ValueError, RecursionError):
        return None
    prompt = _prompt(record, by_id) if isinstance(record, dict) else None
    return prompt if isinstance(prompt, Prompt) else None


def _named(path: Path, by_id: Mapping[str, Prompt]) -> Prompt | str:
    """The prompt whose id the file's name is, or begins with before `-seedN`; or why there is none."""
    return by_id.get(path.stem) or by_id.get(path.stem.split("-seed")[0]) or "nothing says its prompt"


def _prompt(row: Mapping[str, Any], by_id: Mapping[str, Prompt]) -> Prompt | str:
    """The prompt of a row, or why there is none."""
    values = {
        name: " ".join(str(row[name]).replace("\x00", "\ufffd").encode("utf-8", "replace").decode().split())
        for name in (*TEXT_COLUMNS, *ID_COLUMNS, "category", "procedure")
        if isinstance(row.get(name), str | int)
    }
    identity = next((values[name] for name in ID_COLUMNS if values.get(name)), "")[:100]
    if identity in by_id:
        return by_id[identity]
    text = next((values[name] for name in TEXT_COLUMNS if values.get(name)), "")
    if not text:
        return "nothing says its prompt"
    if len(text) > MAX_CHARS:
        return f"its prompt has {len(text)} characters, at most {MAX_CHARS} are taken"
    name = identity or f"p-{digest_of(text)[:16]}"
    return Prompt(name, text, values.get("category", ""), values.get("procedure", ""))
