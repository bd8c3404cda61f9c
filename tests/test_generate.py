"""Generation: prompts become videos that say what they are; once, whatever happens meanwhile."""

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from apps.generate import generate
from flows.evaluate import EvaluateParameters, plan_of
from medgen.canonical import digest_of
from medgen.catalog import ModelVersion
from medgen.errors import ItemFailed, RunStopped
from medgen.folders import put_folder
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work, open_ledger
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from medgen.video_file import read_record, write_video
from models import ModelUnavailable
from models.generation import prompt_set
from models.generation.prompt_set import Prompt, load_prompts, medical_prompts, prompt_origin
from models.generation.video_diffusion import pipeline_digest
from models.generation.video_generator import GeneratorOptions, VideoGenerator, sampling_settings, text_to_video_class
from models.training.job import LORA_FILE
from models.training.nano import FRAMES, HEIGHT, SAMPLING, SHIFT, WIDTH, save_untrained
from models.training.sampling import sampling_of
from tasks.evaluation.generate import GenerateParams, generate_videos, plan, videos_of
from tasks.evaluation.measured import System
from tasks.evaluation.plan import EvaluationPlan
from tasks.evaluation.sampling import sampling_of as sampling_of_systems
from tasks.evaluation.sampling import sampling_rows, sampling_sentences
from tasks.training.lora_export import export_lora
from tasks.training.model_files import ADAPTER, model_folder
from tests.conftest import medgen_running
from tests.tiny_wan import tiny_config
from tests.waiting import wait_until

SETTINGS = {
    "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "num_inference_steps": 4,
    "guidance_scale": SAMPLING.guidance_scale,
    "max_sequence_length": 64, "fps": 8.0, "flow_shift": SHIFT,
}  # fmt: skip


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained nano pipeline's folder."""
    return save_untrained(tmp_path_factory.mktemp("models") / "nano", seed=3)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(*arguments: str) -> dict[str, Any]:
    """What `medgen generate … --json` prints, run in this process: diffusers takes long to import."""
    app = typer.Typer()
    app.command()(generate)
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_video_is_made_once_and_says_what_it_is(nano: Path, home: Path, tmp_path: Path) -> None:
    command = ["A heart  beats.", "--model", str(nano), "--steps", "2", "--seed", "7"]
    first, second = (run(*command, "--out", str(tmp_path / name)) for name in "ab")
    assert [(f["executed"], f["reused"]) for f in (first, second)] == [(1, 0), (0, 1)]
    (video,), (again,) = first["videos"], second["videos"]
    assert sha256(Path(video["file"])) == sha256(Path(again["file"])) == video["sha256"]
    assert video["subject"].startswith("gen-") and video["synthetic"] is True

    path = Path(video["file"])
    record = read_record(path)
    assert record is not None
    assert record["synthetic"] is True and record["prompt"] == "A heart beats." and record["seed"] == 7
    assert record["model"] == video["model"] == pipeline_digest(nano) and "medgen" in record
    assert record["settings"] == video["settings"] == {
        **SETTINGS, "num_inference_steps": 2, "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    frames = [picture.rgb() for picture in pictures(path, Limits())]
    assert len(frames) == FRAMES and frames[0].shape == (HEIGHT, WIDTH, 3)
    assert run(*command[:-1], "8", "--out", str(tmp_path / "c"))["videos"][0]["sha256"] != video["sha256"]


def test_a_killed_batch_goes_on_where_it_stopped(nano: Path, home: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("id,text,category\n" + "".join(f"p{n},A scan of organ {n}.,imaging\n" for n in range(5)))
    out = tmp_path / "v"
    command = ["--prompts", str(prompts), "--model", str(nano), "--steps", "12", "--out", str(out)]
    environment = {"MEDGEN_DATABASE_URL": os.environ["MEDGEN_DATABASE_URL"], "HF_HUB_OFFLINE": "1"}
    with medgen_running("generate", *command, home=home, **environment) as process:
        wait_until(lambda: len(list(home.glob("store/??/*"))) >= 2 or process.poll() is not None, "no videos are made")
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        os.killpg(process.pid, signal.SIGKILL)
    made = {path.name for path in home.glob("store/??/*")}
    facts = run(*command)
    assert facts["reused"] >= 1 and facts["executed"] >= 1 and facts["executed"] + facts["reused"] == 5
    assert sorted(path.name for path in out.iterdir()) == [f"p{n}-seed0.mp4" for n in range(5)]
    assert {video["category"] for video in facts["videos"]} == {"imaging"}
    assert len({video["sha256"] for video in facts["videos"]}) == 5
    # What the other process made is, to the byte, what this one makes.
    first = facts["videos"][0]
    assert first["sha256"] in made
    frames = VideoGenerator(nano, GeneratorOptions(device="cpu")).frames(
        first["prompt"], 0, {**SETTINGS, "num_inference_steps": 12}
    )
    write_video(tmp_path / "anew.mp4", frames, 8.0, read_record(out / "p0-seed0.mp4") or {})
    assert sha256(tmp_path / "anew.mp4") == first["sha256"]


def test_fast_paths_are_on_record_and_repeat(nano: Path) -> None:
    plain = VideoGenerator(nano, GeneratorOptions(device="cpu")).frames("a scan", 1, SETTINGS)
    cached = VideoGenerator(nano, GeneratorOptions(device="cpu", cache="first_block", cache_threshold=0.5))
    one, two = (cached.frames("a scan", 1, SETTINGS) for _ in range(2))
    assert (one == two).all() and (one != plain).any()
    assert cached.options.pixel_settings() == {
        "dtype": "float32", "device": "cpu", "cache": "first_block", "cache_threshold": 0.5,
    }  # fmt: skip
    tiled = VideoGenerator(
        nano, GeneratorOptions(device="cpu", vae_tiling=True, vae_slicing=True, attention_backend="native")
    )
    np.testing.assert_array_equal(tiled.frames("a scan", 1, SETTINGS), plain)  # smaller than a tile
    assert set(tiled.options.pixel_settings()) == {"dtype", "device", "vae_tiling", "attention_backend"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attention_backend": "bogus"}, "not known"),
        ({"attention_backend": "sage_hub"}, "would fetch code"),
        ({"attention_backend": "xformers"}, "can't be had here"),
        ({"offload": "model", "device": "cpu"}, "set offload=none"),
    ],
)
def test_an_option_that_can_t_be_had_is_named(nano: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        VideoGenerator(nano, GeneratorOptions(**options))


def folder_of(path: Path, kind: str) -> Path:
    """A folder that says it is a pipeline of that class."""
    (path / "unet").mkdir(parents=True)
    (path / "unet" / "weights.safetensors").write_bytes(b"")
    index = {"_class_name": kind, "unet": ["diffusers", "UNet2DConditionModel"]}
    (path / "model_index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("StableDiffusionPipeline", "makes no videos"),
        ("StableVideoDiffusionPipeline", "takes no prompt"),
        ("WanImageToVideoPipeline", "needs image"),
        ("NoSuchPipeline", "knows no such pipeline"),
        ("AutoencoderKLWan", "knows no such pipeline"),
    ],
)
def test_what_makes_no_videos_of_prompts_is_refused_before_it_is_loaded(tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        text_to_video_class(folder_of(tmp_path / "m", kind), "m")


def test_a_model_is_sampled_with_its_own_shift_and_away_from_what_its_authors_say(nano: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "wan", "WanPipeline")
    wan = text_to_video_class(folder, "wan")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    scheduler.write_text(json.dumps({"use_flow_sigmas": True, "flow_shift": 3.0}))
    for part, facts in (
        ("transformer", {"_class_name": "WanTransformer3DModel", "in_channels": 16, "out_channels": 16}),
        ("vae", {}),
    ):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(facts))
    plain = sampling_settings(wan, folder, {})
    assert plain["flow_shift"] == 3.0 and plain["negative_prompt"].startswith("色调艳丽")
    asked = sampling_settings(wan, folder, {"flow_shift": 7.0, "negative_prompt": "none"})
    assert asked["flow_shift"] == 7.0 and "negative_prompt" not in asked
    trained = tiny_config(flow_shift=7.0)
    (folder / "sampling.json").write_text(sampling_of(trained, folder).to_json(), "utf-8")
    mine = sampling_settings(wan, folder, {})
    assert (mine["flow_shift"], mine["negative_prompt"]) == (7.0, plain["negative_prompt"])
    (folder / "sampling.json").write_text(sampling_of(tiny_config(flow_shift=3.0), folder).to_json(), "utf-8")
    assert "flow_shift" not in json.loads((folder / "sampling.json").read_text("utf-8"))
    scheduler.write_text(json.dumps({"use_dynamic_shifting": True, "shift": 1.0}))
    assert "flow_shift" not in sampling_settings(wan, folder, {})
    with pytest.raises(ModelUnavailable, match="no fixed flow_shift"):
        sampling_settings(wan, folder, {"flow_shift": 7.0})

    generator = VideoGenerator(nano, GeneratorOptions(device="cpu"))
    few = {**SETTINGS, "num_inference_steps": 2, "num_frames": 5}
    plain_frames = generator.frames("a scan", 1, few)
    assert (generator.frames("a scan", 1, {**few, "flow_shift": 7.0}) != plain_frames).any()
    assert generator.pipeline.scheduler.config.flow_shift == 7.0
    np.testing.assert_array_equal(generator.frames("a scan", 1, few), plain_frames)


def test_models_of_an_evaluation_are_sampled_alike_unless_told_otherwise(home: Path, tmp_path: Path) -> None:
    for name, kind in (("wan", "WanPipeline"), ("cog", "CogVideoXPipeline"), ("ltx", "LTXPipeline")):
        folder = folder_of(tmp_path / name, kind)
        (folder / "unet" / "weights.safetensors").write_text(name)  # else they were one model
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text('{"shift": 3.0}' if name != "cog" else "{}")
    (tmp_path / "one.txt").write_text("A heart.\n")

    def planned(*models: str, **changes: Any) -> EvaluationPlan:
        given = {"prompts": str(tmp_path / "one.txt"), "models": [str(tmp_path / name) for name in models]}
        return plan_of(open_ledger(), EvaluateParameters(**given | changes))

    same = planned("wan", "ltx", num_inference_steps=7, negative_prompt="blur").settings
    for name in ("num_inference_steps", "guidance_scale", "num_frames", "height", "width", "flow_shift", "fps"):
        assert same["wan"][name] == same["ltx"][name]
    assert same["ltx"]["negative_prompt"] == "blur" and same["ltx"]["num_inference_steps"] == 7
    own = planned("wan", "ltx", sampling="own").settings
    assert (own["wan"]["num_frames"], own["ltx"]["num_frames"]) == (81, 161)
    told = sampling_of_systems("own", [System("wan"), System("ltx")], own, [])
    assert told["differ"] == ["guidance", "negative_prompt"] and "at its own settings" in sampling_sentences(told)[0]
    assert sampling_rows(told)[0]["shift"] == "3"
    with pytest.raises(ModelUnavailable, match=r"no fixed flow_shift.*sampling=own"):
        planned("wan", "cog")
    with pytest.raises(RunStopped, match=r"differ in flow_shift \(cog: its own; wan: 3.0\).*sampling=own"):
        planned("cog", "wan", height=64, width=64)
    assert planned("cog", "wan", sampling="own").settings["cog"]["fps"] == 8.0


def test_the_papers_prompts_are_the_users_to_bring_and_known_by_their_texts(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ItemFailed, match=r"don't come with medgen.*eval_prompt_200\.txt"):
        load_prompts("paper")
    prompt_set.paper_file().parent.mkdir(parents=True)
    prompt_set.paper_file().write_text("A heart.\nA knee.\n")
    with pytest.raises(ItemFailed, match="2 prompts, other texts"):
        load_prompts("paper")
    monkeypatch.setattr(prompt_set, "PAPER_TEXTS", digest_of(["A heart.", "A knee."]))
    assert [prompt.text for prompt in load_prompts("paper")] == ["A heart.", "A knee."]
    (tmp_path / "mine.csv").write_text("id,text\n2,A knee.\n1,A heart.\n")
    assert prompt_origin(load_prompts(tmp_path / "mine.csv")) == "paper"  # whatever the file is called
    assert prompt_origin(medical_prompts()) == "medical"
    assert prompt_origin([Prompt("a", "A knee.")]) == ""


def test_other_pipelines_get_only_what_they_take(tmp_path: Path) -> None:
    found = {}
    for kind in ("CogVideoXPipeline", "LTXPipeline", "HunyuanVideoPipeline", "MochiPipeline", "TextToVideoSDPipeline"):
        folder = folder_of(tmp_path / kind, kind)
        found[kind] = sampling_settings(text_to_video_class(folder, kind), folder, {"num_frames": 9, "height": 64})
    assert found["LTXPipeline"]["frame_rate"] == found["LTXPipeline"]["fps"] == 24.0
    assert found["CogVideoXPipeline"]["fps"] == 8.0 and "width" not in found["CogVideoXPipeline"]
    assert "max_sequence_length" not in found["TextToVideoSDPipeline"]
    assert {s["num_frames"] for s in found.values()} == {9}
    with pytest.raises(ModelUnavailable, match="takes no max_sequence_length"):
        folder = tmp_path / "TextToVideoSDPipeline"
        sampling_settings(text_to_video_class(folder, "t"), folder, {"max_sequence_length": 5})


def test_troubles_are_told_in_one_line_and_nothing_else_is_lost(
    nano: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger()
    for model, reason in (("", "no_model"), ("no/such", "unknown_model"), ("medgen:none", "unknown_model")):
        with pytest.raises(ItemFailed) as raised:
            plan(ledger, GenerateParams(model=model))
        assert raised.value.reason == reason
    settings_of = plan(ledger, GenerateParams(model=str(nano), num_frames=5)).settings
    own = SAMPLING.model_dump(exclude={"negative_prompt", "guidance_scale_2"})
    assert settings_of == {**own, "num_frames": 5, "flow_shift": SHIFT}

    def short(self: Any, **arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    with monkeypatch.context() as patched:
        generator = VideoGenerator(nano, GeneratorOptions(device="cpu"))
        patched.setattr(type(generator.pipeline), "__call__", short)
        with pytest.raises(RuntimeError, match=r"Tried to allocate.*Try vae_tiling=true.*num_frames \(17\)"):
            generator.frames("a", 0, SETTINGS)

    # A size that Wan refuses fails those prompts and is tried again another time; the others' videos stay.
    params = GenerateParams(model=str(nano), num_inference_steps=1, num_frames=5, videos_per_prompt=2)
    prompts = [Prompt("a", "one"), Prompt("b", "two")]
    good = generate_videos(ledger, prompts, params)
    assert [record.detail["seed"] for record in videos_of(ledger, good)] == [0, 1, 0, 1]
    bad = generate_videos(ledger, prompts, params.model_copy(update={"height": 60}))
    records = ledger.load(bad.records).values()
    assert {(r.reason, r.transient) for r in records} == {("generation_failed", True)}
    assert "divisible by 16" in next(iter(records)).detail["message"]
    again = generate_videos(ledger, prompts, params)
    assert again.executed == 0 and again.records == good.records
    an_adapter_that_was_not_merged_is_generated_with(ledger, nano, tmp_path, params)


def an_adapter_that_was_not_merged_is_generated_with(
    ledger: Ledger, nano: Path, folder: Path, params: GenerateParams
) -> None:
    torch.manual_seed(0)
    module = "transformer.blocks.0.attn1.to_q"
    tensors = {f"{module}.lora_A.weight": torch.randn(2, 128), f"{module}.lora_B.weight": torch.randn(128, 2)}
    (folder / "adapter").mkdir()
    save_file(tensors, str(folder / "adapter" / LORA_FILE))
    stored = put_folder(ledger.store, folder / "adapter")
    digest = stored.manifest.sha256
    row = ModelVersion(digest=digest, name="my-adapter", kind=ADAPTER, checkpoint_sha256=digest)
    detail = {"base": "f" * 64, "base_name": str(nano)}
    outcome = Outcome("kept", detail=detail, outputs=stored.outputs(), rows=[row])
    ledger.once(StepIdentity("train", 1, {}, {}), Work("made"), lambda: outcome)

    few = params.model_copy(update={"videos_per_prompt": 1})
    prompts = [Prompt("a", "one")]

    def made(**changes: Any) -> tuple[str, Record]:
        (record,) = videos_of(ledger, generate_videos(ledger, prompts, few.model_copy(update=changes)))
        return record.outputs["video"], record

    by_name, record = made(model="medgen:my-adapter")
    assert record.detail["model"] == digest and record.detail["model_name"] == "my-adapter"
    assert record.detail["settings"]["lora"][0]["weight"] == 1.0
    file = str(folder / "adapter" / LORA_FILE)
    by_file, _ = made(lora=(file,))
    by_halves, _ = made(lora=(f"{file}:0.5", "medgen:my-adapter:0.5"))
    plain, _ = made()
    assert pixels(ledger, by_file) == pixels(ledger, by_name) != pixels(ledger, plain)
    assert pixels(ledger, by_halves) != pixels(ledger, plain)
    with pytest.raises(ItemFailed, match="adapter without its base"):
        model_folder(ledger, "medgen:my-adapter")
    exported = export_lora(ledger, "medgen:my-adapter", folder / "for-others.safetensors", "musubi")
    assert exported["modules"] == 1 and exported["rank"] == 2
    assert "lora_unet_blocks_0_self_attn_q.alpha" in load_file(exported["file"])
    for broken, reason in ((("no-file",), "no_lora"), (("medgen:none",), "unknown_model")):
        with pytest.raises(ItemFailed) as raised:
            plan(ledger, few.model_copy(update={"lora": broken}))
        assert raised.value.reason == reason


def pixels(ledger: Ledger, video: str) -> bytes:
    """The frames of a video in the store, as bytes: the file itself holds its record too."""
    return b"".join(picture.rgb().tobytes() for picture in pictures(ledger.store.path(video), Limits()))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200),
    size=st.tuples(st.integers(2, 5), st.integers(16, 41), st.integers(16, 41)),
    fps=st.sampled_from([8.0, 12.5, 23.976, 30.0]),
)
def test_a_record_comes_back_from_the_file_as_it_was(
    tmp_path: Path, text: str, size: tuple[int, int, int], fps: float
) -> None:
    record = {"prompt": text, "seed": 2**60, "settings": {"guidance_scale": 2.5, "fps": fps}, "synthetic": True}
    frames = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames, fps, record)
    assert read_record(tmp_path / "a.mp4") == record
    assert sha256(tmp_path / "a.mp4") == sha256(tmp_path / "b.mp4")


def test_colours_come_back(tmp_path: Path) -> None:
    colours = np.array([(255, 0, 0), (0, 200, 0), (20, 40, 230), (128, 128, 128), (230, 180, 150)], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (5, 32, 32, 3))
    write_video(tmp_path / "v.mp4", frames, 8.0, {})
    back = np.stack([picture.rgb() for picture in pictures(tmp_path / "v.mp4", Limits())])
    assert np.abs(back[:, 8:-8, 8:-8].astype(int) - frames[:, 8:-8, 8:-8]).max() <= 8
    assert read_record(tmp_path / "v.mp4") == {}
    (tmp_path / "none.mp4").write_bytes(b"no video")
    assert read_record(tmp_path / "none.mp4") is None
