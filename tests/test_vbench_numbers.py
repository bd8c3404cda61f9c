"""VBench's measures, number by number, against code written anew from their published definitions.

Definitions: Huang et al. 2024 (arXiv 2311.17982), its supplement and repository. Networks are small and random, of the
published classes; what is compared is all that surrounds them, for DINO the network too.
"""

import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from models.metrics.backbones import load_background_features, load_subject_features
from models.metrics.consistency import consistency, steadiness
from models.metrics.flow import Dynamics, OnnxInterpolator, RaftFlow, Smoothness
from models.metrics.imaging import LongSide, to_unit
from models.metrics.video_score import scored_frames, scored_places
from models.quality.pyiqa_metric import PyiqaMetric
from tests.test_video_metrics import moved, scene, tiny_clip, tiny_dino  # noqa: F401  (fixtures)

FPS = 23.976


@pytest.fixture(scope="module", name="frames")
def _frames() -> list[np.ndarray]:
    """10 frames that move ever faster, with sides that divide by neither 8 nor 16, uint8 (154, 214, 3)."""
    picture = scene(3, 154, 214)
    return [np.roll(moved(picture, at * at // 2), at, axis=0) for at in range(10)]


def whole_levels(picture: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """A picture (3, H, W) of levels 0 to 255 at another size: interpolated without smoothing, rounded to levels."""
    size = {"size": (height, width), "mode": mode, "align_corners": False, "antialias": False}
    return functional.interpolate(picture[None].float(), **size)[0].round().clamp(0, 255)


def planes(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frame.copy()).permute(2, 0, 1)


def mean_of_cosines(rows: torch.Tensor) -> float:
    """Each frame with the one before and with the first, negative ones as 0."""
    total = 0.0
    for at in range(1, len(rows)):
        for other in (rows[at - 1], rows[0]):
            total += max(0.0, float(functional.cosine_similarity(rows[at], other, dim=0))) / 2
    return total / (len(rows) - 1)


def test_dynamic_degree(frames: list[np.ndarray]) -> None:
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(2)
    net = raft_small().eval()
    every = max(1, round(FPS / 8))
    taken = frames[::every]
    speeds = []
    for one, two in itertools.pairwise(taken):
        padded = []
        for frame in (one, two):
            below, right = -frame.shape[0] % 8, -frame.shape[1] % 8
            grown = cv2.copyMakeBorder(
                frame, below // 2, below - below // 2, right // 2, right - right // 2, cv2.BORDER_REPLICATE
            )
            padded.append(2 * (planes(grown)[None].float() / 255) - 1)
        with torch.inference_mode():
            flow = net(*padded, num_flow_updates=20)[-1][0].double().numpy()
        lengths = sorted(np.sqrt((flow**2).sum(axis=0)).ravel(), reverse=True)
        speeds.append(np.mean(lengths[: int(len(lengths) * 0.05)]))
    assert len(speeds) == 3
    found = Dynamics(RaftFlow(net), FPS)
    for at, frame in enumerate(frames):
        found.process_frame(at, frame)
    assert np.array(found.speeds) * 154 == pytest.approx(speeds, rel=1e-5)
    moving = sum(speed > 6 * 154 / 256 for speed in speeds)
    assert found.dynamic == float(moving >= round(4 * len(taken) / 16))


def test_motion_smoothness(frames: list[np.ndarray], tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    # A blur with zeros around the picture: where the padding stands shows in the result.
    kernel = np.random.default_rng(0).random((3, 3, 3, 3)).astype(np.float32)
    kernel /= 2 * kernel.sum(axis=(1, 2, 3), keepdims=True)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, "h", "w"]) for n in ("a", "b", "middle")]
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Conv", ["sum", "k"], ["middle"], pads=[1] * 4),
    ]
    graph = helper.make_graph(nodes, "blur", ends[:2], ends[2:], [numpy_helper.from_array(kernel, "k")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "blur.onnx"))

    differences = []
    for at in range(1, len(frames) - 1, 2):
        both = sum(np.pad(frames[side] / 255.0, ((3, 3), (5, 5), (0, 0)), "edge") for side in (at - 1, at + 1))
        blurred = functional.conv2d(
            torch.from_numpy(both).permute(2, 0, 1)[None], torch.from_numpy(kernel).double(), padding=1
        )
        middle = (blurred[0].permute(1, 2, 0).numpy()[3:-3, 5:-5] * 255).clip(0, 255) // 1  # whole levels, cut off
        differences.append(np.abs(frames[at] - middle).mean())
    expected = (255 - np.mean(differences)) / 255
    found = Smoothness(OnnxInterpolator(tmp_path / "blur.onnx"))
    for at, frame in enumerate(frames):
        found.process_frame(at, frame)
    assert len(found.errors) == 4
    assert steadiness(float(np.mean(found.errors))) == pytest.approx(
        expected, abs=2e-6
    )  # a level at an edge of rounding
    assert expected < 0.97


def dino(weights: dict[str, torch.Tensor], picture: torch.Tensor) -> torch.Tensor:
    """The class token of DINO's vision transformer, of one layer with two heads; picture (3, H, W)."""
    patches = functional.conv2d(
        picture[None], weights["embeddings.patch_embeddings.projection.weight"],
        weights["embeddings.patch_embeddings.projection.bias"], stride=16,
    )  # fmt: skip
    rows, columns = patches.shape[2:]
    table = weights["embeddings.position_embeddings"][0]
    grid = table[1:].reshape(14, 14, -1).permute(2, 0, 1)[None]
    stretched = functional.interpolate(grid, scale_factor=((rows + 0.1) / 14, (columns + 0.1) / 14), mode="bicubic")
    x = torch.cat([weights["embeddings.cls_token"][0] + table[:1], (patches + stretched)[0].flatten(1).T])

    def normal(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    layer = next(name for name in weights if name.endswith("layernorm_before.weight")).removesuffix(
        "layernorm_before.weight"
    )
    names = sorted(name.removesuffix(".weight") for name in weights if name.startswith(layer) and "norm" not in name)
    query, key, value, out, up, down = (
        next(name for name in names if any(part in name for part in parts) and name + ".weight" in weights)
        for parts in (
            ("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("attention.output", "o_proj", "out_proj"),
            ("intermediate", "fc1"), (f"{layer}output", "fc2"),
        )
    )  # fmt: skip
    inner = normal(x, f"{layer}layernorm_before")
    heads = [linear(inner, name).reshape(len(x), 2, -1).transpose(0, 1) for name in (query, key, value)]
    attention = (heads[0] @ heads[1].transpose(1, 2) / heads[0].shape[-1] ** 0.5).softmax(-1) @ heads[2]
    x = x + linear(attention.transpose(0, 1).reshape(len(x), -1), out)
    x = x + linear(functional.gelu(linear(normal(x, f"{layer}layernorm_after"), up)), down)
    return normal(x, "layernorm")[0]


def test_subject_consistency(frames: list[np.ndarray], tiny_dino: Path) -> None:  # noqa: F811
    weights = {name: tensor.double() for name, tensor in load_file(tiny_dino / "model.safetensors").items()}
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    rows = []
    for frame in frames:
        small = whole_levels(planes(frame), 224, int(224 * 214 / 154), "bilinear")
        rows.append(dino(weights, ((small / 255 - mean) / std).double()))
    features = load_subject_features(str(tiny_dino)).embed(frames)
    expected = functional.normalize(torch.stack(rows), dim=1).numpy()
    assert np.abs(features - expected).max() < 1e-5
    assert consistency(features) == pytest.approx(mean_of_cosines(torch.stack(rows)), abs=1e-6)


def test_background_consistency(frames: list[np.ndarray], tiny_clip: Path) -> None:  # noqa: F811
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip).eval()
    statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    mean, std = (torch.tensor(v)[:, None, None] for v in statistics)
    rows = []
    for frame in frames:
        small = whole_levels(planes(frame), 32, 32 * 214 // 154, "bicubic")
        left = round((small.shape[2] - 32) / 2)
        picture = (small[:, :, left : left + 32] / 255 - mean) / std
        with torch.inference_mode():
            rows.append(model.visual_projection(model.vision_model(picture[None]).pooler_output)[0])
    features = load_background_features(str(tiny_clip)).embed(frames)
    assert consistency(features) == pytest.approx(mean_of_cosines(torch.stack(rows)), abs=1e-6)
    assert np.abs(features - functional.normalize(torch.stack(rows), dim=1).numpy()).max() < 1e-5


def test_imaging_quality() -> None:
    from pyiqa.archs.musiq_arch import MUSIQ

    torch.manual_seed(0)
    net: Any = MUSIQ(pretrained=False, hidden_size=48, mlp_dim=48, num_layers=1).eval()
    net.lower_better, net.score_range = False, "~0, ~100"
    torch.nn.init.constant_(net.head.bias, 60.0)
    large = [scene(seed, 300, 700) for seed in range(2)]
    expected = 0.0
    for frame in large:
        small = whole_levels(planes(frame), int(300 * 512 / 700), 512, "bilinear")
        with torch.inference_mode():
            expected += float(net(small[None] / 255)) / len(large)
    metric = LongSide(PyiqaMetric("musiq-spaq", net, "d"))
    found = np.mean([to_unit(metric, score) for score in metric.scores(large)])
    assert found == pytest.approx(expected / 100, abs=1e-6) and 0.1 < found < 0.9


def test_videoscore_sees_as_many_frames_as_its_authors_show_it() -> None:
    assert scored_frames("TIGER-Lab/VideoScore-v1.1") == 48 and scored_frames("TIGER-Lab/VideoScore") == 16
    assert scored_frames("/models/VideoScore-v1.1") == 48
    assert scored_places(40, 48) == list(range(40))
    places = scored_places(93, 48)  # the paper's videos
    assert len(places) == 48 and places[0] == 0 and places[-1] == int(47 * 93 / 48)
    assert set(np.diff(places)) == {1, 2}
