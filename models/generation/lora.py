"""LoRA files put beside the weights of a loaded pipeline, several at once, each with a weight."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import ModelUnavailable
from models.families.family import Family
from models.families.known import family_of

# What the authors of files say of two experts by the name alone.
_IN_NAMES = {
    "high_noise": ("high_noise", "high-noise", "highnoise"),
    "low_noise": ("low_noise", "low-noise", "lownoise"),
}


@dataclass(frozen=True)
class Lora:
    """A LoRA file and how much of it counts.

    Args:
        path: safetensors file.
        sha256: of the file.
        weight: factor beside the file's own alpha / rank; 0 is none of it.
    """

    path: Path
    sha256: str
    weight: float = 1.0


def parse_lora(text: str) -> tuple[str, float]:
    """(FILE, WEIGHT) of `FILE[:WEIGHT]`, where FILE may be `medgen:NAME`. Raises ValueError: WEIGHT is no number."""
    file, colon, weight = text.rpartition(":")
    if not colon or "/" in weight or weight.endswith(".safetensors") or file == "medgen":
        return text, 1.0
    try:
        factor = float(weight)
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor):
        raise ValueError(f"a LoRA is FILE[:WEIGHT], such as style.safetensors:0.8; {weight!r} is no number")
    return file, factor


def load_loras(pipeline: Any, folder: Path, loras: Sequence[Lora]) -> None:
    """Puts adapters beside the pipeline's weights, in any of the formats that `read_lora` knows.

    Of two experts, a file is put beside the one that its header or its name says, else beside both.

    Raises:
        ModelUnavailable: a file is for another model, or the pipeline is of no family known here and diffusers can't
            load it either.
    """
    if not loras:
        return
    try:
        family = family_of(folder)
    except ModelUnavailable:
        _by_diffusers(pipeline, loras)
        return
    for expert in family.experts:
        _beside(getattr(pipeline, expert.part), family, expert.name, loras)


def _beside(model: Any, family: Family, expert: str, loras: Sequence[Lora]) -> None:
    from models.families.lora_file import EXPERT, as_state, linear_shapes, read_lora

    shapes = linear_shapes(model)
    names, weights = [], []
    for number, lora in enumerate(loras):
        adapters, header = read_lora(lora.path, family.module_names, shapes)
        meant = header.get(EXPERT) or _expert_in(lora.path.name)
        if adapters and expert in ("", meant or expert):
            names.append(f"lora_{number}")
            weights.append(lora.weight)
            state = {name: tensor.to(model.dtype) for name, tensor in as_state(adapters).items()}
            model.load_lora_adapter(state, prefix=None, adapter_name=names[-1])
    if names:
        model.set_adapters(names, weights)


def _expert_in(name: str) -> str | None:
    return next((expert for expert, words in _IN_NAMES.items() if any(word in name.lower() for word in words)), None)


def _by_diffusers(pipeline: Any, loras: Sequence[Lora]) -> None:
    """For pipelines that are of no family here: as diffusers reads the files itself."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelUnavailable(f"a {type(pipeline).__name__} takes no LoRA")
    for number, lora in enumerate(loras):
        try:
            pipeline.load_lora_weights(lora.path.parent, weight_name=lora.path.name, adapter_name=f"lora_{number}")
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            raise ModelUnavailable(f"{lora.path} does not fit a {type(pipeline).__name__}: {error}") from error
    pipeline.set_adapters([f"lora_{n}" for n in range(len(loras))], [lora.weight for lora in loras])
