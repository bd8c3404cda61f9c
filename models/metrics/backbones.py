"""Frame features for consistency over time: VBench's by hub name or folder, MobileNetV2 from a package otherwise."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError

from medgen.canonical import digest_of
from models import ModelUnavailable
from models.encoders import (
    BATCH,
    MOBILENET,
    ClipEncoder,
    MobileNetEncoder,
    encoder_digest,
    shown_name,
)
from models.hub_files import digests, hub_files

RIM = f"{MOBILENET}_rim"
DINO_SIDE = 224
DINO_STRETCH = 0.1  # of a patch
DINO_EPSILON = 1e-6
_DINO_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class FrameFeatures(Protocol):
    """Turns frames into features whose cosine says how alike two frames are."""

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, D), each row of length 1, of frames uint8 RGB (H, W, 3)."""
        ...


def metric_backbone(name: str, digest: str) -> str:
    """What stands in the brackets of a metric's name: a hub name, or a folder's last part and the beginning of its
    digest, because two folders of one name may hold different models."""
    shown = shown_name(name)
    return f"{shown}@{digest[:8]}" if Path(name).is_dir() or Path(name).is_file() else shown


class Dino:
    """The class token of a ViT trained by DINO, as VBench's subject consistency takes it.

    Frames are resized so that the short side has 224 pixels, without a crop, and normalised by ImageNet's statistics.
    A ViT is run as in DINO's own code (facebookresearch/dino, vision_transformer.py), from which transformers departs
    in how position embeddings are stretched and in the ε of its normalisations.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModel

        torch.set_num_threads(1)
        self.device = device
        folder = dino_files(name)[0].parent
        try:
            self.model: Any = AutoModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
            ).eval()
            self.model.to(device)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelUnavailable(f"the encoder {name!r} in {folder} cannot be loaded: {error}") from error
        if self.model.config.model_type not in ("vit", "dinov2", "dinov2_with_registers"):
            kind = self.model.config.model_type
            raise ModelUnavailable(f"{name!r} is a {kind}, no vision transformer with a class token such as DINO")
        self.patch = int(self.model.config.patch_size)
        self.options: dict[str, bool] = {}
        if self.model.config.model_type == "vit":  # DINOv2 does all this by itself
            self.options = {"interpolate_pos_encoding": True}
            embeddings = self.model.embeddings
            embeddings.interpolate_pos_encoding = partial(_dino_positions, embeddings.position_embeddings, self.patch)
            for module in self.model.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.eps = DINO_EPSILON

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `FrameFeatures`. Frames of one call must have one size."""
        import torch
        from torchvision.transforms.functional import normalize, resize

        rows = []
        with torch.inference_mode():
            for start in range(0, len(frames), BATCH):
                x = torch.from_numpy(np.stack(frames[start : start + BATCH])).to(self.device).permute(0, 3, 1, 2)
                x = resize(x, [DINO_SIDE], antialias=False).float() / 255
                height, width = (side - side % self.patch for side in x.shape[2:])  # whole patches only, as DINO cuts
                x = normalize(x[:, :, :height, :width], list(_MEAN), list(_STD))
                tokens = self.model(pixel_values=x, **self.options).last_hidden_state
                rows.append(np.asarray(torch.nn.functional.normalize(tokens[:, 0], dim=-1).float().cpu()))
        return np.concatenate(rows)


def _dino_positions(table: Any, patch: int, tokens: Any, height: int, width: int) -> Any:
    """Position embeddings (1, 1 + N, D) for a picture of height × width pixels, of a table for a square one.

    The factors are a tenth of a patch too large, as DINO has them: for rounding there, but every value depends on it.
    """
    import torch

    side = math.isqrt(table.shape[1] - 1)
    if height == width and tokens.shape[1] == table.shape[1]:
        return table
    factors = tuple((length // patch + DINO_STRETCH) / side for length in (height, width))
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, scale_factor=factors, mode="bicubic")
    return torch.cat((table[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)


class VBenchClip(ClipEncoder):
    """A CLIP-class model with VBench's preparation of frames for background consistency.

    Short side to the model's by cubic interpolation without smoothing, on whole levels; then the centre.
    """

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `FrameFeatures`. Frames of one call must have one size."""
        import torch
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import center_crop, normalize, resize

        side = self.squeeze["size"]["height"]
        mean, std = (list(map(float, values)) for values in (self.processor.image_mean, self.processor.image_std))
        rows = []
        with torch.inference_mode():
            for start in range(0, len(frames), BATCH):
                x = torch.from_numpy(np.stack(frames[start : start + BATCH])).to(self.device).permute(0, 3, 1, 2)
                x = center_crop(resize(x, [side], InterpolationMode.BICUBIC, antialias=False), [side, side])
                x = normalize(x.float() / 255, mean, std)
                features = self.model.get_image_features(pixel_values=x).pooler_output
                rows.append(np.asarray(torch.nn.functional.normalize(features, dim=-1).float().cpu()))
        return np.concatenate(rows)


class CroppedClip(ClipEncoder):
    """A CLIP-class model with the preparation that it was trained with, centre crop included."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        super().__init__(name, device)
        self.squeeze = {}


class MobileNetViews(MobileNetEncoder):
    """MobileNetV2 looking at each frame once, for two stand-ins.

    `whole` is its ordinary embedding. `rim` pools only the outer ring of the last feature map (24 of 7 x 7 places): a
    stand-in for the background, because what a shot is about is mostly not at its edge. It knows no subject.
    """

    def views(self, frames: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(whole (N, D), rim (N, E)), float32, each row of length 1, of frames uint8 RGB (H, W, 3)."""
        import torch

        seen: list[Any] = []
        hook = self.blocks[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            whole = self.embed(frames)
        finally:
            hook.remove()
        with torch.inference_mode():
            maps = torch.cat(seen)[: len(frames)]  # what a batch was filled up with is left out
            ring = torch.ones(maps.shape[2:], dtype=torch.bool)
            ring[1:-1, 1:-1] = False
            rim = torch.nn.functional.normalize(maps[:, :, ring].mean(dim=2), dim=1)
        return whole, np.asarray(rim.cpu())


def load_subject_features(name: str, device: str = "cpu") -> FrameFeatures:
    """DINO by hub name or folder, on a device of PyTorch. Raises ModelUnavailable."""
    return Dino(name, device)


def load_background_features(name: str, device: str = "cpu") -> FrameFeatures:
    """A CLIP-class model by hub name or folder, on a device of PyTorch. Raises ModelUnavailable."""
    return VBenchClip(name, device)


def subject_digest(name: str) -> str:
    """sha256 of the weights and settings behind subject consistency. Raises ModelUnavailable."""
    if name == MOBILENET:
        return encoder_digest(MOBILENET)
    settings = {"side": DINO_SIDE, "feature": "class token", "positions": DINO_STRETCH, "epsilon": DINO_EPSILON}
    return digest_of({"files": digests(dino_files(name)), **settings})


def background_digest(name: str) -> str:
    """sha256 of the weights and settings behind background consistency. Raises ModelUnavailable."""
    if name == MOBILENET:
        return digest_of({"encoder": encoder_digest(MOBILENET), "pooled": "outer ring of the last feature map"})
    return digest_of({"encoder": encoder_digest(name), "crop": "centre, cubic, no smoothing, whole levels"})


def clip_digest(name: str) -> str:
    """sha256 of a CLIP-class model with centre crop. Raises ModelUnavailable."""
    if name == MOBILENET:
        raise ModelUnavailable(
            f"{MOBILENET!r} reads no text: text alignment needs a CLIP-class model, by name or folder"
        )
    return digest_of({"encoder": encoder_digest(name), "crop": "as trained"})


def dino_files(name: str) -> tuple[Path, ...]:
    """The files of a DINO-class model. Raises ModelUnavailable."""
    return hub_files(name, _DINO_FILES, f"the encoder {name!r}", f"without a network choose {MOBILENET!r}")
