"""Is this frame medical, and of which kind?

A frozen image encoder (`models.encoders`) and a head (`models.segmentation.heads`). Three ways to a head: the packaged
one for the offline encoder, as in the paper (a classifier on CLIP visual embeddings); one trained for any encoder by
`medgen train-frames`; or zero-shot, where the embedded prompts of each class are the head of a CLIP-class model. A
trained head knows between which probabilities it can't tell: there it is unsure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from medgen.canonical import digest_of
from models import ModelUnavailable
from models.encoders import (
    MOBILENET,
    MOBILENET_DIMENSION,
    MOBILENET_PARTS,
    ClipEncoder,
    Encoder,
    MobileNetEncoder,
    ServedEncoder,
    encoder_digest,
    features_digest,
    load_encoder,
    shown_name,
    tokenizer_digest,
)
from models.hub_files import file_digest
from models.segmentation.heads import NON_MEDICAL, FrameHead, LinearHead, read_head

DEFAULT_HEAD = Path(__file__).parents[1] / "weights" / "frame_head.safetensors"
DEFAULT_PROMPTS = Path(__file__).parents[1] / "prompts" / "frame_classes_v2.txt"


@dataclass(frozen=True)
class FrameModel:
    """An encoder with its head.

    Args:
        classes: names of the classes, one of which is "non-medical"; P(medical) is 1 - P(non-medical).
        unsure: (low, high): with a P(medical) between the two the model is unsure, see
            `models.segmentation.validation.bounds_of_doubt`. A model that was not validated is nowhere unsure.
    """

    name: str
    digest: str
    classes: tuple[str, ...]
    encoder: Encoder
    head: FrameHead
    unsure: tuple[float, float] = (0.5, 0.5)

    def features(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, F): see `Encoder.features`, of frames uint8 RGB (H, W, 3). Raises ValueError for others."""
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
                raise ValueError(f"a frame must be uint8 (H, W, 3), not {frame.dtype} {frame.shape}")
        if not len(frames):
            return np.zeros((0, self.head.dimension), np.float32)
        return self.encoder.features(frames)

    def embeddings(self, features: np.ndarray) -> np.ndarray:
        """float32 (N, D), each row of length 1: the part of the features whose cosines say how alike frames are."""
        packaged = features.shape[1] == sum(MOBILENET_PARTS)
        return features[:, :MOBILENET_DIMENSION] if packaged else features

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """float32 (N, K) over `classes`, rows adding up to 1."""
        return self.head.probabilities(features)

    def medical(self, features: np.ndarray) -> np.ndarray:
        """float32 (N,): probability that each frame is medical."""
        return 1.0 - self.probabilities(features)[:, self.classes.index(NON_MEDICAL)]


def medical_probability(frames: Sequence[np.ndarray], model: FrameModel | None = None) -> float:
    """Probability that a video is medical: the mean over its sampled frames, 0 to 1.

    The mean, because it is the share of medical frames softened by how sure each one is; one odd frame moves it by
    no more than its share. A video that is half medical lies near 0.5.

    Args:
        frames: uint8 RGB (H, W, 3), evenly spread over the video.
        model: the packaged one by default.

    Raises:
        ValueError: no frame, or another array.
    """
    if not len(frames):
        raise ValueError("a video is judged by its frames: none are given")
    model = model or _packaged()
    return float(model.medical(model.features(frames)).mean())


@cache
def _packaged() -> FrameModel:
    return load_frame_model()


def load_frame_model(
    name: str = MOBILENET, head: Path | None = None, prompts: Path | None = None, *, served: bool = False
) -> FrameModel:
    """Loads encoder and head.

    Args:
        name: "mobilenet_v2", or a CLIP-class model of transformers by hub name or local folder.
        head: a head trained for that encoder; the packaged one by default.
        prompts: judge zero-shot with these prompts (`DEFAULT_PROMPTS`, or a file like it) instead of a head.
        served: leave the encoder to an inference process, see `medgen.inference`.

    Raises:
        ModelUnavailable: the encoder's weights, the head or the prompts are not to be had.
        ValueError: the head was trained for another encoder, its arrays do not fit its card, the prompts lack the
            class "non-medical", or both a head and prompts are given.
    """
    digest = frame_model_digest(name, head, prompts)
    encoder = ServedEncoder(name) if served else load_encoder(name)
    if prompts is None:
        card, own = read_head(head or DEFAULT_HEAD)
        low, high = card.get("unsure", (0.5, 0.5))
        return FrameModel(shown_name(name), digest, tuple(card["classes"]), encoder, own, (low, high))
    by_class = read_prompts(prompts)
    assert not isinstance(encoder, MobileNetEncoder)  # which has no tokenizer, and no digest
    return FrameModel(
        shown_name(name), digest, tuple(by_class), encoder, _prompt_head(encoder, list(by_class.values()))
    )


def frame_model_digest(name: str = MOBILENET, head: Path | None = None, prompts: Path | None = None) -> str:
    """sha256 over the encoder (weights and settings) and the head file, or tokenizer and prompts. Loads no model.

    Raises as `load_frame_model`, so that a run stops before its first frame when a part is missing.
    """
    if prompts is not None:
        if head is not None:
            raise ValueError("a frame is judged by a head or by prompts, not by both")
        tokenizer = tokenizer_digest(name)
        return digest_of({"encoder": encoder_digest(name), "tokenizer": tokenizer, "prompts": read_prompts(prompts)})
    head = head or DEFAULT_HEAD
    encoder = encoder_digest(name)
    card, _ = read_head(head)
    if card["encoder_digest"] != encoder:
        raise ValueError(
            f"the head {head.name} was trained for {card['encoder']!r} ({card['dimension']} numbers per frame), "
            f"not for {name!r} as it is here: train one with `medgen train-frames FOLDER --encoder {name}`, "
            "or judge zero-shot"
        )
    return head_model_digest(features_digest(name), file_digest(head))


def head_model_digest(encoder: str, head: str) -> str:
    """The digest of a frame model from that of its encoder's features and the sha256 of its head file."""
    return digest_of({"encoder": encoder, "head": head})


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """Class → prompts of a text file: `[class]` lines, a prompt per line under each, # for remarks.

    Raises:
        ModelUnavailable: there is no such file.
        ValueError: a prompt stands before the first class, a class has no prompt, or "non-medical" or a second
            class is missing.
    """
    if not path.is_file():
        raise ModelUnavailable(f"no prompts at {path}; the packaged ones are {DEFAULT_PROMPTS.name}")
    classes: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in (line.strip() for line in path.read_text(encoding="utf-8").splitlines()):
        if line.startswith("[") and line.endswith("]"):
            current = classes.setdefault(line[1:-1].strip(), [])
        elif line and not line.startswith("#"):
            if current is None:
                raise ValueError(f"{path.name}: the prompt {line!r} stands before the first [class]")
            current.append(line)
    if NON_MEDICAL not in classes or len(classes) < 2:
        raise ValueError(f"{path.name}: needs the class {NON_MEDICAL!r} and at least one other, has {list(classes)}")
    if empty := [name for name, prompts in classes.items() if not prompts]:
        raise ValueError(f"{path.name}: no prompt for {', '.join(empty)}")
    return {name: tuple(prompts) for name, prompts in classes.items()}


def _prompt_head(encoder: ClipEncoder | ServedEncoder, prompts: Sequence[Sequence[str]]) -> LinearHead:
    """Prompts as a linear head: per class the mean of the embedded prompts, scaled to length 1 (Radford et al. 2021,
    CLIP, section 3.1.4: prompt ensembling in embedding space), times the model's own logit scale.

    SigLIP was trained with a sigmoid per pair of picture and text. Softmax over the classes is right for it too where
    exactly one class holds; its logit bias is the same for all classes and cancels out.
    """
    means = [encoder.embed_texts(texts).mean(axis=0) for texts in prompts]
    weight = np.stack([encoder.logit_scale * mean / np.linalg.norm(mean) for mean in means]).astype(np.float32)
    classes, dimension = weight.shape
    zeros = np.zeros(dimension, np.float32)
    return LinearHead(weight, np.zeros(classes, np.float32), zeros, np.ones(dimension, np.float32))
