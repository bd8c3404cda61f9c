"""nano, its VAE, the base of a release, and the encoding of clips."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.catalog import ModelVersion, StepInput
from medgen.errors import ItemFailed
from medgen.holdout import held_out
from medgen.ledger import open_ledger
from medgen.shard import close_pools
from models import ModelUnavailable
from models.generation.video_diffusion import (
    as_uint8,
    decode_latents,
    encode_frames,
    encode_texts,
    open_pipeline,
    pad_texts,
    part_digests,
    pipeline_digest,
    read_sampling,
)
from models.training.clip_frames import Geometry, best_fit, read_frames, read_geometries
from models.training.nano import FRAMES, HEIGHT, MAX_TOKENS, SAMPLING, VAE, WIDTH, save_untrained
from models.training.nano_vae import TrainedVae, psnr, train_vae
from tasks.training.base_model import BaseModelParams, base_model
from tasks.training.encode import EncodeParams, bytes_to_encode, empty_text, encode_release
from tasks.training.model_files import model_folder
from tests.clip_release import Made, moving_clip, put_release
from tests.conftest import frame_number, numbered_video

GEOMETRY = Geometry(FRAMES, HEIGHT, WIDTH)
PARAMS = EncodeParams(buckets=f"{GEOMETRY},9x64x96", fps=8.0, max_sequence_length=MAX_TOKENS)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained nano pipeline's folder."""
    return save_untrained(tmp_path_factory.mktemp("models") / "nano", seed=3)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return [moving_clip(folder, seed) for seed in range(4)]


def clip_frames(videos: list[bytes], folder: Path) -> np.ndarray:
    found = []
    for index, data in enumerate(videos):
        path = folder / f"{index}.mp4"
        path.write_bytes(data)
        found.append(read_frames(path, GEOMETRY, 8.0, 3.0))
    return np.stack(found)


@given(
    st.lists(st.text(max_size=8), min_size=0, max_size=30),
    st.text(max_size=8),
    st.floats(0, 0.99),
    st.integers(0, 2**32),
)
def test_a_split_holds_out_whole_videos_and_stays_when_videos_are_added(
    ids: list[str], more: str, share: float, seed: int
) -> None:
    away = held_out(ids, share, seed)
    assert away == held_out([*reversed(ids), *ids], share, seed) and away <= set(ids)
    if len(set(ids)) >= 2 and share > 0:
        assert 0 < len(away) < len(set(ids))
        grown = held_out([*ids, more], share, seed)
        moved = (away ^ grown) - {more}
        # Only the one that had to change sides so that neither was empty may go back.
        assert len(moved) <= 1
        if len(away) > 1 and len(set(ids) - away) > 1:
            assert not moved
    else:
        assert not away


def test_shares_of_a_split_are_about_what_is_asked() -> None:
    assert 150 < len(held_out([f"video-{n}" for n in range(1000)], 0.2, 1)) < 250
    with pytest.raises(ValueError, match="share"):
        held_out(["a", "b"], 1.0, 0)


def test_nano_is_an_ordinary_diffusers_folder_and_encodes_as_its_pipeline_does(nano: Path, tmp_path: Path) -> None:
    plain = WanPipeline.from_pretrained(nano)
    assert not list(nano.rglob("*.bin")) and read_sampling(nano) == SAMPLING
    pipeline = open_pipeline(nano)
    assert {name: type(part) for name, part in plain.components.items()} == {
        name: type(part) for name, part in pipeline.components.items()
    }
    mean, std = [0.1 * n for n in range(16)], [1 + 0.05 * n for n in range(16)]
    pipeline.vae.register_to_config(latents_mean=mean, latents_std=std)
    arguments = {
        "height": HEIGHT, "width": WIDTH, "num_frames": FRAMES, "num_inference_steps": 2, "guidance_scale": 3.0,
        "max_sequence_length": MAX_TOKENS,
    }  # fmt: skip
    made = {
        kind: pipeline("a scan", generator=torch.Generator().manual_seed(5), output_type=kind, **arguments).frames[0]
        for kind in ("np", "latent")
    }
    assert made["np"].shape == (FRAMES, HEIGHT, WIDTH, 3)
    latents = made["latent"].numpy()
    assert (decode_latents(pipeline.vae, latents) == as_uint8(made["np"])).all()

    frames = as_uint8(made["np"])
    found = encode_frames(pipeline.vae, frames)
    assert found.shape == latents.shape and found.dtype == np.float32
    video = pipeline.video_processor.preprocess_video(made["np"].round(8)[None])
    with torch.no_grad():
        mode = pipeline.vae.encode(torch.from_numpy(frames).movedim(-1, 0)[None] / 127.5 - 1).latent_dist.mode()[0]
    assert video.shape == (1, 3, FRAMES, HEIGHT, WIDTH)
    expected = (mode.numpy() - np.reshape(mean, (-1, 1, 1, 1))) / np.reshape(std, (-1, 1, 1, 1))
    np.testing.assert_allclose(found, expected, atol=1e-5)

    texts = ["", "A heart beats in an ultrasound.", "word " * 200]
    embedded = encode_texts(pipeline, texts, MAX_TOKENS)
    own, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS)
    assert [len(rows) for rows in embedded] == [2, 9, MAX_TOKENS]
    np.testing.assert_allclose(pad_texts(embedded, MAX_TOKENS), own.detach().numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="64"):
        pad_texts(embedded, 63)

    copy = tmp_path / "copy"
    copy.mkdir()
    for path in nano.rglob("*"):
        target = copy / path.relative_to(nano)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    assert pipeline_digest(copy) == pipeline_digest(nano)
    before = part_digests(copy, ["vae", "text_encoder"])
    (copy / "vae" / "config.json").write_text("{}")
    after = part_digests(copy, ["vae", "text_encoder"])
    assert before["vae"] != after["vae"] and before["text_encoder"] == after["text_encoder"]


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (None, "model_index.json"),
        ("[]", "model_index.json"),
        ({"_class_name": ["pipeline", "Mine"], "vae": ["diffusers", "AutoencoderKLWan"]}, "code of its own"),
        ({"_class_name": "WanPipeline", "vae": ["os", "system"]}, "whose code is not run"),
        ({"_class_name": "WanPipeline", "../vae": ["diffusers", "AutoencoderKLWan"]}, "is not run"),
        ({"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]}, "no safetensors"),
    ],
)
def test_a_folder_that_is_no_safe_pipeline_is_refused(tmp_path: Path, index: object, said: str) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    if index is not None:
        (tmp_path / "model_index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    with pytest.raises(ModelUnavailable, match=said):
        open_pipeline(tmp_path)


def test_frames_are_those_nearest_to_their_times_from_the_middle_of_the_clip(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "numbered.mp4", 75)  # 3 s at 25 a second
    frames = read_frames(path, Geometry(9, 480, 640), 5.0, 3.0)
    numbers = [frame_number(frame) for frame in frames]
    assert numbers == list(range(17, 58, 5))  # the middle 1.6 s, from 0.7 s on: between the frames 17 and 18
    assert read_frames(path, Geometry(3, 64, 64), 1.0, 3.0).shape == (3, 64, 64, 3)
    with pytest.raises(ItemFailed, match="clip_too_short"):
        read_frames(path, Geometry(9, 64, 96), 1.0, 20.0)


@given(st.floats(0.1, 20), st.integers(64, 4000), st.integers(64, 4000))
def test_a_clip_goes_to_a_geometry_that_it_lasts_for(duration: float, width: int, height: int) -> None:
    choices = read_geometries("81x480x832,81x832x480,17x480x832,17x240x416")
    found = best_fit(choices, 16.0, duration_s=duration, width=width, height=height)
    if duration < 1.0:
        assert found is None
        return
    assert found is not None and found.lasts(16.0) <= duration + 1e-3
    if duration > 5.01 and width == height * 832 // 480 and height >= 480:
        assert str(found) == "81x480x832"


def test_the_vae_starts_as_a_transform_coder_learns_and_repeats(videos: list[bytes], tmp_path: Path) -> None:
    clips = clip_frames(videos, tmp_path)

    def trained(steps: int) -> TrainedVae:
        torch.manual_seed(0)
        return train_vae(AutoencoderKLWan(**VAE).eval(), clips, seed=1, steps=steps)

    assert trained(2).losses == trained(2).losses
    one = trained(25)
    torch.manual_seed(0)
    assert psnr(AutoencoderKLWan(**VAE).eval(), clips) < 16  # what random weights make of it
    assert one.psnr_start_db > 24 and one.psnr_db > one.psnr_start_db + 0.1
    latents = np.stack([encode_frames(one.vae, clip) for clip in clips])
    np.testing.assert_allclose(latents.mean(axis=(0, 2, 3, 4)), 0, atol=1e-3)
    np.testing.assert_allclose(latents.std(axis=(0, 2, 3, 4)), 1, atol=1e-2)
    back = decode_latents(one.vae, latents[0]).astype(float)
    assert -10 * np.log10(((back - clips[0]) ** 2).mean() / 255**2) > 24


def test_a_release_gets_its_base_and_is_encoded_once(
    home: Path, videos: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDGEN_WORKERS", "1")  # each takes 12 s of a CPU to import diffusers
    ledger = open_ledger()
    clips = {f"clip-{n}": Made(data, f"video-{n}", 3.0) for n, data in enumerate(videos)}
    clips["short"] = Made(moving_clip(tmp_path, 9, seconds=0.7), "video-0", 0.7)
    clips["middling"] = Made(moving_clip(tmp_path, 10, seconds=1.5), "video-1", 1.5)
    clips["wordless"] = Made(videos[0], "video-2", 3.0, brief=" ")
    clips["corrupt"] = Made(b"\0" * 5000, "video-3", 3.0)
    put_release(ledger, clips)
    try:
        params = BaseModelParams(vae_steps=2, vae_threads=1, validation_share=0.3)
        made = base_model(ledger, "made-1", params)
        assert made.id == base_model(ledger, "made-1", params).id
        away = held_out([f"video-{n}" for n in range(4)], 0.3, 0)
        with Session(ledger.engine) as session:
            seen = set(session.scalars(select(StepInput.role).where(StepInput.step_run_id == made.id)))
            version = session.get(ModelVersion, made.detail["model"])
            assert version is not None and version.name == made.detail["name"] and version.release_name == "made-1"
        assert {f"video-{role[-1]}" for role in seen if role.startswith("clip:clip-")} == {
            f"video-{n}" for n in range(4)
        } - away
        assert "not_a_video" in made.detail["left_out"]["corrupt"]
        base, digest = model_folder(ledger, f"medgen:{version.name[:14]}")
        assert digest == made.detail["model"] and WanPipeline.from_pretrained(base).vae.config.latents_std != [1.0] * 16

        result = encode_release(ledger, "made-1", base, PARAMS)
        records = {record.subject: record for record in ledger.load(result.records).values()}
        assert {s: r.reason for s, r in records.items() if r.status != "kept"} == {
            "short": "clip_too_short", "wordless": "caption_missing", "corrupt": "not_a_video",
        }  # fmt: skip
        assert records["middling"].detail["geometry"] == "9x64x96"
        with safe_open(ledger.store.path(records["clip-1"].outputs["latents"]), "np") as file:
            metadata, latents = file.metadata(), file.get_tensor("latents")
        (of_texts,) = (item.lineage["encode_text"] for item in result.kept if item.subject == "clip-1")
        with safe_open(ledger.store.path(ledger.load([of_texts])[of_texts].outputs["texts"]), "np") as file:
            assert file.metadata() == {
                "clip_id": "clip-1", "brief": clips["clip-1"].brief, "detailed": clips["clip-1"].detailed,
            }  # fmt: skip
            brief = file.get_tensor("brief")
        assert latents.shape == (16, 9, 8, 12) and brief.shape[1] == 384
        assert metadata == {
            "clip_id": "clip-1", "video_id": "video-1", "category": "imaging", "frames": "17", "height": "64",
            "width": "96", "fps": "8", "start_s": "0.500000",
        }  # fmt: skip
        pipeline = open_pipeline(base)
        np.testing.assert_allclose(brief, encode_texts(pipeline, [clips["clip-1"].brief], MAX_TOKENS)[0], atol=1e-5)
        (tmp_path / "clip.mp4").write_bytes(clips["clip-1"].data)
        frames = read_frames(tmp_path / "clip.mp4", GEOMETRY, 8.0, 3.0)
        np.testing.assert_allclose(latents, encode_frames(pipeline.vae, frames), atol=1e-4)

        again = encode_release(ledger, "made-1", base, PARAMS)
        assert (again.executed, again.decodes, again.records) == (0, 0, result.records)
        assert bytes_to_encode(ledger, "made-1", base, PARAMS)[1] == 0
        # Other geometry, windows and precision of latents: captions are not encoded again, and room is asked for first.
        other = EncodeParams(
            buckets="9x64x96", fps=8.0, max_sequence_length=MAX_TOKENS, windows_per_clip=3, latents_dtype="bfloat16"
        )
        total, missing = bytes_to_encode(ledger, "made-1", base, other)
        more = encode_release(ledger, "made-1", base, other)
        assert more.reused == 8 and more.executed == 7  # wordless is known to lack its captions
        windows = [record.outputs for record in ledger.load(more.records).values() if record.status == "kept"]
        assert sorted(len(outputs) for outputs in windows) == [2, 3, 3, 3, 3]
        sizes = [ledger.store.path(sha256).stat().st_size for outputs in windows for sha256 in outputs.values()]
        assert 0 < sum(sizes) - 14 * 600 < missing + 1000 and missing < total  # a header of some 400 bytes beside each
        empty = empty_text(ledger, base, PARAMS)
        assert empty.id == empty_text(ledger, base, PARAMS).id
        with safe_open(ledger.store.path(empty.outputs["empty"]), "np") as file:
            np.testing.assert_allclose(file.get_tensor("empty"), encode_texts(pipeline, [""], MAX_TOKENS)[0], atol=1e-5)
        for name in ("nowhere", "medgen:nowhere"):
            with pytest.raises(ItemFailed, match=version.name) as raised:
                model_folder(ledger, name)
            assert raised.value.reason == "unknown_model"
    finally:
        close_pools()
