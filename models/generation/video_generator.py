"""Any text-to-video pipeline of diffusers: a prompt, a seed and settings in, frames out.

Settings have the names that diffusers gives them, and a pipeline is passed only what its `__call__` takes. The fast
paths of diffusers are options, off by default; those that may change pixels are settings too.
"""

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from pydantic import Field

from medgen.parameters import Parameters
from models import ModelUnavailable
from models.families.hunyuan_video import HUNYUAN_VIDEO
from models.families.known import family_of, sampling_defaults
from models.families.wan import NEGATIVE_PROMPT as WAN_NEGATIVE_PROMPT
from models.families.wan import Wan
from models.generation.lora import Lora, load_loras
from models.generation.video_diffusion import (
    Sampling,
    as_uint8,
    check_pipeline,
    open_pipeline,
    pipeline_class,
    read_sampling,
    scheduler_shift,
    set_flow_shift,
)

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

# Frames per second of what a pipeline of no family here makes, as the examples in diffusers 0.42 save it.
FPS = {
    "AllegroPipeline": 15.0,
    "CogVideoXPipeline": 8.0,
    "HunyuanVideoPipeline": HUNYUAN_VIDEO.fps,  # as its authors save it; diffusers' example says 15
    "HunyuanVideo15Pipeline": 15.0,
    "LTXPipeline": 24.0,
    "SanaVideoPipeline": 16.0,
    "SkyReelsV2Pipeline": 24.0,
    "WanPipeline": 16.0,
}
OTHER_FPS = 16.0
# What a pipeline is told to lead away from where neither anybody nor its folder says.
NEGATIVE_PROMPTS = {Wan.pipeline: WAN_NEGATIVE_PROMPT}
BESIDE = ("fps", "flow_shift", "lora", "image")  # settings that are no arguments of a pipeline's call
NO_NEGATIVE = "none"  # asks for the empty text where empty means the model's own
# What a pipeline of pictures or videos into videos needs beside the prompt.
OTHER_INPUTS = ("image", "images", "video", "conditions", "control_video", "reference_images", "src_video")

Cache = Literal["none", "first_block", "pyramid_attention_broadcast", "faster", "taylorseer"]


class NotTextToVideo(ModelUnavailable):
    """The pipeline makes something else, or needs more than a prompt."""


class OptionUnavailable(ModelUnavailable):
    """A fast path or a setting that this pipeline or this machine can't do."""


class OutOfMemory(RuntimeError):
    """The device's memory does not suffice; the message says what helps."""


class GeneratorOptions(Parameters):
    """How a pipeline is run. Those of its fields that may change pixels are part of a video's settings."""

    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic; auto: bfloat16 on a GPU, float32 on a CPU."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where; auto: the GPU where there is one.")
    compile_transformer: bool = Field(False, description="torch.compile the transformer: slow start, faster steps.")
    attention_backend: str = Field(
        "", description="diffusers' attention backend, such as native, flash, sage, xformers; empty: as it comes."
    )
    cache: Cache = Field("none", description="Reuse of the transformer's work between steps; videos differ slightly.")
    cache_threshold: float = Field(
        0.05,
        gt=0,
        le=1000,
        description="first_block: the change below which blocks are skipped; more is faster and coarser.",
    )
    offload: Literal["none", "model", "group"] = Field(
        "none", description="Keep parts in main memory while they wait: model (whole parts) or group (some layers)."
    )
    vae_tiling: bool = Field(False, description="Decode in tiles, with less memory; seams are blended.")
    vae_slicing: bool = Field(False, description="Decode videos of a batch one by one.")

    def resolved(self) -> "GeneratorOptions":
        """With `auto` replaced by what this machine has.

        Raises:
            OptionUnavailable: there is no GPU and an option needs one.
        """
        import torch

        gpu = torch.cuda.is_available()
        device = self.device if self.device != "auto" else ("cuda" if gpu else "cpu")
        if device == "cuda" and not gpu:
            raise OptionUnavailable("device=cuda, but torch sees no GPU here: leave device at auto, or set it to cpu")
        if self.offload != "none" and device != "cuda":
            raise OptionUnavailable(f"offload={self.offload} frees a GPU's memory, and there is none: set offload=none")
        dtype = self.dtype if self.dtype != "auto" else ("bfloat16" if device == "cuda" else "float32")
        return self.model_copy(update={"device": device, "dtype": dtype})

    def pixel_settings(self) -> dict[str, Any]:
        """Of resolved options those that may change pixels, as JSON facts; those that are off are left out."""
        settings: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        if self.compile_transformer:
            settings["compile_transformer"] = True
        if self.attention_backend:
            settings["attention_backend"] = self.attention_backend
        if self.cache != "none":
            settings["cache"] = self.cache
            if self.cache == "first_block":
                settings["cache_threshold"] = self.cache_threshold
        if self.vae_tiling:
            settings["vae_tiling"] = True
        return settings


def text_to_video_class(folder: Path, name: str) -> type["DiffusionPipeline"]:
    """The class of a pipeline's folder.

    Raises:
        NotTextToVideo: it takes no prompt, makes no frames, or needs a picture or video.
        ModelUnavailable: this diffusers does not know it.
    """
    check_pipeline(folder, name)
    cls: type[DiffusionPipeline] = pipeline_class(folder, name)
    kind = cls.__name__
    takes = inspect.signature(cls.__call__).parameters
    needs = [other for other in OTHER_INPUTS if other in takes and takes[other].default is inspect.Parameter.empty]
    if "prompt" not in takes:
        raise NotTextToVideo(f"{name!r} is a {kind}, which takes no prompt: name a text-to-video pipeline")
    if "num_frames" not in takes:
        raise NotTextToVideo(f"{name!r} is a {kind}, which makes no videos: name a text-to-video pipeline")
    if needs:
        raise NotTextToVideo(f"{name!r} is a {kind}, which needs {needs[0]} too: name a text-to-video pipeline")
    return cls


def image_to_video_class(folder: Path, name: str) -> type["DiffusionPipeline"]:
    """The class that makes videos of a first frame and a prompt with the models of a pipeline's folder.

    Raises:
        OptionUnavailable: they take no first frame.
        ModelUnavailable: as `family_of`.
    """
    from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline

    family = family_of(folder)
    if not (family.needs_image or family.first_frame):
        raise OptionUnavailable(f"{name!r} is {family.name}, which takes no first frame: leave the image out")
    cls: Any = WanImageToVideoPipeline
    return cast("type[DiffusionPipeline]", cls)


def sampling_settings(
    cls: type["DiffusionPipeline"], folder: Path, asked: Mapping[str, Any], trained: Sampling | None = None
) -> dict[str, Any]:
    """All sampling settings of a model: what was asked for, else its folder's own, its authors', its class's defaults.

    Args:
        asked: num_frames, height, width, num_inference_steps, guidance_scale, negative_prompt (`none` for none),
            max_sequence_length, flow_shift, fps; only those that somebody asked for.
        trained: how an adapter beside the model wants to be sampled, which goes before the model's own.

    Raises:
        OptionUnavailable: a setting that the pipeline does not take.
    """
    takes = inspect.signature(cls.__call__).parameters
    own = trained or sampling_defaults(folder)
    if unknown := [name for name in asked if name not in ("fps", "flow_shift", *takes)]:
        raise OptionUnavailable(f"{cls.__name__} takes no {', '.join(unknown)}: leave it out")
    settings: dict[str, Any] = {}
    for name in ("num_frames", "height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length"):
        if name not in takes:
            continue
        default = takes[name].default
        value = getattr(own, name) if own else None if default is inspect.Parameter.empty else default
        if name == "max_sequence_length" and value is not None:
            value = min(value, _tokenizer_length(folder))
        if name in asked:
            value = asked[name]
        if value is not None:
            settings[name] = value
    negative = asked.get("negative_prompt") or negative_prompt(cls.__name__, own)
    if negative and negative != NO_NEGATIVE and "negative_prompt" in takes:
        settings["negative_prompt"] = negative
    if (shift := _flow_shift(folder, cls.__name__, asked, own)) is not None:
        settings["flow_shift"] = shift
    settings["fps"] = float(asked.get("fps") or (own.fps if own else FPS.get(cls.__name__, OTHER_FPS)))
    # Who asks for another guidance means it for both of two experts.
    if own and "guidance_scale_2" in takes and settings["guidance_scale"] == own.guidance_scale:
        settings |= {} if own.guidance_scale_2 is None else {"guidance_scale_2": own.guidance_scale_2}
    if "frame_rate" in takes:
        settings["frame_rate"] = settings["fps"]
    return settings


def negative_prompt(kind: str, own: Sampling | None) -> str:
    """What a pipeline of that class leads away from by itself, "" for nothing: its folder's word, else its authors'."""
    return own.negative_prompt if own else NEGATIVE_PROMPTS.get(kind, "")


def _flow_shift(folder: Path, kind: str, asked: Mapping[str, Any], own: Sampling | None) -> float | None:
    """The shift that a model is sampled with. Raises OptionUnavailable: one is wanted and its schedule has none."""
    there = scheduler_shift(folder)
    if there is None:
        if asked.get("flow_shift") or (read_sampling(folder) and own and own.flow_shift):
            raise OptionUnavailable(f"{kind} in {folder.name} has no fixed flow_shift in its schedule: leave it out")
        return None
    return float(asked.get("flow_shift") or (own.flow_shift if own else None) or there)


def _tokenizer_length(folder: Path) -> int:
    """Most tokens that a pipeline's tokenizer says its texts may have."""
    try:
        config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_bytes())
        return max(1, int(config["model_max_length"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 1 << 20


class VideoGenerator:
    """A loaded pipeline with its options and adapters; with `image`, of videos that go on from that picture.

    Raises:
        ModelUnavailable: as `open_pipeline` and `load_loras`; OptionUnavailable for an option that can't be had.
        OutOfMemory: the weights don't fit.
    """

    def __init__(
        self, folder: Path, options: GeneratorOptions, loras: Sequence[Lora] = (), image: Path | None = None
    ) -> None:
        options = options.resolved()
        self.options = options
        with _explain_out_of_memory(options, {}):
            on = "cpu" if options.offload != "none" else options.device
            self.pipeline: Any = open_pipeline(folder, dtype=_dtype(options), device=on)
            self.image = image
            if image is not None and not isinstance(self.pipeline, cls := image_to_video_class(folder, folder.name)):
                further = {name: self.pipeline.config[name] for name in ("expand_timesteps", "boundary_ratio")}
                self.pipeline = cls(**self.pipeline.components, **further)
                self.pipeline.set_progress_bar_config(disable=True)
            load_loras(self.pipeline, folder, loras)
            self._apply()

    def frames(self, prompt: str, seed: int, settings: Mapping[str, Any]) -> np.ndarray:
        """uint8 RGB (F, H, W, 3) of one prompt; on a CPU the same arguments always give the same frames.

        Args:
            settings: as `sampling_settings` gave them.

        Raises:
            ValueError: the pipeline refuses a setting, or its frames are not numbers.
            OutOfMemory: with advice.
        """
        import torch

        arguments = {name: value for name, value in settings.items() if name not in BESIDE}
        if self.image is not None:
            arguments["image"] = first_frame(self.image, settings["height"], settings["width"])
        if "flow_shift" in settings:
            set_flow_shift(self.pipeline, settings["flow_shift"])
        # On the CPU, so that a seed means the same noise on every device.
        generator = torch.Generator("cpu").manual_seed(seed)
        with (
            _explain_out_of_memory(self.options, settings),
            _fixed_threads(self.options.device),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", FutureWarning)
            made = self.pipeline(prompt=prompt, generator=generator, output_type="np", **arguments).frames
        return _pixels(made[0])

    def _apply(self) -> None:
        options, pipeline = self.options, self.pipeline
        denoisers = [
            part
            for name in ("transformer", "transformer_2", "unet")
            if (part := getattr(pipeline, name, None)) is not None
        ]
        kind = type(denoisers[0]).__name__ if denoisers else "nothing"
        if options.attention_backend:
            for part in denoisers:
                _set_backend(part, options.attention_backend)
        if options.cache != "none":
            for part in denoisers:
                if not hasattr(part, "enable_cache"):
                    raise OptionUnavailable(f"{kind} has no caches of diffusers: set cache=none")
                part.enable_cache(_cache_config(options, pipeline))
        for wanted, name in ((options.vae_tiling, "enable_tiling"), (options.vae_slicing, "enable_slicing")):
            if wanted:
                if not hasattr(getattr(pipeline, "vae", None), name):
                    raise OptionUnavailable(f"the VAE of {type(pipeline).__name__} does not know {name}")
                getattr(pipeline.vae, name)()
        if options.offload == "model":
            pipeline.enable_model_cpu_offload()
        elif options.offload == "group":
            import torch

            pipeline.enable_group_offload(
                onload_device=torch.device(options.device), offload_type="leaf_level", use_stream=True
            )
        if options.compile_transformer:
            for part in denoisers:
                # Only the blocks that repeat: a fraction of the time to compile the whole.
                if getattr(part, "_repeated_blocks", None):
                    part.compile_repeated_blocks()
                else:
                    part.compile()


def first_frame(path: Path, height: int, width: int) -> Any:
    """A picture as PIL's, cut to the aspect ratio and resized. Raises OptionUnavailable: it is no picture."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return ImageOps.fit(ImageOps.exif_transpose(picture).convert("RGB"), (width, height))
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise OptionUnavailable(f"{path} is no picture that can be read: {error}") from error


def free_memory() -> None:
    """Gives back what models that nobody holds any more have left behind: cycles, and the GPU's cached blocks."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _dtype(options: GeneratorOptions) -> Literal["float32", "bfloat16"]:
    return "bfloat16" if options.dtype == "bfloat16" else "float32"


def _set_backend(part: Any, backend: str) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = sorted(name.value for name in AttentionBackendName if "hub" not in name.value)
    if backend not in known:
        why = "would fetch code from the hub" if backend.endswith("_hub") else "is not known"
        raise OptionUnavailable(f"attention_backend={backend!r} {why}; known here: {', '.join(known)}")
    try:
        part.set_attention_backend(backend)
    except (ImportError, RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
        raise OptionUnavailable(f"attention_backend={backend!r} can't be had here: {error}") from error


def _cache_config(options: GeneratorOptions, pipeline: Any) -> Any:
    """diffusers' configuration of a cache, with the settings that its documentation recommends."""
    from diffusers.hooks.faster_cache import FasterCacheConfig
    from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
    from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastConfig
    from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig

    def timestep() -> Any:
        return pipeline._current_timestep

    if options.cache == "first_block":
        return FirstBlockCacheConfig(threshold=options.cache_threshold)
    if options.cache == "pyramid_attention_broadcast":
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(100, 800),
            current_timestep_callback=timestep,
        )
    if options.cache == "taylorseer":
        return TaylorSeerCacheConfig()
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 681),
        attention_weight_callback=lambda _: 0.3,
        is_guidance_distilled=True,  # guidance by two passes, as Wan's: nothing to skip in a batch
        current_timestep_callback=timestep,
    )


def _pixels(made: Any) -> np.ndarray:
    frames = made if isinstance(made, np.ndarray) else np.stack([np.asarray(frame) for frame in made])
    if frames.dtype == np.uint8:
        return frames
    if not np.isfinite(frames).all():
        raise ValueError("the pipeline's frames are not numbers (NaN): try dtype=float32, or the options off")
    return as_uint8(frames)


@contextmanager
def _fixed_threads(device: str) -> Iterator[None]:
    """On a CPU one thread, so that sums are in the same order whatever the machine has."""
    import torch

    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _explain_out_of_memory(options: GeneratorOptions, settings: Mapping[str, Any]) -> Iterator[None]:
    """Turns a lack of memory into advice."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error).lower()
        if not short:
            raise
        if options.device == "cuda":
            torch.cuda.empty_cache()
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OutOfMemory(f"{message} Try {', or '.join(_advice(options, settings))}.") from error


def _advice(options: GeneratorOptions, settings: Mapping[str, Any]) -> list[str]:
    advice = []
    if options.device == "cuda" and options.offload != "group":
        advice.append("offload=group" if options.offload == "model" else "offload=model (then group)")
    if not options.vae_tiling:
        advice.append("vae_tiling=true")
    if options.dtype == "float32" and options.device == "cuda":
        advice.append("dtype=bfloat16")
    size = [f"{name} ({settings[name]})" for name in ("num_frames", "height", "width") if name in settings]
    advice.append("a lower " + " or ".join(size) if size else "a smaller model")
    return advice
