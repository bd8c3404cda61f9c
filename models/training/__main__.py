"""One training process: `python -m models.training JOB.json`, or the same behind `accelerate launch -m`.

It reads a job, trains, and reports what happens as JSON lines on standard output. Errors that people can mend are one
line too, {"event": "stopped", …}, with exit code 3. A process that is killed is started again with the same job.
"""

import argparse
import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medgen.errors import RunStopped
from models import ModelUnavailable
from models.training.job import STOPPED, TrainJob

LOCK_S = 20.0  # a process that is being killed takes a moment


def main(arguments: list[str] | None = None) -> int:
    """Trains, or with --preflight only checks. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="models.training", description=__doc__)
    parser.add_argument("job", type=Path, help="job.json in a working folder of a training run")
    parser.add_argument("--preflight", action="store_true", help="check everything and stop")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    if os.environ.get("MEDGEN_ENDS_WITH_STDIN"):
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    from models.training.errors import explain_out_of_memory
    from models.training.trainer import Trainer

    try:
        job = TrainJob.read(options.job)
        if options.preflight:
            from models.training.preflight import preflight

            for check in preflight(job):
                print_facts({"event": "check", **check.row()})
            return 0
        lock = FileLock(job.folder / ".lock")
        if int(os.environ.get("RANK", "0")) == 0:
            lock.acquire(timeout=LOCK_S)
        with explain_out_of_memory(job.config):
            trained = Trainer(job, print_facts).run()
        print_facts({"event": "trained", "steps": trained.steps, "resumed_from": trained.resumed_from})
    except Timeout:
        print_facts(
            {"event": "stopped", "kind": "Busy", "message": f"another process trains in {job.folder}: wait for it"}
        )
        return STOPPED
    except (RunStopped, ModelUnavailable) as error:
        print_facts({"event": "stopped", "kind": type(error).__name__, "message": str(error)})
        return STOPPED
    return 0


def _end_with_stdin() -> None:
    """Ends this process when whoever started it is gone: its end of the pipe is then closed."""
    while os.read(0, 1024):  # not sys.stdin, whose lock would be in the way when the interpreter ends
        pass
    os._exit(1)


def print_facts(facts: dict[str, Any]) -> None:
    """One JSON line on standard output."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
