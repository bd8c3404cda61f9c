"""A first hour as its page has it: every command of docs/first-hour.md, word for word, in a terminal.

    python -m bench.first_hour [--folder FOLDER] [--json]

The commands run one after the other in a folder like a fresh checkout whose set-up is done, each in a pseudo-terminal
of its own. Words in capitals stand for what earlier commands printed. A server is asked for its page and ended by
Ctrl-C. Prints when each command first showed something and when it ended. Exit code 1 when one fails.
"""

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.smallest import medical_folder

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "first-hour.md"
LIMIT_S = 900.0  # of a command
SERVERS = ("audit", "up")
# What takes minutes → what a smoke run does in its place.
SMALLER = {
    "make demo": ".venv/bin/medgen refresh --source videos/",
    ".venv/bin/medgen demo": "",
    ".venv/bin/medgen generate": "",
}
KEPT_BY_SMOKE = ("MEDGEN_WORKERS", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING")  # a server is there already
ENDED = (0, 130)  # exit codes of a server that Ctrl-C ended
WIDTH, HEIGHT = 160, 50  # of the terminal
CLIP = "CLIP"  # on the page, one of a release's folder
NAMED = {  # other words of the page → where earlier output tells what they stand for
    "RELEASE": r"^release ([a-z-]+-[0-9a-f]{12}) ",
    "MODEL": r"--model medgen:(\S+)",
}

out = Console()


@dataclass
class Timed:
    """A command that ran.

    Args:
        first_s: until it showed something.
        seconds: until it ended, or a server served its page.
        code: its exit code.
    """

    command: str
    first_s: float
    seconds: float
    code: int
    output: str


def main(
    folder: Annotated[Path | None, typer.Option(help="Where to run; made anew and removed by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    smoke: Annotated[bool, typer.Option(help="Only see whether it runs: a video in place of the demo.")] = False,
) -> None:
    """Runs the page."""
    place = folder or Path(tempfile.mkdtemp(prefix="mf-"))  # short: a socket's address has room for 107 bytes
    try:
        as_after_set_up(place)
        ran = []
        for timed in first_hour(place, smoke=smoke):
            ran.append(timed)
            if not as_json:
                out.print(f"{timed.first_s:6.2f} s {timed.seconds:7.1f} s  {timed.command}", highlight=False)
            if timed.code:
                out.print(timed.output[-5000:], markup=False, highlight=False)
                raise typer.Exit(1)
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)
    if as_json:
        sys.stdout.write(json.dumps([asdict(timed) for timed in ran], indent=2) + "\n")
        return
    table = Table("command", "first output s", "all s", title=PAGE.name)
    for timed in ran:
        table.add_row(timed.command, f"{timed.first_s:.2f}", f"{timed.seconds:.1f}")
    table.add_row("all", f"{max(timed.first_s for timed in ran):.2f} at most", f"{sum(t.seconds for t in ran):.1f}")
    out.print(table)


def as_after_set_up(place: Path) -> None:
    """Makes a folder as a checkout after `make setup`, with some videos of one's own in it."""
    place.mkdir(parents=True, exist_ok=True)
    for name in ("Makefile", "infra", "apps", "flows", "tasks", "models", "medgen"):
        (place / name).symlink_to(ROOT / name)
    (place / ".venv").symlink_to(sys.prefix)
    medical_folder(place / "videos")


def first_hour(place: Path, *, smoke: bool = False) -> Iterator[Timed]:
    """Runs the page's commands in a folder, in order, until one fails."""
    names: dict[str, str] = {}
    for command in commands(PAGE.read_text(encoding="utf-8")):
        if smoke:
            typed = shlex.join(command)
            command = shlex.split(next((less for long, less in SMALLER.items() if typed.startswith(long)), typed))
            if not command:
                continue
        timed = run(after_set_up([meant(word, names) for word in command]), place, KEPT_BY_SMOKE if smoke else ())
        timed.command = shlex.join(command)
        names |= named(timed.output, place)
        yield timed
        if timed.code:
            return


def commands(text: str) -> Iterator[list[str]]:
    """Those of the page's shell blocks, as words, without comments."""
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def meant(word: str, names: Mapping[str, str]) -> str:
    """A word of a command with the names that earlier commands told."""
    return re.sub("|".join((*NAMED, CLIP)), lambda found: names.get(found[0], found[0]), word)


def after_set_up(words: list[str]) -> list[str]:
    """What `make demo` does once everything is set up; any other command as it is."""
    if words[0] != "make":
        return words
    recipe = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    set_up, does = (shlex.split(line) for line in recipe.stdout.splitlines())
    if set_up != ["infra/setup.sh"]:
        raise typer.BadParameter(f"`{shlex.join(words)}` does not begin with the set-up")
    return does


def named(output: str, place: Path) -> Mapping[str, str]:
    """Word of the page → what it stands for, as far as this output and the folder tell."""
    found = {word: re.search(pattern, output, re.MULTILINE) for word, pattern in NAMED.items()}
    names = {word: match[1] for word, match in found.items() if match}
    clips = sorted(place.glob(".medgen/releases/*/clips/*.mp4"))
    return names | ({CLIP: clips[0].stem[:8]} if clips else {})


def run(words: list[str], place: Path, kept: Sequence[str] = ()) -> Timed:
    """Runs a command in a pseudo-terminal. A server is asked for its page and ended by Ctrl-C.

    Args:
        kept: settings in this process's environment that hold for commands, but not for servers.
    """
    terminal, end = pty.openpty()
    began = time.monotonic()
    process = subprocess.Popen(
        words, cwd=place, env=environment(() if words[1] in SERVERS else kept), stdin=end, stdout=end, stderr=end,
        start_new_session=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    os.close(end)
    shown, first_s, served_s = "", 0.0, 0.0
    try:
        for text in read(terminal, began + LIMIT_S):
            first_s = first_s or time.monotonic() - began
            shown += text
            url = re.search(r"https?://[\w.:]+/\S*(?=\s)", plain(shown)) if words[1] in SERVERS else None
            if url and not served_s:
                with urllib.request.urlopen(url[0], timeout=60) as answer:
                    answer.read()
                served_s = time.monotonic() - began
                os.killpg(process.pid, signal.SIGINT)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        os.close(terminal)
    code = process.wait()
    if words[1] in SERVERS:
        code = 0 if served_s and code in ENDED else 1
    return Timed(shlex.join(words), first_s, served_s or time.monotonic() - began, code, plain(shown))


def heed_interrupts() -> None:
    """As in a terminal: who is started in the background is deaf to Ctrl-C, and so are all whom it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def environment(kept: Sequence[str] = ()) -> dict[str, str]:
    """As a new user has it, in a terminal of a known size; with settings that are kept."""
    others = ("PREFECT_", "MEDGEN_")
    all_of_it = {name: value for name, value in os.environ.items() if name in kept or not name.startswith(others)}
    return all_of_it | {"COLUMNS": str(WIDTH), "LINES": str(HEIGHT), "TERM": "xterm-256color"}


def read(terminal: int, until: float) -> Iterator[str]:
    """What a terminal shows, until its last process has closed it or time is over."""
    while time.monotonic() < until:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # Linux says so that nobody has the other end any more
            return
        if not data:
            return
        yield data.decode(errors="replace")


def plain(shown: str) -> str:
    """Text as it stays on the screen's lines, without colours and movements of the cursor."""
    return (
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)", "", shown)
        .replace("\r\n", "\n")
        .replace("\r", "\n")
    )


if __name__ == "__main__":
    typer.run(main)
