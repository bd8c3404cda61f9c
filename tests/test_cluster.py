"""A refresh on a cluster of Dask, or of Ray: three machines that share Postgres and S3 and no folder but the sources'.

All run on this one; what tells the processes of a machine from those of others is its home.
"""

import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from medgen.postgres import embedded_url
from tests.conftest import (
    ROOT,
    S3Server,
    clean_environment,
    free_port,
    kill_everything,
    medgen,
    medgen_running,
    numbered_video,
)  # fmt: skip

MACHINES = 3
LOOSE = [
    part
    for setting in (
        "medical_threshold=0", "frame_similarity=-1", "still_below=0", "technical_threshold=100", "max_freeze_share=1",
        "min_short_side=0", "min_sharpness=0", "max_overlay_share=1", "crop_borders=false",
        "keep_uncropped_borders=true", "near_duplicates=keep", "dissolves=false", "face_model=none", "shard_size=1",
    )
    for part in ("--set", setting)
]  # fmt: skip
BOUNDS = {"MEDGEN_WORKERS": "1", "MEDGEN_DOWNLOAD_WORKERS": "1"}  # of a machine


def machine(home: Path, shared: dict[str, str]) -> dict[str, str]:
    """Environment of the processes of a machine. Of Prefect's server it knows nothing: that comes with the run."""
    return clean_environment() | shared | BOUNDS | {"MEDGEN_HOME": str(home)}


@contextmanager
def started(*commands: tuple[list[str], dict[str, str]]) -> Iterator[None]:
    """Runs (command, environment) meanwhile."""
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, env=environment, **quiet) for command, environment in commands]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def dask(homes: list[Path], shared: dict[str, str]) -> Iterator[str]:
    """Address of Dask's scheduler; each machine has one worker."""
    port = str(free_port())
    command = [sys.executable, "-m", "dask"]
    scheduler = [*command, "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]
    worker = [*command, "worker", f"tcp://127.0.0.1:{port}", "--no-nanny", "--nthreads", "3", "--no-dashboard"]
    with started((scheduler, clean_environment()), *((worker, machine(home, shared)) for home in homes)):
        yield f"tcp://127.0.0.1:{port}"


@contextmanager
def ray(homes: list[Path], shared: dict[str, str]) -> Iterator[str]:
    """Address of Ray's head; each machine has one node."""
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_nodes", "2", *map(str, homes)],
        cwd=ROOT,
        env=clean_environment() | shared | BOUNDS | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert holder.stdout
        address = holder.stdout.readline().strip()
        assert address, "Ray did not start"
        yield address
    finally:
        holder.communicate()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of short videos."""
    folder = tmp_path_factory.mktemp("cluster") / "videos"
    folder.mkdir()
    for number in range(4):
        numbered_video(folder / f"{number}.mp4", 155 + number)
    return folder


@pytest.fixture(scope="module")
def reference(videos: Path) -> str:
    """Digest of the release that one machine makes."""
    home = videos.parent / "reference"
    done = medgen("refresh", "--source", str(videos), "--json", *LOOSE, home=home, **BOUNDS)
    return str(json.loads(done.stdout)["digest"])


@pytest.fixture
def shared(postgres_folder: Path, s3: S3Server, tmp_path: Path) -> dict[str, str]:
    """Settings of what the machines share: an empty database and an S3 server."""
    url = embedded_url(postgres_folder)
    name = "c" + tmp_path.name.replace("-", "_").lower()[-40:]
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}"')
    return s3.environment | {"MEDGEN_DATABASE_URL": url.replace("/postgres?", f"/{name}?")}


class Watch:
    """Counts the processes of each machine that work on items, and kills one machine in the middle of its first shard.

    Args:
        killed: the machine that was killed.
        most: machine → most processes at once; seen: → all process ids.
    """

    def __init__(self, homes: list[Path]) -> None:
        self.homes = homes
        self.killed: Path | None = None
        self.most: defaultdict[Path, int] = defaultdict(int)
        self.seen: defaultdict[Path, set[str]] = defaultdict(set)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._over.wait(0.1):
            for home in self.homes:
                now = step_processes(home)
                self.most[home] = max(self.most[home], len(now))
                self.seen[home] |= now
                # The first only probes files. The second has just been started, for a shard that waits for it.
                if len(now) > 1 and not self.killed:
                    self.killed = home
                    kill_everything(home)


def step_processes(home: Path) -> set[str]:
    """Ids of a machine's processes that work on items or probe files."""
    found, mine = set(), f"MEDGEN_HOME={home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            spawned = b"spawn_main" in (process / "cmdline").read_bytes()
            if spawned and mine in (process / "environ").read_bytes().split(b"\0"):
                found.add(process.name)
    return found


@pytest.mark.parametrize("engine", [dask, ray])
def test_three_machines_make_the_release_of_one_though_one_is_killed(
    engine: Callable[[list[Path], dict[str, str]], AbstractContextManager[str]],
    videos: Path,
    reference: str,
    shared: dict[str, str],
    tmp_path: Path,
) -> None:
    homes = [tmp_path / f"machine{number}" for number in range(MACHINES)]
    arguments = ("refresh", "--source", str(videos), "--json", *LOOSE)
    with engine(homes, shared) as address, Watch(homes) as watch:
        settings = shared | BOUNDS | {"MEDGEN_RUNNER": engine.__name__, "MEDGEN_RUNNER_ADDRESS": address}
        with medgen_running(*arguments, home=tmp_path / "flow", **settings) as running:
            output, _ = running.communicate()
        assert running.returncode == 0, output
    assert watch.killed
    summary = json.loads(output[output.index("{\n") :])
    assert summary["digest"] == reference
    survivors = [home for home in homes if home != watch.killed]
    assert sum(any(home.glob("store/??/*")) for home in homes) >= 2  # the work was spread
    if engine is dask:  # Ray has several processes for tasks, each with one more that only probes files
        assert max(watch.most.values()) <= 2
        for home in survivors:
            assert len(watch.seen[home]) <= 2  # models were loaded once
    assert json.loads(medgen("verify", "--json", home=tmp_path / "flow", **shared).stdout)["clean"]
