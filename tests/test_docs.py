"""What the documents say to type works: every command of README.md and docs/ is run, or at least known.

Most run against one small installation, in the order of the documents. A command that takes minutes, never ends or
needs what a test can't have is named in NOT_RUN with the reason; its options are parsed by the command all the same.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from apps import prefect_server, worker
from apps.cli import app
from apps.deployments import AUTOMATIONS
from tests.conftest import ROOT, clean_environment, forked, free_port, shared_prefect, with_prefect_database
from tests.test_prefect import videos  # noqa: F401  (a fixture)

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MEDGEN = (".venv/bin/medgen", "medgen")
PYTHON = (".venv/bin/python", "python")
PROGRAMS = (*MEDGEN, *PYTHON, "make", ".venv/bin/accelerate")

# Beginnings of medgen's commands → why they are parsed only, and where they run for real.
NOT_RUN = {
    "demo": "takes minutes; tests/test_demo_corpus.py and the tests of its parts",
    "up": "a server that does not end; tests/test_prefect.py",
    "deploy": "Prefect takes its time to register; tests/test_prefect.py",
    "audit": "a server that does not end; tests/test_audit.py",
    "metrics": "a server that does not end; it runs in the script that restores a back-up",
    "study new": "needs videos of two systems; tests/test_study.py",
    "study open": "a server that does not end; tests/test_study.py",
    "study results": "needs a study; tests/test_study.py",
    "generate": "needs a trained model; tests/test_generate.py",
    "export-lora": "needs a trained model; tests/test_generate.py",
    "evaluate": "needs a trained model; tests/test_evaluate.py",
    "create": "needs a trained model; tests/test_create.py",
    "creation": "needs a video made for a use; tests/test_create.py",
    "augment": "needs labelled videos and trains for long; tests/test_augment.py",
    "label": "a server that does not end; tests/test_label.py",
    "judge": "needs labels made by people; tests/test_judge.py, tests/test_refresh.py",
    "train-text": "needs labels made by people; tests/test_text_relevance.py",
    "train-frames": "needs labels made by people; tests/test_train_frames.py",
}
# Other programs that no test runs → why.
FOREIGN = {
    "docker": "needs containers; tests/test_infra.py checks the compose file",
    "mc": "MinIO's own client is not among the tests' needs",
    "dask": "needs several machines; tests/test_cluster.py",
    "ray": "needs several machines; infra/docker-compose.yml has the same, which tests/test_infra.py checks",
    "git": "would change the checkout",
    "minisign": "is not among the tests' needs; tests/test_audit.py reads its signatures with a library",
    "sha256sum": "runs in an unpacked pack; tests/test_audit.py does it there",
    "export": "tells a shell's later commands",
    ".venv/bin/prefect": "Prefect's own command line; tests/test_prefect.py asks the same server",
    "curl": "asks the running audit site; tests/test_audit.py asks the same addresses",
}
# Exit codes other than 0 that a command may end with, here and for users.
ALSO_RIGHT = {"doctor": {1}}  # the disk of a test machine may be full


@dataclass(frozen=True)
class Command:
    """A command of a document.

    Args:
        words: as typed, without comment.
        script: the text of its block, when that is a script whose lines depend on one another.
    """

    page: str
    line: int
    words: tuple[str, ...]
    script: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {' '.join(self.words)}"[:120]


@cache
def commands() -> tuple[Command, ...]:
    """All commands of the documents, in order."""
    found = []
    for page in PAGES:
        for line, tag, text in blocks(page.read_text()):
            first = text.split(maxsplit=1)[0] if text.strip() else ""
            if tag not in ("sh", "") or (not tag and first not in PROGRAMS):
                stray = [one for one in text.splitlines() if one.split(" ")[0] in (*MEDGEN, *PYTHON, "make")]
                assert not stray, f"{page.name}:{line}: commands in a block that is none of commands: {stray}"
                continue
            where = str(page.relative_to(ROOT))
            if re.search(r"^\w+=\$\(", text, re.MULTILINE):
                found.append(Command(where, line, (text.splitlines()[0], "…"), text))
                continue
            for offset, one in enumerate(text.splitlines(), start=1):
                if words := shlex.split(one, comments=True):
                    while "=" in words[0]:  # variables of the environment
                        words = words[1:]
                    found.append(Command(where, line + offset, tuple(words)))
    return tuple(found)


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(line of the fence, tag, content) of the fenced blocks."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start()) + 1, match[1], match[2]


def not_run(words: tuple[str, ...]) -> bool:
    """Whether a command of medgen is only parsed."""
    if "--fields" in words or is_training(words):
        return False
    return any(f"{' '.join(words[1:])} ".startswith(f"{name} ") for name in NOT_RUN)


def is_training(words: tuple[str, ...]) -> bool:
    """`medgen train` takes minutes (tests/test_train_flow.py): it is asked for its fields only, which checks --set."""
    return words[1] == "train"


def runnable() -> list[Command]:
    return [c for c in commands() if not c.script and c.words[0] in MEDGEN and not not_run(c.words)]


@pytest.fixture(scope="module")
def place(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A folder as a checkout: .venv in it, the documents' files, and later .medgen."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / ".venv").symlink_to(sys.prefix)
    with_prefect_database(folder / ".medgen")
    (folder / "videos").mkdir()
    shutil.copyfile(videos / "echo.mp4", folder / "videos" / "echo.mp4")
    # One that is kept, too, though it can't be fetched: where a step rejects everything there is no release.
    titles = ("A cat plays", "Laparoscopic cholecystectomy")
    rows = "".join(
        json.dumps(
            {"url": f"https://example.org/{n}", "title": title, "name": title, "licence": "Creative Commons Zero"}
        )
        + "\n"
        for n, title in enumerate(titles)
    )
    (folder / "listing.jsonl").write_text(rows)
    # Published sets of a clip each.
    for published in (folder / "MedVideoCap-55K" / "videos", folder / "clips"):
        published.mkdir(parents=True)
        shutil.copyfile(videos / "echo.mp4", published / "echo.mp4")
    captions = {"file": "echo.mp4", "title": "A scan of a heart.", "long_text": "The walls of a heart move in a scan."}
    described = {"name": "echo", "brief_caption": captions["title"], "detailed_caption": captions["long_text"]}
    (folder / "MedVideoCap-55K" / "captions.json").write_text(json.dumps([described]))
    (folder / "captions.csv").write_text(f"{','.join(captions)}\n{','.join(captions.values())}\n")
    (folder / "listings").mkdir()
    (folder / "listings" / "two.jsonl").write_text(rows)
    return folder


def environment() -> dict[str, str]:
    """Without MEDGEN_HOME: the documents' installation is .medgen in the working folder."""
    kept = {name: value for name, value in clean_environment().items() if not name.startswith("MEDGEN_")}
    single = {"OMP_NUM_THREADS": "1", "MEDGEN_WORKERS": "1"}
    return kept | single | {"PYTHONPATH": str(ROOT), "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}


def forked_environment() -> dict[str, str]:
    """The same, for commands in one process, which is a fork and takes the Prefect server that tests share."""
    variables = forked("tests.doc_runs")
    variables["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
    return environment() | shared_prefect() | variables


@pytest.fixture(scope="module")
def ran(place: Path) -> dict[Any, Any]:
    """Command → exit code and output; "RELEASE" → name of the release that they look at."""
    todo = runnable()
    # A training is not run, but its settings are read.
    arguments = [[*c.words[1:], "--fields"] if is_training(c.words) else list(c.words[1:]) for c in todo]
    done = subprocess.run(
        [sys.executable, "-m", "tests.doc_runs"], cwd=place, env=forked_environment(), input=json.dumps(arguments),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(todo, found["runs"], strict=True)) | found["names"]


def test_the_documents_hold_commands_and_the_lists_are_not_longer_than_they_need_be() -> None:
    pages = {command.page for command in commands()}
    assert {"README.md", "docs/first-hour.md", "docs/ops.md", "docs/researchers.md", "docs/auditors.md"} <= pages
    typed = [" ".join(c.words[1:]) for c in commands() if c.words[0] in MEDGEN]
    assert [name for name in NOT_RUN if not any(one.startswith(name) for one in typed)] == []
    lines = "\n".join(" ".join(c.words) + c.script for c in commands())
    assert [name for name in FOREIGN if name not in lines] == []


@pytest.mark.parametrize("command", runnable(), ids=str)
def test_it_runs(command: Command, ran: dict[Any, Any]) -> None:
    code, told = ran[command]
    right = {0} | next((codes for name, codes in ALSO_RIGHT.items() if command.words[1] == name), set())
    assert code in right and "Traceback" not in told, told[-3000:]


@pytest.mark.parametrize("command", [c for c in commands() if not c.script and c not in runnable()], ids=str)
def test_it_is_known(command: Command) -> None:
    program, *rest = command.words
    if program in MEDGEN:
        parsed(rest)
    elif program in PYTHON:
        assert rest[0] == "-m", "a script of what?"
        source = Path(getattr(find_spec(rest[1]), "origin", None) or "missing").read_text()
        assert [o for o in rest[2:] if o.startswith("--") and f'"{o}"' not in source] == []
    elif program == "make":
        targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program.endswith("accelerate"):
        assert (Path(sys.prefix) / "bin" / "accelerate").exists()
        folder = Path(find_spec("accelerate").origin).parent / "commands"
        source = "".join(p.read_text() for p in [*folder.glob(f"{rest[0]}*.py"), *folder.glob(f"{rest[0]}/*.py")])
        own = rest[1 : rest.index("-m")] if "-m" in rest else rest[1:]
        assert source and [o for o in own if o.startswith("--") and o not in source] == []
        if "-m" in rest:
            assert find_spec(rest[rest.index("-m") + 1])
    else:
        assert program in FOREIGN
        named = [word for word in rest if word.startswith("infra/") and word != "infra/.env"]
        assert all((ROOT / name).exists() for name in named)
        if program == "docker":
            services = yaml.safe_load((ROOT / "infra" / "docker-compose.yml").read_text())["services"]
            assert set(rest) & set(services)


def parsed(words: list[str]) -> None:
    """Lets the command read its arguments without running it. Raises for an option or value that it does not know."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        while words[0].startswith("-"):
            words = words[1:]
        name, *words = words
        command = command.commands[name]
    with command.make_context(name, list(words)):
        pass


def test_the_unit_for_a_service_manager_is_one_and_starts_again_what_died() -> None:
    (unit,) = [text for page in PAGES for _, tag, text in blocks(page.read_text()) if tag == "ini"]
    known = ConfigParser(interpolation=None, comment_prefixes="#")
    known.optionxform = str  # type: ignore[assignment,method-assign]
    known.read_string(unit)
    assert set(known.sections()) == {"Unit", "Service", "Install"}
    service = known["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert program == f"{service['WorkingDirectory']}/{MEDGEN[0]}" and words[0] == "up"
    parsed(words)
    assert service["Restart"] == "on-failure"
    assert float(service["TimeoutStopSec"]) > prefect_server.STOP_LIMIT_S + worker.STOP_LIMIT_S
    assert (service["UMask"], service["NoNewPrivileges"]) == ("0077", "yes")


def test_what_the_parser_would_not_take_is_seen() -> None:
    for wrong in (["train", "RELEASE", "--no-such-option"], ["generate", "x", "--seed", "many"], ["no-such-command"]):
        with pytest.raises((KeyError, typer.BadParameter.__base__)):
            parsed(wrong)


def test_a_back_up_is_made_and_restored_and_the_restored_installation_is_clean(
    place: Path, ran: dict[Any, Any]
) -> None:
    """The scripts of the ops handbook as they stand there; the installation's server must run for the first."""
    back_up, restore = [c.script for c in commands() if c.script]
    port = str(free_port())
    hold = f".venv/bin/medgen metrics --port {port} >/dev/null &"
    wait = f"until curl -sfo /dev/null 127.0.0.1:{port}; do sleep 0.2; done"
    shell(place, f"{hold}\n{wait}\n{back_up}")
    assert (place / "backup" / "catalog.dump").stat().st_size > 10_000
    told = shell(place, restore.replace("9465", str(free_port())) + ".venv/bin/medgen release list --json\n")
    verified, _, listed = told.partition("[")
    assert any(line.startswith("clean") for line in verified.splitlines()), told  # below what was taken down
    (release,) = [row for row in json.loads("[" + listed) if row["name"] == ran["RELEASE"]]
    assert release["clips"] >= 1


def shell(place: Path, script: str) -> str:
    """What a script says; what it leaves running is ended."""
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script], cwd=place, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=(place / "errors").open("w"), start_new_session=True,
    )  # fmt: skip
    try:
        code = process.wait(180)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.stdout
        told = process.stdout.read()
        assert code == 0, told + (place / "errors").read_text()
        return told
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pid_file in place.glob("*/postgres/postmaster.pid"):
            with suppress(OSError, ValueError):
                os.kill(int(pid_file.read_text().split("\n")[0]), signal.SIGINT)


def test_tables_of_the_ops_handbook_are_complete() -> None:
    text = (ROOT / "docs" / "ops.md").read_text()
    names = set(re.findall(r'"(medgen_[a-z_]+)"', (ROOT / "apps" / "metrics.py").read_text()))
    assert names and names == set(re.findall(r"`(medgen_[a-z_]+)`(?= *[|,])", text))
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    known = {f"{one['entrypoint'].split(':')[1]}/{one['name']}" for one in deployments}
    assert known == set(re.findall(r"^\| `([a-z_]+/[a-z]+)` \|", text, re.MULTILINE))
    assert len(yaml.safe_load(AUTOMATIONS.read_text())) == 4


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            aim = (page.parent / path).resolve() if path else page
            assert aim.exists(), f"{page.name}: {target}"
            if anchor:
                heads = [re.sub(r"[^\w\- ]", "", h).replace(" ", "-").lower() for h in headings(aim.read_text())]
                assert anchor in heads, f"{page.name}: {target}"


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)


def test_each_promise_names_tests_that_there_are() -> None:
    page = (ROOT / "docs" / "promises.md").read_text()
    named = re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", page)
    assert len(named) > 25
    for file, function in named:
        assert not function or f"def {function}(" in (ROOT / file).read_text(), f"{file}::{function}"
        assert (ROOT / file).exists(), file
    promised = page.split("## Servers on this machine")[1].split("## Not promised")[0]
    rows = [line for line in promised.splitlines() if line.startswith("| ") and not line.startswith("| promise |")]
    assert [row for row in rows if "`tests/" not in row] == []
