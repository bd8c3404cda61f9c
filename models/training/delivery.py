"""The model folder that a training run delivers: a pipeline with the trained transformer, and the adapter beside it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from models.families.family import Expert, Family
from models.families.lora_file import EXPERT
from models.generation.video_diffusion import SAMPLING, pipeline_files
from models.training.config import TrainConfig
from models.training.errors import TrainingStopped
from models.training.job import LORA_FILE
from models.training.safetensors_file import StoredTensor, sorted_header
from models.training.sampling import sampling_of
from models.training.transformer import merge_lora, stored_dtype


def deliver_model(
    base: Path, target: Path, config: TrainConfig, family: Family, model: Any, weights: Mapping[str, StoredTensor]
) -> None:
    """Writes the trained pipeline: the base's files with the transformer replaced, and the adapter beside it.

    Args:
        model: the trained transformer, for its adapters' names; it is not changed.
        weights: name → weight of what was trained, in a file; all weights of a model are read one by one.

    Raises:
        TrainingStopped: the folder can't be written; nothing of it is left.
    """
    making = target.with_name(f".making-{target.name}")
    for old in (making, target):
        shutil.rmtree(old, ignore_errors=True)
    making.mkdir(parents=True)
    expert = family.expert(config.expert)
    try:
        if config.training == "lora":
            _write_adapter(making, family, expert, model, _read(weights))
        (making / SAMPLING).write_text(sampling_of(config, base).to_json(), encoding="utf-8")
        if config.training == "full" or config.merge_lora:
            _write_pipeline(base, making, config, family, expert, weights)
        making.rename(target)
    except OSError as error:
        shutil.rmtree(making, ignore_errors=True)
        raise TrainingStopped(
            f"the model could not be written to {target.parent}: {error}. The last checkpoint is whole: "
            "make room and run again"
        ) from error


def _write_adapter(folder: Path, family: Family, expert: Expert, model: Any, weights: Mapping[str, Tensor]) -> None:
    """The adapter with its configuration, as diffusers' `load_lora_weights` reads it."""
    state = get_peft_model_state_dict(model, state_dict=dict(weights))
    metadata = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in model.peft_config["default"].to_dict().items()
    }
    getattr(diffusers, family.pipeline).save_lora_weights(
        folder,
        transformer_lora_layers={name: tensor.contiguous() for name, tensor in state.items()},
        weight_name=LORA_FILE,
        transformer_lora_adapter_metadata=metadata,
    )
    path = folder / LORA_FILE
    # The library writes the header's entries in a random order.
    path.write_bytes(sorted_header(path.read_bytes(), {EXPERT: expert.name} if expert.name else None))


def _write_pipeline(
    base: Path, folder: Path, config: TrainConfig, family: Family, expert: Expert, weights: Mapping[str, StoredTensor]
) -> None:
    """The base's files with the trained transformer, in the base's dtype, in place of its own."""
    part = expert.part
    for name, path in pipeline_files(base).items():
        if not name.startswith(f"{part}/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
    dtype = stored_dtype(base, part)
    transformer = family.load_transformer(base, torch.float32, part)
    if config.training == "lora":
        merge_lora(transformer, _read(weights), config, family)
    else:
        own = dict(transformer.named_parameters())
        if own.keys() != weights.keys():
            raise TrainingStopped(f"weights of another model: {sorted(own.keys() ^ weights.keys())[:3]}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name].read())
    if dtype != torch.float32:
        transformer.to(dtype)
    transformer.save_pretrained(folder / part)
    # Nothing of it changed, and the library would write down where the base lay.
    shutil.copyfile(base / part / "config.json", folder / part / "config.json")


def _read(weights: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """All of an adapter, which is small."""
    return {name: stored.read() for name, stored in weights.items()}
