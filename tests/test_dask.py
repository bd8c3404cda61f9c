"""A refresh on a cluster of Dask's, where it is installed: worker processes bounded, and a worker killed mid-run."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment, free_port, medgen, medgen_running, numbered_video

pytest.importorskip("prefect_dask")

WORKERS = 2
LOOSE = [
    part
    for setting in (
        "medical_threshold=0", "frame_similarity=-1", "still_below=0", "technical_threshold=100", "max_freeze_share=1",
        "min_short_side=0", "min_sharpness=0", "max_overlay_share=1", "crop_borders=false",
        "keep_uncropped_borders=true", "near_duplicates=keep", "shard_size=1",
    )
    for part in ("--set", setting)
]  # fmt: skip


@contextmanager
def cluster(environment: dict[str, str]) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"]]]:
    """(address, two of Dask's workers on this machine, of four threads each)."""
    address = f"tcp://127.0.0.1:{free_port()}"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    port = address.rpartition(":")[2]
    started = [subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"], **quiet)]
    one = [*dask, "worker", address, "--no-nanny", "--nthreads", "4", "--no-dashboard"]
    started += [subprocess.Popen(one, **quiet) for _ in range(2)]
    try:
        yield address, started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def step_processes(dask_worker: int) -> set[int]:
    """Pids of a worker's processes that import the steps; what only tracks resources is none."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == dask_worker and b"spawn_main" in command:
            found.add(int(entry.name))
    return found


def test_a_killed_worker_of_dask_loses_nothing_and_the_bound_holds(tmp_path: Path) -> None:
    source, home = tmp_path / "videos", tmp_path / "home"
    source.mkdir()
    for number in range(3):
        numbered_video(source / f"{number}.mp4", 170 + number)
    arguments = ("refresh", "--source", str(source), "--json", *LOOSE)
    reference = json.loads(medgen(*arguments, home=tmp_path / "reference", MEDGEN_WORKERS="1").stdout)
    environment = clean_environment() | {"MEDGEN_HOME": str(home), "MEDGEN_WORKERS": str(WORKERS)}
    most, over = 0, threading.Event()
    with cluster(environment) as (address, workers):

        def watch() -> None:
            nonlocal most
            while not over.is_set():
                most = max(most, sum(len(step_processes(worker.pid)) for worker in workers))
                time.sleep(0.1)

        watching = threading.Thread(target=watch)
        watching.start()
        cluster_settings = {"MEDGEN_WORKERS": str(WORKERS), "MEDGEN_RUNNER": "dask", "MEDGEN_RUNNER_ADDRESS": address}
        with medgen_running(*arguments, home=home, **cluster_settings) as running:
            busy = None
            while busy is None and running.poll() is None:
                busy = next((worker for worker in workers if len(step_processes(worker.pid)) >= WORKERS), None)
                time.sleep(0.1)
            assert busy, running.communicate()[0]
            os.kill(busy.pid, signal.SIGKILL)
            output, _ = running.communicate()
        again = medgen(*arguments, home=home, check=False, **cluster_settings)
        over.set()
        watching.join()
    assert "Traceback" not in output
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["digest"] == reference["digest"]
    assert most <= WORKERS + len(workers)  # and one in each of Dask's workers that only probes files
    assert json.loads(medgen("verify", "--json", home=home).stdout)["clean"]
