"""The accelerator of a training process, refused where the launch does not fit the configuration."""

from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from models.training.config import TrainConfig
from models.training.errors import TrainingStopped


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of this process.

    Raises:
        TrainingStopped: the launch does not fit the configuration, or the device lacks bf16.
    """
    if config.mixed_precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise TrainingStopped(f"{torch.cuda.get_device_name()} has no bf16: set mixed_precision=no")
    if AcceleratorState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=not torch.cuda.is_available(),
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
