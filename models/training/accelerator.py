"""The accelerator of a training process, refused where the launch does not fit the configuration."""

from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from models.training.config import TrainConfig
from models.training.errors import TrainingStopped


def make_accelerator(config: TrainConfig, folder: Path) -> Accelerator:
    """The accelerator of this process.

    Args:
        folder: where trackers that write files put them.

    Raises:
        TrainingStopped: the launch does not fit the configuration, the device lacks bf16, or a tracker is missing.
    """
    available = [str(name) for name in get_available_trackers()]
    if missing := [name for name in config.log_with if name not in available]:
        known = missing[0] in LOGGER_TYPE_TO_CLASS
        advice = (
            f"install its package {missing[0]}" if known else f"there are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
        )
        raise TrainingStopped(f"log_with={missing[0]}: no such tracker here; {advice}")
    if config.mixed_precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise TrainingStopped(f"{torch.cuda.get_device_name()} has no bf16: set mixed_precision=no")
    if AcceleratorState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=not torch.cuda.is_available(),
        log_with=list(config.log_with) or None,
        project_dir=str(folder),
        # Others wait while the main process makes validation videos.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=4))],
    )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise TrainingStopped(
            "FSDP's first version can't be checkpointed here: set fsdp_version: 2 in accelerate's config"
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        # One process loads and the others get their shards, whatever the file of accelerate says.
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = True
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise TrainingStopped(f"{accelerator.distributed_type.value} is not supported: use DDP (MULTI_GPU) or FSDP 2")
    if accelerator.num_processes != config.num_processes:
        raise TrainingStopped(
            f"launched with {accelerator.num_processes} processes and configured for {config.num_processes}: "
            f"set num_processes={accelerator.num_processes}, so that the global batch is on record as it is"
        )
    return accelerator


def shard_by_blocks(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Shards go by those blocks of a model that diffusers names, unless accelerate's config file names others.

    accelerate itself wants every name to be in the model, and diffusers lists HunyuanVideo's variants too.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        there = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = [
            name for name in getattr(model, "_no_split_modules", None) or () if name in there
        ]
