"""Optical flow and frame interpolation, and what is measured with them: is the video dynamic, is its motion smooth?

VBench measures dynamics by RAFT and smoothness by the interpolator AMT. RAFT is torchvision's; AMT comes as an ONNX
export of one's own. The packaged stand-in for both is DIS optical flow (Kroeger et al. 2016) of OpenCV.
"""

import math
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from medgen.canonical import digest_of
from medgen.inference import onnx_providers
from models import ModelUnavailable
from models.hub_files import file_digest

DIS = "dis"
RAFTS = ("raft_large", "raft_small")
ONNX_PREFIX = "onnx:"
# VBench, dynamic_degree: frames at 8 per second; a pair moves when the fastest 5 % of its pixels move by more than 6
# pixels for each 256 of the short side; a video is dynamic when 4 in 16 of its frames do. VBench rounds that down to no
# frame at all for a video of two; here one must move.
DYNAMIC_FPS = 8.0
DYNAMIC_SHARE = 0.05
DYNAMIC_PIXELS = 6.0 / 256.0
DYNAMIC_PAIRS = 4.0 / 16.0
RAFT_LEAST_SIDE = 128  # torchvision's RAFT correlates at an eighth of the size over four levels
RAFT_UPDATES = 20
RAFT_DIVISOR = 8  # sides that RAFT and AMT take must be divisible by these
AMT_DIVISOR = 16


class Flow(Protocol):
    """Optical flow between two frames."""

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """float32 (H, W, 2): x and y displacement, pixels, of frames uint8 RGB (H, W, 3)."""
        ...


class DisFlow:
    """DIS optical flow, preset medium, on grey levels."""

    def __init__(self) -> None:
        self.dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """See `Flow`."""
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after)]
        height, width = before.shape[:2]
        # Below 32 pixels DIS has no level to work on.
        scale = max(1.0, 32 / min(height, width))
        if scale > 1:
            size = (math.ceil(width * scale), math.ceil(height * scale))
            grey = [cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in grey]
        flow = self.dis.calc(grey[0], grey[1], None)  # type: ignore[call-overload]  # None: no first guess
        if scale > 1:
            flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR) / np.float32(scale)
        return np.asarray(flow)


class RaftFlow:
    """RAFT (Teed and Deng 2020), torchvision's.

    Frames are padded by their edges to multiples of 8, and the flow is that of the padded frames: VBench counts what
    moves there too. Frames with a side below RAFT_LEAST_SIDE are enlarged before, for RAFT takes no smaller ones.
    """

    def __init__(self, net: Any, device: str = "cpu") -> None:
        self.net, self.device = net.eval().to(device), device

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """float32 (H', W', 2), the sides rounded up to multiples of 8; see `Flow`."""
        import torch

        height, width = before.shape[:2]
        scale = max(1.0, RAFT_LEAST_SIDE / min(height, width))
        with torch.inference_mode():
            pair = torch.from_numpy(np.stack([before, after])).to(self.device).permute(0, 3, 1, 2).float()
            if scale > 1:
                size = [math.ceil(side * scale) for side in (height, width)]
                pair = torch.nn.functional.interpolate(pair, size=size, mode="bilinear", align_corners=False)
            sides = edges(pair.shape[2], pair.shape[3], RAFT_DIVISOR)
            pair = torch.nn.functional.pad(pair, (*sides[1], *sides[0]), mode="replicate")
            pair = 2 * (pair / 255) - 1
            flow = self.net(pair[:1], pair[1:], num_flow_updates=RAFT_UPDATES)[-1][0]
        return np.asarray(flow.permute(1, 2, 0).cpu().numpy() / np.float32(scale))


def edges(height: int, width: int, divisor: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """((above, below), (left, right)): rows and columns that make the sides divisible, half of them on each side."""
    more = (-height % divisor, -width % divisor)
    return (more[0] // 2, more[0] - more[0] // 2), (more[1] // 2, more[1] - more[1] // 2)


def load_flow(name: str, device: str = "cpu") -> Flow:
    """dis (on the CPU), or raft_large or raft_small (weights from PyTorch's server or cache) on a device of PyTorch.

    Raises ModelUnavailable, ValueError.
    """
    if name == DIS:
        return DisFlow()
    weights = _raft_weights(name)
    from torchvision.models import get_model

    net = get_model(name, weights=None)
    try:
        # The file's name begins its sha256, which is checked, and nothing but tensors is unpickled.
        net.load_state_dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ModelUnavailable(
            f"weights of {name} are neither in PyTorch's cache nor to be had ({type(error).__name__}: {error}); "
            f"without a network choose {DIS!r}"
        ) from error
    return RaftFlow(net, device)


def flow_digest(name: str) -> str:
    """sha256 of a flow's name, weights and settings. Raises ValueError."""
    if name == DIS:
        return digest_of({"name": "DIS, preset medium", "opencv": cv2.__version__})
    return digest_of(
        {
            "name": name,
            "weights": _raft_weights(name).url.rsplit("/", 1)[-1],
            "updates": RAFT_UPDATES,
            "padded": RAFT_DIVISOR,
        }
    )


def _raft_weights(name: str) -> Any:
    if name not in RAFTS:
        raise ValueError(f"optical flow is {DIS!r} or one of {', '.join(RAFTS)}, not {name!r}")
    from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights

    # The authors' own, ported: the large ones are `raft-things.pth`, which VBench uses.
    return (Raft_Large_Weights if name == "raft_large" else Raft_Small_Weights).C_T_V1


class Dynamics:
    """Gathers how fast the fastest pixels of a video move; see DYNAMIC_PIXELS and the like for the rule."""

    def __init__(self, flow: Flow, fps: float) -> None:
        self.flow = flow
        self.every = max(1, round(fps / DYNAMIC_FPS)) if fps > 0 else 1
        self.speeds: list[float] = []
        self.last: np.ndarray | None = None
        self.frames = 0

    def process_frame(self, index: int, frame: np.ndarray) -> None:
        """Takes frame number `index`, uint8 RGB (H, W, 3)."""
        if index % self.every:
            return
        self.frames += 1
        if self.last is not None:
            self.speeds.append(fastest(self.flow(self.last, frame)) / min(frame.shape[:2]))
        self.last = frame

    @property
    def dynamic(self) -> float:
        """1.0 when the video is dynamic, else 0.0."""
        needed = round(DYNAMIC_PAIRS * self.frames)
        return float(sum(speed > DYNAMIC_PIXELS for speed in self.speeds) >= max(1, needed))

    @property
    def speed(self) -> float:
        """Mean over pairs of the speed of the fastest 5 % of pixels, in short sides per step of an eighth second."""
        return float(np.mean(self.speeds)) if self.speeds else 0.0


def fastest(flow: np.ndarray) -> float:
    """Mean length of the longest 5 % of displacements, pixels."""
    lengths = np.sort(np.hypot(flow[..., 0], flow[..., 1]), axis=None)[::-1]
    return float(lengths[: max(1, int(lengths.size * DYNAMIC_SHARE))].mean())


class Interpolator(Protocol):
    """Guesses the frame in the middle between two."""

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3)."""
        ...


class DisInterpolator:
    """The middle of two frames by DIS flow in both directions.

    The flow from the middle is approximated from both as in Super SloMo (Jiang et al. 2018, equation 4, at t = 1/2),
    the two warped frames are averaged. Occlusions are not modelled: it is a stand-in.
    """

    def __init__(self) -> None:
        self.flow = DisFlow()

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """See `Interpolator`."""
        if np.array_equal(before, after):
            return before
        there, back = self.flow(before, after), self.flow(after, before)
        y, x = np.mgrid[: before.shape[0], : before.shape[1]].astype(np.float32)
        middles = []
        for frame, move in ((before, (back - there) / 4), (after, (there - back) / 4)):
            where = (x + move[..., 0], y + move[..., 1])
            middles.append(cv2.remap(frame, *where, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
        return cv2.addWeighted(middles[0], 0.5, middles[1], 0.5, 0)


class OnnxInterpolator:
    """An interpolator such as AMT exported to ONNX.

    Inputs: two frames, float32 (1, 3, H, W), 0 to 1, H and W divisible by 16; and, if there is a third, the moment 0.5
    as float32 (1, 1, 1, 1). Output: the frame between, like the first two. Frames are padded by their edges to
    multiples of 16, half on each side, and levels are cut off to whole ones, not rounded: as VBench does.
    """

    def __init__(self, file: Path, device: str = "cpu") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=onnx_providers(device))
        except Exception as error:  # onnxruntime raises classes of its own for each fault of a file
            raise ModelUnavailable(f"{file} cannot be loaded as an ONNX model: {error}") from error
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        if len(self.inputs) not in (2, 3):
            raise ModelUnavailable(
                f"{file} takes {len(self.inputs)} inputs; an interpolator takes two frames (and 0.5)"
            )

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """See `Interpolator`."""
        height, width = before.shape[:2]
        (above, below), (left, right) = edges(height, width, AMT_DIVISOR)
        pads = ((above, below), (left, right), (0, 0))
        frames = [
            np.pad(f, pads, mode="edge").transpose(2, 0, 1)[None].astype(np.float32) / 255 for f in (before, after)
        ]
        given = [*frames, np.full((1, 1, 1, 1), 0.5, np.float32)]
        outputs = self.session.run(None, dict(zip(self.inputs, given, strict=False)))
        middle: np.ndarray = outputs[0][0].transpose(1, 2, 0)[above : above + height, left : left + width] * np.float32(
            255
        )
        return np.asarray(np.clip(np.nan_to_num(middle), 0, 255), np.uint8)


def load_interpolator(name: str, device: str = "cpu") -> Interpolator:
    """dis, or onnx:FILE on a GPU where ONNX Runtime knows it. Raises ModelUnavailable, ValueError."""
    return DisInterpolator() if name == DIS else OnnxInterpolator(_onnx_file(name), device)


def interpolator_digest(name: str) -> str:
    """sha256 of an interpolator. Raises ModelUnavailable, ValueError."""
    if name == DIS:
        return digest_of({"name": "middle by DIS flow", "flow": flow_digest(DIS)})
    return digest_of({"onnx": file_digest(_onnx_file(name)), "padded": AMT_DIVISOR, "levels": "cut off"})


def _onnx_file(name: str) -> Path:
    if not name.startswith(ONNX_PREFIX):
        raise ValueError(f"an interpolator is {DIS!r} or {ONNX_PREFIX}FILE, not {name!r}")
    file = Path(name.removeprefix(ONNX_PREFIX))
    if not file.is_file():
        raise ModelUnavailable(f"{file}: no such file; export AMT to ONNX, or choose {DIS!r}")
    return file


class Smoothness:
    """Gathers how well every second frame can be guessed from its neighbours (VBench, motion_smoothness)."""

    def __init__(self, interpolate: Interpolator) -> None:
        self.interpolate = interpolate
        self.errors: list[float] = []
        self.before: np.ndarray | None = None
        self.middle: np.ndarray | None = None

    def process_frame(self, index: int, frame: np.ndarray) -> None:
        """Takes frame number `index`, uint8 RGB (H, W, 3)."""
        if index % 2:
            self.middle = frame
            return
        if self.before is not None and self.middle is not None:
            guess = self.interpolate(self.before, frame)
            self.errors.append(float(cv2.absdiff(guess, self.middle).mean()))
        self.before, self.middle = frame, None


def mean(values: Sequence[float]) -> float:
    """The mean. Raises ValueError for nothing."""
    if not values:
        raise ValueError("nothing was measured")
    return float(np.mean(values))
