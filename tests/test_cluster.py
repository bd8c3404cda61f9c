"""A refresh on a cluster of Dask, or of Ray: three machines that share Postgres and S3 and no folder but the sources'.

All run on this one; what tells the processes of a machine from those of others is its home.
"""

import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
import pytest
from distributed import Client, LocalCluster

from flows.dask_profiler import stop_profiler
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
from tests.waiting import wait_until

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
LOOK_S = 0.3  # between two looks, which read all of /proc
BOUNDS = {"MEDGEN_WORKERS": "1", "MEDGEN_DOWNLOAD_WORKERS": "1"}  # of a machine


@dataclass
class Cluster:
    """What runs the tasks.

    Args:
        address: of Dask's scheduler or Ray's head.
        machines: home → its process, of which the others of that machine come. Ray's are told apart by their
            environment.
    """

    address: str
    machines: dict[Path, psutil.Process] = field(default_factory=dict)

    def step_processes(self, homes: Sequence[Path]) -> dict[Path, set[int]]:
        """Machine → ids of its processes that work on items or probe files: forks of one that does nothing else."""
        found: dict[Path, set[int]] = {home: set() for home in homes}
        for home, machine in self.machines.items():
            with suppress(psutil.Error):
                found[home] = {child.pid for child in machine.children(recursive=True) if child.ppid() != machine.pid}
        if self.machines:
            return found
        parents: dict[int, int] = {}
        mine = {f"MEDGEN_HOME={home}".encode(): home for home in homes}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if b"multiprocessing.forkserver" not in (process / "cmdline").read_bytes():
                    continue
                for of in mine.keys() & set((process / "environ").read_bytes().split(b"\0")):
                    found[mine[of]].add(int(process.name))
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        return {home: {process for process in of if parents.get(process) in of} for home, of in found.items()}

    def kill(self, home: Path) -> None:
        """kill -9 for all processes of a machine."""
        if home not in self.machines:
            kill_everything(home)
            return
        for process in (self.machines[home], *self.machines[home].children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def holding(module: str, *arguments: str, environment: dict[str, str]) -> Iterator[str]:
    """The first line of what `python -m MODULE` prints, which runs meanwhile, until its standard input ends."""
    holder = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert holder.stdout
        told = holder.stdout.readline().strip()
        assert told, f"{module} did not start"
        yield told
    finally:
        holder.communicate()


@contextmanager
def dask(homes: list[Path], shared: dict[str, str]) -> Iterator[Cluster]:
    """Each machine has one worker."""
    port = str(free_port())
    command = [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]
    address = f"tcp://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(command, env=clean_environment(), **quiet)
    # Of Prefect's server the machines know nothing: that comes with the run.
    environment = clean_environment() | shared | BOUNDS | {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false"}
    try:
        with holding("tests.dask_machines", address, *map(str, homes), environment=environment) as told:
            yield Cluster(address, dict(zip(homes, map(psutil.Process, json.loads(told)), strict=True)))
    finally:
        scheduler.kill()
        scheduler.wait()


@contextmanager
def ray(homes: list[Path], shared: dict[str, str]) -> Iterator[Cluster]:
    """Each machine has one node."""
    environment = clean_environment() | shared | BOUNDS | {"RAY_USAGE_STATS_ENABLED": "0"}
    with holding("tests.ray_nodes", "1", *map(str, homes), environment=environment) as address:
        yield Cluster(address)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of short videos."""
    folder = tmp_path_factory.mktemp("cluster") / "videos"
    folder.mkdir()
    for number in range(3):
        numbered_video(folder / f"{number}.mp4", 155 + number)
    return folder


@pytest.fixture(scope="module")
def reference(videos: Path) -> str:
    """Digest of the release that one machine makes."""
    home = videos.parent / "reference"
    done = medgen("refresh", "--source", str(videos), "--json", *LOOSE, home=home, inline=True, **BOUNDS)
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

    def __init__(self, cluster: Cluster, homes: list[Path]) -> None:
        self.cluster, self.homes = cluster, homes
        self.killed: Path | None = None
        self.most: defaultdict[Path, int] = defaultdict(int)
        self.seen: defaultdict[Path, set[int]] = defaultdict(set)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._over.wait(LOOK_S):
            for home, now in self.cluster.step_processes(self.homes).items():
                self.most[home] = max(self.most[home], len(now))
                self.seen[home] |= now
                # The first only probes files. The second has just been started, for a shard that waits for it.
                if len(now) > 1 and not self.killed:
                    self.killed = home
                    self.cluster.kill(home)


def test_dasks_profiler_ends_with_the_first_task() -> None:
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster, Client(cluster) as client:
        (worker,) = cluster.workers.values()
        assert worker.periodic_callbacks["profile"].is_running()
        client.submit(stop_profiler).result()
        wait_until(lambda: not worker.periodic_callbacks["profile"].is_running(), "the profiler goes on")


@pytest.mark.parametrize("engine", [dask, ray])
def test_three_machines_make_the_release_of_one_though_one_is_killed(
    engine: Callable[[list[Path], dict[str, str]], AbstractContextManager[Cluster]],
    videos: Path,
    reference: str,
    shared: dict[str, str],
    tmp_path: Path,
) -> None:
    homes = [tmp_path / f"machine{number}" for number in range(MACHINES)]
    arguments = ("refresh", "--source", str(videos), "--json", *LOOSE)
    with engine(homes, shared) as cluster, Watch(cluster, homes) as watch:
        settings = shared | BOUNDS | {"MEDGEN_RUNNER": engine.__name__, "MEDGEN_RUNNER_ADDRESS": cluster.address}
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
