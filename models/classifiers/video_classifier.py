"""Video classifiers: a temporal head on a frozen image encoder, or a whole network that is trained.

Frozen: the encoder's embeddings of evenly spaced frames go through a PCA that is fitted to the training frames, then
through a small head. Whole: torchvision's MobileNetV2 frame by frame with its mean over time, or by name any video
classifier of transformers (VideoMAE, TimeSformer, ViViT, …); safetensors weights only.

Every training takes the same number of steps whatever the number of videos, so that no set of videos can win by being
trained on for longer. On one CPU the same seed gives the same classifier.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError

from medgen.canonical import digest_of
from models import ModelUnavailable
from models.encoders import MEAN, MOBILENET, MOBILENET_SIDE, STD, encoder_digest, mobilenet_features
from models.hub_files import digests, hub_files

TemporalHead = Literal["statistics", "attention", "gru"]

COMPONENTS = 64  # of the PCA
WIDTH = 64  # of the head's hidden layer
HEAD_BATCH = 64
HEAD_LEARNING_RATE = 3e-3
HEAD_WEIGHT_DECAY = 0.05
DROPOUT = 0.2
PREDICT_BATCH = 16
WARM_UP = 0.1  # part of the steps of a full training
NEW_LAYERS = ("classifier.", "fc_norm.")  # of a pre-trained transformers model, which training makes anew
# What a frozen classifier is beside its encoder and parameters.
HEAD_RECIPE = {
    "version": 1, "components": COMPONENTS, "width": WIDTH, "batch": HEAD_BATCH, "learning_rate": HEAD_LEARNING_RATE,
    "weight_decay": HEAD_WEIGHT_DECAY, "dropout": DROPOUT,
}  # fmt: skip

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


def fit_frozen(
    train: np.ndarray,
    labels: Sequence[int],
    test: np.ndarray,
    classes: int,
    *,
    head: TemporalHead,
    steps: int,
    seed: int,
) -> np.ndarray:
    """Trains a head on embeddings and judges others: float32 (T, classes), each row's sum 1.

    Args:
        train, test: float32 (N, F, D) and (T, F, D): embeddings of F frames of each video.
        labels: of the training videos, from 0 to `classes` - 1. A class without any is never found.

    Raises:
        ValueError: no training videos.
    """
    import torch

    if not len(train):
        raise ValueError("no training videos")
    torch.set_num_threads(1)
    reduced, centre, scale = _pca(train, seed)
    x = torch.from_numpy(((train - centre) @ reduced / scale).astype(np.float32))
    unseen = torch.from_numpy(((test - centre) @ reduced / scale).astype(np.float32))
    y = torch.tensor(list(labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _head(head, x, classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=HEAD_LEARNING_RATE, weight_decay=HEAD_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, HEAD_LEARNING_RATE, total_steps=steps)
        batches = _batches(len(x), HEAD_BATCH, steps, seed)
        model.train()
        for rows in batches:
            loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        return np.asarray(model(unseen).softmax(dim=1))


def _pca(train: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Components (D, P), centre (D,) and scale of the frames: the root of their variance per component."""
    from sklearn.decomposition import PCA

    frames = train.reshape(-1, train.shape[-1])
    wanted = max(1, min(COMPONENTS, len(frames) - 1, frames.shape[1]))
    fitted = PCA(wanted, svd_solver="randomized", random_state=seed).fit(frames)
    scale = float(np.sqrt(fitted.explained_variance_.mean())) or 1.0
    return fitted.components_.T, fitted.mean_, scale


def _batches(videos: int, size: int, steps: int, seed: int) -> list[list[int]]:
    """Rows of each step: whole shuffled rounds, cut into batches."""
    chance = np.random.default_rng(seed)
    size = min(size, videos)
    rounds = -(-steps * size // videos)
    order = np.concatenate([chance.permutation(videos) for _ in range(rounds)])
    return [order[start : start + size].tolist() for start in range(0, steps * size, size)]


def _head(kind: TemporalHead, x: Any, classes: int) -> Any:
    """An untrained head for (B, F, P); its scales are those of the training videos `x`."""
    from torch import nn

    frames, width = x.shape[1:]
    if kind == "statistics":
        return nn.Sequential(
            _statistics(x),
            nn.Dropout(DROPOUT),
            nn.Linear(3 * width, WIDTH),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(WIDTH, classes),
        )
    return _attention(frames, width, classes) if kind == "attention" else _gru(width, classes)


def _statistics(x: Any) -> Any:
    """(B, F, P) → (B, 3P): mean, standard deviation and mean step from frame to frame, on the scale of the
    means: where nothing much moves the other two are small and must not be blown up."""
    import torch
    from torch import nn

    def pooled(x: Any) -> Any:
        steps = (x[:, 1:] - x[:, :-1]).abs().mean(1) if x.shape[1] > 1 else torch.zeros_like(x[:, 0])
        return torch.stack([x.mean(1), x.std(1, correction=0), steps], dim=1)

    class Statistics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            seen = pooled(x)
            self.register_buffer("centre", seen.mean(0))
            size = (seen - self.centre)[:, 0].pow(2).mean().sqrt()
            self.register_buffer("size", size if size > 1e-6 else torch.ones(()))

        def forward(self, x: Any) -> Any:
            return ((pooled(x) - self.centre) / self.size).flatten(1)

    return Statistics()


def _attention(frames: int, width: int, classes: int) -> Any:
    import torch
    from torch import nn

    class Attention(nn.Module):
        """One learnt question to all frames, which know their places."""

        def __init__(self) -> None:
            super().__init__()
            self.narrow = nn.Linear(width, WIDTH)
            self.place = nn.Parameter(0.02 * torch.randn(frames, WIDTH))
            self.question = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
            self.attend = nn.MultiheadAttention(WIDTH, 4, dropout=DROPOUT, batch_first=True)
            self.decide = nn.Sequential(nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT), nn.Linear(WIDTH, classes))

        def forward(self, x: Any) -> Any:
            seen = self.narrow(x) + self.place
            answer, _ = self.attend(self.question.expand(len(x), -1, -1), seen, seen, need_weights=False)
            return self.decide(answer[:, 0] + seen.mean(1))

    return Attention()


def _gru(width: int, classes: int) -> Any:
    from torch import nn

    class Gru(nn.Module):
        """What a recurrent network knows after the last frame, and on average."""

        def __init__(self) -> None:
            super().__init__()
            self.read = nn.GRU(width, WIDTH, batch_first=True)
            self.decide = nn.Sequential(nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT), nn.Linear(WIDTH, classes))

        def forward(self, x: Any) -> Any:
            states, _ = self.read(x)
            return self.decide(states[:, -1] + states.mean(1))

    return Gru()


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
        new = {id(parameter) for parameter in last.parameters()}
        groups = [
            {"params": [p for p in model.parameters() if id(p) not in new], "lr": training.learning_rate},
            {"params": list(last.parameters()), "lr": 10 * training.learning_rate},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=training.weight_decay)
        warm = max(1, round(WARM_UP * training.steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / warm, 0.5 * (1 + np.cos(np.pi * step / training.steps))),
        )
        for done, rows in enumerate(_batches(len(labels), training.batch, training.steps, seed), start=1):
            pixels = normalised([train(row) for row in rows]).to(device)
            loss = torch.nn.functional.cross_entropy(model(pixels), y[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress(done, training.steps)
    model.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, tests, PREDICT_BATCH):
            batch = range(start, min(tests, start + PREDICT_BATCH))
            found.append(
                model(normalised([test(video) for video in batch]).to(device)).softmax(dim=1).float().cpu().numpy()
            )
    return np.concatenate(found) if found else np.zeros((0, classes), np.float32)


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
            told = json.loads(settings.read_text(encoding="utf-8"))
            mean = np.array(told.get("image_mean", mean), np.float32).reshape(3)
            std = np.array(told.get("image_std", std), np.float32).reshape(3)
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
