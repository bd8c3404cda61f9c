"""Pipelines put together of a transformer's weights alone and the other parts of a diffusers folder.

Weights are published without their pipeline: a file as the model's authors, ComfyUI or CivitAI have it, or a repository
that holds nothing but a fine-tuned transformer, such as the authors' of MedGen. `WEIGHTS+COMPONENTS` names both; of a
model with two experts, `HIGH+LOW+COMPONENTS`. Without COMPONENTS the family's published pipeline is taken. What is made
is an ordinary diffusers folder, once: names become diffusers' by diffusers' own rules.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgen.canonical import digest_of
from medgen.settings import current
from models import ModelUnavailable
from models.generation.video_diffusion import INDEX, check_pipeline, quiet
from models.hub_files import file_digest
from models.training.presets import HUNYUAN_VIDEO, WAN_1_3B, WAN_2_2_5B_NAME, WAN_14B

SUFFIX = ".safetensors"
LORA_SIGNS = ("lora_A", "lora_B", "lora_down", "lora_up")
# (family, width of its transformer) → the pipeline whose other parts it takes by itself.
COMPONENTS = {
    ("WanTransformer3DModel", 1536): WAN_1_3B,
    ("WanTransformer3DModel", 3072): WAN_2_2_5B_NAME,
    ("WanTransformer3DModel", 5120): WAN_14B,
    ("HunyuanVideoTransformer3DModel", 3072): HUNYUAN_VIDEO,
}
PATCHES = ("patch_embedding.weight", "x_embedder.proj.weight", "img_in.proj.weight")  # whose rows are the width
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "module.")


def is_assembled(name: str) -> bool:
    """Whether a model's name is one of weights without their pipeline."""
    first = name.split("+")[0]
    if Path(name).is_dir():
        return not (Path(name) / INDEX).is_file() and bool(_weights_in(Path(name)))
    return "+" in name or first.endswith(SUFFIX)


def assembled_folder(name: str) -> Path:
    """The diffusers folder of `WEIGHTS[+WEIGHTS][+COMPONENTS]`; made unless it is there.

    Args:
        name: WEIGHTS are safetensors files, folders of them, or repositories of the hub; COMPONENTS is a diffusers
            folder or the hub name of one.

    Raises:
        ModelUnavailable: one of them can't be had or read, or they don't belong together.
    """
    words = [name] if Path(name).exists() else name.split("+")
    given = [_weight_files(word) for word in words[: max(1, len(words) - 1)]]
    components = _components(words[-1] if len(words) > 1 else _own_components(given[0], name))
    parts = _parts(components, name)
    if len(given) > len(parts):
        raise ModelUnavailable(f"{name!r}: {components.name} has {len(parts)} transformer(s), not {len(given)}")
    described = [{file.name: file_digest(file) for file in files} for files in given]
    others = {path.as_posix(): file_digest(components / path) for path in _other_files(components, parts[: len(given)])}
    target = current().home / "models" / f"assembled-{digest_of([described, others])[:32]}"
    if not (target / INDEX).is_file():
        _make(target, components, dict(zip(parts, given, strict=False)), name)
    return target


def _make(target: Path, components: Path, weights: dict[str, Sequence[Path]], name: str) -> None:
    making = target.with_name(f".making-{target.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        for part, files in weights.items():
            with quiet():
                _converted(files, components, part, name).save_pretrained(making / part)
            # The library would write down where the weights lay.
            shutil.copyfile(components / part / "config.json", making / part / "config.json")
        for path in _other_files(components, list(weights)):
            (making / path).parent.mkdir(parents=True, exist_ok=True)
            (making / path).symlink_to((components / path).resolve())
        shutil.rmtree(target, ignore_errors=True)
        making.rename(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _converted(files: Sequence[Path], components: Path, part: str, name: str) -> Any:
    """The transformer of files in the authors' or diffusers' names."""
    import diffusers
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    kind = json.loads((components / part / "config.json").read_bytes())["_class_name"]
    cls = getattr(diffusers, kind)
    state: dict[str, Any] = {}
    try:
        for file in files:
            state.update(load_file(str(file)))
    except (OSError, SafetensorError) as error:
        raise ModelUnavailable(f"{name!r} can't be read: {error}") from error
    state = {_bare(key): tensor for key, tensor in state.items()}
    if any(tensor.element_size() == 1 for tensor in state.values()):
        raise ModelUnavailable(f"{name!r} is quantized to 8 bits: take the file in bf16 or fp16")
    with torch.device("meta"):
        model = cls.from_config(cls.load_config(components, subfolder=part))
    _split_rows(state, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    dtype = next(tensor.dtype for tensor in state.values() if tensor.ndim > 1)
    try:
        made = cls.from_single_file(
            state, config=str(components), subfolder=part, torch_dtype=dtype, local_files_only=True
        )
    except (ValueError, KeyError, RuntimeError, OSError, AttributeError) as error:
        raise ModelUnavailable(f"{name!r} is no {kind} as {components.name} has it: {error}") from error
    if left := [key for key, tensor in made.state_dict().items() if tensor.is_meta]:
        raise ModelUnavailable(f"{name!r} lacks {len(left)} weights of {components.name}, such as {left[0]}")
    return made


def _split_rows(state: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Splits HunyuanVideo's fused first projection by the model's own width: diffusers knows but that of 13B."""
    for key in [key for key in state if key.startswith("single_blocks.") and ".linear1." in key]:
        block, _, kind = key.rpartition(".linear1.")
        theirs = block.replace("single_blocks", "single_transformer_blocks")
        members = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        sizes = [shapes[f"{theirs}.{member}.{kind}"][0] for member in members if f"{theirs}.{member}.{kind}" in shapes]
        tensor = state[key]
        if sum(sizes) == len(tensor):
            rows = tensor.split(sizes)
            state.update({f"{block}.{member}.{kind}": row for member, row in zip(members, rows, strict=True)})
            del state[key]


def _own_components(files: Sequence[Path], name: str) -> str:
    """The published pipeline that weights belong to by their names and width."""
    from safetensors import safe_open

    for file in files:
        with safe_open(str(file), framework="np") as opened:
            keys = {_bare(key): key for key in opened.keys()}  # noqa: SIM118 no mapping
            found = next((keys[patch] for patch in PATCHES if patch in keys), None)
            if found is not None:
                width = opened.get_slice(found).get_shape()[0]
                kind = "WanTransformer3DModel" if _bare(found) == PATCHES[0] else "HunyuanVideoTransformer3DModel"
                if (kind, width) in COMPONENTS:
                    return COMPONENTS[kind, width]
    raise ModelUnavailable(f"{name!r} is the transformer of no known model: name its pipeline, {name}+COMPONENTS")


def _weight_files(word: str) -> list[Path]:
    """The safetensors files of a file, folder or repository. Raises ModelUnavailable: there are none, or adapters."""
    path = Path(word)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = _weights_in(path)
    elif word.endswith(SUFFIX):
        raise ModelUnavailable(f"there is no file {word}")
    else:
        files = _weights_in(_snapshot(word, ["*.safetensors", "*.json"]))
    if not files:
        raise ModelUnavailable(f"{word!r} holds no safetensors weights (other formats are not read)")
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(str(file), framework="np") as opened:
                if any(sign in key for key in opened.keys() for sign in LORA_SIGNS):  # noqa: SIM118 no mapping
                    raise ModelUnavailable(f"{file} is a LoRA: put it beside a model, medgen generate --lora {word}")
        except (OSError, SafetensorError) as error:
            raise ModelUnavailable(f"{file} can't be read as safetensors: {error}") from error
    return files


def _weights_in(folder: Path) -> list[Path]:
    """Weights at the top of a folder, else those of the transformer in it."""
    return sorted(folder.glob(f"*{SUFFIX}")) or sorted((folder / "transformer").glob(f"*{SUFFIX}"))


def _components(word: str) -> Path:
    """A diffusers folder with all but the transformers' weights."""
    if Path(word).is_dir():
        return Path(word)
    parts = ["vae", "text_encoder*", "tokenizer*", "scheduler", "image_encoder", "image_processor"]
    return _snapshot(word, [INDEX, "transformer*/config.json", *(f"{part}/*" for part in parts)])


def _snapshot(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    reason: Exception | None = None
    for cached_only in (False, True):
        try:
            return Path(
                snapshot_download(
                    name, allow_patterns=patterns, ignore_patterns=["*.bin"], local_files_only=cached_only
                )
            )
        except (OSError, ValueError) as error:
            reason = error
    raise ModelUnavailable(
        f"{name!r} is no file or folder, nor in the hub's cache, nor to be had from the hub ({type(reason).__name__})"
    ) from reason


def _parts(components: Path, name: str) -> list[str]:
    """The transformers of a pipeline, in order."""
    present = check_pipeline(components, name)
    parts = [part for part in present if part in ("transformer", "transformer_2")]  # in order of name
    if not parts or not all((components / part / "config.json").is_file() for part in parts):
        raise ModelUnavailable(f"{components} is no pipeline with a transformer's configuration")
    return parts


def _other_files(components: Path, replaced: Sequence[str]) -> list[Path]:
    """Files of a pipeline beside the transformers that are replaced, relative to its folder."""
    present = check_pipeline(components, components.name)
    kept = [Path(INDEX)]
    for part in present:
        if part not in replaced:
            files = (components / part).rglob("*")
            kept += sorted(file.relative_to(components) for file in files if file.is_file() and file.suffix != ".bin")
    return kept


def _bare(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key
