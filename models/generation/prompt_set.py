"""What videos should be generated: prompts, from a file, from the packaged medical set, or the paper's own.

The packaged set is this project's own: 200 prompts, 40 procedures by the five categories of MedVideoCap-55K, long
descriptions as in that paper's evaluation (arXiv 2507.05675; 62 to 75 words here, about 159 there, because the text
encoders of small models read no more). Each describes one shot or two, what is seen and how it moves, and things that
can be checked: side, count, order, direction.

The paper's own 200 are not ours to hand out: whoever has its authors' file puts it where `paper_file` says, and names
it as `paper`. They are known by their texts, wherever the file lies, so that no prompts are taken for others.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from medgen.canonical import digest_of
from medgen.errors import ItemFailed
from medgen.settings import current
from models.segmentation.category import CATEGORIES

PROMPT_SET_VERSION = "1"
MEDICAL = "medical"  # what the packaged set is called where a file could stand
PAPER = "paper"  # what the set of the paper's authors is called
PAPER_FILE = "eval_prompt_200.txt"  # as they publish it: evaluation/ of FreedomIntelligence/MedGen
PAPER_TEXTS = "84e3931b0444ba6cd999b338de20884ea41bcc29e70c6fba45dc7ad0f77cc90e"  # digest of its texts in order of text
ORIGINS = {
    MEDICAL: "written for this project",
    PAPER: "of the paper's authors (arXiv 2507.05675)",
    "": "the user's own",
}
MAX_CHARS = 4_000
MAX_FILE_BYTES = 64 << 20
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TEXT_COLUMNS = ("text", "prompt", "caption")
_ID_COLUMNS = ("id", "prompt_id")


@dataclass(frozen=True)
class Prompt:
    """What a video should show.

    Args:
        id: stable, unique within a set: letters, digits, dot, dash and underscore, at most 100.
        text: the prompt, at most MAX_CHARS characters.
        category: as `models.segmentation.category.CATEGORIES`, or any name of the user's, or "".
        procedure: the medical procedure, or "".
    """

    id: str
    text: str
    category: str = ""
    procedure: str = ""


def medical_prompts() -> list[Prompt]:
    """The packaged set, of version PROMPT_SET_VERSION, in order of category within procedure."""
    return list(_medical())


def load_prompts(name: str | Path) -> list[Prompt]:
    """The packaged set for "medical", the authors' for "paper", else the prompts of the file of that name.

    Raises:
        ItemFailed: as `read_prompts`; bad_prompts when the authors' file is not there or holds other texts.
    """
    if str(name) == MEDICAL:
        return medical_prompts()
    return _paper() if str(name) == PAPER else read_prompts(name)


def paper_file() -> Path:
    """Where the authors' file is looked for: in the folder `prompts` of the installation."""
    return current().home / "prompts" / PAPER_FILE


def prompt_origin(prompts: Sequence[Prompt]) -> str:
    """Which set these prompts are, by what they say: "medical", "paper", or "" for any other."""
    if prompts_digest(prompts) == prompts_digest(_medical()):
        return MEDICAL
    return PAPER if digest_of(sorted(prompt.text for prompt in prompts)) == PAPER_TEXTS else ""


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file, in its order.

    Args:
        path: .txt, one prompt a line, blank lines and lines that begin with # left out; .jsonl with objects, .csv
            with a header. Columns: text (or prompt, or caption), and, if there, id (or prompt_id), category,
            procedure. Without an id it is a digest of the text, so that it stays when lines move.

    Raises:
        ItemFailed: bad_prompts names the file, the line and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise ItemFailed(
            "bad_prompts", f"{path}: no such file; {MEDICAL!r} names the packaged set, {PAPER!r} the paper's"
        )
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ItemFailed("bad_prompts", f"{path}: larger than {MAX_FILE_BYTES >> 20} MB")
    try:
        text = path.read_text("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise ItemFailed("bad_prompts", f"{path} can't be read as UTF-8: {error}") from error
    read = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv}.get(path.suffix.lower())
    if read is None:
        raise ItemFailed("bad_prompts", f"{path}: prompts are read from .txt, .jsonl and .csv")
    prompts = [_prompt(row, f"{path}, line {line}") for line, row in read(text, path)]
    return checked(prompts, str(path))


def checked(prompts: Sequence[Prompt], where: str) -> list[Prompt]:
    """The prompts, if there is one at least and no id stands twice; a text that stands twice is taken once.

    Raises ItemFailed.
    """
    kept: dict[str, Prompt] = {}
    for prompt in prompts:
        if kept.setdefault(prompt.id, prompt) != prompt:
            raise ItemFailed("bad_prompts", f"{where}: the id {prompt.id!r} stands for two prompts")
    if not kept:
        raise ItemFailed("bad_prompts", f"{where} holds no prompt")
    return list(kept.values())


def spread(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """`limit` of the prompts (all for 0), taken in turn from each category so that few stand for all; in set order.

    Within a category every prompt of a different procedure comes first, at even distances in the set.
    """
    if limit <= 0 or limit >= len(prompts):
        return list(prompts)
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt.category, []).append(index)
    shares = {name: limit // len(groups) + (at < limit % len(groups)) for at, name in enumerate(groups)}
    left = limit - sum(min(shares[name], len(members)) for name, members in groups.items())
    for name, members in groups.items():  # what small categories can't fill goes to the others
        more = min(left, max(0, len(members) - shares[name]))
        shares[name], left = shares[name] + more, left - more
    chosen: list[int] = []
    for at, (name, members) in enumerate(groups.items()):
        share = min(shares[name], len(members))
        # Each category starts elsewhere, so that not all of them take the same procedures.
        start = at / len(groups)
        chosen += [members[int((place + start) * len(members) / share)] for place in range(share)]
    return [prompts[index] for index in sorted(chosen)]


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """sha256 over ids and texts: the same set of prompts, the same digest."""
    return digest_of([[prompt.id, prompt.text, prompt.category, prompt.procedure] for prompt in prompts])


@cache
def _medical() -> tuple[Prompt, ...]:
    file = files("models.generation") / "prompts_medical" / f"prompts-{PROMPT_SET_VERSION}.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    prompts = checked([Prompt(**row) for row in rows], "the packaged set")
    assert {prompt.category for prompt in prompts} == set(CATEGORIES)
    return tuple(prompts)


def _paper() -> list[Prompt]:
    path = paper_file()
    if not path.is_file():
        raise ItemFailed(
            "bad_prompts",
            f"the paper's 200 prompts don't come with medgen: put its authors' {PAPER_FILE} (evaluation/ of "
            f"FreedomIntelligence/MedGen on GitHub) at {path}",
        )
    prompts = read_prompts(path)
    if prompt_origin(prompts) != PAPER:
        raise ItemFailed(
            "bad_prompts",
            f"{path} does not hold the 200 prompts of the paper's authors: {len(prompts)} prompts, other texts. Other "
            "prompts are named by the path of their file",
        )
    return prompts


def _txt(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, {"text": line}


def _jsonl(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ItemFailed("bad_prompts", f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ItemFailed("bad_prompts", f"{path}, line {number} is no JSON object")
        yield number, row


def _csv(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, {key: value for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise ItemFailed("bad_prompts", f"{path}, line {reader.line_num} is no CSV: {error}") from error


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    text = _first(row, _TEXT_COLUMNS, where)
    if not text:
        raise ItemFailed("bad_prompts", f"{where}: no text; name the column one of {', '.join(_TEXT_COLUMNS)}")
    if len(text) > MAX_CHARS:
        raise ItemFailed("bad_prompts", f"{where}: {len(text)} characters, at most {MAX_CHARS} are taken")
    name = _first(row, _ID_COLUMNS, where) or f"p-{digest_of(text)[:16]}"
    if not _ID.fullmatch(name):
        raise ItemFailed(
            "bad_prompts",
            f"{where}: the id {name[:100]!r} must be at most 100 letters, digits, dots, dashes and underscores",
        )
    return Prompt(name, text, _first(row, ("category",), where), _first(row, ("procedure",), where))


def _first(row: dict[str, Any], columns: Iterable[str], where: str) -> str:
    """The first of the columns that holds something, as one line of text."""
    for column in columns:
        value = row.get(column)
        if value is None or value == "":
            continue
        if not isinstance(value, str | int):
            raise ItemFailed("bad_prompts", f"{where}: {column} is no text")
        return " ".join(str(value).replace("\x00", "\ufffd").split())
    return ""
