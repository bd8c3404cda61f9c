"""Claims: what another living worker is at work on is waited for; what a dead one left is free."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from medgen.catalog import Claim, open_catalog
from medgen.claims import claims
from tests.conftest import ROOT

KEYS = [f"{number:064x}" for number in range(20)]
# Claims keys 5 to 14, says so, and holds them until it is told to give them up or is killed.
HOLDER = """
import sys
from medgen.catalog import open_catalog
from medgen.claims import claims

with claims(open_catalog()) as claim:
    mine, others = claim.take([f"{number:064x}" for number in range(5, 15)])
    print(len(mine), len(others), flush=True)
    sys.stdin.readline()
"""

# Works on 24 items when it is told to, each of which is noted in a file when it is worked on.
WORKER = """
import sys
import time
from functools import partial
from pathlib import Path
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.shard import Step, run_shard

def note(work, store, path):
    with path.open("a") as notes:
        notes.write(work.subject + "\\n")
    time.sleep(0.02)
    return Outcome("kept")

step = Step(StepIdentity("note", 1, {}, {}), partial(note, path=Path(sys.argv[1])), runs_in="inline")
run_shard(step, [])
print("ready", flush=True)
sys.stdin.readline()
offset = int(sys.argv[2])
for start in range(offset, offset + 24, 8):  # shards that overlap with those of the other
    result = run_shard(step, [Work(f"item{number % 24}") for number in range(start, start + 8)])
    print(result.executed, result.reused, len(result.kept), flush=True)
"""


def holder() -> "subprocess.Popen[str]":
    started = subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout
    assert started.stdout.readline() == "10 0\n"
    return started


@pytest.fixture(autouse=True)
def looking_often(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation whose workers don't wait long before they look again."""
    monkeypatch.setattr("medgen.claims.LOOK_S", 0.05)


@pytest.mark.parametrize("end", ["gives up", "is killed"])
def test_what_another_process_works_on_is_free_when_it_ends(end: str) -> None:
    other = holder()
    try:
        with claims(open_catalog()) as claim:
            mine, others = claim.take(reversed(KEYS))
            assert mine == [*KEYS[:14:-1], *KEYS[4::-1]] and others == KEYS[14:4:-1]
            claim.release()
            groups = claim.in_turn(KEYS)
            assert next(groups) == KEYS[:5] + KEYS[15:]
            ended = threading.Timer(0.3, other.kill if end == "is killed" else lambda: other.communicate("\n"))
            ended.start()
            assert next(groups) == KEYS[5:15]  # waits until the other ends
            ended.join()
            assert list(groups) == []
    finally:
        other.kill()
        other.communicate()
    with open_catalog().connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Claim)) == 0


def test_two_runs_at_once_do_nothing_twice(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(notes), offset],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for offset in ("0", "4")
    ]  # fmt: skip
    for run in runs:
        assert run.stdout
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin
        run.stdin.write("\n")
        run.stdin.flush()
    shards = [[int(n) for n in line.split()] for run in runs for line in run.communicate()[0].splitlines()]
    assert len(shards) == 6 and {kept for _, _, kept in shards} == {8}
    assert sorted(notes.read_text().split()) == sorted(f"item{number}" for number in range(24))
    assert sum(executed for executed, _, _ in shards) == 24 == sum(reused for _, reused, _ in shards)


def test_shards_of_one_process_wait_for_each_other_too() -> None:
    """Every key is in all shards, in orders that would lock each other out if a shard held some while it waited."""
    guard = threading.Lock()
    at_work: set[str] = set()
    done: list[str] = []

    def shard(number: int) -> None:
        keys = KEYS[number:] + KEYS[:number]
        with claims(open_catalog()) as claim:
            for mine in claim.in_turn(keys if number % 2 else keys[::-1]):
                with guard:
                    assert not at_work & set(mine)
                    at_work.update(mine)
                with guard:
                    at_work.difference_update(mine)
                    done.extend(mine)

    with ThreadPoolExecutor(8) as threads:
        for ended in [threads.submit(shard, number) for number in range(8)]:
            ended.result()
    assert sorted(done) == sorted(KEYS * 8)


def test_many_items_take_no_room_among_postgres_locks() -> None:
    """More than an advisory lock each would have room for."""
    many = [f"{number:064x}" for number in range(12_000)]
    with claims(open_catalog()) as claim, claims(open_catalog()) as other:
        assert claim.take(many) == (many, [])
        assert other.take(many) == ([], many)


def test_a_lost_connection_gives_up_what_was_claimed_and_is_made_anew() -> None:
    engine = open_catalog()
    with claims(engine) as claim:
        assert claim.take(KEYS) == (KEYS, [])
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            sessions = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
            assert connection.scalar(
                text(sessions + " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())")
            )
        with claims(engine) as other:
            assert other.take(KEYS) == (KEYS, [])
            claim.release()  # what it held before is not its own any more
            assert claim.take(KEYS[:1]) == ([], KEYS[:1])
