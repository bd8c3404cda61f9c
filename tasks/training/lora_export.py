"""Writes a trained LoRA, or a file of one, in the names of another tool."""

from pathlib import Path
from typing import TypedDict

from medgen.errors import ItemFailed, RunStopped
from medgen.ledger import Ledger
from models.families.known import family_of
from models.families.lora_file import EXPERT, LoraFormat, linear_shapes, lora_bytes, read_lora
from tasks.training.model_files import adapter_file, base_of_adapter, model_folder


class Exported(TypedDict):
    """What was written: how many of diffusers' modules it adapts, rank and alpha of the first."""

    file: str
    format: str
    modules: int
    rank: int
    alpha: float


def export_lora(ledger: Ledger, name: str, target: Path, form: LoraFormat, base: str = "") -> Exported:
    """Writes the LoRA of a model on record, or of a file, into `target`.

    Args:
        name: as `adapter_file` takes it.
        base: of a file, as `model_folder` takes it.

    Raises:
        ItemFailed: no_lora, no_base, and as `model_folder`.
        ModelUnavailable: the file is not for this base; or the format knows no such modules.
        RunStopped: the file can't be written.
    """
    path, version = adapter_file(ledger, name)
    if not base and version is None:
        raise ItemFailed("no_base", f"say what {name} is for: --base with a diffusers folder or a hub name")
    folder, _ = model_folder(ledger, base or base_of_adapter(ledger, version) if version else base)
    family = family_of(folder)
    shapes = _shapes(folder)
    adapters, header = read_lora(path, family.module_names, shapes)
    if not adapters:
        raise ItemFailed("no_lora", f"{path} changes nothing: all of its adapters are zero")
    kept = {EXPERT: header[EXPERT]} if EXPERT in header else {}
    making = target.with_name(f".{target.name}.making")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        making.write_bytes(lora_bytes(adapters, form, family.module_names, shapes, kept))
        making.replace(target)
    except OSError as error:
        raise RunStopped(f"the LoRA can't be written to {target}: {error}") from error
    one = next(iter(adapters.values()))
    return {
        "file": str(target),
        "format": form,
        "modules": len(adapters),
        "rank": one.down.shape[0],
        "alpha": one.alpha,
    }


def _shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear modules of a pipeline's transformer, without its weights."""
    import diffusers
    import torch

    cls = getattr(diffusers, family_of(folder).transformer_class)
    with torch.device("meta"):
        return linear_shapes(cls.from_config(cls.load_config(folder, subfolder="transformer")))
