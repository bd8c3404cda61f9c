"""Processes that share the tokens of each sample: Ulysses (DeepSpeed, arXiv 2309.14509), as diffusers has it.

Each process of a group has a stretch of the tokens, and in attention all tokens of some heads. What it finds of a
weight's gradient is the share of its tokens: the sum over the group is the gradient.
"""

from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models._modeling_parallel import ContextParallelConfig
from torch.distributed.device_mesh import init_device_mesh

from models.training.errors import TrainingStopped


def share_tokens(model: Any, degree: int, accelerator: Accelerator) -> None:
    """Has groups of `degree` processes, neighbours by their number, share the tokens of each sample.

    Raises:
        TrainingStopped: weights are sharded, or diffusers can't divide this model or its attention.
    """
    if str(accelerator.distributed_type.value) == "FSDP":
        raise TrainingStopped("context_parallel_degree is for DDP, not for shards (FSDP): set it to 1")
    groups = accelerator.num_processes // degree
    mesh = init_device_mesh(accelerator.device.type, (groups, 1, degree), mesh_dim_names=("data", "ring", "ulysses"))
    try:
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=degree, mesh=mesh["ring", "ulysses"]))
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise TrainingStopped(f"context_parallel_degree={degree}: {error}") from error


def check_divides(degree: int, **sizes: int) -> None:
    """Raises TrainingStopped: tokens or heads can't be divided among so many processes."""
    for name, size in sizes.items():
        if size % degree:
            raise TrainingStopped(
                f"context_parallel_degree={degree} does not divide {size} {name.replace('_', ' ')}: choose another, or "
                "other buckets"
            )


def scaled(loss: torch.Tensor, degree: int) -> torch.Tensor:
    """The loss to go back from: gradients are averaged over all processes, and those of a group have to be added."""
    return loss * degree if degree > 1 else loss
