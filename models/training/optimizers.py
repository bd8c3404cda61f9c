"""Optimisers by name, and their state as plain tensors that a checkpoint takes.

`adamw` is PyTorch's. `adamw8bit` keeps both moments in 8 bits a weight, quantised by blocks (Dettmers et al., arXiv
2110.02861), by bitsandbytes: 2 bytes a weight in place of 8. `adafactor` is PyTorch's (Shazeer and Stern, arXiv
1804.04235): it keeps sums of rows and columns of the second moment and no first one; its learning rate is relative to
the size of each weight.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from models.training.config import TrainConfig
from models.training.errors import TrainingStopped
from models.training.safetensors_file import StoredTensor
from models.training.sharding import fill


def make_optimizer(config: TrainConfig, weights: Iterable[torch.nn.Parameter], *, sharded: bool) -> Any:
    """The optimiser of the configuration.

    Raises:
        TrainingStopped: it can't work on shards.
    """
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            weights,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
        )
    if sharded:
        raise TrainingStopped(f"optimizer={config.optimizer} is not made for shards (FSDP): set optimizer=adamw")
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(weights, lr=config.learning_rate, weight_decay=config.adam_weight_decay)
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(  # type: ignore[no-untyped-call]  # has no types
        weights,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )


def set_rate(optimizer: Any, rate: float) -> None:
    """Sets the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def state_of(optimizer: Any, weight: torch.nn.Parameter) -> dict[str, Tensor]:
    """Name → tensor of what the optimiser keeps of a weight."""
    kept = _inner(optimizer).state[weight]
    return {key: torch.as_tensor(value) for key, value in kept.items() if isinstance(value, Tensor | int | float)}


def restore_state(optimizer: Any, weight: torch.nn.Parameter, stored: Mapping[str, StoredTensor]) -> None:
    """Gives the optimiser what `state_of` told.

    Raises:
        KeyError, RuntimeError: it is another optimiser's.
    """
    inner = _inner(optimizer)
    if isinstance(inner, torch.optim.AdamW):
        state: dict[str, Any] = {"step": stored["step"].read()}
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.zeros_like(weight)
            fill(state[key], stored[key])
    else:
        adafactor = isinstance(inner, torch.optim.Adafactor)
        names = ("step", *(("row_var", "col_var") if weight.dim() > 1 else ("variance",)))
        state = {key: stored[key].read() for key in (names if adafactor else stored)}
        state |= {key: value.to(weight.device) for key, value in state.items() if key != "step"}
        if not adafactor:
            state["step"] = int(state["step"])
    inner.state[weight] = state


def _inner(optimizer: Any) -> Any:
    """The optimiser itself, without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
