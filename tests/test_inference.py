"""Models in inference processes: loaded once for all who ask, asked in batches, and started again when they die."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flows.ray_inference import use_inference_owner
from medgen.devices import NoSuchDevice, devices
from medgen.errors import ItemFailed
from medgen.inference import InferenceDied, ask, close_inference
from medgen.inference_process import Served
from medgen.ledger import StepIdentity, Work, open_ledger
from medgen.settings import Settings
from medgen.shard import Step, run_shard
from medgen.worker_processes import close_decoders, decoded_apart
from tests.conftest import ROOT, forget_installation
from tests.served_models import dies_once, load_counting, load_short_of_memory, load_strict, takes_too_long


@pytest.fixture
def log(home: Path, tmp_path: Path) -> Iterator[Path]:
    """The file that `load_counting` writes to."""
    yield tmp_path / "log"
    close_inference()


def lines(log: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in log.read_text().splitlines())


def asked_elsewhere(model: Served, number: int) -> tuple[int, int, int]:
    """What a worker process is told."""
    (answer,) = ask(model, [np.full((4, number), 1, np.uint8)])
    return (*answer[:2], os.getpid())


def test_a_model_is_loaded_once_however_many_ask_and_questions_share_batches(log: Path) -> None:
    model = Served(load_counting, (str(log),), most=64)
    together = threading.Barrier(8)

    def one(number: int) -> list[tuple[int, int, int]]:
        together.wait()
        # Small and large ones: the shared memory grows.
        return ask(model, [np.full((number + 1, size), number, np.uint8) for size in (10, 100_000, 1000)])

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(one, range(8)))
    for number, (small, large, middle) in enumerate(answers):
        rows = number + 1
        assert [small[0], large[0], middle[0]] == [size * rows * number for size in (10, 100_000, 1000)]
        assert small[1] == large[1] == rows
    assert len({answer[2] for each in answers for answer in each} - {os.getpid()}) == 1
    # Worker processes ask the same process.
    assert decoded_apart(asked_elsewhere, model, 5, time_limit_s=600)[:2] == (20, 4)
    close_decoders()
    counted = lines(log)
    assert counted["load"] == 1 and counted["batch"] < 8 * 3
    assert ask(model, []) == []
    with pytest.raises(ItemFailed, match="without a value"):
        ask(model, [np.zeros(0)])


def test_the_process_may_die_in_the_middle_of_a_batch(log: Path) -> None:
    model = Served(load_counting, (str(log),), most=8)
    with ThreadPoolExecutor(4) as threads:
        good = [threads.submit(ask, model, [np.full(8, n, np.uint8)]) for n in range(3)]
        bad = threads.submit(ask, model, ["die"])
        with pytest.raises(InferenceDied) as died:
            bad.result()
        assert died.value.transient
        # Who was in the same batch is asked again, without the one that killed it.
        assert [future.result()[0][0] for future in good] == [0, 8, 16]
    assert lines(log)["load"] >= 3


def test_errors_reach_whoever_asked_and_batches_shrink_to_the_memory(log: Path) -> None:
    with pytest.raises(ValueError, match="no such thing"):
        ask(Served(load_counting, (str(log), "no such thing")), ["x"])
    assert ask(Served(load_short_of_memory, (3,), most=64), list(range(20))) == [2 * n for n in range(20)]
    with pytest.raises(RuntimeError, match="too many"):
        ask(Served(load_short_of_memory, (0,), most=64), [1])
    with pytest.raises(ItemFailed, match="time_limit"):
        ask(Served(load_counting, (str(log),)), ["hang"], limit_s=0.5)
    assert ask(Served(load_counting, (str(log),)), ["fine"]) == [(0, 0, 0)]


def test_a_question_that_fails_is_no_harm_to_others_and_a_lost_device_is_had_again(log: Path) -> None:
    model = Served(load_strict, (str(log),), most=64)
    together = threading.Barrier(3)

    def one(number: int) -> object:
        together.wait()
        try:
            return ask(model, [number])
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(one, (4, 7, 8))) == [[2], "[7] are odd", [4]]
    assert ask(model, [100, 6]) == [50, 3]
    assert lines(log) == {"lost": 1}


def test_steps_run_on_devices_and_survive_their_process(log: Path, tmp_path: Path) -> None:
    step = Step(StepIdentity("dies", 1, {}, {}), dies_once, runs_in="device")
    works = [Work(name, context={"mark": str(tmp_path / name)}) for name in ("a", "b", "c")]
    result = run_shard(step, works)
    assert (len(result.kept), result.executed) == (3, 3)
    processes = {record.detail["process"] for record in open_ledger().load(result.records).values()}
    assert os.getpid() not in processes
    slow = Step(StepIdentity("slow", 1, {}, {}), takes_too_long, runs_in="device", time_limit_s=0.5)
    (record,) = open_ledger().load(run_shard(slow, [Work("a")]).records).values()
    assert (record.status, record.reason, record.transient) == ("failed", "time_limit", False)


def asked_on_ray(log: str, number: int) -> tuple[tuple[int, int, int], str | None, int]:
    """What a task of Ray is told, and the devices that it knows of."""
    use_inference_owner()
    return ask(Served(load_counting, (log,)), [np.full(4, number, np.uint8)])[0], " ".join(devices()), os.getpid()


def test_on_ray_an_actor_holds_the_gpus_and_all_tasks_ask_it(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # A GPU that Ray is told of, and that isn't there: the actor serves the CPU in its place.
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        task = ray.remote(asked_on_ray)
        answers = ray.get([task.remote(str(log), number) for number in range(3)])
        assert ray.available_resources().get("GPU", 0) == 0  # it is nobody else's
    finally:
        ray.shutdown()
    assert [answer[0] for answer, _, _ in answers] == [0, 4, 8]
    assert {known for _, known, _ in answers} == {"cpu"}
    assert len({answer[2] for answer, _, _ in answers}) == 1
    assert lines(log)["load"] == 1


def test_devices_are_those_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medgen.devices.gpu_count", lambda: 4)
    for setting, expected in (
        ("auto", ("cuda:0", "cuda:1", "cuda:2", "cuda:3")), ("cpu", ("cpu",)), ("cuda:2,0", ("cuda:2", "cuda:0")),
    ):  # fmt: skip
        monkeypatch.setenv("MEDGEN_DEVICES", setting)
        forget_installation()
        assert devices() == expected
    monkeypatch.setenv("MEDGEN_DEVICES", "cuda:1,9")
    forget_installation()
    with pytest.raises(NoSuchDevice, match="9 is not among them"):
        devices()
    with pytest.raises(ValueError, match="must be auto, cpu, cuda or cuda:0,1"):
        Settings(devices="gpu")
    forget_installation()
