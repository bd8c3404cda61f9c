"""Frozen linear layers of a model with adapters, in less memory: in 8 bits, or waiting in the CPU's memory.

A frozen weight is needed twice, to go forward and to carry the gradient of its input back, and needs no gradient of
its own. So it can be fetched, or made out of 8 bits, each time. Hooks that swap a parameter's data (diffusers' group
offloading and layerwise casting) can't do that in training: autograd has kept the parameter that they empty.

8 bits are one scale a row: integers of -127 to 127, or float8 (e4m3, largest value 448; Micikevicius et al., arXiv
2209.05433).
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

FrozenDtype = Literal["same", "int8", "fp8"]
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


class FrozenLinear(nn.Module):
    """What a frozen `nn.Linear` computes, of a weight that is kept otherwise.

    Args:
        linear: gives its weight up.
        dtype: how the weight is kept: as it is, or in 8 bits a number with a float32 scale for each row.
        wait: keep it in the CPU's memory (pinned where there is a GPU) and fetch it for each use.
    """

    kept: Tensor | None
    scale: Tensor | None

    def __init__(self, linear: nn.Linear, dtype: FrozenDtype, *, wait: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        kept, scale = _kept(linear.weight.detach(), dtype)
        # A buffer follows the model to its device; what waits is no part of the module.
        self.register_buffer("kept", None if wait else kept, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.waiting = [kept.cpu().pin_memory() if torch.cuda.is_available() else kept.cpu()] if wait else []

    def weight_for(self, like: Tensor) -> Tensor:
        """The weight (out, in), on the device and in the dtype of `like`."""
        held = self.waiting[0] if self.waiting else self.kept
        assert held is not None
        kept = held.to(like.device, non_blocking=True)
        if self.scale is None:
            return kept.to(like.dtype)
        return (kept.to(like.dtype) * self.scale.to(like.device, like.dtype)).to(like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) → (…, out)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        product: Tensor = _FrozenProduct.apply(x, self)
        return product


class _FrozenProduct(torch.autograd.Function):
    """x·Wᵀ + b, of which nothing is kept for the way back."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer  # type: ignore[attr-defined]
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return functional.linear(x, layer.weight_for(x), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight_for(gradient), None


def shrink_frozen(model: Any, dtype: FrozenDtype, blocks_to_swap: int) -> None:
    """Replaces the frozen linear layers of a model's blocks, adapters added already.

    Args:
        blocks_to_swap: the first so many blocks wait in the CPU's memory.
    """
    for number, block in enumerate(blocks_of(model)):
        wait = number < blocks_to_swap
        if not wait and dtype == "same":
            return
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear) and not module.weight.requires_grad:
                owner, _, last = name.rpartition(".")
                setattr(block.get_submodule(owner), last, FrozenLinear(module, dtype, wait=wait))


def blocks_of(model: Any) -> Iterator[nn.Module]:
    """The blocks that a diffusers transformer consists of, in order."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child


def _kept(weight: Tensor, dtype: FrozenDtype) -> tuple[Tensor, Tensor | None]:
    """The weight (out, in) as it is kept, and the scales (out, 1) of its rows."""
    if dtype == "same":
        return weight.clone(), None
    target = torch.int8 if dtype == "int8" else torch.float8_e4m3fn
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / LARGEST[target]
    scaled = weight.float() / scale
    return (scaled.round() if target == torch.int8 else scaled).to(target), scale
