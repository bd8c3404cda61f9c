"""The transformer that is trained: LoRA adapters beside its weights, or merged into them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor

from models.families.family import Family
from models.training.config import TrainConfig
from models.training.errors import TrainingStopped
from models.training.flow_matching import stream_seed


def stored_dtype(folder: Path, part: str = "transformer") -> torch.dtype:
    """dtype of a base's transformer on disk, in which the trained one is delivered too."""
    first = sorted((folder / part).glob("*.safetensors"))[0]
    with safe_open(str(first), framework="pt") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 no mapping
    if dtypes == {"F32"} or "BF16" not in dtypes:
        return torch.float32
    return torch.bfloat16


def add_lora(model: Any, config: TrainConfig, family: Family) -> None:
    """Freezes the model and adds fresh adapters beside it, the same ones for the same seed.

    Raises:
        TrainingStopped: no module of the model has one of these names.
    """
    model.requires_grad_(False)
    torch.manual_seed(stream_seed(config.seed, "lora"))
    try:
        model.add_adapter(
            LoraConfig(
                r=config.rank,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                init_lora_weights=True,
                target_modules=config.lora_targets(),
                exclude_modules=family.lora_excluded,
            )
        )
    except ValueError as error:
        raise TrainingStopped(f"lora_layers={config.lora_layers}: {error}") from error
    cast_training_params(model, torch.float32)


def merge_lora(model: Any, weights: Mapping[str, Tensor], config: TrainConfig, family: Family) -> None:
    """W ← W + alpha/rank·B·A in each adapted module; the model is a plain one again afterwards."""
    add_lora(model, config, family)
    state = get_peft_model_state_dict(model, state_dict=dict(weights))
    loaded: Any = set_peft_model_state_dict(model, state)
    if loaded.unexpected_keys:
        raise TrainingStopped(f"the adapter has weights that the model lacks: {loaded.unexpected_keys[:3]}")
    model.fuse_lora()
    model.unload_lora()
