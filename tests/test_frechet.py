"""Fréchet distances, against SciPy's root of a matrix, and the backbones that give the features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from models import ModelUnavailable
from models.metrics.frechet import frechet_distance
from models.metrics.frechet_backbones import (
    Inception,
    OnnxVideo,
    VideoMae,
    fid_name,
    frame_features_digest,
    fvd_name,
    load_frame_features,
)
from tasks.evaluation.frechet import frechet_rows, frechet_warning
from tasks.evaluation.frechet_features import middle_places
from tests.test_video_metrics import scene


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_distance_is_the_published_formula(n: int, m: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(0.3, 1.5, (n, d)), rng.normal(0, 1, (m, d))
    first, second = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (ours, theirs))
    # SciPy finds no root of a product of singular matrices: a little of the identity, as pytorch-fid has it.
    little = 1e-9 * np.eye(d)
    root = np.real(np.trace(sqrtm((first + little) @ (second + little))))
    expected = ((ours.mean(0) - theirs.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * root
    assert frechet_distance(ours, theirs) == pytest.approx(expected, abs=2e-3)
    assert frechet_distance(ours, ours) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(ours, theirs) == pytest.approx(frechet_distance(theirs, ours), abs=1e-9)
    assert frechet_distance(ours, ours + 2) == pytest.approx(4 * d)


def test_rows_say_what_they_rest_on() -> None:
    rng = np.random.default_rng(0)
    videos = {name: [{"frames": rng.normal(at, 1, (8, 4))} for _ in range(3)] for at, name in enumerate("ab")}
    videos["b"].append({})  # could not be read
    rows = frechet_rows(
        videos, [{"frames": rng.normal(0, 1, (8, 4))} for _ in range(9)], {"frames": "fid[x]"}, {"frames": "d"}
    )
    assert [(row["system"], row["videos"], row["clips"], row["ours"]) for row in rows] == [
        ("a", 3, 9, 24),
        ("b", 3, 9, 24),
    ]
    assert rows[0]["value"] < 1 < rows[1]["value"]
    assert "Here a set" not in frechet_warning(rows) and not frechet_warning([])
    with pytest.raises(ValueError, match="no distance"):
        frechet_distance(np.zeros((1, 4)), np.zeros((3, 4)))


def test_fvd_sees_the_same_span_of_time_whatever_the_rate() -> None:
    spans = {}
    for fps in (16, 24, 50):
        times = [at / fps for at in range(5 * fps)]
        places = middle_places(times, 16)
        spans[fps] = times[places[-1]] - times[places[0]]
        assert len(places) == 16 and abs((times[places[0]] + times[places[-1]]) / 2 - times[-1] / 2) < 0.05
    assert all(abs(span - 15 / 8) < 0.05 for span in spans.values())
    assert middle_places([at / 8 for at in range(9)], 16)[::15] == [0, 8]  # a short one, over all of it
    assert middle_places([0.0], 16) == [0] * 16


def test_inception_gets_what_pytorch_fid_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("pyiqa.archs.inception.load_pretrained_network", lambda _net, url: fetched.append(url))
    inception = Inception()
    assert fetched[0].endswith("pt_inception-2015-12-05-6726825d.pth") and len(inception.net.blocks) == 4
    inception.net.blocks = inception.net.blocks[:1]  # the rest takes its time and changes nothing here
    inception.net.last_needed_block, inception.net.output_blocks = 0, [0]
    frames = [scene(seed) for seed in range(2)]
    x = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = inception.net(x, resize_input=True, normalize_input=True)[0].flatten(1).numpy()
    assert np.abs(inception.features(frames) - expected).max() < 1e-4
    assert fid_name("inception") == "fid[inception]" and len(frame_features_digest("inception")) == 64
    with pytest.raises(ValueError, match="vgg"):
        load_frame_features("vgg")


def test_networks_of_videos_by_name(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper
    from transformers import VideoMAEConfig, VideoMAEModel

    video = [scene(seed) for seed in range(16)]
    given = helper.make_tensor_value_info("video", TensorProto.FLOAT, [1, 3, 16, 224, 224])
    gives = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["video"], ["logits"], axes=[3, 4], keepdims=0)], "mean", [given], [gives]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "i3d.onnx"))
    levels = OnnxVideo(tmp_path / "i3d.onnx").features(video).reshape(3, 16)
    assert np.abs(levels - (2 * np.stack(video).mean(axis=(1, 2)).T / 255 - 1)).max() < 0.05
    assert fvd_name(f"onnx:{tmp_path / 'i3d.onnx'}").startswith("fvd[i3d@")
    (tmp_path / "bad.onnx").write_bytes(b"x")
    with pytest.raises(ModelUnavailable, match=r"bad\.onnx"):
        OnnxVideo(tmp_path / "bad.onnx")
    with pytest.raises(ModelUnavailable, match="no such file"):
        fvd_name("onnx:/nowhere.onnx")

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = VideoMAEConfig(image_size=32, num_frames=4, **shape)
    torch.manual_seed(0)
    VideoMAEModel(config).save_pretrained(tmp_path / "mae")
    net = VideoMae(str(tmp_path / "mae"))
    assert net.frames == 4
    found = net.features(video[:4])
    assert found.shape == (16,) and np.isfinite(found).all()
    assert np.abs(found - net.features(video[3::-1])).max() > 1e-4
    assert fvd_name(str(tmp_path / "mae")).startswith("fvd[mae@")
