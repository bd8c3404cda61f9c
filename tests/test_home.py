"""The installation's folder: closed to others; and what makes it unusable is told in plain lines, by every command."""

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apps.cli import app
from medgen.catalog import open_catalog
from medgen.errors import RunStopped
from medgen.folders import materialize, put_folder
from medgen.home import HomeUnusable, private_home
from medgen.settings import Settings
from medgen.store import Store
from tests.conftest import forget_installation
from tests.other_user import NOBODY, as_nobody, as_root, open_place
from tests.waiting import wait_until

place = open_place


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def settled(home: Path) -> Settings:
    return Settings(home=home, database_url=None, s3_endpoint=None)


# --- closed to others -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    former = os.umask(0o022)
    yield
    os.umask(former)


def test_a_new_home_is_closed_and_what_is_above_it_stays(place: Path) -> None:
    home = private_home(place / "data" / "home")
    assert (mode(home), mode(home.parent), mode(place)) == (0o700, 0o755, 0o755)


def test_the_home_of_an_earlier_version_is_closed(place: Path) -> None:
    (place / "home" / "store").mkdir(parents=True)
    (place / "home").chmod(0o2775)
    Store(settled(place / "home"))
    assert mode(place / "home") == 0o2700


@as_root
def test_other_users_see_nothing_of_it(place: Path) -> None:
    store = Store(settled(place / "home"))
    path = store.path(store.put_bytes(b"a face", "text/plain").sha256)
    assert "PermissionError" in as_nobody(path.read_bytes)
    assert "PermissionError" in as_nobody(lambda: list((place / "home").iterdir()))


def test_a_folder_that_others_need_is_refused_and_stays_open(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "thesis.txt").touch()  # somebody's own folder
    (place / "store").mkdir()
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o1777)  # as /tmp

    def changed(path: Path, mode: int) -> None:
        raise AssertionError(f"{path} was changed to {mode:o}")

    monkeypatch.setattr(Path, "chmod", changed)
    for folder in (place, shared, Path("/")):
        with pytest.raises(HomeUnusable, match="Name one in MEDGEN_HOME, such as"):
            private_home(folder)


@as_root
def test_a_folder_of_another_user_to_which_all_may_write_is_refused(place: Path) -> None:
    (place / "home").mkdir()
    (place / "home").chmod(0o777)
    assert "everybody may write" in as_nobody(lambda: private_home(place / "home"))
    (place / "home").chmod(0o750)
    os.chown(place / "home", 0, NOBODY)
    assert not as_nobody(lambda: private_home(place / "home"))  # shared with those whom its owner chose


# --- read-only bytes ------------------------------------------------------------------------------------------------


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"stray")


@as_root
def test_a_stray_append_to_a_released_file_is_refused_and_the_owner_can_still_remove_all(place: Path) -> None:
    """As an ordinary user, because root may write to anything."""
    os.chown(place, NOBODY, NOBODY)

    def act() -> None:
        store = Store(settled(place / "home"))
        (place / "model").mkdir()
        (place / "model" / "weights.safetensors").write_bytes(b"\0" * 100)
        stored = put_folder(store, place / "model")
        out = materialize(store, stored.manifest.sha256, place / "home" / "out")
        weights = store.path(stored.files["weights.safetensors"].sha256)
        assert weights.samefile(out / "weights.safetensors")
        for path in (weights, out / "weights.safetensors"):
            with pytest.raises(PermissionError):
                append(path)
        assert put_folder(store, place / "model") == stored  # again
        shutil.rmtree(out)
        store.remove(weights.name)
        assert not weights.exists()

    assert not as_nobody(act)


def test_objects_of_an_earlier_version_become_read_only_when_they_are_used(tmp_path: Path) -> None:
    store = Store(settled(tmp_path / "home"))
    digest = store.put_bytes(b"bytes", "text/plain").sha256
    assert mode(store.path(digest)) == 0o444
    for use in (store.path, store.actual_digest, lambda _: store.put_bytes(b"bytes", "text/plain")):
        (store.folder / digest[:2] / digest).chmod(0o644)
        use(digest)
        assert mode(store.folder / digest[:2] / digest) == 0o444


def test_copies_are_read_only_where_links_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(settled(tmp_path / "home"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w")
    stored = put_folder(store, tmp_path / "model")

    def elsewhere(*paths: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("medgen.folders.os.link", elsewhere)
    out = materialize(store, stored.manifest.sha256, tmp_path / "out")
    assert mode(out / "weights") == 0o444


# --- plain lines ----------------------------------------------------------------------------------------------------

COMMANDS = (["status"], ["verify"], ["gc"], ["refresh", "--source", "videos"], ["release", "show", "x"])


def said(*arguments: str, code: int = 1) -> str:
    """What a command says before it ends with an exit code, in at most three lines."""
    forget_installation()
    done = CliRunner().invoke(app, [*arguments])
    forget_installation()
    assert done.exit_code == code, done.output
    assert isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    assert len(done.output.strip().splitlines()) <= 3, done.output
    assert done.output.startswith("error: ")
    return " ".join(done.output.split())


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Points this process at a home without a database of its own; `COLUMNS` is wide, so that lines stay lines."""
    monkeypatch.delenv("MEDGEN_DATABASE_URL", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "400")
    yield lambda home: monkeypatch.setenv("MEDGEN_HOME", str(home))
    forget_installation()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m,nr_inodes=500", "tmpfs", folder], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_home_that_is_a_file(command: list[str], installation: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        installation(home)
        assert f"{home} can't be the folder of the installation: there is a file in its place" in said(*command)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_read_only_home(command: list[str], installation: Callable[[Path], None], small_disk: Path) -> None:
    (small_disk / "home").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for home in (small_disk / "home", small_disk / "new"):
        installation(home)
        words = said(*command)
        assert str(home) in words and "Read-only file system" in words and "name another" in words


def test_a_disk_that_is_too_small_for_the_database(installation: Callable[[Path], None], small_disk: Path) -> None:
    installation(small_disk / "home")
    words = said("status")
    assert str(small_disk) in words and "No space left on device" in words and "larger disk" in words
    assert not list((small_disk / "home").glob("postgres.making-*"))


def test_a_full_disk_with_a_database_elsewhere(
    home: Path, small_disk: Path, installation: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDGEN_DATABASE_URL", open_catalog().url.render_as_string(hide_password=False))
    (small_disk / "home").mkdir()
    with suppress(OSError):
        for number in range(500):
            (small_disk / f"filler-{number}").touch()
    installation(small_disk / "home")
    words = said("verify")
    assert "No space left on device" in words and "MEDGEN_HOME at a larger disk" in words


def test_tables_of_a_newer_version(home: Path) -> None:
    with open_catalog().begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999_from_the_future'")
    words = said("status")
    assert "9999_from_the_future" in words and "A newer version wrote them: upgrade medgen" in words


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_database_url_needs_no_driver(home: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    url = os.environ["MEDGEN_DATABASE_URL"].replace("postgresql+psycopg://", f"{scheme}://")
    monkeypatch.setenv("MEDGEN_DATABASE_URL", url)
    with open_catalog().connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM step_run").scalar_one() == 0


@pytest.mark.parametrize("url", ["mysql://u:sesame@h/d", "sesame", "postgresql://u:sesame@h:port/d", "postgresql://"])
def test_a_url_of_no_postgres_is_refused_without_a_word_of_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("MEDGEN_DATABASE_URL", url)
    words = said("status", code=2)
    assert "database_url" in words and "postgresql://user:password@host" in words and "sesame" not in words


def test_a_database_that_goes_while_a_command_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(ledger: object) -> None:
        with open_catalog().connect() as connection:
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setattr("apps.verdicts.totals", gone)
    assert "See that Postgres runs" in said("status")


@as_root
def test_a_home_copied_without_its_owner(installation: Callable[[Path], None], place: Path) -> None:
    """For an ordinary user, who can't take it over; root does (tests/test_postgres.py)."""
    from medgen.postgres import embedded_url

    embedded_url(place / "home" / "postgres")
    server = place / "home" / "postgres" / "postmaster.pid"
    os.kill(int(server.read_text().split("\n")[0]), signal.SIGINT)
    wait_until(lambda: not server.exists(), "the server does not stop")
    for path in (place / "home", *(place / "home").iterdir()):  # but what is in the data folder
        os.chown(path, NOBODY, NOBODY)

    def act() -> None:
        installation(place / "home")
        with pytest.raises(RunStopped) as refused:
            embedded_url(place / "home" / "postgres")
        assert "belongs to another user than nobody" in str(refused.value)
        assert len(str(refused.value).splitlines()) == 2

    assert not as_nobody(act)
