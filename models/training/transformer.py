"""The Wan transformer that is trained: loaded from a pipeline, with LoRA adapters beside it or merged into it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models import ModelUnavailable
from models.training.config import TrainConfig
from models.training.errors import TrainingStopped
from models.training.flow_matching import stream_seed


def check_kind(folder: Path) -> None:
    """Raises ModelUnavailable unless this is a text-to-video pipeline of one WanTransformer3DModel."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        config = json.loads((folder / "transformer" / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{folder} is no pipeline with a transformer: {error}") from error
    two = index.get("transformer_2", [None, None])[0] is not None
    if index.get("_class_name") != "WanPipeline" or config.get("_class_name") != "WanTransformer3DModel" or two:
        raise ModelUnavailable(
            f"{folder} is a {index.get('_class_name')} of a {config.get('_class_name')}"
            f"{' and a second one' if two else ''}; this trains text-to-video pipelines of one WanTransformer3DModel "
            "(Wan 2.1, nano)"
        )
    if config.get("image_dim") is not None or config.get("in_channels") != config.get("out_channels"):
        raise ModelUnavailable(f"{folder} is an image-to-video model; this trains text-to-video models")


def load_transformer(folder: Path, dtype: torch.dtype) -> WanTransformer3DModel:
    """The transformer of a pipeline; weights that must stay in float32 do.

    Raises:
        ModelUnavailable: it is of another kind, or can't be loaded.
    """
    check_kind(folder)
    try:
        transformer: WanTransformer3DModel = WanTransformer3DModel.from_pretrained(
            folder, subfolder="transformer", torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=True
        )
        return transformer
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise ModelUnavailable(f"the transformer of {folder} can't be loaded: {error}") from error


def stored_dtype(folder: Path) -> torch.dtype:
    """dtype of the base's transformer on disk, in which the trained one is delivered too."""
    first = sorted((folder / "transformer").glob("*.safetensors"))[0]
    with safe_open(str(first), framework="pt") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 no mapping
    if dtypes == {"F32"} or "BF16" not in dtypes:
        return torch.float32
    return torch.bfloat16


def add_lora(model: WanTransformer3DModel, config: TrainConfig) -> None:
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
            )
        )
    except ValueError as error:
        raise TrainingStopped(f"lora_layers={config.lora_layers}: {error}") from error
    cast_training_params(model, torch.float32)


def merge_lora(model: WanTransformer3DModel, weights: Mapping[str, Tensor], config: TrainConfig) -> None:
    """W ← W + alpha/rank·B·A in each adapted module; the model is a plain one again afterwards."""
    add_lora(model, config)
    state = get_peft_model_state_dict(model, state_dict=dict(weights))
    loaded: Any = set_peft_model_state_dict(model, state)
    if loaded.unexpected_keys:
        raise TrainingStopped(f"the adapter has weights that the model lacks: {loaded.unexpected_keys[:3]}")
    model.fuse_lora()  # type: ignore[no-untyped-call]  # has no types
    model.unload_lora()  # type: ignore[no-untyped-call]  # has no types
