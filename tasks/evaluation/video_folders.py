"""Videos of any system in a folder, commercial ones included, and the prompts that they were made from."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from medgen.canonical import digest_of
from medgen.errors import RunStopped
from medgen.listings.sources import VIDEO_SUFFIXES
from medgen.store import file_digest
from models.generation.prompt_set import Prompt
from tasks.evaluation.measure_video import Video

PROMPTS_FILE = "prompts.csv"
MAX_NAME = 200


def named_folder(text: str) -> tuple[str, Path]:
    """(name of the system, folder) of `NAME=FOLDER` or `FOLDER`, which is then named by its last part.

    Raises RunStopped: no such folder.
    """
    name, equals, where = text.partition("=")
    folder = Path(where if equals else text).expanduser()
    if not equals or not folder.is_dir():
        # A path may hold "=" itself.
        if Path(text).expanduser().is_dir():
            folder = Path(text).expanduser()
            return folder.resolve().name, folder
        raise RunStopped(f"{text}: no such folder; videos are given as NAME=FOLDER")
    if not name.strip() or len(name) > MAX_NAME:
        raise RunStopped(f"{text[:MAX_NAME]}: name the system before the = in at most {MAX_NAME} characters")
    return name.strip(), folder


def folder_videos(name: str, folder: Path, prompts: Sequence[Prompt]) -> list[Video]:
    """The videos of a folder and those below it, by name.

    Which prompt a file belongs to, in this order: its row in `prompts.csv` (columns file and prompt; id, category,
    procedure if known); a prompt of the set whose id is the file's stem, or the stem's beginning before `-seedN`; else
    none: the file's stem is its id then, so that equal names of two systems are compared.

    Raises:
        RunStopped: no video there, or a prompts.csv that can't be read or names what isn't there.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not path.is_symlink()
    )
    if not files:
        kinds = ", ".join(sorted(VIDEO_SUFFIXES))
        raise RunStopped(f"{folder} holds no video: files that end in {kinds} are looked for")
    listed = _listed(folder, {path.relative_to(folder).as_posix() for path in files})
    by_id = {prompt.id: prompt for prompt in prompts}
    videos = []
    for path in files:
        shown = path.relative_to(folder).as_posix()
        digest, _ = file_digest(path)
        stem = path.stem.split("-seed")[0]
        prompt = listed.get(shown) or by_id.get(path.stem) or by_id.get(stem) or Prompt(path.stem[:100], "")
        videos.append(
            Video(
                name, f"video-{digest[:32]}", shown, digest, prompt.id, prompt.text, prompt.category, prompt.procedure,
                path=str(path.resolve()),
            )
        )  # fmt: skip
    return videos


def _listed(folder: Path, there: set[str]) -> dict[str, Prompt]:
    path = folder / PROMPTS_FILE
    if not path.is_file():
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunStopped(f"{path} can't be read: {error}") from error
    prompts: dict[str, Prompt] = {}
    for number, row in enumerate(rows, 2):
        file, text = (row.get("file") or "").strip(), (row.get("prompt") or "").strip()
        if not file or not text:
            raise RunStopped(f"{path}, line {number}: the columns file and prompt must be filled in")
        if file not in there:
            raise RunStopped(f"{path}, line {number}: {file} is not in the folder")
        # Without an id the text is one, so that the same prompt is compared between folders.
        name = (row.get("id") or "").strip() or _text_id(text)
        prompts[file] = Prompt(
            name[:100], text, (row.get("category") or "").strip(), (row.get("procedure") or "").strip()
        )
    return prompts


def _text_id(text: str) -> str:
    return f"p-{digest_of(' '.join(text.split()))[:16]}"
