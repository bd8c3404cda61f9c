"""Training: golden curve, kill and resume, adapters, processes, bad input."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models import ModelUnavailable
from models.families.known import family_of
from models.training import checkpoint
from models.training.best import read_facts, standing_of
from models.training.checkpoint import CheckpointNotWritten, WrongCheckpoint
from models.training.config import configured
from models.training.errors import OutOfMemory, TrainingStopped, explain_out_of_memory
from models.training.flow_matching import draw_sigma, generator, noised, shifted
from models.training.frozen import shrink_frozen
from models.training.job import LORA_FILE, TrainJob, read_rows, split_by_video
from models.training.optimizers import state_of
from models.training.presets import PRESETS
from models.training.recompute import recompute_blocks
from models.training.samples import NothingToTrainOn, Part, batch_order
from models.training.trainer import Trained, Trainer
from tasks.training.process import training_command
from tests.conftest import ROOT, forked
from tests.tiny_wan import SHAPE, made_up_samples, tiny_base, tiny_config, tiny_job

GOLDEN = ROOT / "tests" / "golden_training.json"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "pipeline")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return made_up_samples(tmp_path_factory.mktemp("samples"))


def curve(folder: Path) -> list[float]:
    return [row["loss"] for row in read_rows(folder / "losses.jsonl")]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def start(*jobs: TrainJob, command: Sequence[str] = ("-m", "models.training"), **variables: str) -> subprocess.Popen:
    """The job in a process of its own."""
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        job.write(job.folder / "job.json")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    environment |= variables
    launch = [sys.executable, *command, *(str(job.folder / "job.json") for job in jobs)]
    return subprocess.Popen(launch, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# --- flow matching and the order of samples ---


@given(st.floats(1.0, 12.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_shift_keeps_the_ends_and_the_order(shift, a, b):
    low, high = sorted((a, b))
    out = shifted(torch.tensor([0.0, low, high, 1.0], dtype=torch.float64), shift)
    assert out[0] == 0 and out[3] == pytest.approx(1.0)
    assert out[0] <= out[1] <= out[2] <= out[3] + 1e-12
    assert out[1] >= low - 1e-12  # a shift above 1 moves towards noise


def test_path_is_a_straight_line_from_sample_to_noise():
    x0, noise = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    at, velocity, timestep = noised(x0, noise, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(at[0], 0.75 * x0[0] + 0.25 * noise[0])
    torch.testing.assert_close(at[1], noise[1])
    torch.testing.assert_close(at[0] - 0.25 * velocity[0], x0[0])  # going back along the velocity gives the sample
    assert timestep.tolist() == [250.0, 1000.0]


def test_noise_levels_follow_the_scheme():
    def mean(scheme, shift):
        return float(np.mean([draw_sigma(scheme, 0.0, 1.0, shift, generator(0, "t", i)) for i in range(2000)]))

    assert mean("none", 1.0) == pytest.approx(0.5, abs=0.02)
    assert mean("logit_normal", 1.0) == pytest.approx(0.5, abs=0.02)
    assert mean("none", 7.0) > mean("none", 3.0) > 0.6


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=3),
    st.integers(1, 5),
    st.floats(0.05, 0.95),
    st.integers(0, 9),
)
def test_a_mixture_draws_from_each_release_by_its_weight_and_goes_on_anywhere(sizes, batch, share, start_at):
    indices = iter(range(1000))
    found = [[[next(indices) for _ in range(size)] for size in of_shape] for of_shape in sizes]
    members = [frozenset(i for of_shape in found for i in of_shape[part]) for part in (0, 1)]
    assume(all(members))
    buckets = {(4, 1, 2, n): [*a, *b] for n, (a, b) in enumerate(found) if a or b}
    parts = {"a": Part(share, members[0]), "b": Part(1 - share, members[1])}
    steps = 60
    order = batch_order(buckets, batch, 3, 0, parts)
    all_steps = [next(order) for _ in range(steps)]
    later = batch_order(buckets, batch, 3, start_at, parts)
    assert [next(later) for _ in range(steps - start_at)] == all_steps[start_at:]
    drawn = [i for step in all_steps for i in step]
    # Steps go to shapes as a whole, and draws within one to its parts: each is off by one at most.
    assert abs(sum(i in members[0] for i in drawn) - share * len(drawn)) <= len(buckets) * (batch + 1)
    for of_shape in found:
        for own in of_shape:
            counts = [drawn.count(i) for i in own]
            assert not counts or max(counts) - min(counts) <= 1


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 9))
def test_every_sample_gets_its_turn_and_any_step_can_be_gone_on_from(sizes, batch, start_at):
    indices = iter(range(sum(sizes)))
    buckets = {(4, 1, 2, n): [next(indices) for _ in range(size)] for n, size in enumerate(sizes)}
    shape_of = {i: shape for shape, members in buckets.items() for i in members}
    steps = 60
    order = batch_order(buckets, batch, 3)
    all_steps = [next(order) for _ in range(steps)]
    later = batch_order(buckets, batch, 3, start_at)
    assert [next(later) for _ in range(steps - start_at)] == all_steps[start_at:]
    assert all(len({shape_of[i] for i in step}) == 1 for step in all_steps)
    drawn = [i for step in all_steps for i in step]
    for members in buckets.values():
        of_bucket = [i for i in drawn if i in members]
        # A bucket's share of the steps is its share of the samples, and within it all come equally often.
        assert abs(len(of_bucket) / batch - steps * len(members) / sum(sizes)) <= len(sizes)
        counts = [of_bucket.count(i) for i in members]
        assert max(counts) - min(counts) <= 1


# --- curves ---


def test_golden_curve(tmp_path, base, samples):
    trained = Trainer(tiny_job(tmp_path, base, samples)).run()
    found = {
        "loss": [row["loss"] for row in trained.curve],
        "held_out": [row["loss"] for row in trained.validations],
    }
    if os.environ.get("MEDGEN_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    np.testing.assert_allclose(found["loss"], golden["loss"], rtol=1e-3)
    np.testing.assert_allclose(found["held_out"], golden["held_out"], rtol=1e-3)
    # The pipeline folder is an ordinary one with another transformer.
    before, after = files(base), files(trained.model)
    assert {n for n in before if after[n] != before[n]} == {"transformer/diffusion_pytorch_model.safetensors"}
    WanPipeline.from_pretrained(trained.model)


def test_a_gradient_that_is_not_finite_is_computed_once_more(tmp_path, base, samples, monkeypatch, caplog):
    for name in ("whole", "again", "lasting"):
        (tmp_path / name).mkdir()
    whole = Trainer(tiny_job(tmp_path / "whole", base, samples, max_train_steps=3)).run()
    right, calls = Trainer._gradients, []

    def faulty(self, batches):
        calls.append(self.step)
        mean, norm = right(self, batches)
        return mean, float("inf") if len(calls) == 2 or lasting else norm

    lasting = False
    monkeypatch.setattr(Trainer, "_gradients", faulty)
    again = Trainer(tiny_job(tmp_path / "again", base, samples, max_train_steps=3)).run()
    assert calls == [0, 1, 1, 2] and "computed once more" in caplog.text
    assert again.curve == whole.curve and files(again.model) == files(whole.model)
    lasting = True
    with pytest.raises(TrainingStopped, match="lower learning_rate"):
        Trainer(tiny_job(tmp_path / "lasting", base, samples, max_train_steps=3)).run()


def test_held_out_videos_are_never_trained_on(tmp_path, base, samples):
    trainer = Trainer(tiny_job(tmp_path, base, samples))
    sides = [{s.video_id for s in part.samples} for part in (trainer.train, trainer.held_out)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(trainer.train) + len(trainer.held_out) == len(samples)


def test_killed_and_resumed_is_identical(tmp_path, base, samples):
    changes = {"max_train_steps": 150, "checkpointing_steps": 7, "validation_steps": 50, "training": "lora",
               "lora_dropout": 0.1}  # fmt: skip
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = Trainer(tiny_job(tmp_path / "whole", base, samples, **changes)).run()
    job = tiny_job(tmp_path / "killed", base, samples, **changes)
    process = start(job)
    while len(read_rows(job.folder / "losses.jsonl")) < 20:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (job.folder / "model").exists()
    resumed = Trainer(job).run()
    assert 0 < resumed.resumed_from < 150
    assert curve(job.folder) == curve(whole.model.parent) and len(curve(job.folder)) == 150
    assert resumed.validations == whole.validations
    assert files(resumed.model) == files(whole.model)
    assert len(list((job.folder / "checkpoints").iterdir())) == 2  # checkpoints_total_limit


def as_alone(one: Trained, job: TrainJob) -> None:
    """Several processes gave what one gives."""
    np.testing.assert_allclose(curve(job.folder), [row["loss"] for row in one.curve], rtol=1e-4)
    held = [row["loss"] for row in read_rows(job.folder / "validation.jsonl")]
    np.testing.assert_allclose(held, [row["loss"] for row in one.validations], rtol=1e-4)
    mine, theirs = (load_file(f / LORA_FILE) for f in (one.model, job.folder / "model"))
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-2, atol=1e-4)


def launched(*jobs: TrainJob, command: Sequence[str]) -> set[int]:
    """Runs the processes of jobs to their end. Returns the steps that each process of each job went on from."""
    process = start(*jobs, command=command, **forked("tests.sharded_job", "tests.shared_tokens_job"))
    said, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-6000:]
    ends = [json.loads(line) for line in said.splitlines() if b'"trained"' in line]
    assert len(ends) == sum(job.config.num_processes for job in jobs)
    return {end["resumed_from"] for end in ends}


def on_shards(job: TrainJob) -> list[str]:
    """The command by which the processes of a job hold its weights in shards, on a CPU."""
    command = training_command(job, "")
    return ["tests.sharded_job" if part == "models.training" else part for part in command[1:-1]]


def test_processes_do_not_change_the_curve(tmp_path, base, samples):
    for name in ("one", "two", "sharded"):
        (tmp_path / name).mkdir()
    changes = {"training": "lora", "max_train_steps": 6, "gradient_accumulation_steps": 2, "checkpointing_steps": 4}
    one = Trainer(tiny_job(tmp_path / "one", base, samples, **changes)).run()
    # Both share the tokens of each sample, which is the same batch.
    two = tiny_job(tmp_path / "two", base, samples, **changes, num_processes=2, context_parallel_degree=2)
    assert two.config.global_batch == 8
    command = training_command(two, "")
    shared = ["tests.shared_tokens_job" if part == "models.training" else part for part in command[1:-1]]
    assert launched(two, command=shared) == {0}
    as_alone(one, two)
    # Each has half of the batch, and weights, gradients and moments are in shards (FSDP 2), from where one had got to.
    sharded = tiny_job(tmp_path / "sharded", base, samples, **changes, num_processes=2, train_batch_size=2)
    left_out = shutil.ignore_patterns("model", "checkpoint-00000006", ".lock")
    shutil.copytree(one.model.parent, sharded.folder, ignore=left_out)
    assert launched(sharded, command=on_shards(sharded)) == {4}
    as_alone(one, sharded)


def test_precision_and_memory_savers_train_the_same(tmp_path, base, samples):
    losses = {}
    for name, changes in {
        "plain": {},
        "recomputed": {"gradient_checkpointing": True},
        "accumulated": {"train_batch_size": 2, "gradient_accumulation_steps": 2},
        "bf16": {"mixed_precision": "bf16"},
        "eight": {"optimizer": "adamw8bit"},
        "adafactor": {"optimizer": "adafactor", "learning_rate": 0.01},
        "lora": {"training": "lora"},
        "half_recomputed": {"training": "lora", "gradient_checkpointing": True, "gradient_checkpointing_blocks": 1},
        "waiting": {"training": "lora", "gradient_checkpointing": True, "offload_activations": True,
                    "blocks_to_swap": 1, "attention_backend": "native"},
        "int8": {"training": "lora", "frozen_dtype": "int8"},
        "fp8": {"training": "lora", "frozen_dtype": "fp8", "blocks_to_swap": 2},
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        quick = {"max_train_steps": 4, "validation_samples": 0, **changes}
        trainer = Trainer(tiny_job(tmp_path / name, base, samples, **quick))
        losses[name] = [row["loss"] for row in trainer.run().curve]
        if "optimizer" in changes:  # which goes on from what it kept
            again = Trainer(trainer.job)
            for (_, one), (_, two) in zip(trainer.trainable(), again.trainable(), strict=True):
                kept, read = (state_of(t.optimizer, w) for t, w in ((trainer, one), (again, two)))
                assert kept.keys() == read.keys() and all(torch.equal(kept[k], read[k]) for k in kept)
    np.testing.assert_allclose(losses["recomputed"], losses["plain"], rtol=1e-5)
    np.testing.assert_allclose(losses["accumulated"], losses["plain"], rtol=1e-5)
    np.testing.assert_allclose(losses["bf16"], losses["plain"], rtol=2e-2)
    np.testing.assert_allclose(losses["eight"], losses["plain"], rtol=1e-2)
    assert losses["adafactor"][1:] != losses["plain"][1:]
    assert losses["half_recomputed"] == losses["waiting"] == losses["lora"]
    np.testing.assert_allclose(losses["int8"], losses["lora"], rtol=1e-2)
    np.testing.assert_allclose(losses["fp8"], losses["lora"], rtol=5e-2)
    assert len({tuple(losses[name]) for name in ("lora", "int8", "fp8")}) == 3
    with pytest.raises(ValueError, match="only training=lora"):
        tiny_config(blocks_to_swap=1)
    with pytest.raises(TrainingStopped, match="nonesuch"):
        Trainer(tiny_job(tmp_path, base, samples, attention_backend="nonesuch"))


def test_what_waits_is_not_kept(base):
    model = family_of(base).load_transformer(base, torch.float32).requires_grad_(False)
    names = [name for name, _ in model.named_parameters()]
    shrink_frozen(model, "int8", 1)
    left = {name for name, _ in model.named_parameters()}
    gone = [name for name in names if name not in left]
    assert gone and all(name.startswith("blocks.") and name.endswith(".weight") for name in gone)
    waiting, here = model.blocks[0].attn1.to_q, model.blocks[1].attn1.to_q
    assert waiting.kept is None and here.kept.dtype == torch.int8 and here.state_dict().keys() == {"bias"}
    recompute_blocks(model, -1, offload=True)
    model.train()
    hidden, text = torch.randn(1, *SHAPE, requires_grad=True), torch.randn(1, 3, 16)
    copies = []
    real = torch.Tensor.copy_

    def counted(self, other, **options):
        copies.append(tuple(other.shape))
        return real(self, other, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", counted)
        out = model(hidden, torch.tensor([5.0]), text, return_dict=False)[0]
    assert copies == [(1, 12, 32)] * 2  # the input of each block: 2 x 2 x 3 tokens of width 32
    out.sum().backward()
    assert torch.isfinite(hidden.grad).all() and hidden.grad.abs().sum() > 0


def test_the_best_weights_and_an_early_end(tmp_path, base, samples):
    named = tuple(s.model_copy(update={"category": ("imaging", "animation")[n % 2]}) for n, s in enumerate(samples))
    wild = {"learning_rate": 0.02, "lr_scheduler": "constant", "max_train_steps": 60, "validation_steps": 2,
            "validation_prompts": ("a scan",), "validation_inference_steps": 1, "deliver": "best",
            "early_stopping_patience": 2, "use_ema": False, "log_with": ("tensorboard",)}  # fmt: skip
    job = tiny_job(tmp_path, base, named, **wild)
    trained = Trainer(job).run()
    rows = [row for row in trained.validations if row["step"]]
    best = min(rows, key=lambda row: row["loss"])
    assert trained.steps < 60 and trained.steps == best["step"] + 4 == rows[-1]["step"]
    assert set(best["by_category"]) == {"imaging", "animation"}
    assert np.mean(list(best["by_category"].values())) == pytest.approx(best["loss"], rel=0.2)
    assert read_facts(job.folder) == {"step": best["step"], "loss": best["loss"]}
    kept, delivered = (
        load_file(job.folder / "best.safetensors"),
        load_file(next(trained.model.glob("transformer/*.saf*"))),
    )
    assert kept.keys() == delivered.keys() and all(torch.equal(kept[name], delivered[name]) for name in kept)
    assert Trainer(job).run().steps == trained.steps  # it has ended, whoever asks again
    assert standing_of([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 3.0}]).since == 1
    shown = EventAccumulator(str(job.folder / "tensorboard"), size_guidance={"images": 0}).Reload().Tags()
    assert {"loss/held_out", "held_out_by_category/imaging", "machine/samples_per_s"} <= set(shown["scalars"])
    assert shown["images"] == ["prompt/00"] and shown["histograms"] == ["gradient/log10_norm_of_each_weight"]
    assert list((job.folder / "medgen").rglob("events*"))  # accelerate's tracker of that name
    with pytest.raises(TrainingStopped, match=r"nosuch.*there are.*wandb"):
        Trainer(tiny_job(tmp_path, base, samples, log_with=("nosuch",)))


# --- adapters ---


def test_lora_changes_adapters_only_and_merging_gives_the_same_video(tmp_path, base, samples):
    job = tiny_job(
        tmp_path, base, samples, training="lora", learning_rate=2e-2, max_train_steps=12, validation_steps=12,
        validation_prompts=("a scan of the heart",),
    )  # fmt: skip
    trainer = Trainer(job)
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trained = trainer.run()
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.model.named_parameters() if n in frozen)
    old, new = (load_file(f / "transformer" / "diffusion_pytorch_model.safetensors") for f in (base, trained.model))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(".attn" in name and name.endswith(".weight") for name in changed)
    assert old.keys() == new.keys()
    assert [path.parent.name for path in trained.videos] == ["step-00000000", "step-00000012"]

    def video(folder: Path, adapter: Path | None = None) -> np.ndarray:
        pipeline = WanPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        if adapter:
            pipeline.load_lora_weights(adapter, weight_name=LORA_FILE)
        return pipeline(
            "a scan of the heart", height=32, width=48, num_frames=5, num_inference_steps=3, guidance_scale=2.0,
            max_sequence_length=8, generator=torch.Generator().manual_seed(0), output_type="latent",
        ).frames[0].detach().numpy()  # fmt: skip

    adapted, merged = video(base, trained.model), video(trained.model)
    np.testing.assert_allclose(merged, adapted, atol=1e-4)
    assert np.abs(merged - video(base)).max() > 100 * np.abs(merged - adapted).max()


# --- what can go wrong ---


def test_corrupt_latents_are_named_and_left_out(tmp_path, base):
    samples = list(made_up_samples(tmp_path / "samples", videos=6))
    train, _ = split_by_video(samples, 0.3, 0)
    cut, mute, wild, swapped = train[:4]
    cut.path.write_bytes(cut.path.read_bytes()[:200])
    tensors = load_file(mute.path)
    save_file({**tensors, "brief": torch.zeros(0, 16), "detailed": torch.zeros(0, 16)}, str(mute.path))
    save_file({**load_file(wild.path), "latents": torch.full(SHAPE, float("nan"))}, str(wild.path))
    samples[samples.index(swapped)] = swapped.model_copy(update={"sha256": "0" * 64})
    trained = Trainer(tiny_job(tmp_path, base, tuple(samples))).run()
    assert set(trained.quarantined) == {s.clip_id for s in (cut, mute, wild, swapped)}
    assert "no caption" in trained.quarantined[mute.clip_id] and "finite" in trained.quarantined[wild.clip_id]
    assert trained.steps == 10 and np.isfinite([row["loss"] for row in trained.curve]).all()
    assert json.loads((trained.model.parent / "quarantined.json").read_text()) == trained.quarantined


def test_nothing_one_and_mixed(tmp_path, base, samples):
    with pytest.raises(NothingToTrainOn, match="no clips"):
        Trainer(tiny_job(tmp_path, base, ()))
    alone = Trainer(tiny_job(tmp_path, base, samples[:1], max_train_steps=2)).run()
    assert alone.steps == 2 and alone.held_out_clips == 0 and alone.validations[-1]["loss"] is None
    mixed = made_up_samples(tmp_path / "mixed", videos=4, clips=3, shapes=(SHAPE, (4, 1, 4, 6), (4, 2, 6, 4)))
    (tmp_path / "m").mkdir()
    assert Trainer(tiny_job(tmp_path / "m", base, mixed)).run().steps == 10
    with pytest.raises(NothingToTrainOn, match="channels"):
        Trainer(tiny_job(tmp_path, base, made_up_samples(tmp_path / "other", shapes=((3, 2, 4, 6),))))


def test_checkpoints_of_others_and_broken_ones(tmp_path, base, samples, caplog):
    job = tiny_job(tmp_path, base, samples)
    whole = Trainer(job).run()
    other = job.model_copy(update={"base_digest": "c" * 64})
    with pytest.raises(WrongCheckpoint, match=r"base was bbb.*now ccc"):
        Trainer(other)
    with pytest.raises(WrongCheckpoint, match="configuration"):
        Trainer(job.model_copy(update={"config": tiny_config(learning_rate=1e-5)}))
    with pytest.raises(WrongCheckpoint, match="schedule"):  # a cosine that ends later is another schedule
        Trainer(job.model_copy(update={"config": tiny_config(max_train_steps=20)}))
    # How a step is spread over forward passes and how often is looked at progress, is nobody's business.
    looser = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "validation_steps": 3}
    assert Trainer(job.model_copy(update={"config": tiny_config(**looser)})).step == 10
    newest = job.folder / "checkpoints" / "checkpoint-00000010"
    data = bytearray((newest / "weights.safetensors").read_bytes())
    data[-5] ^= 1
    (newest / "weights.safetensors").write_bytes(data)
    again = Trainer(job)
    assert again.step == 8 and "checkpoint-00000010 is corrupt" in caplog.text
    assert again.run().curve == whole.curve


def test_full_disk_leaves_the_checkpoint_before(tmp_path, base, samples, monkeypatch):
    job = tiny_job(tmp_path, base, samples)
    real = checkpoint.write_group

    def full(path, tensors):
        if "00000008" in str(path) and "optimizer" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr(checkpoint, "write_group", full)
    with pytest.raises(CheckpointNotWritten, match=r"disk full.*free some space.*checkpoint-00000004"):
        Trainer(job).run()
    assert [p.name for p in (job.folder / "checkpoints").iterdir()] == ["checkpoint-00000004"]
    monkeypatch.undo()
    (tmp_path / "o").mkdir()
    assert Trainer(job).run().curve == Trainer(tiny_job(tmp_path / "o", base, samples)).run().curve


def test_out_of_memory_says_what_to_lower(tmp_path, base, samples, monkeypatch):
    job = tiny_job(tmp_path, base, samples, max_train_steps=6)
    forward = WanTransformer3DModel.forward
    calls = []

    def greedy(self, *args, **kwargs):
        calls.append(torch.is_grad_enabled())
        if sum(calls) == 6:
            torch.empty(2**60)  # the allocator's own error
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(WanTransformer3DModel, "forward", greedy)
    with pytest.raises(OutOfMemory, match=r"gradient_checkpointing=true.*train_batch_size \(4\)"):
        Trainer(job).run()
    monkeypatch.undo()
    assert Trainer(job).run().resumed_from == 4
    with pytest.raises(RuntimeError, match="unrelated"), explain_out_of_memory(job.config):
        raise RuntimeError("unrelated")


def test_bases_that_do_not_fit(tmp_path, base, samples):
    with pytest.raises(ModelUnavailable, match="no local folder"):
        Trainer(tiny_job(tmp_path, Path("no/such-model"), samples))
    image_model = tmp_path / "image" / "model"
    shutil.copytree(base, image_model)
    index = json.loads((image_model / "model_index.json").read_text())
    (image_model / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanImageToVideoPipeline"}))
    with pytest.raises(ModelUnavailable, match="takes 4 channels, not 12"):
        Trainer(tiny_job(tmp_path, image_model, samples))
    job = tiny_job(tmp_path, base, samples)
    save_file({"empty": torch.zeros(2, 7)}, str(job.empty))
    with pytest.raises(TrainingStopped, match="encoded for another base"):
        Trainer(job)
    with pytest.raises(TrainingStopped, match="num_processes=1"):
        Trainer(tiny_job(tmp_path, base, samples, num_processes=3))
    with pytest.raises(TrainingStopped, match="lora_layers=to_nothing"):
        Trainer(tiny_job(tmp_path, base, samples, training="lora", lora_layers="to_nothing"))


def test_presets():
    for preset in PRESETS:
        configured(preset)
    paper = configured("paper-lora")
    assert (paper.rank, paper.lora_alpha, paper.learning_rate, paper.flow_shift) == (32, 32, 5e-5, 7.0)
    assert (paper.global_batch, paper.max_train_steps, paper.seed, paper.ema_decay) == (32, 50_000, 1024, 0.999)
    assert paper.buckets.startswith("93x")
    with pytest.raises(ValueError, match=r"nano, wan-1.3b-lora"):
        configured("nanu")
    with pytest.raises(ValueError, match=r"FRAMESxHEIGHTxWIDTH"):
        configured("nano", {"buckets": "480p"})
