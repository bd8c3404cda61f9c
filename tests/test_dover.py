"""DOVER's views and its ONNX file, on a tiny model with the same inputs and outputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import ModelUnavailable
from models.quality.dover import DoverViews, dover_digest, fused, load_dover


def export(path: Path, pieces: int | str, *, inputs=("aes_view", "tech_view"), domain: str = "") -> Path:
    """Two branches as in their export: each view's mean brightness and its mean detail, scaled by a weight."""
    shapes = {inputs[0]: [1, 3, 32, 224, 224], inputs[1]: [pieces, 3, 32, 224, 224]}
    weight = numpy_helper.from_array(np.array([0.05], np.float32), "weight")
    axes = numpy_helper.from_array(np.array([1, 2, 3, 4], np.int64), "axes")
    nodes = []
    for name, answer in zip(inputs, ("aesthetic", "technical"), strict=True):
        nodes += [
            helper.make_node("ReduceMean", [name, "axes"], [f"{name}_mean"], keepdims=0),
            helper.make_node("Mul", [f"{name}_mean", "weight"], [answer], domain=domain),
        ]
    graph = helper.make_graph(
        nodes,
        "tiny_dover",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("aesthetic", "technical")],
        [weight, axes],
    )
    imports = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    return path


def clip(count: int, height: int = 300, width: int = 400, level: int = 128) -> list[np.ndarray]:
    noise = np.random.default_rng(0).integers(-20, 20, (height, width, 3))
    return [np.clip(noise + level + 2 * (i % 10), 0, 255).astype(np.uint8) for i in range(count)]


@pytest.mark.parametrize(("pieces", "clips"), [(4, 4), (1, 3), ("pieces", 3)])
def test_a_clip_is_scored_from_the_frames_it_asks_for(tmp_path, pieces, clips) -> None:
    model = load_dover(export(tmp_path / "dover.onnx", pieces))
    frames = clip(250)
    answers = []
    for level in (60, 128, 128, 200):
        views = model.views(250)
        assert 32 < len(views.wanted) <= 32 + 32 * clips
        for index, frame in enumerate(clip(250, level=level)):
            views.add(index, frame)
        answers.append(model.scores(views))
    dark, middle, again, bright = answers
    assert middle == again
    assert dark.technical < middle.technical < bright.technical
    assert dark.aesthetic < middle.aesthetic < bright.aesthetic
    assert all(0 <= score <= 1 for answer in answers for score in vars(answer).values())
    # The tiny model's answer is known: the mean of the normalised frames times 0.05.
    views = model.views(250)
    for index, frame in enumerate(frames):
        views.add(index, frame)
    aesthetic, technical = views.arrays()
    assert middle == fused(0.05 * float(aesthetic.mean()), 0.05 * float(technical.mean()))
    assert model.digest == dover_digest(tmp_path / "dover.onnx")


def test_technical_view_is_a_mosaic_of_untouched_pieces() -> None:
    y, x = np.mgrid[:720, :1280]
    frame = np.stack([x % 256, y % 256, x // 256 * 16 + y // 256], axis=-1).astype(np.uint8)
    views = DoverViews(64, clips=1)
    for index in range(64):
        views.add(index, frame)
    aesthetic, technical = views.arrays()
    assert aesthetic.shape == technical.shape == (1, 3, 32, 224, 224)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    mosaic = np.rint(technical[0, :, 0].transpose(1, 2, 0) * std + mean).astype(int)
    for row in range(7):
        for column in range(7):
            piece = mosaic[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            left = piece[0, 0, 0] + 256 * (piece[0, 0, 2] // 16)
            top = piece[0, 0, 1] + 256 * (piece[0, 0, 2] % 16)
            assert 720 // 7 * row <= top < 720 // 7 * (row + 1) - 31
            assert 1280 // 7 * column <= left < 1280 // 7 * (column + 1) - 31
            np.testing.assert_array_equal(piece, frame[top : top + 32, left : left + 32])
    small = DoverViews(5, clips=3)
    for index in range(5):
        small.add(index, frame[:90, :160])
    assert small.wanted == set(range(5))
    assert small.arrays()[1].shape == (3, 3, 32, 224, 224)


def test_scores_follow_the_published_fusion() -> None:
    average = fused(aesthetic=-0.08285, technical=0.1107)
    assert (average.aesthetic, average.technical, average.overall) == (0.5, 0.5, 0.5)
    sharp = fused(aesthetic=-0.08285, technical=0.1107 + 0.07355)
    assert sharp.technical == pytest.approx(0.7311, abs=1e-4)
    assert sharp.overall == pytest.approx(1 / (1 + np.exp(-0.6104)), abs=1e-4)
    assert sharp.aesthetic == 0.5


def test_files_that_are_no_dover_are_refused_before_any_work(tmp_path) -> None:
    with pytest.raises(ModelUnavailable, match=r"nowhere\.onnx.*choose 'piqe'"):
        load_dover(tmp_path / "nowhere.onnx")
    with pytest.raises(ModelUnavailable, match="no such file"):
        dover_digest(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ModelUnavailable, match="not a usable ONNX model"):
        load_dover(tmp_path / "text.onnx")
    with pytest.raises(ModelUnavailable, match=r"inputs \['left', 'right'\]"):
        load_dover(export(tmp_path / "other.onnx", 4, inputs=("left", "right")))
    with pytest.raises(ModelUnavailable, match="not a usable ONNX model"):
        load_dover(export(tmp_path / "custom.onnx", 4, domain="evil.ops"))
    outside = tmp_path / "outside.bin"
    outside.write_bytes(np.array([0.05], np.float32).tobytes())
    model = onnx.load(export(tmp_path / "dover.onnx", 4))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(outside))
    (tmp_path / "external.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelUnavailable, match="weights lie in other files"):
        load_dover(tmp_path / "external.onnx")


def test_views_refuse_what_they_can_not_use(tmp_path) -> None:
    views = DoverViews(40, clips=3)
    frames = clip(40)
    for index, frame in enumerate(frames[:20]):
        views.add(index, frame)
    with pytest.raises(ValueError, match="frames are missing"):
        views.arrays()
    wanted = max(views.wanted)
    for wrong in (frames[0][..., 0], frames[0].astype(float), frames[0][:20], frames[0][:-2]):
        with pytest.raises(ValueError):
            views.add(wanted, wrong)
    with pytest.raises(ValueError):
        DoverViews(0, clips=3)
