"""The devices that models run on: GPUs, or the CPU of a machine that has none."""

import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

from medgen.errors import RunStopped
from medgen.settings import DEVICES, current

CPU = "cpu"
SERVED_ELSEWHERE = "MEDGEN_DEVICES_SERVED"  # in the environment: names of devices that another process owns
# Where a driver of NVIDIA's (of Linux, of Windows below it) or AMD's shows itself. Without one PyTorch, whose import
# takes seconds, need not be asked.
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


class NoSuchDevice(RunStopped):
    """`MEDGEN_DEVICES` names a GPU that isn't here."""


def devices() -> tuple[str, ...]:
    """Names of the devices, as PyTorch has them: `cuda:0`, …, or `cpu` alone.

    Raises:
        NoSuchDevice: see above.
    """
    served = os.environ.get(SERVED_ELSEWHERE)
    return tuple(served.split()) if served else _named(current().devices)


def serve_elsewhere(names: Iterable[str]) -> None:
    """Tells this process and those that it starts that a process beside them, which sees the GPUs, serves these."""
    os.environ[SERVED_ELSEWHERE] = " ".join(names)


def place_of_models(*, packaged: bool) -> Literal["device", "processes"]:
    """Where a step runs that loads its models itself, for `medgen.shard.Step.runs_in`.

    Args:
        packaged: its models are small, so that on a machine without GPUs each worker process may load them.

    Raises:
        as `devices`.
    """
    return "processes" if packaged and not gpus() else "device"


def this_device() -> str:
    """The device that models of this process are loaded on: that of an inference process, else the CPU."""
    return _here or CPU


def is_inference_process() -> bool:
    """Whether this process is an inference process."""
    return _here is not None


def stand_for(device: str) -> None:
    """Makes this process the inference process of a device."""
    global _here
    _here = device


_here: str | None = None


def gpus() -> bool:
    """Whether models run on GPUs. Raises as `devices`."""
    return devices() != (CPU,)


@cache
def _named(setting: str) -> tuple[str, ...]:
    """The devices of a setting that matches `DEVICES`."""
    if setting == CPU:
        return (CPU,)
    there = gpu_count()
    if setting in ("auto", "cuda"):
        if not there and setting == "cuda":
            raise NoSuchDevice("MEDGEN_DEVICES=cuda, but PyTorch sees no GPU here: set it to auto or cpu")
        return tuple(f"cuda:{number}" for number in range(there)) or (CPU,)
    match = re.fullmatch(DEVICES, setting)
    numbers = [int(number) for number in match["numbers"].split(",")] if match else []
    if missing := [number for number in numbers if number >= there]:
        raise NoSuchDevice(
            f"MEDGEN_DEVICES={setting}, but PyTorch sees {there} GPU(s) here, which count from 0: "
            f"{', '.join(map(str, missing))} is not among them"
        )
    return tuple(f"cuda:{number}" for number in dict.fromkeys(numbers))


def gpu_count() -> int:
    """GPUs that PyTorch sees; 0 where no driver is to be seen."""
    if not any(Path(driver).exists() for driver in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()
