"""Text-to-video pipelines of diffusers, and how Wan's see frames and texts.

Normalisation, padding and rounding are those of `WanPipeline` (diffusers 0.42, pipelines/wan/pipeline_wan.py), so that
what is encoded for training is what generation decodes. Only safetensors weights are read and no code of a model's own
is run.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medgen.canonical import digest_of
from models import ModelUnavailable
from models.hub_files import file_digest, interrupted, missing_weights

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

# It asks for kernels from the hub as it is imported, by way of diffusers, and complains that it gets none.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

INDEX = "model_index.json"
SAMPLING = "sampling.json"
LIBRARIES = ("diffusers", "transformers")  # whose classes a pipeline may be made of; diffusers would import any
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

Dtype = Literal["float32", "bfloat16"]


class Sampling(BaseModel):
    """How a model wants to be sampled where nobody says otherwise: what it was trained with.

    Lies as `sampling.json` beside `model_index.json`. A pipeline without it is sampled as its `__call__` says.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_frames: int = Field(ge=1)
    height: int = Field(ge=16)
    width: int = Field(ge=16)
    fps: float = Field(gt=0)
    num_inference_steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=0)
    guidance_scale_2: float | None = Field(
        None, ge=0, description="Guidance of the second of two experts; None: as that of the first."
    )
    max_sequence_length: int = Field(ge=1, description="Tokens that a text is padded to.")
    flow_shift: float | None = Field(
        None, gt=0, description="Shift of the flow-matching schedule; None: as the pipeline's scheduler has it."
    )
    negative_prompt: str = Field("", description="What guidance leads away from; empty: the empty text.")

    def to_json(self) -> str:
        """As `sampling.json` holds it: what is not set is left out."""
        return self.model_dump_json(indent=1, exclude_defaults=True) + "\n"


def read_sampling(folder: Path) -> Sampling | None:
    """The folder's own sampling defaults; None when it has none.

    Raises:
        ModelUnavailable: sampling.json is no such thing.
    """
    path = folder / SAMPLING
    if not path.is_file():
        return None
    try:
        return Sampling.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelUnavailable(f"{path} does not say how to sample: {error.errors()[0]['msg']}") from error


def scheduler_shift(folder: Path) -> float | None:
    """The shift of a pipeline's flow-matching schedule (Esser et al. 2024, arXiv 2403.03206, section 5.3.2).

    None where its scheduler has none, or one that follows the size of the picture.
    """
    try:
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_bytes())
        name = _shift_name(config)
        return float(config[name]) if name else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def set_flow_shift(pipeline: Any, shift: float) -> None:
    """Gives a loaded pipeline's scheduler another shift. Raises ValueError: it has none that could be set."""
    config = pipeline.scheduler.config
    name = _shift_name(config)
    if name is None:
        raise ValueError(f"the schedule of {type(pipeline.scheduler).__name__} has no fixed shift")
    if config[name] != shift:
        pipeline.scheduler = type(pipeline.scheduler).from_config(config, **{name: shift})


def _shift_name(config: Mapping[str, Any]) -> str | None:
    """What a scheduler's configuration calls the shift: solvers that learned flows late say `flow_shift`."""
    if config.get("use_dynamic_shifting"):
        return None
    if "flow_shift" in config:
        return "flow_shift" if config.get("use_flow_sigmas") else None
    return "shift" if "shift" in config else None


def save_pipeline(pipeline: "DiffusionPipeline", folder: Path, sampling: Sampling | None = None) -> Path:
    """Writes an ordinary diffusers folder, safetensors only, and its sampling defaults. Returns `folder`."""
    with quiet():
        pipeline.save_pretrained(folder, safe_serialization=True)
    if sampling:
        (folder / SAMPLING).write_text(sampling.to_json(), encoding="utf-8")
    return folder


def open_pipeline(
    name: str | Path, *, dtype: Dtype = "float32", device: str = "cpu", parts: Sequence[str] = ()
) -> "DiffusionPipeline":
    """The pipeline of a local folder, of the hub's cache or, last, of the hub.

    Args:
        parts: load only these, such as `vae` and `text_encoder`, and leave the others empty; all by default.
        dtype: of transformer and text encoder. Wan's VAE stays in float32, as diffusers' examples have it; other
            pipelines do not expect that.

    Raises:
        ModelUnavailable: it can't be had, is no pipeline of diffusers or holds no safetensors weights.
    """
    import torch

    folder = pipeline_folder(name)
    present = check_pipeline(folder, str(name))
    left_out: dict[str, Any] = {part: None for part in present if parts and part not in (*parts, "scheduler")}
    types = {"default": getattr(torch, dtype)}
    if present.get("vae") == "AutoencoderKLWan":
        types["vae"] = torch.float32
    try:
        with quiet():
            # Of the class itself: `DiffusionPipeline.from_pretrained` loads Wan's optional parts all the same.
            pipeline: Any = pipeline_class(folder, str(name)).from_pretrained(
                folder, dtype=types, use_safetensors=True, local_files_only=True, trust_remote_code=False, **left_out
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, ImportError) as error:
        raise ModelUnavailable(f"the pipeline {str(name)!r} in {folder} cannot be loaded: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    placed: DiffusionPipeline = pipeline.to(device)
    return placed


def pipeline_class(folder: Path, name: str) -> Any:
    """diffusers' class of the pipeline in a folder. Raises ModelUnavailable: this diffusers has none."""
    import diffusers
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    kind = json.loads((folder / INDEX).read_bytes())["_class_name"]
    cls = getattr(diffusers, kind, None)
    if not (isinstance(cls, type) and issubclass(cls, DiffusionPipeline)):
        raise ModelUnavailable(f"{name!r} is a {kind}: diffusers {diffusers.__version__} knows no such pipeline")
    return cls


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no remarks while a pipeline loads or is saved: nano's text encoder is no T5, as it should be."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    levels = [logger.get_verbosity() for logger in loggers]
    bars = [logger.is_progress_bar_enabled() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level, shown in zip(loggers, levels, bars, strict=True):
            logger.set_verbosity(level)
            if shown:
                logger.enable_progress_bar()


@cache
def pipeline_folder(name: str | Path) -> Path:
    """Where the pipeline's files lie. Raises ModelUnavailable: it is nowhere to be had."""
    if Path(name).is_dir():
        return Path(name)
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    reason: Exception | None = None
    missing: list[str] = []
    for cached_only in (True, False):  # what is in the cache may be what an interrupted download left
        try:
            folder = Path(
                DiffusionPipeline.download(
                    str(name), use_safetensors=True, local_files_only=cached_only, trust_remote_code=False
                )
            )
            missing = _missing(folder)
            if not missing:
                return folder
        # The hub's errors are OSErrors, for a malformed name a ValueError.
        except (OSError, ValueError) as error:
            reason = error
    if missing:
        otherwise = "or name a folder, or a model of this catalog as medgen:NAME"
        raise ModelUnavailable(interrupted(f"the pipeline {str(name)!r}", missing, reason, otherwise)) from reason
    raise ModelUnavailable(
        f"the pipeline {str(name)!r} is no local folder, not in the hub's cache and not to be had from the hub "
        f"({type(reason).__name__}): name a folder, or a model of this catalog as medgen:NAME"
    ) from reason


def _missing(folder: Path) -> list[str]:
    """Files that a pipeline's folder lacks: whole parts, or weights of some."""
    missing: list[str] = []
    for part, made in json.loads((folder / INDEX).read_bytes()).items():
        if not isinstance(made, list) or not made or made[0] not in LIBRARIES:
            continue
        there = [path for path in (folder / part).glob("*") if path.exists()]  # not links to nowhere
        missing += [f"{part}/{name}" for name in missing_weights(folder / part)] if there else [f"{part}/*"]
    return missing


def pipeline_files(name: str | Path) -> dict[str, Path]:
    """Path within the pipeline's folder, with slashes, → file, of all that `open_pipeline` reads.

    Raises:
        ModelUnavailable: as `open_pipeline`.
    """
    folder = pipeline_folder(name)
    parts = check_pipeline(folder, str(name))
    files = {INDEX: folder / INDEX}
    for part in parts:
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and path.suffix not in (*PICKLES, ".md") and not path.name.startswith("."):
                files[path.relative_to(folder).as_posix()] = path
    return files


def pipeline_digest(name: str | Path) -> str:
    """sha256 over the pipeline's files. The same files give the same digest wherever they lie.

    Raises:
        ModelUnavailable: as `open_pipeline`.
    """
    return digest_of({path: file_digest(file) for path, file in pipeline_files(name).items()})


def part_digests(name: str | Path, parts: Sequence[str]) -> dict[str, str]:
    """Part of a pipeline, such as `vae`, → sha256 over its files.

    Raises:
        ModelUnavailable: as `open_pipeline`; or the pipeline has no such part.
    """
    files = pipeline_files(name)
    by_part = {
        part: {path: file_digest(file) for path, file in files.items() if PurePosixPath(path).parts[0] == part}
        for part in parts
    }
    if missing := [part for part, digests in by_part.items() if not digests]:
        raise ModelUnavailable(f"the pipeline {str(name)!r} has no {', '.join(missing)}")
    return {part: digest_of(digests) for part, digests in by_part.items()}


def check_pipeline(folder: Path, name: str) -> dict[str, str]:
    """Part → its class, of a pipeline's folder, which must be an ordinary one with safetensors weights.

    Raises:
        ModelUnavailable: it is not; or it would run code that is not of diffusers or transformers.
    """
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_bytes())
        kind = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"{name!r}: {folder} is no pipeline of diffusers: {INDEX} is missing or bad") from error
    if not isinstance(kind, str):
        raise ModelUnavailable(f"{name!r} is a pipeline with code of its own, which is not run here")
    parts = {part: made for part, made in index.items() if isinstance(made, list) and len(made) == 2 and made[0]}
    for part, made in parts.items():
        if made[0] not in LIBRARIES or PurePosixPath(part).name != part:
            raise ModelUnavailable(f"{name!r}: its part {part!r} is of {made[0]!r}, whose code is not run here")
    weights = [path for part in parts for path in (folder / part).glob("*.safetensors")]
    if not weights:
        raise ModelUnavailable(f"{name!r}: {folder} holds no safetensors weights (other formats are not read)")
    return {part: str(made[1]) for part, made in sorted(parts.items())}


def encode_frames(vae: Any, frames: np.ndarray) -> np.ndarray:
    """Latents of one video, normalised as Wan's transformer sees them: (z − latents_mean) / latents_std.

    The mode of the posterior, not a sample, so that the same frames give the same latents.

    Args:
        vae: `AutoencoderKLWan`.
        frames: RGB (F, H, W, 3), 0 to 255, uint8 or float32; F − 1 a multiple of the temporal factor, H and W of the
            spatial one.

    Returns:
        float32 (C, F', H', W').
    """
    import torch

    first = next(vae.parameters())
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None]
    with torch.inference_mode():
        latents = vae.encode(video.to(first.device, first.dtype) / 127.5 - 1.0).latent_dist.mode()
        mean, std = _scale(vae, latents)
        return np.asarray(((latents - mean) / std)[0].float().cpu())


def decode_latents(vae: Any, latents: np.ndarray) -> np.ndarray:
    """uint8 RGB (F, H, W, 3) of the normalised latents (C, F', H', W') of one video; the pixels of `WanPipeline`."""
    import torch

    first = next(vae.parameters())
    with torch.inference_mode():
        scaled = torch.from_numpy(np.ascontiguousarray(latents))[None].to(first.device, first.dtype)
        mean, std = _scale(vae, scaled)
        # Divided by the inverse, as the pipeline does: the same last digits.
        video = vae.decode(scaled / (1.0 / std) + mean, return_dict=False)[0][0]
        return as_uint8((video.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).cpu().numpy())


def as_uint8(frames: np.ndarray) -> np.ndarray:
    """uint8 of what pipelines return, floats of 0 to 1."""
    return (frames * 255).round().clip(0, 255).astype(np.uint8)


def _scale(vae: Any, like: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """latents_mean and latents_std of the VAE's config, (1, C, 1, 1, 1)."""
    import torch

    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(like.device, like.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def encode_texts(pipeline: "DiffusionPipeline", texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
    """What the pipeline's own text encoder makes of each text, without the padding.

    Texts are encoded one by one, so that an embedding never depends on its company.

    Args:
        pipeline: a `WanPipeline`.
        max_tokens: longer texts are cut off, special tokens included.

    Returns:
        float32 (L, D) for each text, 1 ≤ L ≤ max_tokens; `pad_texts` restores the padding. The empty text has an
        embedding too, that of its special tokens: it is what guidance compares with.
    """
    import torch

    embeddings = []
    with torch.inference_mode():
        for text in texts:
            padded, _ = pipeline.encode_prompt(
                [text], do_classifier_free_guidance=False, max_sequence_length=max_tokens
            )
            rows = padded[0].float().cpu().numpy()
            real = np.flatnonzero(rows.any(axis=1))  # padding is exactly 0, which no token's vector is
            embeddings.append(rows[: real[-1] + 1] if len(real) else rows[:1])
    return embeddings


def pad_texts(embeddings: Sequence[np.ndarray], max_tokens: int) -> np.ndarray:
    """float32 (B, max_tokens, D) of embeddings (L, D), filled up with zeros as `WanPipeline` does.

    Wan's transformer attends to the padding too: training and generation must pad to the same length.

    Raises:
        ValueError: an embedding has more than `max_tokens` rows.
    """
    if longest := max((len(rows) for rows in embeddings if len(rows) > max_tokens), default=0):
        raise ValueError(f"an embedding of {longest} tokens does not fit into {max_tokens}")
    padded = np.zeros((len(embeddings), max_tokens, embeddings[0].shape[1]), np.float32)
    for row, rows in zip(padded, embeddings, strict=True):
        row[: len(rows)] = rows
    return padded
