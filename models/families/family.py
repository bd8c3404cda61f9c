"""What differs between families of text-to-video models, behind one small interface: encode, predict, sample, names.

A family says how frames and texts become what its transformer takes, how the transformer is asked for a velocity, how
its authors sample it, which videos fit its grid of latents, and what other tools call the modules of its adapters.
Everything else, training and generation alike, is the same for all. Importing this is cheap: PyTorch is imported by
those who call.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models import ModelUnavailable
from models.families.lora_names import ModuleNames
from models.generation.video_diffusion import INDEX, Sampling, check_pipeline

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Expert:
    """A transformer of a pipeline and the noise levels that it is asked for.

    Args:
        part: its folder in the pipeline, `transformer` or `transformer_2`.
        name: what a configuration calls it; empty where there is but one.
        sigma: (lowest, highest) noise level, of 0 to 1, both included.
    """

    part: str = "transformer"
    name: str = ""
    sigma: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Grid:
    """Which videos a VAE and a transformer take whole.

    Args:
        frames: frames of a video are a multiple of this, and one more.
        pixels: height and width are multiples of this: the VAE's factor times the transformer's patch.
    """

    frames: int
    pixels: int

    def fits(self, frames: int, height: int, width: int) -> bool:
        """Whether nothing of such a video would be cut off."""
        return (frames - 1) % self.frames == 0 and height % self.pixels == 0 and width % self.pixels == 0

    def nearest(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The video that fits and is nearest, never of more frames."""
        sides = (max(1, round(side / self.pixels)) * self.pixels for side in (height, width))
        return (frames - 1) // self.frames * self.frames + 1, *sides  # type: ignore[return-value]


class Family(ABC):
    """One family of models, as the configuration of a pipeline's folder tells it apart.

    Args:
        index: of `model_index.json`.
        transformer: the transformer's configuration.
        vae: the VAE's configuration.
    """

    def __init__(self, index: Mapping[str, Any], transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        self.index, self.transformer, self.vae = index, transformer, vae

    # --- facts ---

    pipeline: str  # the text-to-video pipeline's class
    transformer_class: str
    module_names: ModuleNames
    encoder_parts: tuple[str, ...] = ("vae", "text_encoder", "tokenizer")  # parts of a pipeline that encoding needs
    lora_excluded: str | None = None  # modules never adapted, as a regular expression on their whole names

    @property
    @abstractmethod
    def name(self) -> str:
        """What people call it, such as "Wan 2.1"."""

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """How its authors sample it; a `flow_shift` of None leaves the shift to the pipeline's schedule."""

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """Which videos it takes."""

    @property
    @abstractmethod
    def patch(self) -> tuple[int, int, int]:
        """Latents in a patch: frames, height, width."""

    @property
    @abstractmethod
    def text_width(self) -> int:
        """Width of the rows that `encode_texts` gives."""

    @property
    def predicted_channels(self) -> int:
        """Channels of the latents that the transformer predicts the velocity of."""
        return int(self.transformer["out_channels"] or self.transformer["in_channels"])

    @property
    def channels(self) -> int:
        """Channels that `encode_video` gives: those predicted, and those of what is given beside, if anything is."""
        return self.predicted_channels

    @property
    def needs_image(self) -> bool:
        """Whether a first frame is always given, so that no video is made of a prompt alone."""
        return False

    @property
    def experts(self) -> tuple[Expert, ...]:
        """Its transformers."""
        return (Expert(),)

    @property
    def first_frame(self) -> bool:
        """Whether it can be trained to go on from a first frame that is given."""
        return False

    def expert(self, name: str) -> Expert:
        """The transformer of that name.

        Raises:
            ModelUnavailable: it has several and none is named, or none of that name.
        """
        found = [expert for expert in self.experts if expert.name == name]
        if found:
            return found[0]
        known = [expert.name for expert in self.experts if expert.name]
        if not known:
            raise ModelUnavailable(f"{self.name} has one transformer and no expert {name!r}: leave expert empty")
        raise ModelUnavailable(f"{self.name} has the experts {' and '.join(known)}: set expert to one of them")

    # --- encode ---

    @abstractmethod
    def encode_video(self, vae: Any, frames: np.ndarray) -> np.ndarray:
        """Latents of one video as the transformer sees them, the same ones every time.

        Args:
            frames: uint8 RGB (F, H, W, 3) that fit `grid`.

        Returns:
            float32 (C, F', H', W').
        """

    @abstractmethod
    def decode_video(self, vae: Any, latents: np.ndarray) -> np.ndarray:
        """uint8 RGB (F, H, W, 3) of latents (C, F', H', W')."""

    @abstractmethod
    def encode_texts(self, pipeline: Any, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """float32 (L, `text_width`) for each text, without padding: all that the transformer is told of it."""

    # --- predict ---

    @abstractmethod
    def text_inputs(self, texts: "Sequence[Tensor]", max_tokens: int) -> "dict[str, Tensor]":
        """Texts (L, D) of a batch, as tensors that `predict` finds in it again; the first dimension is the batch."""

    @abstractmethod
    def predict(self, model: Any, noisy: "Tensor", timestep: "Tensor", batch: "Mapping[str, Tensor]") -> "Tensor":
        """The velocity n − x0 that the transformer predicts (B, C, F, H, W).

        Args:
            model: the transformer, possibly wrapped.
            noisy: latents (B, C, F, H, W) in the dtype that the model computes in.
            timestep: 1000 times the noise level of each, (B,).
            batch: what `text_inputs` gave, on the model's device; and `condition` (B, …, F, H, W), the channels of
                `encode_video` beyond those predicted.
        """

    def compute_dtype(self, model: Any) -> "torch.dtype":
        """What the transformer's inputs are to be in: the dtype of the projection of its patches."""
        bare = getattr(model, "module", model)
        embedding = bare.patch_embedding if hasattr(bare, "patch_embedding") else bare.x_embedder.proj
        dtype: torch.dtype = embedding.weight.dtype
        return dtype

    @abstractmethod
    def prompt_arguments(
        self, texts: "Mapping[str, Tensor]", empty: "Mapping[str, Tensor]", guidance_scale: float
    ) -> dict[str, Any]:
        """Arguments of the pipeline's call that say the prompt, of `text_inputs` of it and of the empty text."""

    def load_transformer(self, folder: Path, dtype: "torch.dtype", part: str = "transformer") -> Any:
        """A transformer of a pipeline's folder; weights that must stay in float32 do.

        Raises:
            ModelUnavailable: it can't be loaded.
        """
        import diffusers
        from safetensors import SafetensorError

        cls = getattr(diffusers, self.transformer_class)
        try:
            return cls.from_pretrained(
                folder, subfolder=part, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=True
            )
        except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
            raise ModelUnavailable(f"the {part} of {folder} can't be loaded: {error}") from error

    def without_weights(self, folder: Path, part: str = "transformer") -> Any:
        """The transformer as `load_transformer` gives it, but its weights are not there yet (meta tensors).

        Raises:
            ModelUnavailable: it has no configuration.
        """
        import diffusers
        from accelerate import init_empty_weights

        cls = getattr(diffusers, self.transformer_class)
        try:
            with init_empty_weights(include_buffers=False):
                return cls.from_config(cls.load_config(folder, subfolder=part))
        except (OSError, ValueError) as error:
            raise ModelUnavailable(f"the {part} of {folder} can't be loaded: {error}") from error


def folder_facts(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(model_index.json, the transformer's configuration, the VAE's) of a pipeline's folder.

    Raises:
        ModelUnavailable: the folder has no such files, or runs code that is not of diffusers or transformers.
    """
    check_pipeline(folder, folder.name)
    try:
        index = json.loads((folder / INDEX).read_bytes())
        transformer = json.loads((folder / "transformer" / "config.json").read_bytes())
        vae = json.loads((folder / "vae" / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{folder} is no pipeline with a transformer and a VAE: {error}") from error
    return index, transformer, vae
