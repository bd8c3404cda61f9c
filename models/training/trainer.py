"""Training of a Wan transformer on encoded clips: LoRA or full, resumable to the last digit, through accelerate.

The loop is that of diffusers' training scripts. What differs: everything random is a function of the seed and the
step, so that a killed run goes on as if nothing had happened, and so that the number of processes does not matter at
the same global batch (beyond rounding).
"""

import json
import logging
import math
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.optimization import get_scheduler
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.training_utils import EMAModel, cast_training_params
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from medgen.errors import RunStopped
from models import ModelUnavailable
from models.generation.video_diffusion import SAMPLING, Sampling, pipeline_files, pipeline_folder
from models.training.checkpoint import newest_checkpoint, write_checkpoint
from models.training.clip_frames import read_geometries
from models.training.config import TrainConfig
from models.training.flow_matching import draw_sigma, generator, noised, shifted, squared_error, stream_seed
from models.training.job import LORA_FILE, TrainJob, memory_advice, read_rows, split_by_video
from models.training.samples import Encoded, NothingToTrainOn, SampleSet, batch_order, padded

log = logging.getLogger(__name__)

# Called with facts such as {"event": "step", "step": 3, "loss": 1.9, …}; in the main process only.
Report = Callable[[dict[str, Any]], None]

REPORT_EVERY_S = 1.0


class TrainingStopped(RunStopped):
    """The run can't go on; checkpoints stay."""


class OutOfMemory(TrainingStopped):
    """A step did not fit into memory; says which arguments to lower."""


@dataclass
class Trained:
    """What a run made.

    Args:
        model: diffusers pipeline folder; of a LoRA that is not merged, a folder with the adapter alone.
        steps: optimiser steps of the whole run; `resumed_from` is the step of the checkpoint it went on from.
        curve: a row per step: step, loss, lr, grad_norm.
        validations: a row per validation: step, loss (held-out), train_loss, by_sigma.
        quarantined: clip id → why it was left out.
    """

    model: Path
    steps: int
    resumed_from: int
    curve: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    quarantined: dict[str, str]
    train_clips: int
    held_out_clips: int
    videos: list[Path] = field(default_factory=list)


def check_kind(folder: Path) -> None:
    """Raises ModelUnavailable unless this is a text-to-video pipeline of one WanTransformer3DModel."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        config = json.loads((folder / "transformer" / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{folder} is no pipeline with a transformer: {error}") from error
    two = index.get("transformer_2", [None, None])[0] is not None
    if index.get("_class_name") != "WanPipeline" or config.get("_class_name") != "WanTransformer3DModel" or two:
        raise ModelUnavailable(
            f"{folder} is a {index.get('_class_name')} of a {config.get('_class_name')}"
            f"{' and a second one' if two else ''}; this trains text-to-video pipelines of one WanTransformer3DModel "
            "(Wan 2.1, nano)"
        )
    if config.get("image_dim") is not None or config.get("in_channels") != config.get("out_channels"):
        raise ModelUnavailable(f"{folder} is an image-to-video model; this trains text-to-video models")


def load_transformer(folder: Path, dtype: torch.dtype) -> WanTransformer3DModel:
    """The transformer of a pipeline; weights that must stay in float32 do.

    Raises:
        ModelUnavailable: it is of another kind, or can't be loaded.
    """
    check_kind(folder)
    try:
        transformer: WanTransformer3DModel = WanTransformer3DModel.from_pretrained(
            folder, subfolder="transformer", torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=True
        )
        return transformer
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise ModelUnavailable(f"the transformer of {folder} can't be loaded: {error}") from error


def stored_dtype(folder: Path) -> torch.dtype:
    """dtype of the base's transformer on disk, in which the trained one is delivered too."""
    first = sorted((folder / "transformer").glob("*.safetensors"))[0]
    with safe_open(str(first), framework="pt") as file:
        found = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 no mapping
    return torch.float32 if "F32" in found and len(found) == 1 else torch.bfloat16 if "BF16" in found else torch.float32


def read_empty(path: Path) -> Tensor:
    """The embedding of the empty caption, float32 (L, D)."""
    tensors = load_file(str(path))
    return tensors.get("empty", next(iter(tensors.values()))).float()


def add_lora(model: WanTransformer3DModel, config: TrainConfig) -> None:
    """Freezes the model and adds fresh adapters beside it, the same ones for the same seed.

    Raises:
        TrainingStopped: no module of the model has one of these names.
    """
    model.requires_grad_(False)
    torch.manual_seed(stream_seed(config.seed, "lora"))
    try:
        model.add_adapter(
            LoraConfig(
                r=config.rank,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                init_lora_weights=True,
                target_modules=config.lora_targets(),
            )
        )
    except ValueError as error:
        raise TrainingStopped(f"lora_layers={config.lora_layers}: {error}") from error
    cast_training_params(model, torch.float32)


def batch_of(items: Sequence[tuple[int, Encoded]], step: int, config: TrainConfig, empty: Tensor) -> dict[str, Tensor]:
    """Noise, noise level and caption of each sample, drawn for its position in the global batch of `step`.

    Args:
        items: (position in the global batch, sample).

    Returns:
        latents and noise (B, C, F, H, W), sigma (B,), texts (B, max_sequence_length, D).
    """
    noise, sigmas, texts = [], [], []
    for position, sample in items:
        draw = generator(config.seed, "step", step, position)
        noise.append(torch.randn(sample.latents.shape, generator=draw))
        sigmas.append(draw_sigma(config.weighting_scheme, config.logit_mean, config.logit_std, config.flow_shift, draw))
        dropped, detailed = torch.rand(2, generator=draw).tolist()
        texts.append(empty if dropped < config.caption_dropout else _caption(sample, detailed < config.detailed_share))
    return {
        "latents": torch.stack([sample.latents for _, sample in items]),
        "noise": torch.stack(noise),
        "sigma": torch.stack(sigmas),
        "texts": padded(texts, config.max_sequence_length),
    }


def _caption(sample: Encoded, detailed: bool) -> Tensor:
    """The caption asked for, or the other one where that is missing."""
    first, second = (sample.detailed, sample.brief) if detailed else (sample.brief, sample.detailed)
    return first if first.shape[0] else second


def losses_of(model: Any, batch: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Flow-matching loss of each sample, float32 (B,)."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    noisy, velocity, timestep = noised(moved["latents"], moved["noise"], moved["sigma"])
    dtype = _compute_dtype(model)
    predicted = model(
        hidden_states=noisy.to(dtype),
        timestep=timestep,
        encoder_hidden_states=moved["texts"].to(dtype),
        return_dict=False,
    )[0]
    return squared_error(predicted, velocity)


def _compute_dtype(model: Any) -> torch.dtype:
    weight: Tensor = getattr(model, "module", model).patch_embedding.weight
    return weight.dtype


class Trainer:
    """One training run in one process of possibly several.

    Args:
        job: see `TrainJob`.
        report: told of every step (at most once a second), validation and checkpoint.
        resume: go on from the newest checkpoint of the working folder.

    Raises:
        ModelUnavailable, NothingToTrainOn, WrongCheckpoint, TrainingStopped: nothing was done yet.
    """

    def __init__(self, job: TrainJob, report: Report = lambda facts: None, *, resume: bool = True) -> None:
        self.job, self.config = job, job.config
        self.accelerator = make_accelerator(job.config)
        self.report: Report = report if self.accelerator.is_main_process else lambda facts: None
        self.base = pipeline_folder(job.base)
        lora = self.config.training == "lora"
        # Frozen weights need no master copy; but shards of FSDP must have one dtype.
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        half = lora and self.config.mixed_precision == "bf16" and not sharded
        self.model = load_transformer(self.base, torch.bfloat16 if half else torch.float32)
        if lora:
            add_lora(self.model, self.config)
        if self.config.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        self.empty = read_empty(job.empty)
        self._read_samples()
        self._set_up()
        self.step = 0
        if resume:
            self._resume()
        self.resumed_from = self.step

    def _read_samples(self) -> None:
        """Training and held-out samples; refuses what can't work."""
        config, structure = self.config, self.model.config
        if self.empty.shape[1] != structure["text_dim"]:
            raise TrainingStopped(
                f"the captions' embeddings are {self.empty.shape[1]} wide and the transformer takes "
                f"{structure['text_dim']}: the clips were encoded for another base; encode them for {self.job.base}"
            )
        train, away = split_by_video(self.job.samples, config.validation_share, config.seed)
        memory = int(config.cache_latents_gb * 2**30)
        self.train = SampleSet(train, structure["in_channels"], structure["text_dim"], memory)
        self.held_out = SampleSet(away, structure["in_channels"], structure["text_dim"], memory)
        if not len(self.train):
            reasons = "; ".join(f"{clip} {why}" for clip, why in list(self.train.quarantined.items())[:3])
            raise NothingToTrainOn(
                f"none of {len(self.job.samples)} encoded clips can be trained on"
                + (f": {reasons}" if reasons else ": the release has no clips that could be encoded")
            )
        _, patch_height, patch_width = structure["patch_size"]
        for _, _, height, width in self.train.buckets():
            if height % patch_height or width % patch_width:
                raise TrainingStopped(
                    f"latents of {height} x {width} can't be cut into patches of {patch_height} x {patch_width}: "
                    "choose buckets whose height and width are multiples of "
                    f"{8 * patch_height} and {8 * patch_width} pixels"
                )

    def _set_up(self) -> None:
        """Optimiser, schedule, moving average; model and optimiser wrapped for the processes."""
        config = self.config
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trainable,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
        )
        self.lr_factor = lr_schedule(config)
        self.model.train()
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.ema = (
            EMAModel([p for _, p in self._trainable()], decay=config.ema_decay, foreach=False)
            if config.use_ema
            else None
        )

    def _trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        """(name, weight) of all that is trained."""
        bare = self.accelerator.unwrap_model(self.model)
        return [(name, p) for name, p in bare.named_parameters() if p.requires_grad]

    # --- the loop ---

    def run(self) -> Trained:
        """Trains to the end and delivers the model.

        Raises:
            OutOfMemory, CheckpointNotWritten, NothingToTrainOn: checkpoints stay; run again to go on.
            TrainingStopped: also when the loss is not finite.
        """
        config, accelerator = self.config, self.accelerator
        end = config.max_train_steps
        self._begin_logs()
        order = batch_order(self.train.buckets(), config.global_batch, config.seed, self.step)
        first, told = self.step, 0.0
        with ThreadPoolExecutor(1, "medgen-loader") as loader, out_of_memory_told(config):
            if self.step == 0:
                self._validate()
            began = time.monotonic()
            coming = loader.submit(self._load, next(order), self.step)
            while self.step < end:
                batches = coming.result()
                if self.step + 1 < end:
                    coming = loader.submit(self._load, next(order), self.step + 1)
                row = self._train_step(batches)
                self.step += 1
                if accelerator.is_main_process:
                    self._log(row)
                now = time.monotonic()
                if now - told > REPORT_EVERY_S or self.step == end:
                    told = now
                    rate = (self.step - first) / (now - began)
                    left = (end - self.step) / rate
                    self.report({"event": "step", **row, "steps": end, "steps_per_s": rate, "eta_s": left})
                last = self.step == end
                if self.step % config.validation_steps == 0 or last:
                    self._validate()
                if self.step % config.checkpointing_steps == 0 or last:
                    self.save()
        return self._deliver()

    def _load(self, indices: Sequence[int], step: int) -> list[dict[str, Tensor]]:
        """The forward passes of this process in one optimiser step."""
        config, rank = self.config, self.accelerator.process_index
        size, processes = config.train_batch_size, self.accelerator.num_processes
        batches = []
        for turn in range(config.gradient_accumulation_steps):
            start = (turn * processes + rank) * size
            items = [(place, self.train.near(indices[place])[1]) for place in range(start, start + size)]
            batches.append(batch_of(items, step, config, self.empty))
        return batches

    def _train_step(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        """One optimiser step; its row of the curve."""
        config = self.config
        rate = config.learning_rate * self.lr_factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        mean, norm = self._gradients(batches)
        if not _finite(mean, norm):
            # Seen on an overloaded CPU; the same run was sound the next time. A step repeats exactly, so that a passing
            # fault does not end a sound run, and one that really diverges still ends.
            log.warning("step %d: loss %s, gradient %s; computed once more", self.step + 1, mean, norm)
            self.optimizer.zero_grad(set_to_none=True)
            mean, norm = self._gradients(batches)
        if not _finite(mean, norm):
            raise TrainingStopped(
                f"the loss of step {self.step + 1} is {mean}, its gradient {norm}: lower learning_rate "
                f"({config.learning_rate}) or max_grad_norm ({config.max_grad_norm}), or raise lr_warmup_steps "
                f"({config.lr_warmup_steps}); the last checkpoint is untouched"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.step([p for _, p in self._trainable()])
        return {"step": self.step + 1, "loss": mean, "lr": rate, "grad_norm": norm}

    def _gradients(self, batches: Sequence[Mapping[str, Tensor]]) -> tuple[float, float]:
        """Fills the gradients of this step, clipped; mean loss and norm before clipping. Same step, same result."""
        config, accelerator = self.config, self.accelerator
        torch.manual_seed(stream_seed(config.seed, "dropout", self.step, accelerator.process_index))
        losses = []
        for turn, batch in enumerate(batches):
            last = turn == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.model), accelerator.autocast():
                loss = losses_of(self.model, batch, accelerator.device)
                accelerator.backward(loss.mean() / len(batches))
            losses.append(loss.detach())
        norm = accelerator.clip_grad_norm_([p for _, p in self._trainable()], config.max_grad_norm)
        mean = float(accelerator.reduce(torch.cat(losses).mean(), "mean"))
        return mean, float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    # --- validation ---

    def _validate(self) -> None:
        """Loss on held-out and as many training clips, with the weights that would be delivered; prompts as videos."""
        with self._delivered_weights():
            held = self._fixed_loss(self.held_out)
            seen = self._fixed_loss(self.train, max(1, len(self.held_out)))
            row = {
                "step": self.step,
                "loss": held[0] if held else None,
                "train_loss": seen[0] if seen else None,
                "by_sigma": held[1] if held else {},
            }
            videos = self._prompt_videos()
        if self.accelerator.is_main_process:
            _append(self.job.folder / "validation.jsonl", row)
            if self.board:
                for name, value in (("loss/held_out", row["loss"]), ("loss/train_fixed", row["train_loss"])):
                    if value is not None:
                        self.board.add_scalar(name, value, self.step)
            self.report({"event": "validation", **row, "videos": [str(path) for path in videos]})

    def _fixed_loss(self, samples: SampleSet, most: int | None = None) -> tuple[float, dict[str, float]] | None:
        """Mean loss at fixed noise and noise levels, and by level. None without samples."""
        config, accelerator = self.config, self.accelerator
        total = min(len(samples), config.validation_samples, most or len(samples))
        if not total:
            return None
        # Evenly over the clips, which are in order of their ids.
        chosen = [i * len(samples) // total for i in range(total)]
        levels = shifted(
            (torch.arange(config.validation_timesteps) + 0.5) / config.validation_timesteps, config.flow_shift
        )
        sums = torch.zeros(len(levels) + 1, dtype=torch.float64)
        self.model.eval()
        with torch.no_grad():
            for turn, index in enumerate(chosen):
                # All processes must make the same number of forward passes when weights are sharded.
                mine = turn % accelerator.num_processes == accelerator.process_index
                if not mine and accelerator.distributed_type != DistributedType.FSDP:
                    continue
                if (sample := samples.get(index)) is None:
                    continue
                clip = samples.samples[index].clip_id
                noise = [
                    torch.randn(sample.latents.shape, generator=generator(config.seed, "validation", clip, level))
                    for level in range(len(levels))
                ]
                texts = [_caption(sample, config.detailed_share >= 0.5)] * len(levels)
                for level, sigma in enumerate(levels):
                    batch = {
                        "latents": sample.latents[None],
                        "noise": noise[level][None],
                        "sigma": sigma[None],
                        "texts": padded(texts[:1], config.max_sequence_length),
                    }
                    with accelerator.autocast():
                        loss = float(losses_of(self.model, batch, accelerator.device))
                    if mine:
                        sums[level] += loss
                sums[-1] += mine
        self.model.train()
        sums = accelerator.reduce(sums.to(accelerator.device, torch.float32), "sum").double().cpu()
        if not sums[-1]:
            return None
        means = (sums[:-1] / sums[-1]).tolist()
        by_level = {f"{sigma:.4f}": value for sigma, value in zip(levels.tolist(), means, strict=True)}
        return sum(means) / len(means), by_level

    def _prompt_videos(self) -> list[Path]:
        """The validation prompts as videos; every process takes part where weights are sharded."""
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        found: list[Path] = []
        if self.config.validation_prompts and (self.accelerator.is_main_process or sharded):
            from models.training.validation_videos import PromptVideos

            if not hasattr(self, "prompts"):
                self.prompts = PromptVideos(self.base, self.config, self.empty, self.accelerator.device)
            bare = self.accelerator.unwrap_model(self.model) if not sharded else self.model
            folder = self.job.folder / "videos" / f"step-{self.step:08d}"
            with self.accelerator.autocast():
                found = self.prompts.make(bare, folder, write=self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()
        return found

    @contextmanager
    def _delivered_weights(self) -> Iterator[None]:
        """The moving average in the model's place, where there is one."""
        if self.ema is None:
            yield
            return
        weights = [p for _, p in self._trainable()]
        self.ema.store(weights)
        self.ema.copy_to(weights)
        try:
            yield
        finally:
            self.ema.restore(weights)

    # --- checkpoints ---

    def save(self) -> Path | None:
        """Writes a checkpoint (the main process does; all take part in gathering shards)."""
        weights, averages, moments = {}, {}, {}
        for place, (name, weight) in enumerate(self._trainable()):
            weights[name] = _whole(weight)
            if self.ema:
                averages[name] = _whole(self.ema.shadow_params[place])
            for key, value in self._optimizer_state(weight).items():
                moments[f"{name}.{key}"] = _whole(value)
        written = None
        trouble: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                written = write_checkpoint(
                    self.job.folder / "checkpoints",
                    self.step,
                    {"weights": weights, "ema": averages, "optimizer": moments},
                    self.job.facts(),
                    self.config.checkpoints_total_limit,
                )
                self.report({"event": "checkpoint", "step": self.step, "folder": str(written)})
            except RunStopped as error:
                trouble = [error]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(trouble)
        if trouble[0] is not None:
            raise trouble[0]
        return written

    def _optimizer_state(self, weight: torch.nn.Parameter) -> dict[str, Tensor]:
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        state: dict[str, Tensor] = inner.state[weight]
        return state

    def _resume(self) -> None:
        """Goes on from the newest whole checkpoint."""
        found = newest_checkpoint(self.job.folder / "checkpoints", self.job.facts())
        if found is None:
            return
        weights, moments = found.tensors("weights"), found.tensors("optimizer")
        averages = found.tensors("ema") if self.ema else {}
        try:
            with torch.no_grad():
                for place, (name, weight) in enumerate(self._trainable()):
                    weight.copy_(_placed(weights.pop(name), weight))
                    if self.ema:
                        shadow = self.ema.shadow_params[place]
                        shadow.copy_(_placed(averages.pop(name), shadow))
                    state = self._optimizer_state(weight)
                    for key in ("step", "exp_avg", "exp_avg_sq"):
                        value = moments.pop(f"{name}.{key}")
                        state[key] = value if key == "step" else _placed(value, weight)
        except (KeyError, RuntimeError) as error:
            raise TrainingStopped(
                f"{found.folder} does not fit this model ({error}): it was written for another base or adapter; "
                "train in another folder"
            ) from error
        if self.ema:
            self.ema.optimization_step = found.step
        self.step = found.step
        log.info("going on from step %d (%s)", found.step, found.folder)
        self.report({"event": "resumed", "step": found.step, "folder": str(found.folder)})

    # --- curves and the result ---

    def _begin_logs(self) -> None:
        """Curves and TensorBoard up to the step that the run goes on from."""
        self.board: Any = None
        if not self.accelerator.is_main_process:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.job.folder.mkdir(parents=True, exist_ok=True)
        for name, keep in (("losses.jsonl", self.step), ("validation.jsonl", self.step if self.step else -1)):
            path = self.job.folder / name
            rows = [row for row in read_rows(path) if row["step"] <= keep]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.board = SummaryWriter(str(self.job.folder / "tensorboard"), purge_step=self.step + 1)

    def _log(self, row: dict[str, Any]) -> None:
        _append(self.job.folder / "losses.jsonl", row)
        for name, key in (("loss/train", "loss"), ("lr", "lr"), ("grad_norm", "grad_norm")):
            self.board.add_scalar(name, row[key], row["step"])

    def _deliver(self) -> Trained:
        """Writes the model folder and gathers what the run made."""
        folder = self.job.folder
        with self._delivered_weights():
            weights = {name: _whole(weight) for name, weight in self._trainable()}
        quarantined = {**self.train.quarantined, **self.held_out.quarantined}
        gathered = [quarantined]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            gathered = gather_object([quarantined])
        quarantined = {clip: why for part in gathered for clip, why in sorted(part.items())}
        if self.accelerator.is_main_process:
            if self.board:
                self.board.close()
            self.report({"event": "delivering"})
            deliver_model(self.base, folder / "model", self.config, self.accelerator.unwrap_model(self.model), weights)
            (folder / "quarantined.json").write_text(json.dumps(quarantined, indent=1) + "\n")
        self.accelerator.wait_for_everyone()
        return Trained(
            model=folder / "model",
            steps=self.step,
            resumed_from=self.resumed_from,
            curve=read_rows(folder / "losses.jsonl"),
            validations=read_rows(folder / "validation.jsonl"),
            quarantined=quarantined,
            train_clips=len(self.train),
            held_out_clips=len(self.held_out),
            videos=sorted((folder / "videos").rglob("*.mp4")),
        )


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of this process.

    Raises:
        TrainingStopped: the launch does not fit the configuration, or the device lacks bf16.
    """
    if config.mixed_precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise TrainingStopped(f"{torch.cuda.get_device_name()} has no bf16: set mixed_precision=no")
    if AcceleratorState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=not torch.cuda.is_available(),
        # Others wait while the main process makes validation videos.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=4))],
    )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise TrainingStopped(
            "FSDP's first version can't be checkpointed here: set fsdp_version: 2 in accelerate's config"
        )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise TrainingStopped(f"{accelerator.distributed_type.value} is not supported: use DDP (MULTI_GPU) or FSDP 2")
    if accelerator.num_processes != config.num_processes:
        raise TrainingStopped(
            f"launched with {accelerator.num_processes} processes and configured for {config.num_processes}: "
            f"set num_processes={accelerator.num_processes}, so that the global batch is on record as it is"
        )
    return accelerator


def lr_schedule(config: TrainConfig) -> Callable[[int], float]:
    """Optimiser step (from 0) → factor on the learning rate: diffusers' schedules, as a pure function."""
    unused = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(
        config.lr_scheduler,
        optimizer=unused,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
        num_cycles=config.lr_num_cycles,
    )
    return schedule.lr_lambdas[0]


def _finite(*numbers: float) -> bool:
    return all(map(math.isfinite, numbers))


def deliver_model(
    base: Path, target: Path, config: TrainConfig, model: WanTransformer3DModel, weights: Mapping[str, Tensor]
) -> None:
    """Writes the trained pipeline: the base's files with the transformer replaced, and the adapter beside it.

    Args:
        model: the trained transformer, for its adapters' names; it is not changed.
        weights: name → weight of what was trained, on the CPU.
    """
    making = target.with_name(f".making-{target.name}")
    for old in (making, target):
        shutil.rmtree(old, ignore_errors=True)
    making.mkdir(parents=True)
    dtype = stored_dtype(base)
    try:
        if config.training == "lora":
            state = get_peft_model_state_dict(model, state_dict=dict(weights))
            told = {
                name: sorted(value) if isinstance(value, set) else value
                for name, value in model.peft_config["default"].to_dict().items()
            }
            WanPipeline.save_lora_weights(
                making,
                transformer_lora_layers={name: tensor.contiguous() for name, tensor in state.items()},
                weight_name=LORA_FILE,
                transformer_lora_adapter_metadata=told,
            )
            _settle_header(making / LORA_FILE)
        if config.training == "full" or config.merge_lora:
            for name, path in pipeline_files(base).items():
                if not name.startswith("transformer/"):
                    (making / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, making / name)
            (making / SAMPLING).write_text(sampling(config).model_dump_json(indent=1) + "\n")
            merged = load_transformer(base, torch.float32)
            if config.training == "lora":
                merge_adapter(merged, weights, config)
            else:
                merged.load_state_dict(dict(weights), strict=True)
            if dtype != torch.float32:
                merged.to(dtype)  # type: ignore[arg-type]  # its decorator loses `self`
            merged.save_pretrained(making / "transformer")
            # Nothing of it changed, and the library would write down where the base lay.
            shutil.copyfile(base / "transformer" / "config.json", making / "transformer" / "config.json")
        making.rename(target)
    except OSError as error:
        shutil.rmtree(making, ignore_errors=True)
        raise TrainingStopped(
            f"the model could not be written to {target.parent}: {error}. The last checkpoint is whole: "
            "make room and run again"
        ) from error


def _settle_header(path: Path) -> None:
    """Rewrites a safetensors file's header in one order: the library writes metadata in a random one."""
    written = path.read_bytes()
    (length,) = struct.unpack("<Q", written[:8])
    head = json.dumps(json.loads(written[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + written[8 + length :])


def sampling(config: TrainConfig) -> Sampling:
    """How the trained model wants to be sampled: as it was trained."""
    first = read_geometries(config.buckets)[0]
    return Sampling(
        num_frames=first.frames,
        height=first.height,
        width=first.width,
        fps=config.fps,
        num_inference_steps=config.validation_inference_steps,
        guidance_scale=config.guidance_scale,
        max_sequence_length=config.max_sequence_length,
    )


def merge_adapter(model: WanTransformer3DModel, weights: Mapping[str, Tensor], config: TrainConfig) -> None:
    """W ← W + alpha/rank·B·A in each adapted module; the model is a plain one again afterwards."""
    add_lora(model, config)
    state = get_peft_model_state_dict(model, state_dict=dict(weights))
    loaded: Any = set_peft_model_state_dict(model, state)
    if loaded.unexpected_keys:
        raise TrainingStopped(f"the adapter has weights that the model lacks: {loaded.unexpected_keys[:3]}")
    model.fuse_lora()  # type: ignore[no-untyped-call]  # has no types
    model.unload_lora()  # type: ignore[no-untyped-call]  # has no types


@contextmanager
def out_of_memory_told(config: TrainConfig) -> Iterator[None]:
    """Turns a device's or the system's lack of memory into advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RunStopped) or not _is_memory(error):
            raise
        raise OutOfMemory(f"a step ran out of memory ({_first_line(error)}): {memory_advice(config)}") from error


def _is_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in said
        for sign in ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _whole(tensor: Tensor) -> Tensor:
    """All of a possibly sharded tensor, as a copy on the CPU."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu", copy=True)


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, on the device and in the shards of `like`."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.to(like.device)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno()) if row["step"] % 50 == 0 else None
