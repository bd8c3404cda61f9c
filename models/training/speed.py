"""How fast a training run is, and how well it uses its device."""

from collections.abc import Sequence

import torch

from models.training.config import TrainConfig
from models.training.cost import GIB, Architecture, peak_flops, training_flops


def of_step(config: TrainConfig, architecture: Architecture, latent: Sequence[int], seconds: float) -> dict[str, float]:
    """What one optimiser step tells of the machine.

    Args:
        latent: shape (C, F, H, W) of its samples.
        seconds: that it took.

    Returns:
        samples_per_s; of GPUs also peak_memory_gib of this process since the last step, and mfu, the share of the
        operations that its device could have done (model FLOPs utilisation; see `models.training.cost`).
    """
    told = {"samples_per_s": config.global_batch / seconds}
    if not torch.cuda.is_available():
        return told
    told["peak_memory_gib"] = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    peak = peak_flops(torch.cuda.get_device_name())
    if peak:
        lora = config.training == "lora"
        operations = training_flops(architecture, latent, config.max_sequence_length, lora=lora) * config.global_batch
        told["mfu"] = operations / config.num_processes / seconds / peak
    return told
