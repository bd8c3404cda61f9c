"""Heads: what a frozen encoder's features of a frame say of it.

A kernel head compares a frame with the frames that it was trained on, part by part of the encoder's features (each
in its leading principal components), by Gaussian kernels that are averaged. Its scores are those of a least-squares
support vector machine (Suykens and Vandewalle 1999, "Least Squares Support Vector Machine Classifiers"): the first says
medical or not, the others which kind. A logistic curve makes P(medical) of the first (Platt 1999), a softmax the shares
of the kinds of the others. A linear head is multinomial logistic regression on the embedding, as the prompts of
zero-shot judging are.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from models import ModelUnavailable

NON_MEDICAL = "non-medical"
# The key of a head file's metadata. One key only: safetensors writes several in random order.
HEAD_CARD = "frame_head"
ROWS = 256  # frames that are compared at once: memory stays small however long a video is


class FrameHead(Protocol):
    """Features of frames in, probabilities of classes out; the last class is "non-medical" or it is among them."""

    @property
    def dimension(self) -> int:
        """Numbers per frame that it reads."""
        ...

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """float32 (N, K), rows adding up to 1, of features float32 (N, F) with F >= `dimension`."""
        ...


@dataclass(frozen=True)
class LinearHead:
    """Softmax of a linear layer on standardised embeddings: the leading `dimension` numbers of the features.

    Args:
        weight: float32 (K, D). bias: float32 (K,). mean, std: float32 (D,).
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.weight.shape[1])

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """See `FrameHead`."""
        logits: np.ndarray = (features[:, : self.dimension] - self.mean) / self.std @ self.weight.T + self.bias
        return softmax(logits)


@dataclass(frozen=True)
class Projection:
    """Features in the leading principal components of each part, scaled to a mean square length of 1.

    Args:
        parts: numbers of each part of the features, in order.
        mean, std: float32 (F,). axes: float16 or float32 (F, C), the components of each part in its own rows.
    """

    parts: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    axes: np.ndarray

    def __call__(self, features: np.ndarray) -> list[np.ndarray]:
        """Of each part float32 (N, C). Raises ValueError for features that lack some.

        Parts that an encoder has gained since are left out of account.
        """
        if features.shape[1] < len(self.mean):
            raise ValueError(f"{features.shape[1]} numbers per frame, not {len(self.mean)}")
        standard = ((features[:, : len(self.mean)] - self.mean) / self.std).astype(np.float32)
        edges = np.concatenate([[0], np.cumsum(self.parts)])
        return [
            standard[:, start:end] @ self.axes[start:end].astype(np.float32) for start, end in itertools.pairwise(edges)
        ]


def likeness(one: Sequence[np.ndarray], other: Sequence[np.ndarray], gamma: float) -> np.ndarray:
    """float32 (N, M), 0 to 1: the mean over the parts of exp(-gamma |x - y|²), of parts (N, C) and (M, C)."""
    total = np.zeros((len(one[0]), len(other[0])), np.float32)
    for x, y in zip(one, other, strict=True):
        squares = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)[None] - 2 * (x @ y.T)
        total += np.exp(-gamma * np.maximum(squares, 0))
    return total / len(one)


@dataclass(frozen=True)
class KernelHead:
    """See the module.

    Args:
        projection: what the features are compared in.
        vectors: of each part float32 (M, C), the training frames.
        duals: float32 (M, 1 + kinds), weight of the likeness to each, for P(medical) and for each kind.
        bias: float32 (1 + kinds,).
        gamma: of the kernel.
        slope, offset: P(medical) = sigmoid(slope * score + offset).
        sharpness: shares of the kinds = softmax(sharpness * scores).
        other: place of "non-medical" among the classes.
    """

    projection: Projection
    vectors: Sequence[np.ndarray]
    duals: np.ndarray
    bias: np.ndarray
    gamma: float
    slope: float
    offset: float
    sharpness: float
    other: int

    @property
    def dimension(self) -> int:
        """F."""
        return sum(self.projection.parts)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """float32 (N, 1 + kinds) before calibration."""
        found = [np.zeros((0, len(self.bias)), np.float32)]
        for start in range(0, len(features), ROWS):
            seen = self.projection(features[start : start + ROWS])
            found.append((likeness(seen, self.vectors, self.gamma) @ self.duals + self.bias).astype(np.float32))
        return np.concatenate(found)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """See `FrameHead`."""
        return calibrated(self.scores(features), self.slope, self.offset, self.sharpness, self.other)


def calibrated(scores: np.ndarray, slope: float, offset: float, sharpness: float, other: int) -> np.ndarray:
    """float32 (N, K) class probabilities of scores (N, K): see `KernelHead`. "non-medical" stands at `other`."""
    medical = 1 / (1 + np.exp(-np.clip(slope * scores[:, :1] + offset, -50, 50)))
    kinds = softmax(sharpness * scores[:, 1:]) * medical
    return np.insert(kinds, other, 1 - medical[:, 0], axis=1).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (N, K), rows adding up to 1."""
    powers: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def kernel_arrays(head: KernelHead) -> dict[str, np.ndarray]:
    """The arrays of a kernel head's file. Half precision: verdicts of training frames move by less than 0.001."""
    return {
        "mean": head.projection.mean.astype(np.float32),
        "std": head.projection.std.astype(np.float32),
        "axes": head.projection.axes.astype(np.float16),
        "vectors": np.concatenate(list(head.vectors), axis=1).astype(np.float16),
        "duals": head.duals.astype(np.float32),
        "bias": head.bias.astype(np.float32),
    }


def read_head(path: Path) -> tuple[dict[str, Any], FrameHead]:
    """Card (encoder, encoder_digest, dimension, classes, …) and head of a file.

    Raises:
        ModelUnavailable: there is no such file.
        ValueError: it is no head, or its arrays do not fit its card.
    """
    if not path.is_file():
        raise ModelUnavailable(f"no head at {path}: train one with `medgen train-frames`")
    try:
        with safe_open(path, framework="numpy") as file:
            card = json.loads(file.metadata()[HEAD_CARD])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no dictionary)
        if NON_MEDICAL not in card["classes"]:
            raise ValueError(f"it needs the class {NON_MEDICAL!r}")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("it holds numbers that are not finite")
        head: FrameHead = _kernel(card, arrays) if "parts" in card else _linear(card, arrays)
        low, high = card.get("unsure", (0.5, 0.5))
        if not 0 <= low <= high <= 1:
            raise ValueError("its bounds of doubt lie outside 0 to 1")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a head made by `medgen train-frames`: {error}") from error
    return card, head


def _linear(card: dict[str, Any], arrays: dict[str, np.ndarray]) -> LinearHead:
    """A head of before kernels, its logits divided by the card's temperature."""
    classes, dimension, temperature = len(card["classes"]), card["dimension"], float(card.get("temperature", 1.0))
    shapes = {"weight": (classes, dimension), "bias": (classes,), "mean": (dimension,), "std": (dimension,)}
    if any(arrays[key].shape != shape for key, shape in shapes.items()):
        raise ValueError(f"the arrays do not have {classes} classes and {dimension} numbers per frame")
    if not temperature > 0:
        raise ValueError("it needs a temperature above 0")
    own = {key: (arrays[key] / (temperature if key in ("weight", "bias") else 1)).astype(np.float32) for key in shapes}
    return LinearHead(**own)


def _kernel(card: dict[str, Any], arrays: dict[str, np.ndarray]) -> KernelHead:
    parts, classes, dimension = tuple(int(part) for part in card["parts"]), len(card["classes"]), card["dimension"]
    vectors, axes, duals = (arrays[key].astype(np.float32) for key in ("vectors", "axes", "duals"))
    components = axes.shape[1]
    shapes = {
        "mean": (dimension,),
        "std": (dimension,),
        "axes": (dimension, components),
        "vectors": (len(duals), components * len(parts)),
        "duals": (len(duals), classes),
        "bias": (classes,),
    }
    if sum(parts) != dimension or any(arrays[key].shape != shape for key, shape in shapes.items()):
        raise ValueError(f"the arrays do not have {classes} classes and {dimension} numbers per frame")
    return KernelHead(
        Projection(parts, arrays["mean"], arrays["std"], axes),
        np.split(vectors, len(parts), axis=1),
        duals,
        arrays["bias"],
        gamma=float(card["gamma"]),
        slope=float(card["slope"]),
        offset=float(card["offset"]),
        sharpness=float(card["sharpness"]),
        other=card["classes"].index(NON_MEDICAL),
    )
