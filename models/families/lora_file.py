"""Files of LoRA adapters, in the names and conventions of several tools; with alpha, whichever way a tool counts it.

- `diffusers`: `transformer.MODULE.lora_A.weight`, rank and alpha in the header (`lora_adapter_metadata` of diffusers).
- `original`: `diffusion_model.MODULE.lora_A.weight` in the names of the model's authors, which ComfyUI and
  DiffSynth-Studio read. Older versions of DiffSynth ignore alpha, so it is multiplied into the weights, and none stands
  in the file, which all of them take for a scale of 1. The header says what it was.
- `musubi`: `lora_unet_MODULE.lora_down.weight` with `.alpha` beside, dots as underscores, as musubi-tuner has it, which
  ComfyUI reads too.

What was adapted in several of diffusers' modules and is one matrix of the authors' becomes one adapter of the sum of
the ranks: the downward matrices one below the other, the upward ones as blocks.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models import ModelUnavailable
from models.families.lora_names import ModuleNames
from models.training.safetensors_file import sorted_header

LoraFormat = Literal["diffusers", "original", "musubi"]
FORMATS: tuple[LoraFormat, ...] = get_args(LoraFormat)
METADATA = "lora_adapter_metadata"  # diffusers' entry in the header
EXPERT = "medgen_expert"  # in the header: which of two transformers the adapters are for
MUSUBI = "lora_unet_"
_PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.", "model.diffusion_model.")
_ENDINGS = re.compile(r"\.(lora_A|lora_B|lora_down|lora_up)(\.default)?\.weight|\.alpha")
_UP = ("lora_B", "lora_up")


@dataclass(frozen=True)
class Adapter:
    """Of one module: W + alpha / rank · up · down.

    Args:
        down: (rank, in); up: (out, rank).
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.down.shape[0]


Adapters = dict[str, Adapter]  # by diffusers' names of modules


def linear_shapes(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear module that is no part of an adapter."""
    found = {}
    for name, module in model.named_modules():
        layer = getattr(module, "base_layer", module)
        if isinstance(layer, torch.nn.Linear) and not re.search(r"\.(lora_[AB]|base_layer)\b", name):
            found[name] = (layer.out_features, layer.in_features)
    return found


def lora_bytes(
    adapters: Adapters,
    form: LoraFormat,
    names: ModuleNames,
    shapes: Mapping[str, tuple[int, int]],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A safetensors file of adapters; the same bytes for the same content.

    Args:
        shapes: see `linear_shapes`; of the model that the adapters are for.
        metadata: entries of the header beside the format's own.

    Raises:
        ModelUnavailable: the authors have no such module.
    """
    header, tensors = dict(metadata or {}), {}
    if form == "diffusers":
        # Of several ranks the header can't tell: without it diffusers takes each adapter's alpha for its rank.
        alike = len({(adapter.down.shape[0], adapter.alpha) for adapter in adapters.values()}) == 1
        for module, adapter in adapters.items():
            tensors[f"transformer.{module}.lora_A.weight"] = adapter.down
            tensors[f"transformer.{module}.lora_B.weight"] = adapter.up if alike else adapter.up * adapter.scale
        header.pop(METADATA, None)
        if alike:
            header[METADATA] = json.dumps(_peft_facts(adapters), sort_keys=True)
        return _written(tensors, header)
    for module, adapter in _of_authors(adapters, names, shapes).items():
        if form == "original":
            tensors[f"diffusion_model.{module}.lora_A.weight"] = adapter.down
            tensors[f"diffusion_model.{module}.lora_B.weight"] = adapter.up * adapter.scale
        else:
            place = MUSUBI + module.replace(".", "_")
            tensors[f"{place}.lora_down.weight"] = adapter.down
            tensors[f"{place}.lora_up.weight"] = adapter.up
            tensors[f"{place}.alpha"] = torch.tensor(adapter.alpha)
    header.pop(METADATA, None)
    one = next(iter(adapters.values()))
    header |= {"ss_network_dim": str(one.down.shape[0]), "ss_network_alpha": f"{one.alpha:g}"}
    return _written(tensors, header)


def read_lora(path: Path, names: ModuleNames, shapes: Mapping[str, tuple[int, int]]) -> tuple[Adapters, dict[str, str]]:
    """(adapters, header) of a file in any of the formats, also with the tools' habits mixed.

    Raises:
        ModelUnavailable: it can't be read, holds something else, or is for another model; names file and reason.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 no mapping
    except (OSError, SafetensorError) as error:
        raise ModelUnavailable(f"{path} can't be read as safetensors: {error}") from error
    if not tensors:
        raise ModelUnavailable(f"{path} holds no adapters")
    found = _by_module(path, tensors)
    known = _known_modules(names, shapes)
    alpha = _alpha_of_header(header)
    adapters: Adapters = {}
    for module, parts in found.items():
        members = known.get(module)
        if members is None:
            raise ModelUnavailable(f"{path} adapts {module!r}, which this model lacks: it is for another model")
        if parts.keys() - {"alpha"} != {"down", "up"}:
            raise ModelUnavailable(f"{path} has but {', '.join(sorted(parts))} of {module!r}")
        down, up = parts["down"].float(), parts["up"].float()
        rank = down.shape[0]
        rows = [shapes[member][0] for member in members]
        if down.shape != (rank, shapes[members[0]][1]) or up.shape != (sum(rows), rank):
            raise ModelUnavailable(
                f"{path}: the adapter of {module!r} has the shapes {tuple(down.shape)} and {tuple(up.shape)}, the "
                f"module ({sum(rows)}, {shapes[members[0]][1]}): it is for another model"
            )
        its = float(parts["alpha"]) if "alpha" in parts else alpha if alpha is not None else float(rank)
        for member, block in zip(members, torch.split(up, rows), strict=True):
            if block.any():  # rows without an adapter
                adapters[member] = Adapter(down, block, its)
    return adapters, header


def as_state(adapters: Adapters) -> dict[str, Tensor]:
    """`MODULE.lora_A.weight` → weight with alpha multiplied in, as diffusers' `load_lora_adapter` takes it."""
    state = {}
    for module, adapter in adapters.items():
        state[f"{module}.lora_A.weight"] = adapter.down
        state[f"{module}.lora_B.weight"] = adapter.up * adapter.scale
    return state


def _of_authors(adapters: Adapters, names: ModuleNames, shapes: Mapping[str, tuple[int, int]]) -> Adapters:
    """Adapters by the authors' names."""
    groups: dict[str, tuple[str, ...]] = {}
    for module in adapters:
        found = names.original(module)
        if found is None:
            raise ModelUnavailable(f"other tools know no module {module!r}: write the adapter in diffusers' format")
        groups[found[0]] = found[1]
    made: Adapters = {}
    for original, members in groups.items():
        there = [adapters[member] for member in members if member in adapters]
        if len(members) == 1:
            made[original] = there[0]
            continue
        rank = sum(adapter.down.shape[0] for adapter in there)
        alike = len({adapter.scale for adapter in there}) == 1
        up, column = torch.zeros(sum(shapes[member][0] for member in members), rank), 0
        row = 0
        for member in members:
            if member in adapters:
                adapter = adapters[member]
                width = adapter.down.shape[0]
                block = adapter.up if alike else adapter.up * adapter.scale
                up[row : row + len(block), column : column + width] = block
                column += width
            row += shapes[member][0]
        down = torch.cat([adapter.down for adapter in there])
        made[original] = Adapter(down, up, there[0].scale * rank if alike else float(rank))
    return made


def _by_module(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Module as the file calls it, without prefix → down, up and alpha."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        ending = _ENDINGS.search(key)
        if ending is None or ending.end() != len(key):
            raise ModelUnavailable(f"{path} holds {key!r}, which is no LoRA weight that is known here")
        module = key[: ending.start()]
        for prefix in _PREFIXES:
            module = module.removeprefix(prefix)
        kind = "alpha" if ending[1] is None else "up" if ending[1] in _UP else "down"
        found.setdefault(module, {})[kind] = tensor
    return found


def _known_modules(names: ModuleNames, shapes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[str, ...]]:
    """What files may call a module → diffusers' modules in it."""
    known: dict[str, tuple[str, ...]] = {}
    for module in shapes:
        known[module] = (module,)
        known[MUSUBI + module.replace(".", "_")] = (module,)
        if found := names.original(module):
            members = tuple(member for member in found[1] if member in shapes)
            known[found[0]] = known[MUSUBI + found[0].replace(".", "_")] = members
    return known


def _alpha_of_header(header: Mapping[str, str]) -> float | None:
    """alpha as diffusers' header says it; None where it does not. Raises ModelUnavailable: it says no number."""
    try:
        facts: dict[str, Any] = json.loads(header.get(METADATA, "{}"))
        alpha = facts.get("transformer.lora_alpha", facts.get("lora_alpha"))
        return None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelUnavailable(f"the file's header says no alpha that can be read: {error}") from error


def _peft_facts(adapters: Adapters) -> dict[str, Any]:
    """What diffusers' header says of adapters that all have one rank and alpha."""
    one = next(iter(adapters.values()))
    return {
        "transformer.r": one.down.shape[0],
        "transformer.lora_alpha": one.alpha,
        "transformer.target_modules": sorted(adapters),
        "transformer.peft_type": "LORA",
    }


def _written(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """The library writes the header's entries in a random order; here they have one."""
    # Cloned: what was one matrix of the authors has one downward matrix for several modules.
    whole = {name: tensors[name].clone(memory_format=torch.contiguous_format) for name in sorted(tensors)}
    return sorted_header(save(whole, dict(header)))
