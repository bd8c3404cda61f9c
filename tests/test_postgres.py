"""The embedded server: nobody but its owner gets in, nothing above it is opened, and no remains are in its way."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from medgen.postgres import embedded_url
from medgen.postgres_programs import DatabaseUnusable, DataFolder
from tests.other_user import NOBODY, as_nobody, as_root, open_place
from tests.waiting import wait_until

START = "import pathlib, sys; from medgen.postgres import embedded_url; embedded_url(pathlib.Path(sys.argv[1]))"

place = open_place


def connect(url: str) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(url.replace("+psycopg", ""))


def answers(folder: Path) -> bool:
    with connect(embedded_url(folder)) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


def running(folder: Path) -> int:
    """Process id of the server."""
    return int((folder / "postmaster.pid").read_text().split("\n")[0])


@as_root
@pytest.mark.parametrize("home", ["home", "a-path-too-long-for-the-socket-of-a-server" * 3, "one,two"])
def test_another_user_does_not_get_in(place: Path, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / home / "postgres"
    url = embedded_url(folder)
    assert "Permission denied" in as_nobody(lambda: connect(url))
    with connect(url) as connection:
        assert connection.execute("SHOW unix_socket_directories").fetchone() == (".",)
    # And with all doors open the kernel still tells who comes.
    for path, mode in ((folder / ".s.PGSQL.5432", 0o777), (folder, 0o755), (folder.parent, 0o755)):
        path.chmod(mode)
    monkeypatch.chdir(folder)
    here = "postgresql://postgres@/postgres?host=/proc/self/cwd"
    psycopg.connect(here).close()
    assert 'Peer authentication failed for user "postgres"' in as_nobody(lambda: connect(here))


@as_root
def test_nothing_above_the_home_is_opened(tmp_path: Path) -> None:
    """pytest's folders are closed to others, as /root is."""
    tmp_path.chmod(0o700)
    before = [path.stat().st_mode for path in tmp_path.parents]
    assert answers(tmp_path / "home" / "postgres")
    assert before == [path.stat().st_mode for path in tmp_path.parents]
    for path in (tmp_path, tmp_path / "home", tmp_path / "home" / "postgres"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


@as_root
def test_an_ordinary_user_needs_nobody_else(place: Path) -> None:
    os.chown(place, NOBODY, NOBODY)
    folder = place / "home" / "postgres"
    assert not as_nobody(lambda: answers(folder))
    assert running(folder)
    assert folder.owner() == "nobody"
    assert answers(folder)  # root may look into everybody's installation, whose server still is its owner's
    assert (folder / "pg_ident.conf").read_text() == 'medgen "nobody" postgres\nmedgen "root" postgres\n'
    assert Path(f"/proc/{running(folder)}").owner() == "nobody"


@as_root
def test_the_database_of_another_user_is_refused(place: Path) -> None:
    assert answers(place / "postgres")
    os.chown(place, NOBODY, NOBODY)
    said = as_nobody(lambda: embedded_url(place / "postgres"))
    assert "DatabaseUnusable" in said and "belongs to another user than nobody" in said and "chown -R" in said


def test_a_running_server_of_an_earlier_version_closes_its_doors(tmp_path: Path) -> None:
    """Its rules were `trust`: whoever reached the socket could call himself what he liked."""
    folder = tmp_path / "postgres"
    url = embedded_url(folder)
    with connect(url) as connection:
        connection.execute("CREATE ROLE stranger LOGIN")

    def stranger_refused() -> bool:
        try:
            connect(url.replace("postgres@", "stranger@")).close()
        except psycopg.OperationalError as error:
            return "Peer authentication failed" in str(error)
        return False

    (folder / "pg_hba.conf").write_text("local all all trust\n")
    os.kill(running(folder), signal.SIGHUP)
    wait_until(lambda: not stranger_refused(), "strangers are refused")
    assert embedded_url(folder) == url
    wait_until(stranger_refused, "strangers are let in")
    assert answers(folder)


@as_root
def test_a_copy_made_without_its_owner_is_taken_over(tmp_path: Path) -> None:
    """With the mark of the server that ran, too, which is nobody's business."""
    folder, copy = tmp_path / "home" / "postgres", tmp_path / "copy" / "postgres"
    with connect(embedded_url(folder)) as connection:
        connection.execute("CREATE TABLE mark ()")
    pid = running(folder)
    os.kill(pid, signal.SIGINT)
    wait_until(lambda: not (folder / "postmaster.pid").exists(), "the server does not stop")
    assert answers(folder)
    subprocess.run(["cp", "-r", tmp_path / "home", tmp_path / "copy"], check=True)
    with connect(embedded_url(copy)) as connection:
        connection.execute("SELECT * FROM mark")
    assert running(copy) != running(folder)


def test_where_its_programs_cannot_be_reached_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "/srv/venv/initdb")

    monkeypatch.setattr("medgen.postgres_programs.subprocess.run", closed)
    with pytest.raises(DatabaseUnusable, match=r"can't reach its programs in .*\n.*as another user than root"):
        embedded_url(tmp_path / "postgres")
    assert not (tmp_path / "postgres").exists()


def test_a_first_start_killed_anywhere_is_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    for delay in (0.3, 0.6, 0.9, 1.2):
        process = subprocess.Popen([sys.executable, "-c", START, str(folder)], start_new_session=True)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert answers(folder)
    assert not list(tmp_path.glob("postgres.making-*"))


def test_a_killed_server_is_started_again_with_the_same_url(tmp_path: Path) -> None:
    url = embedded_url(tmp_path / "postgres")
    with connect(url) as connection:
        connection.execute("CREATE TABLE mark ()")
    killed = running(tmp_path / "postgres")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{killed}/cwd").exists(), "it is not dead")
    assert embedded_url(tmp_path / "postgres") == url
    with connect(url) as connection:
        connection.execute("SELECT * FROM mark")


def test_a_start_that_fails_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = DataFolder.run, ["pg_ctl: could not start server"]

    def failing(folder: DataFolder, program: str, *arguments: str) -> str | None:
        return failures.pop() if program == "pg_ctl" and failures else real(folder, program, *arguments)

    monkeypatch.setattr(DataFolder, "run", failing)
    assert answers(tmp_path / "postgres")
    assert not failures


def test_a_start_that_fails_for_good_says_why_in_postgres_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "postgres"
    assert answers(folder)
    os.kill(running(folder), signal.SIGINT)
    wait_until(lambda: not (folder / "postmaster.pid").exists(), "the server does not stop")
    (folder / "PG_VERSION").write_text("9.6\n")
    monkeypatch.setattr("medgen.postgres.time.sleep", lambda seconds: None)
    with pytest.raises(DatabaseUnusable) as refused:
        embedded_url(folder)
    assert "database files are incompatible with server\nAnother version of Postgres" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "thesis.txt").write_text("all of it")
    with pytest.raises(DatabaseUnusable, match="no embedded Postgres could be made"):
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
    first = subprocess.run([sys.executable, "-c", START, str(folder)], check=True)
    assert first.returncode == 0 and (folder / "postmaster.pid").exists()  # the other still uses it
    last = f"""{START}
import os
os.kill(int(sys.argv[2]), 9)
while " Z " not in pathlib.Path(f"/proc/{{sys.argv[2]}}/stat").read_text():
    pass
"""
    subprocess.run([sys.executable, "-c", last, str(folder), str(user.pid)], check=True)
    assert not (folder / "postmaster.pid").exists()  # though the killed one is still a zombie: we are its parent
    user.communicate()
