"""Gradient checkpointing of some blocks, and activations that wait for the way back in the CPU's memory.

What is kept of a block that is recomputed is its input, tokens × width; of 40 blocks and 75,600 tokens (14B at 720p)
that is 31 GB, which is needed a block at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.training.frozen import blocks_of

ALL = -1


def recompute_blocks(model: Any, blocks: int, *, offload: bool) -> None:
    """Has a diffusers transformer recompute activations on the way back.

    Args:
        blocks: the first so many do; `ALL`: all. Each of the others keeps what it needs.
        offload: keep the inputs of blocks that recompute in the CPU's memory.
    """
    number = {id(block): place for place, block in enumerate(blocks_of(model))}

    def run(block: Any, *inputs: Any) -> Any:
        if blocks != ALL and number.get(id(block), 0) >= blocks:
            return block(*inputs)
        if not offload:
            return checkpoint(block.__call__, *inputs, use_reentrant=False)
        with _waiting(inputs[0]):
            return checkpoint(block.__call__, *inputs, use_reentrant=False)

    function: Callable[..., Any] = run
    model.enable_gradient_checkpointing(function)


@contextmanager
def _waiting(hidden: Tensor) -> Iterator[None]:
    """What autograd keeps of this tensor inside the block, it keeps in the CPU's memory."""
    place, pinned = hidden.data_ptr(), hidden.is_cuda

    def away(tensor: Tensor) -> tuple[Tensor, torch.device | None]:
        if tensor.data_ptr() != place or tensor.shape != hidden.shape:
            return tensor, None
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
        copy.copy_(tensor, non_blocking=pinned)
        return copy, tensor.device

    def back(kept: tuple[Tensor, torch.device | None]) -> Tensor:
        tensor, device = kept
        return tensor if device is None else tensor.to(device, non_blocking=True)

    with torch.autograd.graph.saved_tensors_hooks(away, back):
        yield
