"""Features for Fréchet distances, by name: of frames for FID, of videos for FVD.

FID's own are those of an Inception network with the weights of its authors, as pytorch-fid has them. FVD's own are the
400 logits of I3D, trained on Kinetics-400, which comes as an ONNX export of one's own: its PyTorch form is a program,
which is not run here. A VideoMAE-class model stands for FVD less swayed by single frames (Ge et al. 2024, arXiv
2404.12391). MobileNetV2 from a package is a stand-in for Inception. The name goes into the metric's.
"""

import contextlib
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError

from medgen.canonical import digest_of
from models import ModelUnavailable
from models.encoders import MEAN, MOBILENET, STD, encoder_digest, load_encoder
from models.hub_files import digests, file_digest, hub_files
from models.metrics.backbones import metric_backbone
from models.metrics.flow import ONNX_PREFIX
from models.quality.pyiqa_metric import careful_fetching

INCEPTION = "inception"
INCEPTION_SIDE = 299
I3D_SIDE = 224
I3D_FRAMES = 16
BATCH = 16
_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")


class FrameFeatures(Protocol):
    """Features of single frames."""

    def features(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N, D) of frames uint8 RGB (H, W, 3) of one size."""
        ...


class VideoFeatures(Protocol):
    """Features of a video, of which it sees `frames` frames."""

    frames: int

    def features(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (D,) of `self.frames` frames uint8 RGB (H, W, 3) of one size, in order."""
        ...


class MobileNetFrames:
    """MobileNetV2's embeddings: a stand-in for Inception's."""

    def __init__(self) -> None:
        self.encoder = load_encoder(MOBILENET)

    def features(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `FrameFeatures`."""
        return self.encoder.embed(frames)


class Inception:
    """The 2,048 pooled features of FID's Inception (pytorch-fid, in pyiqa). Its weights are fetched once.

    Raises:
        ModelUnavailable: the weights are not to be had.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.net = _inception().to(device)

    def features(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `FrameFeatures`. Frames are squeezed to 299 × 299, as pytorch-fid does."""
        import torch

        rows = []
        with torch.inference_mode():
            for start in range(0, len(frames), BATCH):
                x = _squeezed(frames[start : start + BATCH], INCEPTION_SIDE).to(self.device)
                rows.append(self.net(2 * x - 1)[0].flatten(1).cpu().numpy())
        return np.concatenate(rows)


class OnnxVideo:
    """I3D or another network of videos, exported to ONNX.

    One input, float32 (1, 3, 16, 224, 224), -1 to 1; the first output, flattened, is the feature.

    Raises:
        ModelUnavailable: the file is no such model.
    """

    frames = I3D_FRAMES

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own for each fault of a file
            raise ModelUnavailable(f"{file} cannot be loaded as an ONNX model: {error}") from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise ModelUnavailable(f"{file} takes {len(inputs)} inputs; a network of videos takes one")
        self.input = inputs[0].name

    def features(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `VideoFeatures`."""
        x = 2 * _squeezed(frames, I3D_SIDE).permute(1, 0, 2, 3)[None].numpy() - 1
        return np.asarray(self.session.run(None, {self.input: x})[0], np.float32).reshape(-1)


class VideoMae:
    """The mean over all tokens of a VideoMAE-class model's last layer.

    Raises:
        ModelUnavailable: it can't be had, or is of another class.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        import torch
        from transformers import AutoConfig, VideoMAEModel

        self.device = device

        folder = _video_mae_files(name)[0].parent
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            if config.model_type != "videomae":
                raise ModelUnavailable(f"{name!r} is a {config.model_type}, no VideoMAE")
            self.net: Any = VideoMAEModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelUnavailable(f"VideoMAE {name!r} in {folder} cannot be loaded: {error}") from error
        self.net.train(False).to(device)
        self.frames, self.side = int(config.num_frames), int(config.image_size)

    def features(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """See `VideoFeatures`."""
        import torch

        x = (_squeezed(frames, self.side) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        with torch.inference_mode():
            tokens = self.net(pixel_values=x[None].to(self.device)).last_hidden_state[0]
            return np.asarray(tokens.mean(dim=0).cpu().numpy())


def load_frame_features(name: str, device: str = "cpu") -> FrameFeatures:
    """mobilenet_v2 or inception, the latter on a device of PyTorch. Raises ModelUnavailable, ValueError."""
    _check_frame_name(name)
    return MobileNetFrames() if name == MOBILENET else Inception(device)


def load_video_features(name: str, device: str = "cpu") -> VideoFeatures:
    """onnx:FILE, on the CPU, or a VideoMAE-class model by hub name or folder, on a device. Raises ModelUnavailable."""
    return OnnxVideo(_onnx_file(name)) if name.startswith(ONNX_PREFIX) else VideoMae(name, device)


def frame_features_digest(name: str) -> str:
    """sha256 of what gives the features of frames. Loads nothing. Raises ModelUnavailable, ValueError."""
    _check_frame_name(name)
    if name == MOBILENET:
        return encoder_digest(MOBILENET)
    return digest_of({"name": "pt_inception-2015-12-05-6726825d.pth", "side": INCEPTION_SIDE, "features": "pooled"})


def video_features_digest(name: str) -> str:
    """sha256 of what gives the features of videos. Loads nothing. Raises ModelUnavailable."""
    if name.startswith(ONNX_PREFIX):
        return digest_of({"onnx": file_digest(_onnx_file(name)), "input": [I3D_FRAMES, I3D_SIDE]})
    return digest_of({"files": digests(_video_mae_files(name)), "feature": "mean of the last layer"})


def fid_name(name: str) -> str:
    """The metric's name, its backbone in brackets."""
    return f"fid[{name}]"


def fvd_name(name: str) -> str:
    """The metric's name, its backbone in brackets. Raises as `video_features_digest`."""
    digest = video_features_digest(name)
    if name.startswith(ONNX_PREFIX):
        return f"fvd[{_onnx_file(name).stem}@{digest[:8]}]"
    return f"fvd[{metric_backbone(name, digest)}]"


def _squeezed(frames: Sequence[np.ndarray], side: int) -> Any:
    """float32 (N, 3, side, side), 0 to 1, bilinear without smoothing."""
    import torch

    x = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def _inception() -> Any:
    with careful_fetching(), contextlib.redirect_stdout(sys.stderr):
        try:
            from pyiqa.archs.inception import InceptionV3

            return InceptionV3().eval()
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise ModelUnavailable(
                f"FID's Inception can't be had ({type(error).__name__}: {str(error)[:200]}); without a network choose "
                f"{MOBILENET!r}, which gives another metric, or leave metric_fid empty"
            ) from error


def _check_frame_name(name: str) -> None:
    if name not in (MOBILENET, INCEPTION):
        raise ValueError(f"FID's features are of {INCEPTION!r} or {MOBILENET!r}, not {name!r}")


def _onnx_file(name: str) -> Path:
    file = Path(name.removeprefix(ONNX_PREFIX))
    if not file.is_file():
        raise ModelUnavailable(f"{file}: no such file; export I3D to ONNX, or leave metric_fvd empty")
    return file


def _video_mae_files(name: str) -> tuple[Path, ...]:
    return hub_files(name, _FILES, f"VideoMAE {name!r}", "leave metric_fvd empty to go without")
