"""Tensors that may be sharded over processes (FSDP 2), as whole ones and back. Every process must take part."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def gathered(tensor: Tensor) -> Tensor:
    """All of a possibly sharded tensor, as a copy on the CPU."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().to("cpu", copy=True)


def placed_as(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, on the device and in the shards of `like`."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.to(like.device)
