"""Kills refreshes at random moments and checks that what comes out is what an undisturbed one gives.

    python -m bench.kill FOLDER [--kills 30] [--seed 1]

A kill is `kill -9` of everything: the command, its workers, its Prefect server and its Postgres. Most kills are spread
over the work that is left, from the run's first artifact on; the others hit it while it starts. A refresh that gets
through before its kill ends a round: its release is checked, and the next kills hit a fresh installation.
"""

import atexit
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import psycopg
import typer
from rich.console import Console

from bench.smallest import medical_folder
from medgen.postgres import embedded_url

STARTING_SHARE = 0.15  # of the kills: before the run has stored anything
LEAST_S = 1.0  # of work is taken to be left, at least
LOOK_S = 0.1
SMOKE = (  # settings that make the work of a refresh short
    "min_duration_s=2", "min_clip_s=2", "dissolves=false", "text_model=tesseract", "face_model=none",
    "search_index=false",
)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent

out = Console()


@dataclass(frozen=True)
class State:
    """What an installation has on record. Keys identify step runs by all that they saw, so they must be equal."""

    keys: frozenset[str]
    clips: frozenset[str]
    releases: tuple[tuple[str, int, int], ...]  # digest, clips promised, clips there


@dataclass
class Round:
    """One installation, from its first kill to the refresh that gets through."""

    home: Path
    settings: tuple[str, ...] = ()  # of the refresh, NAME=VALUE
    worked_s: float = 0.0  # seconds of work, start-up left out, that were killed so far


@dataclass
class Tally:
    """The kills so far."""

    starting: int = 0
    working: int = 0

    @property
    def kills(self) -> int:
        """All of them."""
        return self.starting + self.working


def main(
    folder: Annotated[Path | None, typer.Argument(help="Folder of videos, or a listing.")] = None,
    kills: Annotated[int, typer.Option(min=1, help="Kills to do.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the moments of the kills.")] = 1,
    smoke: Annotated[bool, typer.Option(help="Only see whether it runs, on the smallest input.")] = False,
) -> None:
    """Exit code 1 when a refresh does not recover."""
    scratch = Path(tempfile.mkdtemp(prefix="medgen-kill-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)  # after the catalogs' servers, which leave first
    if smoke:
        folder, kills = medical_folder(scratch / "videos", seconds=3), 1
    if folder is None:
        raise typer.BadParameter("name a folder of videos, or --smoke")
    moments, settings = random.Random(seed), SMOKE if smoke else ()
    reference, startup_s, work_s = undisturbed(folder, scratch / "reference", settings)
    expected = state(scratch / "reference")
    out.print(
        f"undisturbed: {startup_s:.1f} s of start-up and {work_s:.1f} s of work, {reference['clips']} clips, "
        f"digest {reference['digest']}",
        soft_wrap=True,
    )
    if smoke:
        work_s /= 2  # a refresh that gets through before its kill would cost another one
    tally, faults, rounds = Tally(), [], 0
    while tally.kills < kills:
        rounds += 1
        this = Round(scratch / f"round-{rounds}", settings)
        if smoke:
            take_prefect_database(scratch / "reference", this.home)
        summary = disturbed(folder, this, kills, tally, moments, (startup_s, work_s))
        wrong = compare(summary, reference, state(this.home), expected) + verified(this.home)
        faults += [f"round {rounds}: {fault}" for fault in wrong]
        out.print(f"round {rounds} ended: {'WRONG' if wrong else 'the same release'}", highlight=False)
        shutil.rmtree(this.home, ignore_errors=True)
    for fault in faults:
        out.print(f"[red]✗[/] {fault}", highlight=False)
    if faults:
        raise typer.Exit(1)
    out.print(
        f"[green]recovered[/] from {tally.kills} kills ({tally.working} at work, {tally.starting} while it started) in "
        f"{rounds} rounds: the same release each time, no step run lost or doubled, everything verified",
        highlight=False,
        soft_wrap=True,
    )


def undisturbed(folder: Path, home: Path, settings: tuple[str, ...]) -> tuple[dict[str, Any], float, float]:
    """(summary of a refresh that nobody kills, its seconds until the first artifact, its seconds from there on)."""
    began = time.monotonic()
    process = start(folder, home, settings, any_server=settings == SMOKE)
    while process.poll() is None and not artifacts(home):
        time.sleep(LOOK_S)
    first = time.monotonic()
    summary = finish(process, home)
    return summary, first - began, time.monotonic() - first


def disturbed(
    folder: Path, this: Round, kills: int, tally: Tally, moments: random.Random, lengths: tuple[float, float]
) -> dict[str, Any]:
    """Starts a refresh again and again, with kills spread over the work that is left, until one gets through."""
    startup_s, work_s = lengths
    while True:
        before, began, working_since = artifacts(this.home), time.monotonic(), 0.0
        process = start(folder, this.home, this.settings)
        starting = moments.random() < STARTING_SHARE
        share = moments.random()
        left_s = max(work_s - this.worked_s, LEAST_S)
        while process.poll() is None and tally.kills < kills:
            now = time.monotonic()
            if not working_since and artifacts(this.home) > before:
                working_since = now
            if starting and now - began >= share * startup_s:
                break
            if not starting and working_since and now - working_since >= share * left_s:
                break
            time.sleep(LOOK_S)
        if process.poll() is not None or tally.kills >= kills:
            return finish(process, this.home)
        worked_s = time.monotonic() - working_since if working_since else 0.0
        killed = kill_all(this.home, process)
        this.worked_s += worked_s
        if working_since:
            tally.working += 1
        else:
            tally.starting += 1
        # Looking at the catalog would recover it, which is the next refresh's business.
        when = f"{worked_s:.1f} s into its work" if working_since else "while it started"
        out.print(
            f"kill {tally.kills} {when}: {killed} processes killed, {artifacts(this.home)} artifacts stored",
            highlight=False,
        )


def artifacts(home: Path) -> int:
    """Number of artifacts in an installation's store."""
    return sum(1 for _ in (home / "store").glob("??/*"))


def take_prefect_database(reference: Path, home: Path) -> None:
    """Spares an installation the migrations of its Prefect server: it gets a copy of another's database, if there is
    one in this process's own installation or in the reference."""
    places = [Path(os.environ.get("MEDGEN_HOME", reference)), reference]
    databases = [file for folder in places if (file := folder / "prefect" / "prefect.db").is_file()]
    if not databases:
        return
    place = home / "prefect"
    place.mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    known, copy = sqlite3.connect(databases[0]), sqlite3.connect(place / "prefect.db")
    with closing(known), closing(copy):
        known.backup(copy)


def start(folder: Path, home: Path, settings: tuple[str, ...], *, any_server: bool = False) -> subprocess.Popen[str]:
    """Starts a refresh in a session of its own."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "apps.cli", "refresh", "--source", str(folder.resolve()), "--json"]
    command += [word for setting in settings for word in ("--set", setting)]
    with (home / "stdout").open("w") as stdout, (home / "stderr").open("a") as stderr:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(home, any_server=any_server),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )


def environment(home: Path, *, any_server: bool = False) -> dict[str, str]:
    """This process's environment, with an installation of its own and no servers of others.

    Args:
        any_server: but for a Prefect server, if this process is led to one: each start takes long.
    """
    others = ("MEDGEN_DATABASE", "MEDGEN_S3", *(() if any_server else ("PREFECT_",)))
    return {k: v for k, v in os.environ.items() if not k.startswith(others)} | {"MEDGEN_HOME": str(home)}


def finish(process: subprocess.Popen[str], home: Path) -> dict[str, Any]:
    """Waits for a refresh and returns its summary. A failed one ends the bench: that is the finding."""
    if process.wait():
        out.print((home / "stderr").read_text()[-5000:], markup=False, highlight=False)
        out.print(f"[red]✗[/] the refresh in {home.name} exited {process.returncode}")
        raise typer.Exit(1)
    summary: dict[str, Any] = json.loads((home / "stdout").read_text())
    return summary


def kill_all(home: Path, process: subprocess.Popen[str]) -> int:
    """kill -9 for all processes of an installation; their number. Goes on until none is left."""
    killed: set[int] = set()
    while members := belonging(home):
        for member in members:
            killed.add(member.pid)
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(members, timeout=5)
    process.wait()
    return len(killed)


def belonging(home: Path) -> list[psutil.Process]:
    """Processes with the installation's `MEDGEN_HOME`, and its Postgres, which overwrites its environment."""
    processes = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("MEDGEN_HOME") == str(home)
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    for pid_file in home.glob("postgres*/postmaster.pid"):  # the server, or one that is still being made
        try:
            server = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
            if server.cwd() == str(pid_file.parent.resolve()) and server.status() != psutil.STATUS_ZOMBIE:
                processes += [server, *server.children(recursive=True)]
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return processes


def state(home: Path) -> State:
    """Reads the catalog of an installation, in a process of its own so that its server stops again."""
    command = [sys.executable, "-m", "bench.kill", "state"]
    done = subprocess.run(command, cwd=ROOT, env=environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the catalog of {home.name} can't be read:\n{done.stderr[-3000:]}")
    keys, clips, releases = json.loads(done.stdout)
    return State(frozenset(keys), frozenset(clips), tuple((digest, *counts) for digest, *counts in releases))


def print_state() -> None:
    """What `state` reads. Releases are left out of the keys: theirs hold the hashes, and so the times, of records."""
    home = Path(os.environ["MEDGEN_HOME"])
    with psycopg.connect(embedded_url(home / "postgres").replace("+psycopg", "")) as connection:
        if connection.execute("SELECT to_regclass('step_run')").fetchone() == (None,):
            sys.stdout.write("[[], [], []]")
            return
        answers = [
            connection.execute(query).fetchall()
            for query in (
                "SELECT key FROM step_run WHERE NOT superseded AND step <> 'release'",
                "SELECT video_id || ' ' || start_frame || ' ' || end_frame || ' ' || digest FROM clip",
                "SELECT digest, clips, (SELECT count(*) FROM release_clip WHERE release_name = name) FROM release",
            )
        ]
    keys, clips = ([row[0] for row in rows] for rows in answers[:2])
    doubled = len(keys) - len(set(keys)) + len(clips) - len(set(clips))
    if doubled:
        raise SystemExit(f"{doubled} rows are there twice")
    sys.stdout.write(json.dumps([keys, clips, [list(row) for row in answers[2]]]))


def compare(summary: dict[str, Any], reference: dict[str, Any], actual: State, expected: State) -> list[str]:
    """What differs from the undisturbed refresh."""
    faults = []
    if summary["digest"] != reference["digest"]:
        faults.append(f"release {summary['digest']}, not {reference['digest']}")
    if actual.releases != expected.releases or any(promised != there for _, promised, there in actual.releases):
        faults.append(f"releases {actual.releases}, not {expected.releases}")
    for what, mine, theirs in (("step runs", actual.keys, expected.keys), ("clips", actual.clips, expected.clips)):
        if mine != theirs:
            faults.append(f"{what}: {len(theirs - mine)} missing, {len(mine - theirs)} too many")
    return faults


def verified(home: Path) -> list[str]:
    """What `medgen verify` finds, before and after `medgen gc` has swept what the kills left."""
    command = [sys.executable, "-m", "bench.kill", "verify"]
    done = subprocess.run(command, cwd=ROOT, env=environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"verifying exited {done.returncode}: {done.stderr[-2000:]}"]
    faults: list[str] = json.loads(done.stdout)
    return faults


def print_faults() -> None:
    """What `verified` reads: the commands run in this process one after the other, behind one catalog."""
    from typer.testing import CliRunner

    from apps.cli import app

    faults: list[str] = []
    for arguments in (["verify"], ["gc", "--grace-minutes", "0"], ["verify"]):
        done = CliRunner().invoke(app, [*arguments, "--json"])
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            faults.append(f"medgen {arguments[0]} exited {done.exit_code}: {done.output[-2000:]} {done.exception!r}")
            continue
        faults += answer.get("faults", [])
    sys.stdout.write(json.dumps(faults))


if __name__ == "__main__":
    if sys.argv[1:] == ["state"]:
        print_state()
    elif sys.argv[1:] == ["verify"]:
        print_faults()
    else:
        typer.run(main)
