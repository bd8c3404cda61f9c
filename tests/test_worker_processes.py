"""What crashes, hangs or grows in a worker process ends there, and the others go on."""

import multiprocessing.forkserver
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pebble.pool.base_pool import PoolStatus

from medgen import step_processes, worker_processes
from medgen.errors import ItemFailed
from medgen.ledger import StepIdentity, Work, open_ledger
from medgen.memory_limit import LEAST_BYTES, fair_share, machine_bytes
from medgen.settings import Settings
from medgen.shard import Step, run_shard
from medgen.worker_processes import _decoders, close_decoders, decoded_apart
from tests.conftest import forget_installation
from tests.memory_eaters import end, grow, held, stop_once
from tests.waiting import LIMIT_S

LIMIT_MIB = 512


@pytest.fixture
def one_small_worker(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation whose only worker may take `LIMIT_MIB`."""
    monkeypatch.setenv("MEDGEN_WORKERS", "1")
    monkeypatch.setenv("MEDGEN_WORKER_MEMORY_BYTES", str(LIMIT_MIB << 20))
    monkeypatch.setattr("medgen.shard.BACKOFF_S", 0.0)
    forget_installation()


def test_an_item_that_needs_too_much_memory_is_quarantined_and_the_others_go_on(one_small_worker: None) -> None:
    step = Step(StepIdentity("grow", 1, {}, {}), grow)
    # The second small one meets what the first one left, and is not to blame for that.
    works = [Work(subject) for subject in ("240 a", "240 b", "3000 c")]
    result = run_shard(step, works)
    records = {record.subject: record for record in open_ledger().load(result.records).values()}
    assert {subject: record.status for subject, record in records.items()} == {
        "240 a": "kept", "240 b": "kept", "3000 c": "failed",
    }  # fmt: skip
    assert (records["3000 c"].reason, records["3000 c"].transient) == ("memory_limit", False)
    assert "MEDGEN_WORKER_MEMORY_BYTES" in records["3000 c"].detail["message"]
    assert run_shard(step, works).executed == 0


def test_what_is_decoded_beside_the_steps_hurts_only_its_item(one_small_worker: None) -> None:
    try:
        for how, reason, transient in (
            ("crash", "worker_died", True),
            ("hang", "time_limit", False),
            ("grow", "memory_limit", False),
            ("fail", "no_such_luck", False),
        ):
            with pytest.raises(ItemFailed) as failure:
                decoded_apart(end, how, time_limit_s=2.0 if how == "hang" else LIMIT_S)
            assert (failure.value.reason, failure.value.transient) == (reason, transient)
        assert decoded_apart(end, "well", time_limit_s=LIMIT_S) != os.getpid()
    finally:
        close_decoders()


def test_a_worker_has_the_large_libraries_from_what_it_is_forked_from(home: Path) -> None:
    large = ("torch", "torchvision", "cv2", "prefect", "pandas")
    try:
        assert decoded_apart(held, (*large, "tasks.curation.segment"), time_limit_s=LIMIT_S) == set(large)
    finally:
        close_decoders()


def test_workers_end_with_the_process_that_forked_them_and_others_follow(home: Path) -> None:
    forks = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]  # the stubs leave it out
    try:
        worker = decoded_apart(end, "well", time_limit_s=LIMIT_S)
        os.kill(forks._forkserver_pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(worker)], timeout=LIMIT_S)
        assert not psutil.pid_exists(worker)
        for _ in range(3):  # the first may hear of the end
            with suppress(ItemFailed):
                assert decoded_apart(end, "well", time_limit_s=LIMIT_S) != worker
                break
        else:
            pytest.fail("no worker follows")
    finally:
        close_decoders()


def test_a_pool_that_breaks_costs_a_shard_its_time_and_no_item(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when what forks the workers is killed at the moment when it is asked for one: pebble's pool just ends."""
    monkeypatch.setattr("medgen.shard.BACKOFF_S", 0.0)
    monkeypatch.setattr("medgen.shard.UNWRITTEN_S", 0.05)
    begun = tmp_path / "begun"

    def broken() -> None:
        while not begun.exists():
            time.sleep(0.01)
        step_processes._pool._pool._context.status = PoolStatus.ERROR  # type: ignore[union-attr]  # made by then

    breaker = threading.Thread(target=broken)
    breaker.start()
    result = run_shard(Step(StepIdentity("stop_once", 1, {}, {}), stop_once), [Work(str(begun))])
    breaker.join()
    (record,) = open_ledger().load(result.records).values()
    assert record.status == "kept"


def test_what_is_decoded_in_a_pool_that_breaks_is_told_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "ASK_S", 0.05)
    try:
        assert decoded_apart(end, "well", time_limit_s=LIMIT_S)
        breaker = threading.Timer(0.2, setattr, (_decoders()._context, "status", PoolStatus.ERROR))
        breaker.start()
        with pytest.raises(ItemFailed, match="worker_died"):
            decoded_apart(end, "hang", time_limit_s=600.0)
        assert decoded_apart(end, "well", time_limit_s=LIMIT_S)
    finally:
        close_decoders()


def test_a_long_temporary_folder_costs_time_and_nothing_else(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("medgen.forks.get_temp_dir", lambda: "/" + "t" * 90)
    try:
        assert decoded_apart(end, "well", time_limit_s=LIMIT_S) != os.getpid()
    finally:
        close_decoders()
    assert "too long for a socket" in caplog.text


def test_a_worker_may_take_its_share_of_the_memory_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = machine_bytes(tmp_path, tmp_path / "none")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "groups").write_text("0::/a/b\n")
    (tmp_path / "a" / "memory.max").write_text(f"{whole // 2}\n")
    (tmp_path / "a" / "b" / "memory.max").write_text("max\n")
    assert machine_bytes(tmp_path, tmp_path / "groups") == whole // 2
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{whole // 4}\n")
    assert machine_bytes(tmp_path, tmp_path / "groups") == whole // 4
    monkeypatch.setattr("medgen.memory_limit.machine_bytes", lambda: 100 << 30)
    assert fair_share(4) == 20 << 30
    assert fair_share(64) == LEAST_BYTES
    monkeypatch.setenv("MEDGEN_WORKERS", "4")
    assert Settings().worker_memory_bytes == 20 << 30
    monkeypatch.setattr("medgen.memory_limit.machine_bytes", lambda: 2 << 30)
    assert fair_share(8) == int(0.8 * (2 << 30))
