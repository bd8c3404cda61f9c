"""The paper's profile on real videos: its rules and thresholds, with a tiny stand-in of every class of its models."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from flows.flow_signature import subset
from flows.refresh import AFTER_DISCOVERY, RefreshParameters, check_models, policy
from medgen.catalog import ItemStatus, Release
from medgen.ledger import open_ledger
from models.quality import pyiqa_metric
from models.quality.dover import AESTHETIC_MEAN, MEAN, STD, TECHNICAL_MEAN, TECHNICAL_STD
from tasks.curation import decide, quality, release
from tasks.curation.funnel import stages
from tests.conftest import discover_source, forget_installation, inline, stored
from tests.test_captioner import LONG, SHORT, chat_server, completion
from tests.test_frames import words_tokenizer


def echocardiogram(target: Path, by: int) -> np.ndarray:
    """Seven seconds of a beating heart, `by` grey levels brighter than they are; its mean colour, RGB."""
    beat = pixel_array(get_testdata_file("examples_ybr_color.dcm", download=False))
    views = [Image.fromarray(view).resize((640, 480), box=(44, 24, 288, 207)) for view in beat]
    light = [np.clip(np.asarray(view, int) + by, 0, 255).astype(np.uint8) for view in views]
    with av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "14", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for index in range(175):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(light[index % len(light)], format="rgb24")))
        out.mux(stream.encode(None))
    return np.mean(light, axis=(0, 1, 2))


def tiny_dover(path: Path, scores: dict[float, float]) -> Path:
    """DOVER's inputs and outputs, answering from mean brightness alone.

    Args:
        scores: mean of the normalised frames → technical score that it gives, for two of them.
    """
    (low, high), answers = sorted(scores), [scores[level] for level in sorted(scores)]
    raw = [TECHNICAL_MEAN + TECHNICAL_STD * float(np.log(s / (1 - s))) for s in answers]
    slope = (raw[1] - raw[0]) / (high - low)
    constants = {
        "slope": np.array([slope], np.float32), "start": np.array([raw[0] - slope * low], np.float32),
        "average": np.array([AESTHETIC_MEAN], np.float32), "nothing": np.array([0], np.float32),
        "axes": np.array([1, 2, 3, 4], np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["tech_view", "axes"], ["tech_mean"], keepdims=0),
        helper.make_node("Mul", ["tech_mean", "slope"], ["tech_scaled"]),
        helper.make_node("Add", ["tech_scaled", "start"], ["technical"]),
        helper.make_node("ReduceMean", ["aes_view", "axes"], ["aes_mean"], keepdims=0),
        helper.make_node("Mul", ["aes_mean", "nothing"], ["aes_nothing"]),
        helper.make_node("Add", ["aes_nothing", "average"], ["aesthetic"]),
    ]
    views = {"aes_view": [1, 3, 32, 224, 224], "tech_view": [1, 3, 32, 224, 224]}
    graph = helper.make_graph(
        nodes,
        "tiny_dover",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in views.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("aesthetic", "technical")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def tiny_laion(folder: Path, patch: pytest.MonkeyPatch, score: float) -> None:
    """LAION's predictor where pyiqa finds it: a tiny CLIP (TorchScript) and a head that answers `score`."""
    import pyiqa.utils.download_util as downloads
    from clip import clip
    from clip.model import CLIP
    from pyiqa.archs.laion_aes_arch import MLP, default_model_urls

    torch.manual_seed(0)
    encoder, head = CLIP(16, 32, 1, 64, 16, 8, 20, 64, 1, 1).eval(), MLP(16).eval()
    with torch.no_grad():
        head.layers[-1].weight.zero_()
        head.layers[-1].bias.fill_(score)
    made = folder / "ViT-L-14.pt"
    example = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 8, dtype=torch.long))
    torch.jit.save(torch.jit.trace(encoder, example, check_trace=False), str(made))
    served = folder / hashlib.sha256(made.read_bytes()).hexdigest() / made.name
    served.parent.mkdir()
    made.rename(served)
    torch.save(head.state_dict(), folder / default_model_urls["url"].rpartition("/")[2])
    patch.setitem(clip._MODELS, "ViT-L/14", served.as_uri())
    patch.setattr(downloads, "DEFAULT_CACHE_DIR", str(folder))
    patch.setenv("HOME", str(folder))
    patch.setattr(pyiqa_metric, "_reachable", lambda url: False)


def tiny_clip(folder: Path) -> Path:
    """A CLIP of transformers that reads."""
    import transformers as t

    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = t.CLIPConfig(
        text_config={**layers, "vocab_size": 50},
        vision_config={**layers, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    t.CLIPModel(config).save_pretrained(folder)
    t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    words_tokenizer(["ultrasound", "scan", "street", "dog"]).save_pretrained(folder)
    return folder


@pytest.fixture
def papers(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RefreshParameters, Path]]:
    """The paper's parameters with models that can be had here, and a folder of two real videos."""
    inline(monkeypatch)
    videos = tmp_path / "videos"
    videos.mkdir()
    levels = [
        float(((echocardiogram(videos / f"{name}.mp4", by) - MEAN) / STD).mean())
        for name, by in (("dim", 0), ("light", 60))
    ]
    tiny_laion(tmp_path, monkeypatch, score=3.5)
    monkeypatch.setattr(quality, "_models", quality._models.__wrapped__)  # what is tiny here stays here
    told = '{"category": "popular science", "reason": "A presenter speaks."}'
    with chat_server(*((200, completion(answer)) for answer in ("Hello", "Hello", told, LONG, SHORT))) as (url, _):
        monkeypatch.setenv("MEDGEN_CAPTION_BASE_URL", url)
        monkeypatch.setenv("MEDGEN_CAPTION_API_KEY", "k")
        forget_installation()
        given: dict[str, Any] = {
            "sources": (str(videos),), "profile": "paper", "frame_encoder": str(tiny_clip(tmp_path / "clip")),
            "dover_onnx": str(tiny_dover(tmp_path / "dover.onnx", {levels[0]: 0.1, levels[1]: 0.7})),
            # A random CLIP knows nothing of medicine, nor do the words of the captions of these videos.
            "medical_threshold": 0.0, "frame_similarity": -1.0, "captioner": "openai:m", "caption_terms": "none",
            "category_model": "openai:n", "face_model": "none",
        }  # fmt: skip
        yield RefreshParameters(**RefreshParameters.as_given(given)), videos


def test_a_refresh_by_the_papers_profile(papers: tuple[RefreshParameters, Path]) -> None:
    parameters, videos = papers
    check_models(parameters)
    results = {"discover": discover_source(str(videos))}
    last = results["discover"]
    for step in AFTER_DISCOVERY:
        upstream = [last] if step.scope == "dataset" else last
        results[step.name] = last = step.run(upstream, subset(parameters, step.params))
        reasons = [record.reason for record in open_ledger().load(last.records).values()]
        assert last.kept, (step.name, reasons)
    made, record, folder = release.make_release.fn(
        "t", stored(list(results.values())), policy(parameters), subset(parameters, release.ReleaseParams)
    )
    funnel = release.read_funnel(record)
    (row,) = pq.read_table(folder / "metadata.parquet").to_pylist()
    assert (row["resolution"], row["captioner_kind"]) == ("720x480", "vision_language_model")
    assert row["technical_score"] == pytest.approx(0.7, abs=0.1) and row["aesthetic_score"] == 3.5
    assert 6 <= row["duration"] <= 10 and row["brief_caption"] == SHORT
    assert (row["category"], row["category_probability"]) == (
        "popular science",
        None,
    )  # as the model that was asked says
    with Session(open_ledger().engine) as session:
        shown = select(ItemStatus.category).where(ItemStatus.id == row["clip_id"])
        assert session.scalar(shown) == "popular science"
        session.execute(text("SELECT rebuild_item_status()"))
        assert session.scalar(shown) == "popular science"
    assert release.RELEASE.detail(record)["captioner_kinds"] == {"vision_language_model": 1}
    with Session(open_ledger().engine) as session:
        stated = session.get_one(Release, release.RELEASE.detail(record)["name"]).policy
    assert (stated["profile"], stated["max_words"], stated["output_size"]) == ("paper", 20, "720x480")
    assert {row["stage"]: row["left"] for row in stages(funnel)} == {
        "listed": 2, "medical by title and description": 2, "segmented": 2, "at least 480p": 2, "black borders": 2,
        "overlay text": 2, "aesthetics": 2, "technical quality": 1, "stills and defects": 1, "mediocre in both": 1,
    }  # fmt: skip
    assert "| technical quality | clips | 1 |" in (folder / "README.md").read_text()
    assert made.executed == 1 and json.loads((folder / "funnel.json").read_text()) == funnel

    scores = {
        run.subject: run.scores
        for run in open_ledger().load([i.lineage["quality"] for i in results["quality"].kept]).values()
    }
    rated = sorted(scores.values(), key=lambda by: by["dover_technical"])
    for by, expected in zip(rated, (0.1, 0.7), strict=True):
        assert by["technical"] == by["dover_technical"] == pytest.approx(expected, abs=0.1)
        assert (
            by["dover_aesthetic"] == 0.5 and min(expected, 0.5) - 0.1 < by["dover_overall"] < max(expected, 0.5) + 0.1
        )

    # DOVER's 0.7 and LAION's 3.5 become mediocre by a stricter joint rule, and DOVER's 0.1 is forgiven: no picture is
    # decoded for that.
    stricter = {"mediocre_technical": 0.9, "technical_threshold": 0.0}
    again = decide.STEP.run(results["quality"], subset(parameters.model_copy(update=stricter), decide.DecideParams))
    assert (again.executed, again.decodes, len(again.kept)) == (2, 0, 0)
    records = open_ledger().load([lineage["decide"] for lineage in again.dropped]).values()
    assert {found.reason for found in records} == {"mediocre"}
