"""Tensors that may be sharded over processes (FSDP 2): gathered one at a time, and filled each from its own stretch.

Every process must take part, in the same order.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor
from torch.distributed.tensor import DTensor

# DTensor's own arithmetic of shards; torch.distributed.checkpoint uses it to the same end.
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from models.training.safetensors_file import StoredTensor


def gathered(tensor: Tensor) -> Tensor:
    """All of a possibly sharded tensor, as a copy on the CPU."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().to("cpu", copy=True)


def gathered_in_turn(tensors: Mapping[str, Tensor], *, keep: bool) -> Iterator[tuple[str, Tensor | None]]:
    """(name, whole tensor on the CPU) of each, in order; only one whole tensor exists at a time.

    Args:
        keep: False: takes part in gathering and yields None, so that this process holds no more than its shards.
    """
    for name, tensor in tensors.items():
        if keep:
            yield name, gathered(tensor)
        else:
            if isinstance(tensor, DTensor):
                tensor.full_tensor()
            yield name, None


def fill(target: Tensor, stored: StoredTensor) -> None:
    """Copies a tensor of a file into one in memory; of a sharded one, only this process' stretch is read.

    Raises:
        RuntimeError: the shapes differ.
    """
    if tuple(stored.shape) != tuple(target.shape):
        raise RuntimeError(f"a tensor of {tuple(stored.shape)} for one of {tuple(target.shape)}")
    if not isinstance(target, DTensor):
        target.copy_(stored.read())
        return
    shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
    local = target.to_local()
    if local.numel():
        local.copy_(stored.read(tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))))


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether weights are sharded over processes."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def ready_to_shard(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Readies models of which only the main process' has weights for accelerate, which broadcasts them.

    The others get memory of the same shapes and dtypes that nothing touches, so that none is used.
    """
    told: list[dict[str, torch.dtype]] = [{name: p.dtype for name, p in model.named_parameters()}]
    broadcast_object_list(told)
    if not accelerator.is_main_process:
        for name, parameter in list(model.named_parameters()):
            owner, _, last = name.rpartition(".")
            empty = torch.empty(parameter.shape, dtype=told[0][name], device="cpu")
            new = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
            model.get_submodule(owner).register_parameter(last, new)
    # accelerate asks transformers' models by this name, and fails on others that have weights at their root.
    model.get_parameter_or_buffer = partial(_by_name, model)  # type: ignore[assignment]


def _by_name(model: torch.nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), last)
    return found
