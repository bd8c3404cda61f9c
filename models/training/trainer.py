"""The training loop of a video transformer on encoded clips: LoRA or full, resumable to the last digit, by accelerate.

The loop is that of diffusers' training scripts. What differs: everything random is a function of the seed and the
step, so that a killed run goes on as if nothing had happened, and so that the number of processes does not matter at
the same global batch (beyond rounding).
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.tensor import DTensor

from medgen.errors import RunStopped
from models.families.known import family_of
from models.generation.video_diffusion import pipeline_folder
from models.training.accelerator import make_accelerator, shard_by_blocks
from models.training.best import Standing, best_weights, read_facts, standing_of, write_facts
from models.training.checkpoint import newest_checkpoint, take_part, write_checkpoint, write_weights
from models.training.config import TrainConfig
from models.training.context_parallel import check_divides, scaled, share_tokens
from models.training.cost import Architecture
from models.training.curves import LOSSES, VALIDATION, Curves, Track
from models.training.delivery import deliver_model
from models.training.errors import TrainingStopped, explain_out_of_memory
from models.training.flow_matching import stream_seed
from models.training.frozen import shrink_frozen
from models.training.job import TrainJob, read_rows, require, split_by_video
from models.training.loss import batch_of, losses_of
from models.training.optimizers import make_optimizer, restore_state, set_rate, state_of
from models.training.recompute import recompute_blocks
from models.training.safetensors_file import StoredTensor, stored_tensors
from models.training.samples import NothingToTrainOn, SampleSet, batch_order, read_empty
from models.training.sampling import checked_geometry
from models.training.sharding import fill, is_sharded, ready_to_shard
from models.training.speed import of_step
from models.training.transformer import add_lora
from models.training.validation import fixed_loss

log = logging.getLogger(__name__)

# Takes facts such as {"event": "step", "step": 3, "loss": 1.9, …}.
Report = Callable[[dict[str, Any]], None]

REPORT_EVERY_S = 1.0


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


class Trainer:
    """One training run in one process of possibly several.

    Args:
        job: see `TrainJob`.
        report: called at every step (at most once a second), validation and checkpoint, in the main process only.
        resume: go on from the newest checkpoint of the working folder.

    Raises:
        ModelUnavailable, NothingToTrainOn, WrongCheckpoint, TrainingStopped: nothing was done yet.
    """

    def __init__(self, job: TrainJob, report: Report = lambda facts: None, *, resume: bool = True) -> None:
        self.job, self.config = job, job.config
        self.accelerator = make_accelerator(job.config, job.folder)
        self.report: Report = report if self.accelerator.is_main_process else lambda facts: None
        self.base = pipeline_folder(job.base)
        self.family = family_of(self.base)
        self.expert = self.family.expert(job.config.expert)
        lora = self.config.training == "lora"
        half = lora and self.config.mixed_precision == "bf16"  # frozen weights need no master copy
        dtype = torch.bfloat16 if half else torch.float32
        self.sharded = is_sharded(self.accelerator)
        # Of shards, one process loads all and hands them on; the others never hold more than theirs.
        if self.sharded and not self.accelerator.is_main_process:
            self.model = self.family.without_weights(self.base, self.expert.part)
        else:
            self.model = self.family.load_transformer(self.base, dtype, self.expert.part)
        if lora:
            add_lora(self.model, self.config, self.family)
        self._save_memory()
        if self.sharded:
            ready_to_shard(self.model, self.accelerator)
        self.degree = job.config.context_parallel_degree
        if self.degree > 1:
            share_tokens(self.model, self.degree, self.accelerator)
        self.architecture = Architecture.of(self.family.transformer)
        self.empty = read_empty(job.empty)
        self._read_samples()
        self._set_up()
        self.step = 0
        if resume:
            self._resume()
        self.resumed_from = self.step

    def _save_memory(self) -> None:
        """Frozen weights in less memory, recomputed activations, fused attention, compiled blocks: as configured."""
        config = self.config
        shrunk = config.blocks_to_swap or config.frozen_dtype != "same"
        if shrunk and self.sharded:
            raise TrainingStopped("frozen weights in shards (FSDP) can't wait or be kept in 8 bits: use DDP for that")
        if shrunk:
            shrink_frozen(self.model, config.frozen_dtype, config.blocks_to_swap)
        if config.gradient_checkpointing:
            recompute_blocks(self.model, config.gradient_checkpointing_blocks, offload=config.offload_activations)
        try:
            if config.attention_backend:
                self.model.set_attention_backend(config.attention_backend)
            if config.compile_blocks:
                self.model.compile_repeated_blocks()
        except (ValueError, RuntimeError, ImportError) as error:
            raise TrainingStopped(
                f"attention_backend={config.attention_backend!r}, compile_blocks={config.compile_blocks}: {error}"
            ) from error

    def _read_samples(self) -> None:
        """Training and held-out samples; refuses what can't work."""
        config, family = self.config, self.family
        if self.empty.shape[1] != family.text_width:
            raise TrainingStopped(
                f"the captions' embeddings are {self.empty.shape[1]} wide and the transformer takes "
                f"{family.text_width}: the clips were encoded for another base; encode them for {self.job.base}"
            )
        require([checked_geometry(config, self.base)])
        train, away = split_by_video(self.job.samples, config.validation_share, config.seed)
        memory = int(config.cache_latents_gb * 2**30)
        self.train = SampleSet(train, family.channels, family.text_width, memory)
        self.held_out = SampleSet(away, family.channels, family.text_width, memory)
        if not len(self.train):
            reasons = "; ".join(f"{clip} {why}" for clip, why in list(self.train.quarantined.items())[:3])
            raise NothingToTrainOn(
                f"none of {len(self.job.samples)} encoded clips can be trained on"
                + (f": {reasons}" if reasons else ": the release has no clips that could be encoded")
            )
        self.parts = self.train.parts(self.job.weights)
        for shape in self.train.buckets():
            tokens = math.prod(size // patch for size, patch in zip(shape[1:], family.patch, strict=True))
            heads = int(family.transformer["num_attention_heads"])
            check_divides(self.degree, tokens=tokens, heads=heads)
            if any(size % patch for size, patch in zip(shape[1:], family.patch, strict=True)):
                raise TrainingStopped(
                    f"latents of {shape[1]} x {shape[2]} x {shape[3]} can't be cut into {family.name}'s patches of "
                    f"{' x '.join(map(str, family.patch))}: the clips were encoded for another base; encode them for "
                    f"{self.job.base}"
                )

    def _set_up(self) -> None:
        """Optimiser, schedule, moving average; model and optimiser wrapped for the processes."""
        config = self.config
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(config, trainable, sharded=self.sharded)
        self.lr_factor = lr_schedule(config)
        self.model.train()
        shard_by_blocks(self.accelerator, self.model)
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.ema = (
            EMAModel([p for _, p in self.trainable()], decay=config.ema_decay, foreach=False)
            if config.use_ema
            else None
        )

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
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
        config = self.config
        end = config.max_train_steps
        main = self.accelerator.is_main_process
        self.curves = Curves(self.job.folder, self.step, self._track()) if main else None
        told = [Standing()]
        if main and (config.deliver == "last" or read_facts(self.job.folder)):  # else the best were not kept
            told = [standing_of(read_rows(self.job.folder / VALIDATION))]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(told)
        self.standing = told[0]
        order = batch_order(self.train.buckets(), config.global_batch, config.seed, self.step, self.parts)
        first, reported_at = self.step, 0.0
        with ThreadPoolExecutor(1, "medgen-loader") as loader, explain_out_of_memory(config):
            if self.step == 0:
                self._validate()
            began = time.monotonic()
            upcoming = loader.submit(self._load, next(order), self.step)
            while self.step < end and not self._exhausted():
                batches = upcoming.result()
                if self.step + 1 < end:
                    upcoming = loader.submit(self._load, next(order), self.step + 1)
                stepped = time.monotonic()
                row = self._train_step(batches)
                self.step += 1
                now = time.monotonic()
                if self.curves:
                    shape = batches[0]["latents"].shape[1:]
                    self.curves.add_step(row, of_step(config, self.architecture, shape, now - stepped))
                last = self.step == end
                if now - reported_at > REPORT_EVERY_S or last:
                    reported_at = now
                    rate = (self.step - first) / (now - began)
                    left = (end - self.step) / rate
                    self.report({"event": "step", **row, "steps": end, "steps_per_s": rate, "eta_s": left})
                if self.step % config.validation_steps == 0 or last:
                    self._validate()
                if self.step % config.checkpointing_steps == 0 or last or self._exhausted():
                    self.save()
        return self._deliver()

    def _exhausted(self) -> bool:
        """Whether the loss on held-out clips has not fallen for too long."""
        patience = self.config.early_stopping_patience
        return bool(patience) and self.standing.since >= patience

    def _track(self) -> Track:
        """Starts the trackers that are asked for; gives what tells them of values."""
        if not self.config.log_with:
            return lambda values, step: None
        facts = {
            name: value if isinstance(value, int | float | str) else str(value)
            for name, value in self.config.model_dump().items()
        }
        self.accelerator.init_trackers("medgen", facts)
        return lambda values, step: self.accelerator.log(dict(values), step)

    def _load(self, indices: Sequence[int], step: int) -> list[dict[str, Tensor]]:
        """The forward passes of this process in one optimiser step."""
        config, rank = self.config, self.accelerator.process_index // self.degree
        size, processes = config.train_batch_size, self.accelerator.num_processes // self.degree
        batches = []
        for turn in range(config.gradient_accumulation_steps):
            start = (turn * processes + rank) * size
            items = [(place, self.train.near(indices[place])[1]) for place in range(start, start + size)]
            batches.append(batch_of(items, step, config, self.empty, self.family, self.expert))
        return batches

    def _train_step(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        """One optimiser step; its row of the curve."""
        config = self.config
        rate = config.learning_rate * self.lr_factor(self.step)
        set_rate(self.optimizer, rate)
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
        if (self.step + 1) % config.validation_steps == 0:
            self._show_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.step([p for _, p in self.trainable()])
        return {"step": self.step + 1, "loss": mean, "lr": rate, "grad_norm": norm}

    def _gradients(self, batches: Sequence[Mapping[str, Tensor]]) -> tuple[float, float]:
        """Fills the gradients of this step, clipped; mean loss and norm before clipping. Same step, same result."""
        config, accelerator = self.config, self.accelerator
        torch.manual_seed(stream_seed(config.seed, "dropout", self.step, accelerator.process_index))
        losses = []
        for turn, batch in enumerate(batches):
            last = turn == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.model), accelerator.autocast():
                loss = losses_of(self.model, batch, accelerator.device, self.family)
                accelerator.backward(scaled(loss.mean() / len(batches), self.degree))
            losses.append(loss.detach())
        norm = accelerator.clip_grad_norm_([p for _, p in self.trainable()], config.max_grad_norm)
        mean = float(accelerator.reduce(torch.cat(losses).mean(), "mean"))
        return mean, float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _show_gradients(self) -> None:
        """A histogram of the norms of the weights' gradients; every process takes part where they are sharded."""
        norms = [p.grad.detach().float().norm() for _, p in self.trainable() if p.grad is not None]
        whole = [float(norm.full_tensor() if isinstance(norm, DTensor) else norm) for norm in norms]
        if self.curves:
            self.curves.add_gradients(torch.tensor(whole), self.step + 1)

    # --- validation ---

    def _validate(self) -> None:
        """Loss on held-out and as many training clips, with the weights that would be delivered; prompts as videos."""
        with self._delivered_weights():
            how = (self.config, self.accelerator, self.family, self.expert)
            held_out = fixed_loss(self.model, self.held_out, *how)
            train = fixed_loss(self.model, self.train, *how, max(1, len(self.held_out)))
            loss = held_out[0] if held_out else None
            row = {
                "step": self.step,
                "loss": loss,
                "train_loss": train[0] if train else None,
                "by_sigma": held_out[1] if held_out else {},
                "by_category": held_out[2] if held_out else {},
            }
            videos = self._prompt_videos()
            self._keep_best(loss)
        if self.curves:
            self.curves.add_validation(row, videos)
            self.report({"event": "validation", **row, "videos": [str(path) for path in videos]})

    def _keep_best(self, loss: float | None) -> None:
        """Keeps the weights that would be delivered, if none were better before."""
        self.standing = self.standing.after(self.step, loss)
        if self.config.deliver == "best" and self.standing.step == self.step and self.step:
            group = dict(self.trainable())
            folder, standing = self.job.folder, self.standing

            def write() -> None:
                write_weights(best_weights(folder), group)
                write_facts(folder, standing)

            self._main_writes(write, {"weights": group})

    def _prompt_videos(self) -> list[Path]:
        """The validation prompts as videos; every process takes part where weights are sharded."""
        sharded = self.sharded or self.degree > 1
        videos: list[Path] = []
        if self.config.validation_prompts and (self.accelerator.is_main_process or sharded):
            from models.training.validation_videos import PromptVideos

            if not hasattr(self, "prompts"):
                self.prompts = PromptVideos(self.base, self.config, self.empty, self.accelerator.device, self.family)
            bare = self.accelerator.unwrap_model(self.model) if not sharded else self.model
            folder = self.job.folder / "videos" / f"step-{self.step:08d}"
            with self.accelerator.autocast():
                videos = self.prompts.make(bare, folder, write=self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()
        return videos

    @contextmanager
    def _delivered_weights(self) -> Iterator[None]:
        """The moving average in the model's place, where there is one."""
        if self.ema is None:
            yield
            return
        weights = [p for _, p in self.trainable()]
        self.ema.store(weights)
        self.ema.copy_to(weights)
        try:
            yield
        finally:
            self.ema.restore(weights)

    # --- checkpoints ---

    def save(self) -> Path | None:
        """Writes a checkpoint (the main process does; all take part in gathering shards, one tensor at a time)."""
        tensors: dict[str, dict[str, Tensor]] = {"weights": {}, "ema": {}, "optimizer": {}}
        for place, (name, weight) in enumerate(self.trainable()):
            tensors["weights"][name] = weight
            if self.ema:
                tensors["ema"][name] = self.ema.shadow_params[place]
            tensors["optimizer"] |= {f"{name}.{key}": v for key, v in state_of(self.optimizer, weight).items()}
        written = None

        def write() -> None:
            nonlocal written
            parent, limit = self.job.folder / "checkpoints", self.config.checkpoints_total_limit
            written = write_checkpoint(parent, self.step, tensors, self.job.facts(), limit)
            self.report({"event": "checkpoint", "step": self.step, "folder": str(written)})

        self._main_writes(write, tensors)
        return written

    def _main_writes(self, write: Callable[[], None], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The main process writes what all gather; its failure is everyone's."""
        errors: list[RunStopped | None] = [None]
        if self.accelerator.is_main_process:
            try:
                write()
            except RunStopped as error:
                errors = [error]
        else:
            take_part(tensors)
        if self.accelerator.num_processes > 1:
            broadcast_object_list(errors)
        if errors[0] is not None:
            raise errors[0]

    def _resume(self) -> None:
        """Goes on from the newest whole checkpoint; each process reads its own shards of it."""
        folder = self.job.folder / "checkpoints"
        checkpoint = newest_checkpoint(folder, self.job.facts(), self.config.max_train_steps)
        if checkpoint is None:
            return
        weights, averages = checkpoint.tensors("weights"), checkpoint.tensors("ema")
        moments: dict[str, dict[str, StoredTensor]] = {}
        for key, stored in checkpoint.tensors("optimizer").items():
            name, _, kind = key.rpartition(".")
            moments.setdefault(name, {})[kind] = stored
        try:
            with torch.no_grad():
                for place, (name, weight) in enumerate(self.trainable()):
                    fill(weight, weights[name])
                    if self.ema:
                        fill(self.ema.shadow_params[place], averages[name])
                    restore_state(self.optimizer, weight, moments[name])
        except (KeyError, RuntimeError) as error:
            raise TrainingStopped(
                f"{checkpoint.folder} does not fit this model ({error}): it was written for another base or adapter; "
                "train in another folder"
            ) from error
        if self.ema:
            self.ema.optimization_step = checkpoint.step
        self.step = checkpoint.step
        log.info("going on from step %d (%s)", checkpoint.step, checkpoint.folder)
        self.report({"event": "resumed", "step": checkpoint.step, "folder": str(checkpoint.folder)})

    # --- the result ---

    def _deliver(self) -> Trained:
        """Writes the model folder and gathers what the run made."""
        folder = self.job.folder
        trained = folder / "trained.safetensors"
        with self._delivered_weights():
            group = dict(self.trainable())
            self._main_writes(partial(write_weights, trained, group), {"weights": group})
        quarantined = {**self.train.quarantined, **self.held_out.quarantined}
        of_processes = [quarantined]
        if self.accelerator.num_processes > 1:
            of_processes = gather_object([quarantined])
        quarantined = {clip: why for of_process in of_processes for clip, why in sorted(of_process.items())}
        if self.accelerator.is_main_process:
            if self.curves:
                self.curves.close()
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.report({"event": "delivering"})
            bare = self.accelerator.unwrap_model(self.model)
            best = self.config.deliver == "best" and read_facts(folder)
            delivered = stored_tensors(best_weights(folder) if best else trained)
            deliver_model(self.base, folder / "model", self.config, self.family, bare, delivered)
            trained.unlink()
            (folder / "quarantined.json").write_text(json.dumps(quarantined, indent=1) + "\n")
        self.accelerator.wait_for_everyone()
        return Trained(
            model=folder / "model",
            steps=self.step,
            resumed_from=self.resumed_from,
            curve=read_rows(folder / LOSSES),
            validations=read_rows(folder / VALIDATION),
            quarantined=quarantined,
            train_clips=len(self.train),
            held_out_clips=len(self.held_out),
            videos=sorted((folder / "videos").rglob("*.mp4")),
        )


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
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor


def _finite(*numbers: float) -> bool:
    return all(map(math.isfinite, numbers))
