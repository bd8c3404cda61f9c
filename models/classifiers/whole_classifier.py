"""Video classifiers whose network is trained whole: torchvision's MobileNetV2, or one of transformers by name.

MobileNetV2 sees frame by frame and its features' mean over time is classified. By name any video classifier of
transformers can be trained (VideoMAE, TimeSformer, ViViT, …); safetensors weights only.

Every training takes the same number of steps whatever the number of videos, so that no set of videos can win by being
trained on for longer. On one CPU the same seed gives the same classifier.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from medgen.canonical import digest_of
from models import ModelUnavailable
from models.classifiers.batches import shuffled_batches
from models.encoders import MEAN, MOBILENET, MOBILENET_SIDE, STD, encoder_digest, mobilenet_features
from models.hub_files import digests, hub_files

if TYPE_CHECKING:
    import torch

DROPOUT = 0.2
PREDICT_BATCH = 16
WARM_UP = 0.1  # part of the steps of a full training
NEW_LAYERS = ("classifier.", "fc_norm.")  # of a pre-trained transformers model, which training makes anew

_PATTERNS = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)


@dataclass(frozen=True)
class FullTraining:
    """How a whole network is trained.

    Args:
        steps: of AdamW, after a linear warm-up and with a cosine down to 0.
        batch: videos in a step.
        learning_rate: of all weights; the new last layer's is ten times that.
        weight_decay: of AdamW.
        device: as torch names it.
    """

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.05
    device: str = "cpu"


@dataclass(frozen=True)
class Network:
    """A network that can be trained whole.

    Args:
        digest: sha256 of its weights and settings.
        frames: that it takes; None: any number.
        side: of its square pictures, pixels.
    """

    name: str
    digest: str
    frames: int | None
    side: int


@cache
def find_network(name: str) -> Network:
    """The network of that name: `mobilenet_v2`, or a video classifier of transformers by hub name or folder.

    Raises:
        ModelUnavailable: it can't be had, or is no video classifier.
    """
    if name == MOBILENET:
        return Network(name, digest_of({"encoder": encoder_digest(name), "training": "whole"}), None, MOBILENET_SIDE)
    files = _files(name)
    config = _config(name)
    frames, side = getattr(config, "num_frames", None), getattr(config, "image_size", None)
    side = side[0] if isinstance(side, list | tuple) and side else side
    if not isinstance(side, int) or not isinstance(frames, int):
        raise ModelUnavailable(f"{name!r} does not say how many frames of what size it takes: name another classifier")
    return Network(name, digest_of({"files": digests(files), "training": "whole"}), frames, side)


def fit_whole(
    network: Network,
    train: Callable[[int], np.ndarray],
    labels: Sequence[int],
    test: Callable[[int], np.ndarray],
    tests: int,
    classes: int,
    *,
    training: FullTraining,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Trains all weights of a network and judges videos: float32 (tests, classes), each row's sum 1.

    Batch normalisation keeps its statistics: batches of videos are too small for new ones.

    Args:
        train, test: number of a video → its frames uint8 RGB (F, H, W, 3), for training from 0 to len(labels) - 1.
        labels: of the training videos.
        progress: called with (steps done, all steps).

    Raises:
        ModelUnavailable: the weights don't fit.
        ValueError: no training videos.
    """
    import torch

    if not labels:
        raise ValueError("no training videos")
    torch.set_num_threads(1)
    device = torch.device(training.device)
    y = torch.tensor(list(labels))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, last, normalised = _network(network, classes)
        model.to(device).train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        optimizer, schedule = _optimizer(model, last, training)
        for done, rows in enumerate(shuffled_batches(len(labels), training.batch, training.steps, seed), start=1):
            pixels = normalised([train(row) for row in rows]).to(device)
            loss = torch.nn.functional.cross_entropy(model(pixels), y[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress(done, training.steps)
    model.eval()
    chances = []
    with torch.inference_mode():
        for start in range(0, tests, PREDICT_BATCH):
            pixels = normalised([test(video) for video in range(start, min(tests, start + PREDICT_BATCH))]).to(device)
            chances.append(model(pixels).softmax(dim=1).float().cpu().numpy())
    return np.concatenate(chances) if chances else np.zeros((0, classes), np.float32)


def _optimizer(
    model: "torch.nn.Module", last: "torch.nn.Module", training: FullTraining
) -> "tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]":
    """AdamW with ten times the rate for the new last layer; the schedule rises in a line and falls as a cosine."""
    import torch

    new = {id(parameter) for parameter in last.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in new], "lr": training.learning_rate},
        {"params": list(last.parameters()), "lr": 10 * training.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=training.weight_decay)
    warm = max(1, round(WARM_UP * training.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.5 * (1 + float(np.cos(np.pi * step / training.steps))))
    )
    return optimizer, schedule


def _network(network: Network, classes: int) -> tuple[Any, Any, Callable[[Sequence[np.ndarray]], Any]]:
    """(B, F, 3, H, W) → (B, classes); its new last layer; what makes a normalised batch of frames."""
    from torch import nn

    if network.name == MOBILENET:

        class OverTime(nn.Module):
            """The mean over time of each frame's pooled features."""

            def __init__(self) -> None:
                super().__init__()
                self.features = mobilenet_features()
                self.last = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(1280, classes))

            def forward(self, x: Any) -> Any:
                videos, frames = x.shape[:2]
                pooled = self.features(x.flatten(0, 1)).mean(dim=(2, 3))
                return self.last(pooled.unflatten(0, (videos, frames)).mean(1))

        model: Any = OverTime()
        return model, model.last, _normaliser(network.side, MEAN, STD)
    folder = _files(network.name)[0].parent
    inner = _transformers_classifier(network.name, folder, classes)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Any) -> Any:
            return self.inner(pixel_values=x).logits

    mean, std = MEAN, STD
    settings = folder / "preprocessor_config.json"
    if settings.is_file():
        try:
            preprocessor = json.loads(settings.read_text(encoding="utf-8"))
            mean = np.array(preprocessor.get("image_mean", mean), np.float32).reshape(3)
            std = np.array(preprocessor.get("image_std", std), np.float32).reshape(3)
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelUnavailable(f"the video classifier {network.name!r}: bad {settings.name}: {error}") from error
    last = getattr(inner, "classifier", None)
    return Logits(), last if isinstance(last, nn.Module) else nn.Identity(), _normaliser(network.side, mean, std)


def _transformers_classifier(name: str, folder: Path, classes: int) -> Any:
    import torch
    from transformers import AutoModelForVideoClassification
    from transformers.utils import logging as transformers_logging

    config = _config(name)
    config.id2label = {number: str(number) for number in range(classes)}
    config.label2id = {label: number for number, label in config.id2label.items()}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(
        logging.ERROR
    )  # that the last layer is new is meant; anything else missing is an error below
    try:
        model, loaded = AutoModelForVideoClassification.from_pretrained(
            folder,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelUnavailable(f"the video classifier {name!r} cannot be loaded: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    mismatched = [key[0] if isinstance(key, tuple) else key for key in loaded["mismatched_keys"]]
    lost = sorted(key for key in [*loaded["missing_keys"], *mismatched] if not key.startswith(NEW_LAYERS))
    if lost:
        raise ModelUnavailable(f"the video classifier {name!r}: its files lack {len(lost)} weights, such as {lost[0]}")
    return model


def _normaliser(side: int, mean: np.ndarray, std: np.ndarray) -> Callable[[Sequence[np.ndarray]], Any]:
    import torch

    def normalised(videos: Sequence[np.ndarray]) -> Any:
        """Videos uint8 (F, H, W, 3), squeezed to squares: nothing is cropped."""
        pixels = torch.from_numpy(np.stack([squeezed(video, side) for video in videos])).float() / 255
        return ((pixels - torch.from_numpy(mean)) / torch.from_numpy(std)).permute(0, 1, 4, 2, 3).contiguous()

    return normalised


def squeezed(frames: np.ndarray, side: int) -> np.ndarray:
    """uint8 (F, H, W, 3) → (F, side, side, 3)."""
    import cv2

    if frames.shape[1:3] == (side, side):
        return frames
    return np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in frames])


def _files(name: str) -> tuple[Path, ...]:
    return hub_files(name, _PATTERNS, f"the video classifier {name!r}", f"without a network choose {MOBILENET!r}")


def _config(name: str) -> Any:
    from transformers import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING, AutoConfig

    folder = _files(name)[0].parent
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailable(f"the video classifier {name!r}: its config.json cannot be read: {error}") from error
    if type(config) not in MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING:
        raise ModelUnavailable(
            f"{name!r} is no video classifier of transformers (VideoMAE, TimeSformer, …) but {config.model_type!r}"
        )
    return config
