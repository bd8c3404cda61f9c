"""Worker processes of steps: no more than MEDGEN_WORKERS on a machine, whoever runs the tasks."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from medgen import settings, step_processes
from medgen.download_slots import download_slot


@pytest.fixture
def two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of an installation with two worker processes."""
    monkeypatch.setenv("MEDGEN_HOME", str(tmp_path))
    monkeypatch.setenv("MEDGEN_WORKERS", "2")
    settings.current.cache_clear()
    return tmp_path


def test_tasks_that_begin_together_share_one_pool(two_workers: Path) -> None:
    pool, together = step_processes._Pool(), threading.Barrier(8)

    def task(_: int) -> tuple[int, set[int]]:
        together.wait()
        with pool.used() as processes:
            jobs = [processes.schedule(os.getpid) for _ in range(4)]
            return id(processes), {job.result() for job in jobs}

    try:
        with ThreadPoolExecutor(8) as threads:
            seen = list(threads.map(task, range(8)))
    finally:
        pool.close()
    assert len({pool for pool, _ in seen}) == 1
    assert len(set().union(*(pids for _, pids in seen))) <= 2


def test_processes_of_a_cluster_on_one_machine_take_turns(two_workers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pools stand for those of two of Dask's workers: locks of files tell them apart as they tell processes."""
    monkeypatch.setenv("MEDGEN_RUNNER", "dask")
    monkeypatch.setattr(step_processes, "IDLE_S", 0.0)
    settings.current.cache_clear()
    first, second = step_processes._Pool(), step_processes._Pool()
    alive_with_second: list[bool] = []

    def other(of_first: set[int]) -> None:
        with second.used():
            alive_with_second.extend(Path(f"/proc/{pid}").exists() for pid in of_first)

    try:
        with first.used() as processes:
            pids = {processes.schedule(os.getpid).result() for _ in range(4)}
            with pytest.raises(Timeout):
                step_processes._turn().acquire(blocking=False)
            with first.used() as same:  # a second task of this process does not wait
                assert same is processes
            waiting = threading.Thread(target=other, args=(pids,))
            waiting.start()
        waiting.join()
    finally:
        first.close()
        second.close()
    assert alive_with_second == [False] * len(pids)


def test_processes_that_tasks_run_in_share_the_downloads_of_their_machine(
    two_workers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for them: each opens the files of the locks anew, which tells them apart as it tells processes."""
    monkeypatch.setenv("MEDGEN_RUNNER", "ray")
    monkeypatch.setenv("MEDGEN_DOWNLOAD_WORKERS", "3")
    monkeypatch.setattr("medgen.download_slots.POLL_S", 0.01)
    settings.current.cache_clear()
    guard, full = threading.Lock(), threading.Barrier(3)
    under_way = most = 0

    def download(_: int) -> None:
        nonlocal under_way, most
        with download_slot():
            with guard:
                under_way += 1
                most = max(most, under_way)
            full.wait()  # until there are as many as may be
            with guard:
                under_way -= 1

    with ThreadPoolExecutor(9) as threads:
        list(threads.map(download, range(9)))
    assert most == 3


def test_a_lone_process_waits_for_nobody(two_workers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_processes, "in_cluster", lambda: False)
    pool = step_processes._Pool()
    with FileLock(two_workers / "any.lock"), pool.used():
        assert not list(two_workers.glob("locks/*"))
    pool.close()
