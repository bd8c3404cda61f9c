"""Training processes: how they are started, listened to and ended.

The training is a process of its own, so that a lack of memory or a crash takes nothing else along, and so that
accelerate can start it on many GPUs.
"""

import collections
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import models
from medgen.errors import RunStopped
from models.training.job import STOPPED, Check, TrainJob, memory_advice, require

Report = Callable[[dict[str, Any]], None]


class TrainingEnded(RunStopped):
    """The training process ended before its time. Checkpoints stay in the working folder."""


def launch(job: TrainJob, accelerate_config: str, report: Report, *, check_only: bool = False) -> None:
    """Pre-flight, where nothing was trained yet, and training, in processes of their own.

    Args:
        accelerate_config: config file of `accelerate config`, for several GPUs; "" for none.
        report: called with every check, step, validation and checkpoint; see `models.training.trainer.Report`.
        check_only: stop after pre-flight, whatever it finds.

    Raises:
        PreflightFailed: nothing was trained.
        TrainingEnded: the process ended before its time.
    """
    begun = any((job.folder / "checkpoints").glob("checkpoint-*"))
    if (job.config.preflight or check_only) and not begun:
        checks = _preflight(job, report)
        if not check_only:
            require(checks)
    if not check_only:
        _run(training_command(job, accelerate_config), job, report)


def _preflight(job: TrainJob, report: Report) -> list[Check]:
    """Runs pre-flight; its checks are also left in the working folder."""
    checks: list[Check] = []

    def keep_checks(facts: dict[str, Any]) -> None:
        if facts["event"] == "check":
            checks.append(Check(**{name: value for name, value in facts.items() if name != "event"}))
        report(facts)

    _run([sys.executable, "-m", "models.training", "--preflight", str(job.folder / "job.json")], job, keep_checks)
    rows = [check.row() for check in checks]
    (job.folder / "preflight.json").write_text(json.dumps(rows, indent=1) + "\n")
    return checks


def training_command(job: TrainJob, accelerate_config: str) -> list[str]:
    """The command of the training process or processes; people can run it by hand just as well."""
    target = ["-m", "models.training", str(job.folder / "job.json")]
    if not accelerate_config and job.config.num_processes == 1:
        return [sys.executable, *target]
    if not accelerate_config and not _has_gpu():
        # `accelerate launch` starts several processes on GPUs only; on CPUs this is what it would call.
        processes = ["--standalone", "--nproc-per-node", str(job.config.num_processes)]
        return [sys.executable, "-m", "torch.distributed.run", *processes, *target]
    options = ["--num_processes", str(job.config.num_processes), "--mixed_precision", job.config.mixed_precision]
    if accelerate_config:
        options = ["--config_file", accelerate_config, *options]
    else:
        # On CPUs too, where `--cpu` would want MPI; there `_run` keeps the processes off a GPU that is not there.
        port = ["--main_process_port", "0"]
        options = ["--multi_gpu", "--num_machines", "1", "--dynamo_backend", "no", *port, *options]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *target]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _run(command: Sequence[str], job: TrainJob, report: Report) -> None:
    """Runs a process to its end and hands on the events that it prints. Raises TrainingEnded."""
    last: collections.deque[bytes] = collections.deque(maxlen=12)
    with (job.folder / "log.txt").open("ab") as log_file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(job)
        )
        assert process.stdin and process.stdout and process.stderr
        errors = process.stderr

        def keep() -> None:
            for line in errors:
                log_file.write(line)
                last.append(line)

        listener = threading.Thread(target=keep, daemon=True)
        listener.start()
        stopped: str | None = None
        try:
            for facts in _events(process.stdout):
                if facts["event"] == "stopped":
                    stopped = facts["message"]
                report(facts)
        finally:
            process.stdin.close()
            if process.poll() is None:
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
            code = process.wait()
            listener.join(10)
    if stopped is not None:
        raise TrainingEnded(stopped)
    if code in (-9, 137):
        raise TrainingEnded(
            f"the training process was killed, most likely for lack of memory: {memory_advice(job.config)}"
        )
    if code != 0:
        assert code != STOPPED
        output = b"".join(last).decode(errors="replace").strip()
        raise TrainingEnded(
            f"the training process ended with exit code {code}; its log is {job.folder / 'log.txt'}. "
            f"Run again to go on from the last checkpoint. It said:\n{output}"
        )


def _events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The events among the lines of a training process; libraries print others."""
    for line in lines:
        try:
            facts = json.loads(line)
        except ValueError:
            continue
        if isinstance(facts, dict) and "event" in facts:
            yield facts


def _environment(job: TrainJob) -> dict[str, str]:
    """Environment variables of a training process."""
    environment = dict(os.environ)
    threads = max(1, (os.cpu_count() or 1) // job.config.num_processes)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[variable] = str(threads)
    root = str(Path(models.__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
    if not _has_gpu():
        environment["ACCELERATE_USE_CPU"] = "true"
    environment["MEDGEN_ENDS_WITH_STDIN"] = "1"  # the process must not outlive this one
    return environment
