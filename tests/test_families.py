"""Every family: encode, train an adapter, export it, load it by the rules of diffusers and of other tools, generate."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models import ModelUnavailable
from models.families.assembled import assembled_folder, is_assembled
from models.families.family import Family
from models.families.known import family_of
from models.families.lora_file import EXPERT, FORMATS, linear_shapes, lora_bytes, read_lora
from models.generation.lora import Lora, load_loras, parse_lora
from models.generation.video_diffusion import open_pipeline, read_sampling
from models.generation.video_generator import (
    GeneratorOptions,
    OptionUnavailable,
    VideoGenerator,
    first_frame,
    image_to_video_class,
    sampling_settings,
)
from models.training.config import configured
from models.training.cost import Architecture, forward_flops, lora_weights, weights
from models.training.flow_matching import draw_sigma, generator, levels
from models.training.job import LORA_FILE, Sample, TrainJob, check_geometry
from models.training.presets import PRESETS
from models.training.trainer import Trained, Trainer
from tests.conftest import ROOT
from tests.test_trainer import as_alone, launched, on_shards
from tests.tiny_families import TINY
from tests.tiny_wan import tiny_job

GOLDEN = ROOT / "tests" / "golden_families.json"
TEXTS = ("a scan of the heart", "a scan of the knee")
OF_FAMILY: dict[str, dict[str, Any]] = {
    "wan-2.1": {},
    "wan-2.2-ti2v": {"first_frame_share": 0.5},
    "wan-2.2-a14b": {"expert": "low_noise"},
    "wan-2.2-i2v": {"expert": "high_noise"},
    "hunyuan-video": {"lora_layers": "to_k,to_q,to_v,to_out.0,add_q_proj,proj_mlp,ff.net.2"},
}


@dataclass
class Run:
    """A family's tiny base and what was trained beside it."""

    name: str
    base: Path
    family: Family
    job: TrainJob
    trained: Trained
    bucket: tuple[int, int, int]


def encoded(folder: Path, base: Path, family: Family, bucket: tuple[int, int, int]) -> tuple[tuple[Sample, ...], Path]:
    """Made-up clips and captions as the base's own parts encode them, and the empty caption."""
    pipeline = open_pipeline(base, parts=family.encoder_parts)
    folder.mkdir()
    samples = []
    for number in range(4):
        draw = np.random.default_rng(number)
        still = draw.integers(0, 255, (1, *bucket[1:], 3)).repeat(bucket[0], 0).astype(np.uint8)
        texts = family.encode_texts(pipeline, [TEXTS[number % 2], TEXTS[number % 2] + "."], 40)
        tensors = {"latents": family.encode_video(pipeline.vae, still), "brief": texts[0], "detailed": texts[1]}
        path = folder / f"{number}.safetensors"
        save_file({name: torch.from_numpy(rows).contiguous() for name, rows in tensors.items()}, str(path))
        samples.append(Sample(path=path, clip_id=f"clip-{number}", video_id=f"video-{number}"))
    (empty,) = family.encode_texts(pipeline, [""], 40)
    return tuple(samples), _saved(folder / "empty.safetensors", {"empty": torch.from_numpy(empty)})


def _saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, str(path))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    return cache(lambda name: trained(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module", params=list(TINY))
def run(request: pytest.FixtureRequest, runs: Callable[[str], Run]) -> Run:
    return runs(request.param)


def trained(name: str, folder: Path) -> Run:
    make, bucket, shape = TINY[name]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    base = make(folder / "base" / "pipeline")
    family = family_of(base)
    frames, height, width = map(int, bucket.split("x"))
    samples, empty = encoded(folder / "samples", base, family, (frames, height, width))
    job = tiny_job(
        folder, base, samples, training="lora", buckets=bucket, max_train_steps=3, checkpointing_steps=2,
        validation_steps=3, use_ema=False,
        learning_rate=2e-2, rank=4, lora_alpha=2, max_sequence_length=40, **OF_FAMILY[name],
    ).model_copy(update={"empty": empty})  # fmt: skip
    end = Trainer(job).run()
    torch.set_num_threads(before)
    assert tuple(load_file(samples[0].path)["latents"].shape) == shape
    return Run(name, base, family, job, end, (frames, height, width))


def test_golden_curves(run: Run) -> None:
    found = {
        "loss": [row["loss"] for row in run.trained.curve],
        "held_out": [row["loss"] for row in run.trained.validations],
    }
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("MEDGEN_WRITE_GOLDEN"):
        golden[run.name] = found
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    np.testing.assert_allclose(found["loss"], golden[run.name]["loss"], rtol=1e-3)
    np.testing.assert_allclose(found["held_out"], golden[run.name]["held_out"], rtol=1e-3)


def after_a_kill(run: Run, folder: Path, processes: int) -> TrainJob:
    """The run's job by so many processes, as far as its checkpoint of the second step."""
    shutil.copytree(run.job.folder, folder, ignore=shutil.ignore_patterns("model", "checkpoint-00000003", ".lock"))
    batch = run.job.config.train_batch_size // processes
    config = run.job.config.model_copy(update={"num_processes": processes, "train_batch_size": batch})
    return run.job.model_copy(update={"folder": folder, "config": config})


def test_a_killed_run_goes_on(run: Run, tmp_path: Path) -> None:
    resumed = Trainer(after_a_kill(run, tmp_path / "again", processes=1)).run()
    assert resumed.resumed_from == 2 and resumed.curve == run.trained.curve
    for name in (LORA_FILE, "sampling.json"):
        assert (resumed.model / name).read_bytes() == (run.trained.model / name).read_bytes()


def test_two_processes_on_shards_go_on_with_every_family(runs: Callable[[str], Run], tmp_path: Path) -> None:
    jobs = [after_a_kill(runs(name), tmp_path / name, processes=2) for name in TINY]
    assert launched(*jobs, command=on_shards(jobs[0])) == {2}
    for name, job in zip(TINY, jobs, strict=True):
        as_alone(runs(name).trained, job)


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(9).integers(0, 255, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def video(run: Run, pipeline: Any) -> np.ndarray:
    """Latents that the pipeline makes of a prompt."""
    frames, height, width = run.bucket
    pipeline.set_progress_bar_config(disable=True)
    further = {"image": picture(height, width)} if run.family.needs_image else {}
    made = pipeline(
        prompt=TEXTS[0], **further, height=height, width=width, num_frames=frames, num_inference_steps=2,
        guidance_scale=2.0, max_sequence_length=40, generator=torch.Generator().manual_seed(0), output_type="latent",
    )  # fmt: skip
    return np.asarray(made.frames[0].detach().float())


def test_adapter_and_merged_model_make_the_same_video_in_every_format(run: Run, tmp_path: Path) -> None:
    plain, merged = open_pipeline(run.base), open_pipeline(run.trained.model)
    expected = video(run, merged)
    part = run.family.expert(OF_FAMILY[run.name].get("expert", "")).part
    model = getattr(plain, part)
    shapes, names = linear_shapes(model), run.family.module_names
    adapters, header = read_lora(run.trained.model / LORA_FILE, names, shapes)
    assert header.get(EXPERT, "") == OF_FAMILY[run.name].get("expert", "")
    assert {adapter.scale for adapter in adapters.values()} == {0.5}
    assert not any(name.startswith("context_embedder.token") for name in adapters)
    untouched = video(run, plain)
    assert np.abs(untouched - expected).max() > 1e-3

    for form in FORMATS:
        path = tmp_path / f"{form}.safetensors"
        path.write_bytes(lora_bytes(adapters, form, names, shapes, header))
        again, _ = read_lora(path, names, shapes)
        for module, adapter in adapters.items():
            product = again[module].up @ again[module].down * again[module].scale
            np.testing.assert_allclose(product, adapter.up @ adapter.down * adapter.scale, atol=1e-6)
        load_loras(plain, run.base, [Lora(path, "")])
        np.testing.assert_allclose(video(run, plain), expected, atol=1e-5)
        model.unload_lora()

    # diffusers itself, by the file that training delivers.
    second = {"load_into_transformer_2": True} if part == "transformer_2" else {}
    plain.load_lora_weights(run.trained.model, weight_name=LORA_FILE, **second)
    np.testing.assert_allclose(video(run, plain), expected, atol=1e-5)
    model.unload_lora()

    # Two at once, each with a weight: half and half is one whole.
    halves = [Lora(tmp_path / f"{form}.safetensors", "", 0.5) for form in ("original", "musubi")]
    load_loras(plain, run.base, halves)
    np.testing.assert_allclose(video(run, plain), expected, atol=1e-5)

    delta = {name: new - old for name, old, new in weights_before_and_after(run, part)}
    check_by_other_tools(run, tmp_path, delta)


def weights_before_and_after(run: Run, part: str) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, weight of the base and of the merged model, where they differ."""
    old, new = (load_file(f / part / "diffusion_pytorch_model.safetensors") for f in (run.base, run.trained.model))
    return [(name, old[name], new[name]) for name in old if not torch.equal(old[name], new[name])]


def check_by_other_tools(run: Run, folder: Path, delta: dict[str, torch.Tensor]) -> None:
    """What other tools would add to the weights of the authors' checkpoint is what merging added."""
    theirs = authors_names({name.removesuffix(".weight"): change for name, change in delta.items()})
    original, musubi = (load_file(folder / f"{form}.safetensors") for form in ("original", "musubi"))
    for found in (comfyui(original), diffsynth(original), comfyui(musubi), musubi_tuner(musubi)):
        assert found.keys() == {name if found.dotted else name.replace(".", "_") for name in theirs}
        for name, change in theirs.items():
            np.testing.assert_allclose(found[name if found.dotted else name.replace(".", "_")], change, atol=1e-6)


class Changes(dict[str, torch.Tensor]):
    """Module → what a tool adds to its weight; `dotted`: in names with dots."""

    dotted = True


def comfyui(file: dict[str, torch.Tensor]) -> Changes:
    """comfy/lora.py and weight_adapter/lora.py: up · down · alpha / rank, alpha = rank where there is none."""
    found = Changes()
    for key in file:
        for up, down in ((".lora_up.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_A.weight")):
            if key.endswith(up):
                x = key.removesuffix(up)
                scale = float(file[f"{x}.alpha"]) / file[x + down].shape[0] if f"{x}.alpha" in file else 1.0
                found.dotted = x.startswith("diffusion_model.")
                module = x.removeprefix("diffusion_model.").removeprefix("lora_unet_")
                found[module] = scale * file[key] @ file[x + down]
    return found


def diffsynth(file: dict[str, torch.Tensor]) -> Changes:
    """diffsynth/lora of DiffSynth-Studio as it was until 2025: keys with lora_B, and no alpha."""
    found = Changes()
    for key in file:
        if ".lora_B." in key:
            words = key.split(".")
            words.pop(words.index("lora_B"))
            if words[0] == "diffusion_model":
                words.pop(0)
            words.pop(-1)
            found[".".join(words)] = file[key] @ file[key.replace(".lora_B.", ".lora_A.")]
    return found


def musubi_tuner(file: dict[str, torch.Tensor]) -> Changes:
    """networks/lora.py of musubi-tuner: modules by the word before the first dot, rank of lora_down, alpha beside."""
    found = Changes()
    found.dotted = False
    ranks = {key.split(".")[0]: weight.size()[0] for key, weight in file.items() if "lora_down" in key}
    for name, rank in ranks.items():
        change = file[f"{name}.lora_up.weight"] @ file[f"{name}.lora_down.weight"]
        found[name.removeprefix("lora_unet_")] = change * file[f"{name}.alpha"] / rank
    return found


def authors_names(changes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Changes of diffusers' modules as changes of the authors' modules, by rules written for this test."""
    swaps = (("attn1.to_", "self_attn."), ("attn2.to_", "cross_attn."), ("out.0", "o"))
    if any(name.startswith("blocks.") for name in changes):
        found = {}
        for name, change in changes.items():
            for old, new in swaps:
                name = name.replace(old, new)
            found[name] = change
        return found
    found, width = {}, 32
    rows = {"to_q": 0, "to_k": 1, "to_v": 2, "add_q_proj": 0, "proj_mlp": 3}
    for name, change in changes.items():
        kind, block, rest = name.split(".", 2)
        of = f"{'double' if kind == 'transformer_blocks' else 'single'}_blocks.{block}."
        last = rest.rpartition(".")[2]
        if last in rows:
            place = "linear1" if of.startswith("single") else "txt_attn_qkv" if last == "add_q_proj" else "img_attn_qkv"
            whole = found.setdefault(of + place, torch.zeros(width * (7 if place == "linear1" else 3), width))
            whole[rows[last] * width : rows[last] * width + len(change)] = change
        else:
            found[of + {"attn.to_out.0": "img_attn_proj", "ff.net.2": "img_mlp.fc2"}[rest]] = change
    return found


def test_a_model_wants_to_be_sampled_as_its_base_and_as_it_was_trained(run: Run) -> None:
    own, authors = read_sampling(run.trained.model), run.family.sampling
    assert own is not None
    assert (own.num_frames, own.height, own.width, own.fps) == (*run.bucket, 8.0)
    assert own.num_inference_steps == authors.num_inference_steps >= 40  # not those of validation, 2
    assert (own.guidance_scale, own.negative_prompt) == (authors.guidance_scale, authors.negative_prompt)
    of_base = sampling_settings(getattr(diffusers, run.family.pipeline), run.base, {})
    assert (of_base["num_frames"], of_base["height"], of_base["fps"]) == {
        "wan-2.1": (81, 480, 16), "wan-2.2-ti2v": (121, 704, 24), "wan-2.2-a14b": (81, 720, 16),
        "wan-2.2-i2v": (81, 720, 16), "hunyuan-video": (129, 720, 24),
    }[run.name]  # fmt: skip
    assert of_base["flow_shift"] == {
        "wan-2.2-ti2v": 5, "wan-2.2-i2v": 5, "wan-2.2-a14b": 12, "hunyuan-video": 7,
    }.get(run.name, 3)  # fmt: skip
    cls = getattr(diffusers, run.family.pipeline)
    assert sampling_settings(cls, run.base, {"guidance_scale": authors.guidance_scale}) == of_base
    assert "guidance_scale_2" not in sampling_settings(cls, run.base, {"guidance_scale": 9.0})
    assert of_base.get("guidance_scale_2") == {"wan-2.2-a14b": 3, "wan-2.2-i2v": 3.5}.get(run.name)


def test_buckets_that_would_be_cut_are_refused_with_the_nearest_that_fit(run: Run) -> None:
    pixels = 32 if run.name == "wan-2.2-ti2v" else 16
    config = configured("nano", {"buckets": f"16x{pixels + 1}x{2 * pixels},5x{pixels}x{pixels}", "from_scratch": False})
    check = check_geometry(config, run.family, 24.0)
    assert check.verdict == "fail" and f"multiples of {pixels} pixels" in check.expected
    assert check.advice.endswith(f"set buckets=13x{pixels}x{2 * pixels},5x{pixels}x{pixels}.")
    config = config.model_copy(update={"buckets": f"5x{pixels}x{pixels}"})
    assert check_geometry(config, run.family, 24.0).verdict == "warn"  # at 8 frames a second
    assert check_geometry(config, run.family, 8.0).verdict == "pass"
    if not run.family.first_frame:
        wanting = config.model_copy(update={"first_frame_share": 0.5})
        assert "first_frame_share=0" in check_geometry(wanting, run.family, 8.0).advice


def test_experts_learn_their_own_noise_levels() -> None:
    for within in ((0.875, 1.0), (0.0, 0.875)):
        draws = [draw_sigma("logit_normal", 0, 1, 12.0, generator(n), within) for n in range(40)]
        assert all(within[0] <= float(sigma) <= within[1] for sigma in draws)
        fixed = levels(4, 12.0, within)
        assert within[0] < fixed.min() and fixed.max() < within[1]
    assert float(draw_sigma("none", 0, 1, 1.0, generator(0), (0.9999999, 1.0))) == pytest.approx(1.0)


def test_a_first_frame_that_is_given_is_no_part_of_the_loss(tmp_path: Path) -> None:
    from models.training.loss import batch_of, losses_of
    from models.training.samples import Encoded

    base = TINY["wan-2.2-ti2v"][0](tmp_path / "base" / "pipeline")
    family = family_of(base)
    model = family.load_transformer(base, torch.float32)
    sample = Encoded(torch.randn(6, 2, 4, 6), torch.randn(3, 16), torch.randn(3, 16))
    config = configured("nano", {"first_frame_share": 1.0, "max_sequence_length": 8})
    batch = batch_of([(0, sample)], 0, config, torch.zeros(1, 16), family)
    seen: dict[str, Any] = {}

    def spy(model: Any, arguments: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    model.register_forward_pre_hook(spy, with_kwargs=True)
    loss = losses_of(model, batch, torch.device("cpu"), family)
    assert torch.equal(seen["hidden_states"][0, :, 0], sample.latents[:, 0])
    tokens = seen["timestep"][0].view(2, -1)
    assert (tokens[0] == 0).all() and (tokens[1] == 1000 * batch["sigma"]).all()
    batch["noise"][:, :, 0] += 100  # which nothing sees
    assert torch.allclose(loss, losses_of(model, batch, torch.device("cpu"), family))


def test_videos_go_on_from_a_first_frame(tmp_path: Path) -> None:
    base = TINY["wan-2.2-ti2v"][0](tmp_path / "base" / "pipeline")
    family, path = family_of(base), tmp_path / "first.png"
    picture(64, 96).save(path)
    made = VideoGenerator(base, GeneratorOptions(device="cpu"), image=path)
    assert type(made.pipeline) is image_to_video_class(base, "tiny")
    size = {"height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 16}
    frames = made.frames(TEXTS[0], 0, {**size, "fps": 24.0, "image": "its digest"})
    assert frames.shape == (5, 64, 96, 3)
    latents = made.pipeline(image=first_frame(path, 64, 96), prompt=TEXTS[0], **size, output_type="latent").frames[0]
    expected = family.encode_video(made.pipeline.vae, np.array(picture(64, 96))[None])
    np.testing.assert_allclose(np.asarray(latents.float())[:, 0], expected[:, 0], atol=1e-4)
    with pytest.raises(OptionUnavailable, match="no first frame"):
        image_to_video_class(TINY["wan-2.1"][0](tmp_path / "other" / "pipeline"), "tiny")
    with pytest.raises(OptionUnavailable, match="no picture"):
        first_frame(base / "model_index.json", 64, 96)


def test_a_first_frame_given_as_channels_is_what_the_pipeline_gives(run: Run) -> None:
    if not run.family.needs_image:
        assert run.family.channels == run.family.predicted_channels
        return
    seen: dict[str, Any] = {}
    pipeline = open_pipeline(run.base)
    pipeline.transformer.register_forward_pre_hook(lambda m, a, kwargs: seen.update(kwargs), with_kwargs=True)
    video(run, pipeline)
    theirs = seen["hidden_states"][:, 4:]
    frames, height, width = run.bucket
    clip = np.repeat(np.asarray(picture(height, width))[None], frames, 0)
    encoded = torch.from_numpy(run.family.encode_video(pipeline.vae, clip))[None]
    batch = {"condition": encoded[:, 4:], "texts": torch.zeros(1, 4, 16)}
    run.family.predict(pipeline.transformer, encoded[:, :4], torch.tensor([900.0]), batch)
    np.testing.assert_allclose(seen["hidden_states"][:, 4:], theirs, atol=1e-4)


def test_files_that_do_not_fit_are_named(run: Run, tmp_path: Path) -> None:
    names, shapes = run.family.module_names, linear_shapes(run.family.load_transformer(run.base, torch.float32))
    good = load_file(run.trained.model / LORA_FILE)
    key = next(iter(good))
    for tensors, said in (
        ({key: good[key]}, "has but"),
        ({**good, "transformer.blocks.9.attn1.to_q.lora_A.weight": good[key].clone()}, "lacks"),
        ({**good, "transformer.blocks.0.diff_b": good[key].clone()}, "no LoRA weight"),
        ({**good, key: torch.zeros(4, 7)}, "another model"),
    ):
        with pytest.raises(ModelUnavailable, match=said):
            read_lora(_saved(tmp_path / "bad.safetensors", tensors), names, shapes)
    with pytest.raises(ModelUnavailable, match="can't be read"):
        (tmp_path / "bad.safetensors").write_bytes(b"no")
        read_lora(tmp_path / "bad.safetensors", names, shapes)
    assert parse_lora("a/b.safetensors") == ("a/b.safetensors", 1.0)
    assert parse_lora("a/b.safetensors:0.5") == ("a/b.safetensors", 0.5)
    assert parse_lora("medgen:123") == ("medgen:123", 1.0) and parse_lora("medgen:x:-1") == ("medgen:x", -1.0)
    with pytest.raises(ValueError, match="no number"):
        parse_lora("a.safetensors:nan")


def test_presets_ask_for_what_their_bases_take() -> None:
    paper = configured("paper")
    assert "HunyuanVideo" in paper.pretrained_model_name_or_path and paper.buckets == "93x480x720"
    assert (paper.rank, paper.lora_alpha, paper.learning_rate, paper.flow_shift) == (32, 32, 5e-5, 7.0)
    assert (paper.global_batch, paper.max_train_steps, paper.seed, paper.ema_decay) == (32, 50_000, 1024, 0.999)
    small = configured("wan2.2-5b-lora")
    assert (small.buckets, small.fps, small.flow_shift) == ("121x704x1280", 24, 5)
    assert {configured(name).expert for name in PRESETS if "a14b" in name} == {"high_noise", "low_noise"}


def authors_checkpoint(run: Run) -> dict[str, torch.Tensor]:
    """The base's transformer in its authors' names, by rules written for this test."""
    state = load_file(run.base / "transformer" / "diffusion_pytorch_model.safetensors")
    if run.name != "hunyuan-video":
        swaps = [
            ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
            ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
            ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
            ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
            ("condition_embedder.time_proj", "time_projection.1"),
            ("attn1.to_", "self_attn."), ("attn2.to_", "cross_attn."), ("out.0.", "o."), ("attn1", "self_attn"),
            ("attn2", "cross_attn"), ("net.0.proj", "0"), ("net.2", "2"), ("norm2", "norm3"), ("proj_out", "head.head"),
        ]  # fmt: skip
        found = {}
        for name, tensor in state.items():
            name = "head.modulation" if name == "scale_shift_table" else name.replace("scale_shift_table", "modulation")
            for old, new in swaps:
                name = name.replace(old, new)
            found[f"model.diffusion_model.{name}"] = tensor
        return found
    found, fused = {}, {}
    swaps = [
        ("time_text_embed.timestep_embedder.linear_1", "time_in.mlp.0"),
        ("time_text_embed.timestep_embedder.linear_2", "time_in.mlp.2"),
        ("time_text_embed.guidance_embedder.linear_1", "guidance_in.mlp.0"),
        ("time_text_embed.guidance_embedder.linear_2", "guidance_in.mlp.2"),
        ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
        ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
        ("x_embedder", "img_in"), ("single_transformer_blocks", "single_blocks"),
        ("transformer_blocks", "double_blocks"),
    ]  # fmt: skip
    double = [
        ("attn.norm_q", "img_attn_q_norm"), ("attn.norm_k", "img_attn_k_norm"), ("attn.to_out.0", "img_attn_proj"),
        ("attn.norm_added_q", "txt_attn_q_norm"), ("attn.norm_added_k", "txt_attn_k_norm"),
        ("attn.to_add_out", "txt_attn_proj"),
        ("norm1_context.linear", "txt_mod.linear"), ("norm1.linear", "img_mod.linear"), ("ff_context", "txt_mlp"),
        ("ff.", "img_mlp."), ("net.0.proj", "fc1"), ("net.2", "fc2"),
    ]  # fmt: skip
    single = [("proj_out", "linear2"), ("norm.linear", "modulation.linear"), ("attn.norm_q", "q_norm"),
              ("attn.norm_k", "k_norm")]  # fmt: skip
    refiner = [
        ("time_in.mlp", "t_embedder.mlp"), ("vector_in.in_layer", "c_embedder.linear_1"), ("proj_in", "input_embedder"),
        ("vector_in.out_layer", "c_embedder.linear_2"),
        ("token_refiner.refiner_blocks", "individual_token_refiner.blocks"), ("norm_out.linear", "adaLN_modulation.1"),
        ("attn.to_out.0", "self_attn_proj"), ("net.0.proj", "fc1"), ("net.2", "fc2"),
        ("ff.", "mlp."), ("context_embedder", "txt_in"),
    ]  # fmt: skip
    for name, tensor in state.items():
        for old, new in swaps:
            name = name.replace(old, new)
        if name.startswith("norm_out.linear"):  # scale before shift here, shift before scale there
            scale, shift = tensor.chunk(2)
            name, tensor = name.replace("norm_out.linear", "final_layer.adaLN_modulation.1"), torch.cat([shift, scale])
        elif name.startswith("proj_out"):
            name = name.replace("proj_out", "final_layer.linear")
        kind = double if name.startswith("double") else single if name.startswith("single") else refiner
        for old, new in kind if name.startswith(("double", "single", "context_embedder")) else []:
            name = name.replace(old, new)
        rows = (("to_q", "add_q_proj"), ("to_k", "add_k_proj"), ("to_v", "add_v_proj"), ("proj_mlp",))
        for row, ends in enumerate(rows):
            if word := next((w for w in (f".attn.{end}." for end in ends) if w in name), ""):
                of = "txt_attn_qkv" if "add" in word else "self_attn_qkv" if kind is refiner else "img_attn_qkv"
                fused.setdefault(name.replace(word, f".{'linear1' if kind is single else of}."), {})[row] = tensor
                break
            if ends == ("proj_mlp",) and ".proj_mlp." in name:
                fused.setdefault(name.replace("proj_mlp", "linear1"), {})[row] = tensor
                break
        else:
            found[name] = tensor
    return found | {name: torch.cat([parts[row] for row in sorted(parts)]) for name, parts in fused.items()}


def test_a_checkpoint_of_the_authors_becomes_a_base(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDGEN_HOME", str(tmp_path / "home"))
    weights = _saved(tmp_path / "theirs.safetensors", {n: t.contiguous() for n, t in authors_checkpoint(run).items()})
    name = f"{weights}+{run.base}"
    assert is_assembled(name) and not is_assembled(str(run.base)) and not is_assembled("Wan-AI/Wan2.1")
    folder = assembled_folder(name)
    assert family_of(folder).name == run.family.name
    found, expected = (load_file(f / "transformer" / "diffusion_pytorch_model.safetensors") for f in (folder, run.base))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert assembled_folder(name) == folder
    if run.name == "wan-2.2-a14b":  # both experts from files
        both = assembled_folder(f"{weights}+{weights}+{run.base}")
        part = load_file(both / "transformer_2" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(part[key], expected[key]) for key in expected)
    # A repository of a fine-tuned transformer and nothing else, as the authors of MedGen publish theirs.
    alone = tmp_path / "published"
    shutil.copytree(run.base / "transformer", alone)
    assert (
        load_file(
            assembled_folder(f"{alone}+{run.base}") / "transformer" / "diffusion_pytorch_model.safetensors"
        ).keys()
        == expected.keys()
    )
    with pytest.raises(ModelUnavailable, match="LoRA"):
        assembled_folder(f"{run.trained.model / LORA_FILE}+{run.base}")
    with pytest.raises(ModelUnavailable, match="no known model"):
        assembled_folder(str(weights))
    cut = dict(list(load_file(weights).items())[1:])
    with pytest.raises(ModelUnavailable, match="theirs"):
        assembled_folder(f"{_saved(tmp_path / 'theirs-cut.safetensors', cut)}+{run.base}")


def test_costs_are_those_of_the_model_itself() -> None:
    for tiny in (True, False):
        size = (
            {}
            if not tiny
            else {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "text_embed_dim": 24}
        )
        with torch.device("meta"):
            model = diffusers.HunyuanVideoTransformer3DModel(**size)
        a = Architecture.of(model.config)
        assert weights(a) == sum(p.numel() for p in model.parameters())
        targets = ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "net.2"]
        shapes = {
            name: shape for name, shape in linear_shapes(model).items() if not name.startswith("context_embedder")
        }
        adapted = [sum(shape) for name, shape in shapes.items() if any(name.endswith(f".{t}") for t in targets)]
        assert lora_weights(a, 8, targets) == 8 * sum(adapted)
    assert a.ffn == 7 * a.width and 12.5e9 < weights(a) < 13.5e9
    # 129 frames of 720 x 1280 are 119,000 tokens: by each layer's matrices and by attention between all of them.
    latent, both = (16, 33, 90, 160), 33 * 45 * 80 + 256
    flops = forward_flops(a, latent, 256)
    assert flops == pytest.approx(60 * (24 * both * 3072**2 + 4 * both**2 * 3072), rel=0.01)
